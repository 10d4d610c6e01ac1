"""Programs on a market: found, agreed on to the last byte, run, sampled and paid as kernels are."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute._dialogue import Dialogue
from p2pcompute._program_run import allowed_programs
from p2pcompute.errors import ChunkFailed, ConfigError, KernelTypeError, NoProviderError, ProgramError, SandboxError
from p2pcompute.market import OrderRefused
from p2pcompute.node import Node
from p2pcompute.tasks import Agreed, ChunkDone, LiarCaught, ProviderRefused, TaskStarted
from p2pcompute.testing import InlineWorkers
from p2pcompute_protocols import negotiation, task
from p2pcompute_protocols.connection import Role
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.negotiation import CheckPolicy, Terms
from p2pcompute_protocols.task import Open, TaskConnection
from p2pcompute_protocols.work import OutArg, ProgramWork

from ..execution._program_site import install, install_example, on_path
from ..market._harness import Market, Watch, Z, compute, in_memory
from ..market._rogues import NETWORK, open_rogue
from ._attacks import refused

IMAGES = 40


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example, installed for all nodes of this process."""
    install_example(tmp_path)
    on_path(monkeypatch, tmp_path)
    yield tmp_path
    for name in ("tiny_learner", "soft_steps"):
        sys.modules.pop(name, None)


def arrays() -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(3)
    return [
        rng.integers(0, 256, (IMAGES, 64), dtype=np.uint8),
        rng.integers(-128, 128, (64, 16), dtype=np.int8),
        rng.integers(-9, 9, 16, dtype=np.int32),
        rng.integers(-128, 128, (16, 5), dtype=np.int8),
        rng.integers(-9, 9, 5, dtype=np.int32),
    ]


def expected() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    images, hidden, hidden_bias, last, bias = (array.astype(np.int64) for array in arrays())
    inner = np.clip(np.maximum(images @ hidden + hidden_bias, 0) >> 8, 0, 127)
    scores = inner @ last + bias
    return scores.argmax(axis=1).astype(np.uint8), scores.astype(np.int32)


async def infer(node: Node, program: Any = None, **options: Any) -> tuple[Any, Any]:
    program = program or p2p.program("infer")
    outs = p2p.out(IMAGES, np.uint8), p2p.out((IMAGES, 5), np.int32)
    found = await node.run(program[IMAGES], *outs, *arrays(), **{"chunks": 8, **options})
    assert isinstance(found, tuple)
    return found


async def terms_of(node: Node, watch: Watch) -> list[Terms]:
    """The terms of all agreements of a run, as the ledger keeps them."""
    found: list[Terms] = []
    for event in watch.of(Agreed):
        row = await node.services.ledger.agreement(event.task)
        assert row is not None
        agreement = negotiation.open_agreement(
            row.raw, network=NETWORK, requester=node.peer_id, provider=event.provider
        )
        found.append(agreement.terms)
    return found


def right(found: tuple[Any, Any]) -> bool:
    return all(np.array_equal(mine, due) for mine, due in zip(found, expected(), strict=True))


def test_a_program_runs_where_its_owner_allows_it_and_is_sampled() -> None:
    async def scenario(market: Market) -> None:
        first = await market.provider(programs=["infer"])
        second = await market.provider(programs=["tiny-learner:infer", "infer", "local-step"])
        node = await market.node(connect=(first, second))
        watch = Watch()
        assert right(await infer(node, on_event=watch))
        done = watch.of(ChunkDone)
        assert {event.index for event in done} == set(range(8))
        assert {event.checked for event in done} == {1}  # of a chunk's five items
        assert {event.provider for event in done} == {first.peer_id, second.peer_id}
        for terms in await terms_of(node, watch):
            assert isinstance(terms.work, ProgramWork)
            assert terms.work.program == p2p.program("infer").ref
            assert (terms.work.items, terms.work.items_per_chunk) == (IMAGES, 5)
            assert terms.check == CheckPolicy(kind="sample", per_chunk=1)
        assert await market.spent_uusd(node) > 0
        assert await market.claimed_uusd(first) + await market.claimed_uusd(second) == await market.spent_uusd(node)

    in_memory(scenario)


