"""Equal kernels are compiled once for all tests of a process, whichever back end asks.

Many tests ask two back ends, of one thread and of two, for the same code, and a back end's functions of mathematics
are compiled for it alone. What is compiled depends on text, types, mode and the functions that it calls, so it is
shared here; what a back end keeps for itself, and when it compiles, is as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def compiled_once() -> Iterator[None]:
    """Share compiled programs, and the functions that they call, among the back ends of this process."""
    from p2pcompute.execution import _cpu
    from p2pcompute.execution._lower_scratch import constants

    programs: dict[Any, Any] = {}
    namespaces: dict[str, dict[str, Any]] = {}
    make_program, make_helpers, make_fast = _cpu._Program, _cpu.helpers, _cpu.fast_helpers

    def program(lowered: Any, launch: Any, text: str, namespace: dict[str, Any], options: dict[str, Any]) -> Any:
        types = tuple((p.dtype, p.ndim, type(p.spec).__name__) for p in lowered.parameters)
        frozen = tuple((name, array.dtype.str, array.tobytes()) for name, array in constants(lowered).items())
        called = frozenset((name, id(function)) for name, function in namespace.items())  # a test may exchange one
        key = (repr(options), types, frozen, text, called)
        if key not in programs:
            # with what it calls, so that no other function gets the same id
            programs[key] = make_program(lowered, launch, text, namespace, options), list(namespace.values())
        return programs[key][0]

    def helpers(jit: Any, **options: Any) -> dict[str, Any]:
        if "strict" not in namespaces:
            namespaces["strict"] = make_helpers(jit, **options)
        return dict(namespaces["strict"])  # each back end has one of its own

    def fast_helpers(options: dict[str, Any], **more: Any) -> dict[str, Any]:
        if "fast" not in namespaces:
            namespaces["fast"] = make_fast(options, **more)
        return dict(namespaces["fast"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cpu, "_Program", program)
        patch.setattr(_cpu, "helpers", helpers)
        patch.setattr(_cpu, "fast_helpers", fast_helpers)
        yield
