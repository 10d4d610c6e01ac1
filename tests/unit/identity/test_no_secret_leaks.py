"""Private keys of a node at work never come out: not in logs, errors, or what objects say of themselves."""

from __future__ import annotations

import base64
import gc
import io
import json
import logging
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.errors import IdentityError, P2PComputeError
from p2pcompute.identity import NodeKey, WalletKey, decrypt_keystore, encrypt_keystore
from p2pcompute.testing import MemoryNetwork, open_simulated_node, simulated_chain


@p2p.kernel
def doubled(out: Any, x: Any) -> None:
    i = cuda.grid(1)
    if i < out.size:
        out[i] = x[i] + x[i]


def forms(secret: bytes) -> list[str]:
    """How a secret could be written, whole or its first half."""
    found = []
    for part in (secret, secret[:16]):
        found += [
            part.hex(),
            part.hex().upper(),
            base64.b64encode(part).decode().rstrip("=")[:-1],
            repr(part)[2:-1],
            str(list(part))[1:-1],
            str(int.from_bytes(part)),
        ]
    return found


def assert_silent(text: str, secrets: list[bytes]) -> None:
    for secret in secrets:
        for form in forms(secret):
            assert form not in text


def test_the_forms_are_found() -> None:
    secret = bytes(range(100, 132))
    for text in (f"key {secret.hex()}", f"{secret!r}", f"{list(secret)}", f"{int.from_bytes(secret)}"):
        with pytest.raises(AssertionError):
            assert_silent(text, [secret])


def test_a_node_at_work_says_nothing_of_its_keys(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything at DEBUG, the errors of a task that fails, and the repr of every object of ours that is alive."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.WARNING, logger="numba")  # pages of its compiler's inner life
    secrets: list[bytes] = []
    for kind, reveal in ((NodeKey, "reveal_seed"), (WalletKey, "private_key")):
        original = kind.__init__

        def noted(self: Any, secret: bytes, *, original: Any = original) -> None:
            secrets.append(secret)
            original(self, secret)

        monkeypatch.setattr(kind, "__init__", noted)
        assert hasattr(kind, reveal)
    said = io.StringIO()

    async def main() -> None:
        network, chain = MemoryNetwork(latency_s=0.02), simulated_chain()
        async with (
            open_simulated_node(network, chain, owner=WalletKey.generate()) as provider,
            open_simulated_node(network, chain) as node,
            trio.open_nursery() as nursery,
        ):
            await node.services.overlay.connect(provider.addresses[0])
            await nursery.start(provider.serve)
            x = np.arange(64, dtype=np.float32)
            await node.run(doubled, p2p.out(x.shape, x.dtype), x)
            try:
                await node.run(doubled, p2p.out(x.shape, x.dtype), x, budget="0.0000001 USD", timeout=1)
            except P2PComputeError:
                said.write(traceback.format_exc())
            for thing in gc.get_objects():
                if str(type(thing).__module__).startswith("p2pcompute"):
                    said.write(repr(thing) + str(thing))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert len(secrets) >= 5  # two nodes', each with a key for its money, and an owner's
    assert "WalletKey 0x" in said.getvalue()
    assert_silent(caplog.text, secrets)
    assert_silent(said.getvalue(), secrets)


def test_errors_about_key_files_hold_nothing_of_them(tmp_path: Path) -> None:
    secret = bytes(range(100, 132))
    path = tmp_path / "key"
    path.write_text(f"p2pcompute wallet key v1\n{secret.hex()}x\n")
    path.chmod(0o600)
    for kind in (WalletKey, NodeKey):
        with pytest.raises(IdentityError) as caught:
            kind.load_or_create(path)
        assert_silent("".join(traceback.format_exception(caught.value)), [secret])
    keystore = encrypt_keystore(secret, "a password", n=16)
    for data, password in ((keystore, "another"), (keystore[:-9], "a password"), (b"{}", "a password")):
        with pytest.raises(IdentityError) as caught:
            decrypt_keystore(data, password)
        text = "".join(traceback.format_exception(caught.value))
        assert_silent(text, [secret, json.loads(keystore)["crypto"]["ciphertext"].encode()])
    with pytest.raises(IdentityError) as caught:
        WalletKey(b"\xff" * 32)
    assert_silent("".join(traceback.format_exception(caught.value)), [b"\xff" * 32])