def test_more_samples_and_none_stand_in_the_agreement() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(programs=["infer"])
        node = await market.node(connect=(provider,))
        for options, policy, checked in (
            ({"samples": 1_000}, CheckPolicy(kind="sample", per_chunk=5), 5),
            ({"samples": 2}, CheckPolicy(kind="sample", per_chunk=2), 2),
            ({"check": "none"}, CheckPolicy(kind="none", per_chunk=0), 0),
            ({"samples": 0}, CheckPolicy(kind="none", per_chunk=0), 0),
            ({"check": "none", "item_s": 0.01}, CheckPolicy(kind="none", per_chunk=0), 0),
        ):
            watch = Watch()
            assert right(await infer(node, on_event=watch, **options))
            assert {event.checked for event in watch.of(ChunkDone)} == {checked}
            (terms,) = await terms_of(node, watch)
            assert terms.check == policy
            (agreed,) = watch.of(Agreed)
            assert agreed.check == policy.kind
            assert (agreed.requester_max_loss_uusd == terms.ceiling_uusd) == (policy.kind == "none")

    in_memory(scenario)


def test_chunks_come_as_runs_of_items() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(programs=["infer"])
        node = await market.node(connect=(provider,))
        seen: set[int] = set()
        outs = p2p.out(IMAGES, np.uint8), p2p.out((IMAGES, 5), np.int32)
        async for chunk in node.map(p2p.program("infer"), *outs, *arrays(), chunks=3):
            items = range(chunk.first_block, chunk.first_block + chunk.blocks)
            assert [rows.shape for rows in chunk.rows] == [(chunk.blocks,), (chunk.blocks, 5)]
            assert np.array_equal(chunk.rows[1], expected()[1][items.start : items.stop])
            seen |= set(items)
        assert seen == set(range(IMAGES))

    in_memory(scenario)


def test_a_program_that_is_not_installed_here_runs_unchecked_and_only_so(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = p2p.program("infer").ref

    async def scenario(market: Market) -> None:
        provider = await market.provider(programs=["infer"])
        node = await market.node(connect=(provider,))
        monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(site)])
        with pytest.raises(ProgramError, match="no program infer is installed here"):
            p2p.program("infer")
        program = p2p.program("tiny-learner:infer", version=pinned.version, digest=pinned.digest.hex())
        assert program.installed is None
        with pytest.raises(ProgramError, match="can't be checked; install the distribution, or trust"):
            await infer(node, program)
        with pytest.raises(ProgramError, match="can't be timed; say how many seconds"):
            await infer(node, program, check="none")
        assert right(await infer(node, program, check="none", item_s=0.002))

    in_memory(scenario)


def test_nobody_who_allows_it_is_an_error_within_two_seconds() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(programs=["local-step"])
        node = await market.node(connect=(provider,))
        began = trio.current_time()
        with pytest.raises(NoProviderError) as caught:
            await infer(node)
        assert trio.current_time() - began < 2
        assert "it does not offer the program infer" in str(caught.value)
        assert "`p2pcompute up --allow-program tiny-learner:infer`" in str(caught.value)
        assert "No money has moved" in str(caught.value)
        assert market.chain.minted_uusd == 0

    in_memory(scenario)


def test_other_files_under_the_same_name_are_said_on_both_sides(site: Path) -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(programs=["infer"])
        node = await market.node(connect=(provider,))
        theirs = p2p.program("infer").ref
        install_example(site, extra="\n# a change\n")
        mine = p2p.program("infer").ref
        assert dataclasses.replace(mine, digest=theirs.digest) == theirs
        with pytest.raises(NoProviderError, match="its program infer is another one") as caught:
            await infer(node)
        assert mine.feature[-16:] in str(caught.value)
        assert theirs.feature[-16:] in str(caught.value)

    in_memory(scenario)


