"""A hire between real processes: a sandboxed worker is given each call's inputs, and a sample of ours as well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ._programs import Program

pytestmark = pytest.mark.net

CALLS = """
import threading
import numpy as np
import p2pcompute as p2p
from p2pcompute import cuda


@p2p.kernel
def saxpy(out, a, x, y):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = a * x[i] + y[i]


if __name__ == "__main__":
    x = np.arange(3000, dtype=np.float32)
    found = {}
    with p2p.hire(saxpy, p2p.out(x.shape, x.dtype), np.float32(2), x, x, chunks=2) as hired:
        for k in range(3):
            found[k] = hired.run(np.float32(k), x, x * k)
        threads = [
            threading.Thread(target=lambda k=k: found.update({k: hired.run(np.float32(k), x, x * k)}))
            for k in range(3, 8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        try:
            hired.run(np.float32(1), x)
        except p2p.KernelError as error:
            print(error.reason)
    print("equal" if all(np.array_equal(found[k], 2 * k * x) for k in range(8)) else "DIFFERENT")
    try:
        hired.run(np.float32(1), x, x)
    except p2p.TaskError as error:
        print(error)
"""


def test_a_script_hires_a_provider_and_calls_it(start: Callable[..., Program], tmp_path: Path) -> None:
    (tmp_path / "calls.py").write_text(CALLS)
    provider = start("up", "--json")
    provider.wait_event("ready")
    script = start("run", "--json", str(tmp_path / "calls.py"))
    assert script.end() == 0, script.said
    assert script.said.splitlines() == [
        "2 inputs are given and the hired kernel takes 3",
        "equal",
        "this hire has ended; hire again",
    ]
    # One agreement, unless the machine stands still for so long that the provider takes it for idle.
    assert script.events("agreed")
    done = script.events("chunk-done")
    assert len(done) >= 16
    assert all(event["checked"] for event in done)
