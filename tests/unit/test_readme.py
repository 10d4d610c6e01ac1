"""The README and the pages beside it say nothing that is not so: snippets run, links lead somewhere, commands exist."""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
from contextlib import asynccontextmanager
from pathlib import Path

import click
import numpy as np
import pytest
import trio
import trio.testing

import p2pcompute
from p2pcompute import errors
from p2pcompute.testing import InlineWorkers, MemoryNetwork, open_simulated_node, simulated_chain
from p2pcompute_cli.main import cli

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")


def name(page):
    return str(page.relative_to(ROOT))


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def prose(page):
    """A page without its blocks of code."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def code(page):
    """Everything on a page that is set as code."""
    return "\n".join([*BLOCK.findall(page.read_text(encoding="utf-8")), *re.findall(r"`([^`\n]+)`", prose(page))])


# Snippets


@asynccontextmanager
async def simulated(**options):
    """A node on a network of its own with one provider, in place of `open_node`."""
    assert not options
    network, chain = MemoryNetwork(latency_s=0.01), simulated_chain()
    async with (
        open_simulated_node(network, chain, workers=InlineWorkers(chunk_s=0.01)) as provider,
        open_simulated_node(network, chain, workers=InlineWorkers(chunk_s=0.01)) as node,
        trio.open_nursery() as nursery,
    ):
        await node.services.overlay.connect(provider.addresses[0])
        await nursery.start(provider.serve)
        yield node
        nursery.cancel_scope.cancel()


def under_virtual_time(async_function, *args):
    return virtual_run(async_function, *args, clock=trio.testing.MockClock(autojump_threshold=0))


virtual_run = trio.run  # what `trio.run` was before a test put the virtual one in its place


def run_simulated(kernel, *args, **options):
    """`p2pcompute.run` on the simulated network."""

    async def main():
        async with simulated() as node:
            return await node.run(kernel, *args, **options)

    return under_virtual_time(main)


def run_file(tmp_path, text):
    """Run a snippet from a file, as a reader would: kernels are captured from their source."""
    path = tmp_path / "snippet.py"
    path.write_text(text, encoding="utf-8")
    return runpy.run_path(str(path), run_name="__main__")


def test_the_ten_lines_give_what_the_readme_says(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(p2pcompute, "run", run_simulated)
    ten = blocks(ROOT / "README.md", "python")[0]
    names = run_file(tmp_path, ten)
    np.testing.assert_array_equal(names["z"], np.float32(2) * names["x"] + names["y"])
    assert capsys.readouterr().out == blocks(ROOT / "README.md", "text")[0]


def test_the_asynchronous_form_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(p2pcompute, "open_node", simulated)
    monkeypatch.setattr(trio, "run", under_virtual_time)
    ten, asynchronous = blocks(ROOT / "README.md", "python")
    kernel = ten[: ten.index("\nx = ")]
    run_file(tmp_path, f"{kernel}\n{asynchronous}")
    printed = capsys.readouterr().out.splitlines()
    assert sorted(line.split(" from ")[0] for line in printed) == [f"{index} of 8" for index in range(8)]


@pytest.mark.parametrize(
    ("page", "at"), [(page, at) for page in PAGES for at in range(len(blocks(page, "python")))], ids=str
)
def test_every_snippet_compiles(page, at):
    compile(blocks(page, "python")[at], f"{page}:{at}", "exec")


def test_the_network_in_a_test_runs(tmp_path, capsys):
    (snippet,) = blocks(ROOT / "CONTRIBUTING.md", "python")
    run_file(tmp_path, snippet)
    assert capsys.readouterr().out == "[1. 3. 5. 7.]\n"


# Links


def anchors(page):
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ +(.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page):
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in target]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert there.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(there), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_exist(page):
    """`tests/unit/…`, `p2pcompute/….py` and the like, where they are set as code."""
    named = set(
        re.findall(r"(?<![\w/<.])(?:tests|p2pcompute|protocols|cli|testnet|scripts|docs)/[\w./-]*\w", code(page))
    )
    for path in named:
        assert (ROOT / path).exists(), path
    modules = set(re.findall(r"(?<![\w./])p2pcompute(?:_protocols|_cli|_testnet)?(?:\.[a-z_]\w*)+", code(page)))
    for dotted in modules - {"p2pcompute.programs"}:  # a group of entry points
        importable(dotted)


def importable(dotted):
    """A module, or what a module has."""
    parts = dotted.split(".")
    found = importlib.import_module(parts[0])
    for at, part in enumerate(parts[1:], 2):
        try:
            found = importlib.import_module(".".join(parts[:at]))
        except ModuleNotFoundError:
            found = getattr(found, part)


# Commands


def commands(page):
    """`p2pcompute …` lines, as words. What is fenced as text is said by a program, or signed, and no command."""
    said = {line for block in blocks(page, "text") for line in block.splitlines()}
    for line in code(page).splitlines():
        if line in said:
            continue
        line = line.partition(" #")[0].strip()
        if re.match(r"p2pcompute [a-z]", line):
            yield shlex.split(line.replace("…", ""))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist_with_their_options(page):
    for words in commands(page):
        command, rest = cli, words[1:]
        context = click.Context(cli, info_name="p2pcompute")
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            verb, *rest = rest
            found = command.get_command(context, verb)
            assert found is not None, words
            command, context = found, click.Context(found, parent=context, info_name=verb)
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= known, words


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_make_targets_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    assert set(re.findall(r"^make ([a-z][a-z-]*)", code(page), re.MULTILINE)) <= targets


# Tables


def leaves(cls=errors.P2PComputeError):
    return {cls, *(found for sub in cls.__subclasses__() for found in leaves(sub))}


def test_exit_codes_are_those_of_the_errors():
    rows = dict(re.findall(r"^\| (\d+) \| `(\w+)`", README, re.MULTILINE))
    real = {
        str(cls.exit_code): cls.__name__
        for cls in errors.P2PComputeError.__subclasses__()
        if cls.__module__ == errors.__name__
    }
    assert rows == {code: title for code, title in real.items() if code != "1"}


def test_defaults_that_the_readme_names():
    options = p2pcompute.RunOptions()
    assert options.budget == "0.10 USD"
    assert options.samples == 256
    assert p2pcompute.ProviderOptions().price == "0.05 USD"
    assert p2pcompute.ProviderOptions().credit.provider_uusd == 1_000_000


def test_the_system_packages_are_those_that_are_checked():
    (named,) = re.findall(r"Debian packages `([^`]+)`", README)
    script = (ROOT / "scripts/check-system.sh").read_text(encoding="utf-8")
    assert set(named.split()) <= set(re.findall(r"[\w-]+", script))
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert f"apt-get install -y -qq {named}" in ci