def work_on(program: Any) -> ProgramWork:
    return ProgramWork(
        program=program,
        items=4,
        args=(OutArg(dtype="uint8", shape=(4,)),),
        items_per_chunk=4,
        units_per_chunk=10_000,
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"digest": bytes(32)}, r"you ask for infer of tiny-learner 1\.0 \(files 0{16}\) and we run infer of tiny-l"),
        ({"version": "1.1"}, r"you ask for infer of tiny-learner 1\.1 .* and we run infer of tiny-learner 1\.0"),
        ({"distribution": "other"}, r"you ask for infer of other 1\.0 .* and we run infer of tiny-learner 1\.0"),
        ({"name": "local-step"}, "we run no program local-step"),
    ],
    ids=str,
)
def test_whoever_orders_past_the_ads_is_refused(change: dict[str, Any], match: str) -> None:
    """A feature is a hint, and an order may leave it out: what the order's work names is compared, all of it."""

    async def scenario(market: Market) -> None:
        provider = await market.provider(programs=["infer"])
        async with open_rogue(market, connect=(provider,)) as rogue:
            allowed = p2p.program("infer").ref
            assert (await rogue.agree(provider, work_on(allowed))).terms.work == work_on(allowed)
            with pytest.raises(OrderRefused, match=match) as caught:
                await rogue.agree(provider, work_on(dataclasses.replace(allowed, **change)))
            assert caught.value.code == WireCode.UNSUPPORTED

    in_memory(scenario)


def test_nothing_is_allowed_where_nothing_is_said() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        async with open_rogue(market, connect=(provider,)) as rogue:
            with pytest.raises(OrderRefused, match="we run no program infer"):
                await rogue.agree(provider, work_on(p2p.program("infer").ref))

    in_memory(scenario)


def test_a_program_that_was_taken_back_is_not_run_under_an_old_agreement() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.node()
        async with open_rogue(market) as rogue:
            async with trio.open_nursery() as nursery:
                await nursery.start(_serve, provider, ["infer"])
                await rogue.overlay.connect(provider.addresses[0])
                agreement = await rogue.agree(provider, work_on(p2p.program("infer").ref))
                nursery.cancel_scope.cancel()
            async with trio.open_nursery() as nursery:
                await nursery.start(_serve, provider, [])
                stream = await rogue.overlay.open_stream(provider.peer_id, task.PROTOCOL_ID)
                dialogue = Dialogue(TaskConnection(Role.REQUESTER), stream)
                await dialogue.send(Open(agreement=agreement.raw))
                await refused(dialogue, WireCode.UNSUPPORTED)
                nursery.cancel_scope.cancel()

    in_memory(scenario)


async def _serve(node: Node, programs: list[str], *, task_status: trio.TaskStatus[Any]) -> None:
    await node.serve(programs=programs, task_status=task_status)


def lie(output: bytes, index: int) -> bytes:
    return bytes(len(output)) if index else output


@pytest.mark.parametrize("check", ["sample", "none"])
def test_who_makes_up_results_is_caught_by_samples_and_by_nothing_else(check: str) -> None:
    async def scenario(market: Market) -> None:
        liar = await market.provider(programs=["infer"], fault=lie, price="0.01 USD")
        node = await market.node(connect=(liar,))
        if check == "sample":
            await node.services.overlay.connect((await market.provider(programs=["infer"])).addresses[0])
        watch = Watch()
        found = await infer(node, check=check, on_event=watch, max_providers=2)
        assert right(found) == (check == "sample")
        assert bool(watch.of(LiarCaught)) == (check == "sample")

    in_memory(scenario)


BROKEN = """
def step(index, out):
    if index == 7:
        raise ValueError("no such shard")
    out[...] = index
"""


def put_step(site: Path, text: str) -> None:
    install(site, "soft-steps", "1", {"soft_steps.py": text}, {"step": "soft_steps:step"})


