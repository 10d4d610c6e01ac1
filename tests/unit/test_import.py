"""Importing the package costs next to nothing, and its public names are what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import get_args

import pytest

import p2pcompute

HEAVY = ("numpy", "trio", "numba", "llvmlite", "libp2p", "multiaddr", "eth", "eth_abi", "eth_account", "httpx", "nacl")


def modules_after(statement: str) -> set[str]:
    code = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=500)
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def test_the_package_pulls_nothing_heavy() -> None:
    loaded = modules_after("import p2pcompute")
    assert "p2pcompute" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize(
    "statement",
    [
        "import p2pcompute as p2p; p2p.kernel",
        "from p2pcompute import cuda",
        "import p2pcompute as p2p; p2p.NoProviderError; p2p.errors",
        "from p2pcompute import events",
        "import p2pcompute.testing",
    ],
)
def test_parts_do_not_pull_the_compiler_or_the_network(statement: str) -> None:
    assert not modules_after(statement) & {"numba", "llvmlite", "libp2p", "eth", "eth_account"}


def test_every_public_name_is_there_and_says_what_it_is() -> None:
    assert list(p2pcompute.__all__) == sorted(set(p2pcompute.__all__))
    assert set(dir(p2pcompute)) == set(p2pcompute.__all__)
    for name in p2pcompute.__all__:
        value = getattr(p2pcompute, name)
        assert value is not None
        if name != "__version__":
            assert getattr(value, "__doc__", None), name


def test_other_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = p2pcompute.nothing


def test_every_public_name_can_be_imported_first() -> None:
    names = [name for name in p2pcompute.__all__ if not name.startswith("_")]
    code = "; ".join(f"from p2pcompute import {name}" for name in names)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=500)


def test_the_simulation_is_exported_by_testing() -> None:
    import p2pcompute.testing as testing

    for name in testing.__all__:
        assert getattr(testing, name) is not None
    with pytest.raises(AttributeError):
        _ = testing.nothing


def test_every_event_that_can_be_watched_has_a_public_name() -> None:
    from p2pcompute import events

    for union in (events.TaskEvent, events.ProviderEvent):
        for event in get_args(union):
            assert getattr(events, event.__name__) is event
            assert event.__name__ in events.__all__
