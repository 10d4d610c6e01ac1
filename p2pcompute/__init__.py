"""A peer-to-peer market of GPU compute: a plain Python function is the task.

    import numpy as np, p2pcompute as p2p
    from p2pcompute import cuda

    @p2p.kernel
    def saxpy(out, a, x, y):
        i = cuda.grid(1)
        if i < out.size:
            out[i] = a * x[i] + y[i]

    z = p2p.run(saxpy, p2p.out(y.shape, y.dtype), np.float32(2), x, y, budget="0.01 USD")

Names are loaded when they are first used: importing this package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import cuda as cuda
    from . import errors as errors
    from . import events as events
    from . import random as random
    from ._hired import Hired as Hired
    from ._hired import HireOptions as HireOptions
    from ._inout import inout as inout
    from ._matmul import matmul as matmul
    from ._matmul import matmul_on as matmul_on
    from ._program import Program as Program
    from ._program import program as program
    from ._requester import Chunk as Chunk
    from ._requester import RunOptions as RunOptions
    from ._rounds import Round as Round
    from ._rounds import RoundOptions as RoundOptions
    from ._rounds import new as new
    from ._rounds import round_number as round_number
    from ._rounds import state as state
    from ._rounds import step as step
    from ._serving import ProviderOptions as ProviderOptions
    from ._split import Split as Split
    from ._split import split as split
    from ._sync import iterate as iterate
    from ._sync import run as run
    from ._sync_hire import HiredHere as HiredHere
    from ._sync_hire import hire as hire
    from .errors import BudgetError as BudgetError
    from .errors import KernelError as KernelError
    from .errors import NoProviderError as NoProviderError
    from .errors import P2PComputeError as P2PComputeError
    from .errors import ProgramError as ProgramError
    from .errors import TaskError as TaskError
    from .kernel import Kernel as Kernel
    from .kernel import device as device
    from .kernel import kernel as kernel
    from .kernel import out as out
    from .kernel import reduce as reduce
    from .node import Node as Node
    from .node import open_node as open_node

__version__ = "0.1.0"

__all__ = [
    "BudgetError",
    "Chunk",
    "HireOptions",
    "Hired",
    "HiredHere",
    "Kernel",
    "KernelError",
    "NoProviderError",
    "Node",
    "P2PComputeError",
    "Program",
    "ProgramError",
    "ProviderOptions",
    "Round",
    "RoundOptions",
    "RunOptions",
    "Split",
    "TaskError",
    "__version__",
    "cuda",
    "device",
    "errors",
    "events",
    "hire",
    "inout",
    "iterate",
    "kernel",
    "matmul",
    "matmul_on",
    "new",
    "open_node",
    "out",
    "program",
    "random",
    "reduce",
    "round_number",
    "run",
    "split",
    "state",
    "step",
]

_HOME = {
    "BudgetError": "errors",
    "Chunk": "_requester",
    "HireOptions": "_hired",
    "Hired": "_hired",
    "HiredHere": "_sync_hire",
    "Kernel": "kernel",
    "KernelError": "errors",
    "NoProviderError": "errors",
    "Node": "node",
    "P2PComputeError": "errors",
    "Program": "_program",
    "ProgramError": "errors",
    "ProviderOptions": "_serving",
    "Round": "_rounds",
    "RoundOptions": "_rounds",
    "RunOptions": "_requester",
    "Split": "_split",
    "TaskError": "errors",
    "device": "kernel",
    "hire": "_sync_hire",
    "inout": "_inout",
    "iterate": "_sync",
    "kernel": "kernel",
    "matmul": "_matmul",
    "matmul_on": "_matmul",
    "new": "_rounds",
    "open_node": "node",
    "out": "kernel",
    "program": "_program",
    "reduce": "kernel",
    "round_number": "_rounds",
    "run": "_sync",
    "split": "_split",
    "state": "_rounds",
    "step": "_rounds",
}
_MODULES = frozenset({"cuda", "errors", "events", "random"})


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # `kernel` names a function and the module that holds it; the import binds the module, so bind the name anew.
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