def test_an_item_that_fails_everywhere_fails_the_task_with_its_reason(site: Path) -> None:
    put_step(site, BROKEN)

    async def scenario(market: Market) -> None:
        providers = [await market.provider(programs=["step"]) for _ in range(2)]
        node = await market.node(connect=tuple(providers))
        with pytest.raises(ChunkFailed, match="item 7: ValueError: no such shard"):
            await node.run(p2p.program("step")[8], p2p.out(8, np.int32), chunks=4, item_s=0.01)

    in_memory(scenario)


def test_a_call_that_the_program_does_not_take_is_refused_here(site: Path) -> None:
    put_step(site, BROKEN)

    async def scenario(market: Market) -> None:
        provider = await market.provider(programs=["step"])
        node = await market.node(connect=(provider,))
        with pytest.raises(KernelTypeError, match="does not take an index and 2 arguments"):
            await node.run(p2p.program("step"), p2p.out(8, np.int32), 1.0)
        wide = p2p.split(np.zeros((8, 2), np.int32), halo=(0, 1))
        with pytest.raises(KernelTypeError, match="along the first axis only"):
            await node.run(p2p.program("step"), p2p.out(8, np.int32), wide)
        assert market.chain.minted_uusd == 0
        # Where nobody can try it here, the provider says it.
        watch = Watch()
        with pytest.raises(p2p.TaskError, match="does not take an index and 2 arguments"):
            await node.run(p2p.program("step"), p2p.out(8, np.int32), 1.0, check="none", item_s=0.01, on_event=watch)
        assert watch.of(ProviderRefused)

    in_memory(scenario)


def test_a_program_is_paid_for_the_one_thread_that_it_has(site: Path) -> None:
    """On a machine of 64 threads a program uses one: measured by the whole machine each chunk would be underpriced."""
    put_step(site, BROKEN)

    async def scenario(market: Market) -> None:
        workers = market.workers(threads=64, chunk_s=4.0)
        provider = await market.provider(
            programs=["step"], workers=workers, node={"score_milli": 64_000}, price="0.36 USD"
        )
        node = await market.node(connect=(provider,))
        watch = Watch()
        found = await node.run(
            p2p.program("step"), p2p.out(3, np.int32), check="none", item_s=4.0, chunks=3, on_event=watch
        )
        assert found.tolist() == [0, 1, 2]
        assert [event.units_per_chunk for event in watch.of(TaskStarted)] == [4_000_000]
        (terms,) = await terms_of(node, watch)
        assert terms.chunk_timeout_ms == 30_000  # eight times four seconds, and what a newcomer may have

    in_memory(scenario)


def test_a_program_that_is_far_costlier_than_said_is_underpriced(site: Path) -> None:
    put_step(site, BROKEN)

    async def scenario(market: Market) -> None:
        provider = await market.provider(programs=["step"], workers=market.workers(chunk_s=4.0))
        node = await market.node(connect=(provider,))
        watch = Watch()
        with pytest.raises(p2p.P2PComputeError, match="underpriced"):
            await node.run(
                p2p.program("step"), p2p.out(3, np.int32), check="none", item_s=0.001, chunks=3, on_event=watch
            )

    in_memory(scenario)


@dataclass(slots=True, kw_only=True)
class Changed(InlineWorkers):
    """As a pool whose program was upgraded while the node runs: no further worker loads it."""

    def session(self, **_: Any) -> Any:
        if self.backend is not None:
            raise SandboxError("the files of tiny-learner 1.0 have changed since the node looked at them")
        return InlineWorkers.session(self)


def test_a_provider_whose_program_was_changed_meanwhile_says_so() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(programs=["infer"], workers=Changed())
        node = await market.node(connect=(provider,))
        watch = Watch()
        with pytest.raises(p2p.TaskError, match="no worker can be had: the files of tiny-learner"):
            await infer(node, on_event=watch)
        assert watch.of(ProviderRefused)
        await node.services.overlay.connect((await market.provider(programs=["infer"])).addresses[0])
        assert right(await infer(node))

    in_memory(scenario)


