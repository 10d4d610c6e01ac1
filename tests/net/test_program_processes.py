"""A program between real processes: one lends it, another asks for it, over sockets on loopback."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ..unit.execution._program_site import install, install_example
from ._programs import Program

pytestmark = pytest.mark.net

ASK = """
import numpy as np
import p2pcompute as p2p

IMAGES = 96
rng = np.random.default_rng(5)
images = rng.integers(0, 256, (IMAGES, 64), dtype=np.uint8)
hidden, hidden_bias = rng.integers(-128, 128, (64, 16), dtype=np.int8), rng.integers(-9, 9, 16, dtype=np.int32)
last, bias = rng.integers(-128, 128, (16, 5), dtype=np.int8), rng.integers(-9, 9, 5, dtype=np.int32)
infer = p2p.program("infer")
outs = p2p.out(IMAGES, np.uint8), p2p.out((IMAGES, 5), np.int32)
label, scores = p2p.run(infer[IMAGES], *outs, images, hidden, hidden_bias, last, bias, chunks=6)

wide = [array.astype(np.int64) for array in (images, hidden, hidden_bias, last, bias)]
due = np.clip(np.maximum(wide[0] @ wide[1] + wide[2], 0) >> 8, 0, 127) @ wide[3] + wide[4]
print("equal" if np.array_equal(scores, due) and np.array_equal(label, due.argmax(axis=1)) else "DIFFERENT")
"""

COUNT = """
import os

def total(index, out, scale):
    where = os.environ["P2PCOMPUTE_PROGRAM_DATA"]
    with open(os.path.join(where, "patients")) as file:
        out[...] = scale * sum(int(line) for line in file)
"""

ASK_PRIVATE = """
import sys
import numpy as np
import p2pcompute as p2p

total = p2p.program("clinic:total", version="1", digest=sys.argv[1])
print(p2p.run(total[1], p2p.out(1, np.int64), 10, check="none", item_s=0.01).tolist())
"""


@pytest.fixture
def ask(start: Callable[..., Program]) -> Callable[..., Program]:
    """Starts commands; `site` is on the path of those that are told so."""

    def make(*args: str, site: Path | None = None) -> Program:
        paths = [str(site)] if site is not None else []
        paths += [path for path in (os.environ.get("PYTHONPATH"),) if path]
        return start(*args, PYTHONPATH=os.pathsep.join(paths))

    return make


def test_one_allows_a_program_and_another_has_it_run(ask: Callable[..., Program], tmp_path: Path) -> None:
    site, clinic, data = tmp_path / "site", tmp_path / "clinic", tmp_path / "data"
    install_example(site)
    install(clinic, "clinic", "1", {"clinic.py": COUNT}, {"total": "clinic:total"})
    install_example(clinic)
    data.mkdir()
    (data / "patients").write_text("20\n22\n")
    (tmp_path / "ask.py").write_text(ASK)
    (tmp_path / "ask_private.py").write_text(ASK_PRIVATE)

    listed = ask("programs", "--json", site=clinic)
    assert listed.end() == 0
    digests = {program["name"]: program["digest"] for program in listed.lines}
    assert set(digests) == {"infer", "local-step", "total"}

    allowed = ("--allow-program", "infer", "--allow-program", "clinic:total", "--program-data", f"clinic:total={data}")
    provider = ask("up", "--json", *allowed, site=clinic)
    ready = provider.wait_event("ready")
    assert {program["name"] for program in ready["programs"]} == {"infer", "total"}

    # A requester with the same files, elsewhere: samples are run again here.
    script = ask("run", "--json", "--profile", "mine", str(tmp_path / "ask.py"), site=site)
    assert script.end() == 0, script.said
    assert script.said == "equal\n"
    done = script.events("chunk-done")
    assert {event["index"] for event in done} == set(range(6))
    assert all(event["checked"] == 2 for event in done)  # an eighth of 16 items
    (summary,) = script.events("summary")
    assert summary["paid_uusd"] > 0

    # One without it, for data that only the provider has: nothing is checked, and both have signed that.
    private = ask("run", "--json", "--profile", "mine", str(tmp_path / "ask_private.py"), digests["total"])
    assert private.end() == 0, private.said
    assert private.said == "[420]\n"

    # One with other files.
    install_example(site, extra="\n# a change\n")
    other = ask("run", "--json", "--profile", "mine", str(tmp_path / "ask.py"), site=site)
    assert other.end() == 5
    assert "its program infer is another one" in other.said

    status = ask("status", "--json")
    assert status.end() == 0
    told = {program["name"]: program for program in status.lines[0]["provider"]["programs"]}
    assert told["infer"]["digest"] == digests["infer"]
    assert (told["infer"]["data"], told["total"]["data"]) == (None, str(data.resolve()))

    refused = ask("up", "--json", "--profile", "second", "--allow-program", "infer")
    assert refused.end() == 13
    assert [event["error"] for event in refused.events("error")] == ["ProgramError"]
