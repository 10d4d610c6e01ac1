"""The keys of a node: made once, readable by nobody else, and never shown."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest
from coincurve import PublicKey
from Crypto.Hash import keccak
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from p2pcompute.errors import IdentityError
from p2pcompute.identity import NodeKey, WalletKey
from p2pcompute_protocols.ids import peer_id_from_public_key

KEYS = [NodeKey, WalletKey]


def secret_of(key: NodeKey | WalletKey) -> bytes:
    return key.reveal_seed() if isinstance(key, NodeKey) else key.private_key


@pytest.mark.parametrize("kind", KEYS)
def test_made_on_first_use_and_the_same_afterwards(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "profile" / "key"
    key = kind.load_or_create(path)
    assert secret_of(kind.load_or_create(str(path))) == secret_of(key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["key"]
    assert secret_of(kind.generate()) != secret_of(kind.generate())


@pytest.mark.parametrize("kind", KEYS)
def test_the_umask_does_not_matter(kind: Any, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        kind.load_or_create(tmp_path / "key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620])
def test_a_key_that_others_can_read_is_refused(kind: Any, mode: int, tmp_path: Path) -> None:
    path = tmp_path / "key"
    kind.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(IdentityError, match="chmod 600"):
        kind.load_or_create(path)


def test_a_key_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    NodeKey.load_or_create(path)
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(IdentityError, match="chown"):
        NodeKey.load_or_create(path)


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("damage", ["empty", "cut", "longer", "not hex", "other kind", "binary", "huge"])
def test_a_damaged_key_is_refused_and_kept(kind: Any, damage: str, tmp_path: Path) -> None:
    path, other = tmp_path / "key", tmp_path / "other"
    kind.load_or_create(path)
    (WalletKey if kind is NodeKey else NodeKey).load_or_create(other)
    whole = path.read_bytes()
    bad = {
        "empty": b"",
        "cut": whole[:-5],
        "longer": whole + b"\n",
        "not hex": whole[:-2] + b"g\n",
        "other kind": other.read_bytes(),
        "binary": bytes(32),
        "huge": whole * 1000,
    }[damage]
    path.write_bytes(bad)
    with pytest.raises(IdentityError, match="backup") as caught:
        kind.load_or_create(path)
    assert path.read_bytes() == bad
    assert whole.split(b"\n")[1][:16].decode() not in str(caught.value)


def test_what_is_no_file_is_refused_without_hanging(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(IdentityError, match="regular file"):
        NodeKey.load_or_create(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(IdentityError, match="check the path"):
        NodeKey.load_or_create(tmp_path / "file" / "key")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "key")
    with pytest.raises(IdentityError):
        NodeKey.load_or_create(tmp_path / "link")


def _race(path: str, barrier: Any, results: Any) -> None:
    barrier.wait()
    results.put(NodeKey.load_or_create(path).peer_id)


def test_processes_that_race_get_one_key(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for turn in range(5):
        path = tmp_path / str(turn)
        barrier, results = context.Barrier(4), context.SimpleQueue()
        racers = [context.Process(target=_race, args=(str(path), barrier, results)) for _ in range(4)]
        for racer in racers:
            racer.start()
        peers = {results.get() for _ in racers}
        for racer in racers:
            racer.join()
        assert peers == {NodeKey.load_or_create(path).peer_id}
    assert sorted(os.listdir(tmp_path)) == [str(turn) for turn in range(5)]


def test_a_crash_before_the_name_leaves_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", crash)
    with pytest.raises(KeyboardInterrupt):
        NodeKey.load_or_create(tmp_path / "key")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", KEYS)
def test_the_secret_does_not_slip_out(kind: Any) -> None:
    key = kind.generate()
    secret = secret_of(key)
    for text in (repr(key), str(key), f"{key}", repr([key]), repr(vars(type(key)).get("__slots__"))):
        assert secret.hex() not in text.lower()
        assert repr(secret) not in text
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="path of its file"):
            leak(key)
    assert not hasattr(key, "__dict__")


def test_a_node_key_signs_as_its_peer_id() -> None:
    # RFC 8032, 7.1, test 1
    key = NodeKey(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert key.public_key.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert key.peer_id == peer_id_from_public_key(key.public_key)
    assert key.peer_id.startswith("12D3Koo")
    assert key.sign(b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b"
    )
    VerifyKey(key.public_key).verify(b"x", key.sign(b"x"))
    with pytest.raises(BadSignatureError):
        VerifyKey(key.public_key).verify(b"y", key.sign(b"x"))


def test_a_wallet_key_signs_as_its_address() -> None:
    # The account that every development chain funds first.
    key = WalletKey(bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"))
    assert key.address.hex() == "f39fd6e51aad88f6f4ce6ab8827279cfffb92266"
    half = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141 // 2
    for number in range(20):
        digest = keccak.new(digest_bits=256, data=bytes([number])).digest()
        signature = key.sign_digest(digest)
        assert len(signature) == 65
        assert signature[64] in (27, 28)
        assert int.from_bytes(signature[32:64], "big") <= half
        recoverable = signature[:64] + bytes([signature[64] - 27])
        public = PublicKey.from_signature_and_message(recoverable, digest, hasher=None).format(compressed=False)
        assert keccak.new(digest_bits=256, data=public[1:]).digest()[-20:] == key.address
    with pytest.raises(ValueError, match="32 bytes"):
        key.sign_digest(b"short")


@pytest.mark.parametrize("secret", [b"", bytes(31), bytes(33)])
def test_a_secret_has_32_bytes(secret: bytes) -> None:
    for kind in (NodeKey, WalletKey):
        with pytest.raises(IdentityError):
            kind(secret)


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_a_wallet_secret_is_below_the_group_order(secret: bytes) -> None:
    with pytest.raises(IdentityError, match="group order"):
        WalletKey(secret)