def test_kernels_can_go_unchecked_by_the_same_word() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        node = await market.node(connect=(provider,))
        watch = Watch()
        assert np.array_equal(await compute(node, watch=watch, check="none"), Z)
        assert {event.checked for event in watch.of(ChunkDone)} == {0}
        assert [terms.check.kind for terms in await terms_of(node, watch)] == ["none"]

    in_memory(scenario)


# -- naming programs ---------------------------------------------------------------------------------------------


def test_a_program_is_named_by_its_function_too(site: Path) -> None:
    put_step(site, BROKEN)
    from soft_steps import step  # type: ignore[import-not-found]

    found = p2p.program(step)
    assert found.ref == p2p.program("step").ref
    assert "soft-steps:step 1, files " in repr(found)
    with pytest.raises(ProgramError, match="as a program; add it to"):
        p2p.program(lie)
    with pytest.raises(TypeError, match=r"start step with p2pcompute\.run\(step\[items\]"):
        found()


@pytest.mark.parametrize(
    ("what", "pin", "match"),
    [
        ("infer", {"version": "1.0"}, "by version and digest together"),
        ("infer", {"version": "1.0", "digest": "00" * 32}, "write distribution:name"),
        ("tiny-learner:infer", {"version": "1.0", "digest": "00"}, "64 hex digits"),
        ("tiny-learner:infer", {"version": "1.0", "digest": "zz" * 32}, "64 hex digits"),
        ("tiny-learner:infer", {"version": "1.0", "digest": "00" * 32}, "is installed here; install the one"),
    ],
)
def test_pins_that_do_not_fit_are_said(what: str, pin: dict[str, str], match: str) -> None:
    with pytest.raises(ProgramError, match=match):
        p2p.program(what, **pin)


def test_a_pin_that_fits_is_the_installed_one() -> None:
    ref = p2p.program("infer").ref
    found = p2p.program("Tiny_Learner:infer", version=ref.version, digest=ref.digest.hex())
    assert found.ref == ref
    assert found.installed is not None


@pytest.mark.parametrize("items", [0, -1, 1.5, True, "8", 2**40 + 1])
def test_what_is_no_number_of_items_is_refused(items: Any) -> None:
    with pytest.raises(KernelTypeError, match="no number of items"):
        p2p.program("infer")[items]


