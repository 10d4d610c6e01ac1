"""The committed bytecode is that of the committed source."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from p2pcompute.chain import load_artifact

ROOT = Path(__file__).parents[3]
VYPER_PYTHON = ROOT / ".venv-vyper/bin/python"


@pytest.mark.parametrize("contract", ["ChannelHub", "StakeRegistry", "TestToken"])
def test_artifact_names_its_source(contract: str) -> None:
    artifact = load_artifact(contract)
    source = (ROOT / f"p2pcompute/chain/contracts/{contract}.vy").read_bytes()
    assert artifact.contract == contract
    assert artifact.source_sha256 == hashlib.sha256(source).hexdigest(), "run scripts/compile-contracts.sh"
    assert f"# pragma version {artifact.compiler.removeprefix('vyper ').split('+')[0]}\n" in source.decode()
    assert len(artifact.runtime) < 24_576  # EIP-170


@pytest.mark.skipif(not VYPER_PYTHON.exists(), reason="no compiler: run scripts/compile-contracts.sh --venv")
def test_recompiling_gives_the_same_bytes() -> None:
    compile_py = ROOT / "p2pcompute/chain/contracts/compile.py"
    done = subprocess.run([VYPER_PYTHON, compile_py, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_is_light() -> None:
    code = "import sys, json, p2pcompute.chain; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"httpx", "eth", "eth_abi", "eth_account", "h11", "trio", "coincurve", "rlp"}


def test_every_public_name_is_there() -> None:
    import p2pcompute.chain

    for name in p2pcompute.chain.__all__:
        assert getattr(p2pcompute.chain, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        p2pcompute.chain.nonsense  # noqa: B018