def test_outputs_have_a_row_for_each_item() -> None:
    program = p2p.program("infer")
    with pytest.raises(KernelTypeError, match="there are 8 items; give it 8 rows"):
        program[8].bind(p2p.out(7, np.uint8))
    with pytest.raises(KernelTypeError, match="without an output"):
        program[8].bind(1)
    with pytest.raises(KernelTypeError, match="infer has no output"):
        program.bind(1)
    with pytest.raises(KernelTypeError, match="argument 2 is a str"):
        program.bind(p2p.out(7, np.uint8), "text")
    binding = program.bind(p2p.out(7, np.uint8), 0.1, 3)
    assert [value.dtype.name for value in binding.values] == ["float64", "int64"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"programs": "infer"}, "write a list"),
        ({"programs": [7]}, "write a list"),
        (
            {"programs": ["infer"], "program_data": {"other": "/srv"}},
            r"program_data names 'other', .* allowed \(infer\); name one as",
        ),
        ({"programs": ["infer"], "program_data": ["/srv"]}, "program_data names"),
        ({"programs": [f"p{k}" for k in range(17)]}, "at most 16 names"),
    ],
)
def test_what_is_allowed_is_a_list_of_names(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        p2p.ProviderOptions(**options)


@pytest.mark.parametrize("options", [{"check": "maybe"}, {"item_s": 0}, {"item_s": -1.0}, {"item_s": True}])
def test_options_of_programs_have_their_range(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="write "):
        p2p.RunOptions(**options)


def test_a_provider_that_allows_what_is_not_there_does_not_start() -> None:
    async def scenario(market: Market) -> None:
        node = await market.node()
        with pytest.raises(ProgramError, match="no program nothing is installed here"):
            await node.serve(programs=["nothing"])
        assert node.provider is None

    in_memory(scenario)


def test_status_names_what_is_allowed() -> None:
    from p2pcompute.control._report import node_status

    async def scenario(market: Market) -> None:
        provider = await market.provider(programs=["infer"])
        ref = p2p.program("infer").ref
        status = await node_status(provider)
        assert status["provider"]["programs"] == [
            {
                "name": "infer",
                "distribution": "tiny-learner",
                "version": "1.0",
                "digest": ref.digest.hex(),
                "data": None,
            }
        ]
        entry = provider.services.board.get(provider.peer_id)
        assert entry is not None
        assert entry.ad.features == (ref.feature,)

    in_memory(scenario)


def test_what_reads_the_providers_data_is_not_sold_to_be_sampled(tmp_path: Path) -> None:
    """Whoever repeated an item without the data would take the provider for a liar."""
    (tmp_path / "data").mkdir()

    async def scenario(market: Market) -> None:
        provider = await market.provider(programs=["infer"], program_data={"infer": str(tmp_path / "data")})
        node = await market.node(connect=(provider,))
        with pytest.raises(NoProviderError, match="infer reads data that only we have"):
            await infer(node)
        assert right(await infer(node, check="none"))

    in_memory(scenario)


def test_a_program_is_given_no_directory_that_holds_the_nodes_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "files" / "p2p"
    (home / "profiles").mkdir(parents=True)
    (tmp_path / "files" / "data").mkdir()
    monkeypatch.setenv("P2PCOMPUTE_HOME", str(home))
    (tmp_path / "link").symlink_to(home)
    for directory, match in (
        (tmp_path / "files", "p2p is in there; give it a directory of its own"),
        (home, "is in there"),
        (home / "profiles", "holds this node's files"),
        (tmp_path / "link" / "profiles", "holds this node's files"),
        (Path.home(), "is in there"),
        ("/", "is in there"),
        (tmp_path / "nothing", "is no directory"),
        ("", "is no directory"),
    ):
        with pytest.raises(ConfigError, match=match):
            allowed_programs(["infer"], {"infer": str(directory)})
    data = str(tmp_path / "files" / "data")
    ((program, given),) = allowed_programs(["tiny-learner:infer", "infer"], {"infer": data})
    assert (program.label, given) == ("tiny-learner:infer", data)


def test_a_program_in_fast_mode_is_compared_within_the_tolerance(site: Path) -> None:
    # Of a program there is no strict form: what the requester's own call gives is what others have to come near to.
    text = "def step(index, out, x):\n    out[...] = x[index].sum() / 3\n"
    install(site, "soft-steps", "1", {"soft_steps.py": text}, {"step": "soft_steps:step"})
    x = np.random.default_rng(6).random((32, 8))

    def by(factor: float) -> Any:
        return lambda output, _index: (np.frombuffer(output) * factor).tobytes()

    async def scenario(market: Market) -> None:
        for factor, fp, is_caught in (
            (1 + 1e-10, "fast", False),
            (1 + 1e-8, "fast", True),
            (1 + 1e-10, "strict", True),
        ):
            near = await market.provider(programs=["step"], fault=by(factor), price="0.01 USD")
            exact = await market.provider(programs=["step"])
            node = await market.node(connect=(near, exact))
            for check in ("sample", "quorum"):
                watch = Watch()
                found = await node.run(
                    p2p.program("step")[32],
                    p2p.out(32, np.float64),
                    x,
                    chunks=4,
                    fp=fp,
                    check=check,
                    samples=8,
                    on_event=watch,
                )
                assert np.allclose(found, x.sum(axis=1) / 3, rtol=1e-9)
                if check == "sample":
                    assert bool(watch.of(LiarCaught)) == is_caught, (factor, fp)
            market.kill(near)
            market.kill(exact)

    in_memory(scenario)
