"""An owner's key and a hot one in a profile: who signs for whom, and rotations that are killed anywhere."""

from __future__ import annotations

import gc
import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from eth_account import Account
from eth_account.messages import encode_defunct

from p2pcompute.errors import ConfigError, IdentityError
from p2pcompute.identity import (
    Delegation,
    Keyring,
    KeystoreError,
    OwnerLocked,
    WalletKey,
    WrongPassword,
    delegate,
    encrypt_keystore,
    password_from_environment,
    password_from_file,
)
from p2pcompute.payments import ContractCall, ModelChain, Outbox, SettlementPending
from p2pcompute.storage import open_ledger
from p2pcompute.wallet import give_owner
from p2pcompute_protocols.ids import Address, ChannelId, PeerId
from p2pcompute_protocols.money import ChainTerms

SECRET = bytes(range(100, 132))
PASSWORD = "correct horse battery staple"
OWNER = WalletKey(SECRET).address


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    """A profile with an owner."""
    found = Keyring(tmp_path / "profile")
    found.create_owner(SECRET, PASSWORD, n=16)
    return found


def told() -> str:
    return PASSWORD


def test_without_an_owner_one_key_does_all(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "profile")
    keys = keyring.open(lambda: None)
    assert keys.account is keys.signer
    assert not keys.has_owner
    assert keyring.owner_address() is None
    assert keys.signer.address == WalletKey.load_or_create(keyring.wallet).address
    with pytest.raises(IdentityError, match="no owner key"):
        keyring.export_owner()


def test_the_owner_holds_the_money_and_the_hot_key_signs(keyring: Keyring) -> None:
    keys = keyring.open(told)
    assert keys.has_owner
    assert keys.account.address == keyring.owner_address() == OWNER
    assert keys.signer.address == WalletKey.load_or_create(keyring.wallet).address
    assert keyring.open(told).signer.address == keys.signer.address
    for file in (keyring.owner, keyring.path / "delegation.json", keyring.wallet):
        assert file.stat().st_mode & 0o777 == 0o600
    assert SECRET.hex() not in "".join(file.read_text() for file in keyring.path.iterdir())


def test_what_opens_it(keyring: Keyring, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("P2PCOMPUTE_PASSWORD", raising=False)
    monkeypatch.delenv("P2PCOMPUTE_PASSWORD_FILE", raising=False)
    with pytest.raises(OwnerLocked, match="--password-file"):
        keyring.open()
    with pytest.raises(WrongPassword):
        keyring.open(lambda: "something else")
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\nand a second line\n")
    file.chmod(0o600)
    assert password_from_file(file) == PASSWORD
    monkeypatch.setenv("P2PCOMPUTE_PASSWORD_FILE", str(file))
    assert keyring.open().account.address == OWNER
    monkeypatch.setenv("P2PCOMPUTE_PASSWORD", "wrong")  # goes first
    with pytest.raises(WrongPassword):
        keyring.open()
    monkeypatch.delenv("P2PCOMPUTE_PASSWORD")
    file.chmod(0o644)
    with pytest.raises(IdentityError, match=r"lets others read it; .* otherwise use another secret"):
        password_from_environment()
    with pytest.raises(IdentityError, match="no such file"):
        password_from_file(tmp_path / "nowhere")


def test_a_profile_has_one_owner(keyring: Keyring) -> None:
    with pytest.raises(IdentityError, match="one owner"):
        keyring.create_owner(b"x" * 32, PASSWORD, n=16)
    with pytest.raises(IdentityError, match="one owner"):
        keyring.import_owner(encrypt_keystore(b"x" * 32, PASSWORD, n=16), PASSWORD)
    assert keyring.open(told).account.address == OWNER


def test_imported_and_exported(tmp_path: Path) -> None:
    made = json.dumps(Account.encrypt(SECRET, PASSWORD, iterations=16)).encode()
    keyring = Keyring(tmp_path / "profile")
    with pytest.raises(WrongPassword):
        keyring.import_owner(made, "something else")
    assert not keyring.has_owner
    assert keyring.import_owner(made, PASSWORD).address == OWNER
    assert keyring.export_owner() == made
    assert Account.decrypt(json.loads(keyring.export_owner()), PASSWORD) == SECRET
    assert keyring.open(told).account.address == OWNER


def test_an_owner_is_in_one_profile_of_a_machine(tmp_path: Path) -> None:
    """What two of them would lose is in tests/unit/payments/test_one_account.py."""
    first, second = Keyring(tmp_path / "first"), Keyring(tmp_path / "second")
    first.create_owner(SECRET, PASSWORD, n=16)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "owner.json").write_text("{}")
    made = first.export_owner()
    with pytest.raises(IdentityError, match="the profile first has this owner"):
        second.import_owner(made, PASSWORD)
    assert not second.has_owner
    first.owner.unlink()
    assert second.import_owner(made, PASSWORD).address == OWNER


def test_the_hot_key_is_no_owner(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "profile")
    hot = keyring.open(lambda: None).signer
    with pytest.raises(IdentityError, match="in the open"):
        keyring.create_owner(hot.private_key, PASSWORD, n=16)
    assert not keyring.has_owner


def test_an_owner_is_for_a_profile_without_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PCOMPUTE_HOME", str(tmp_path))

    def put(keyring: Keyring) -> WalletKey:
        return keyring.create_owner(SECRET, PASSWORD, n=16)

    async def main() -> None:
        used = tmp_path / "profiles" / "used"
        account = Address(b"a" * 20)
        async with open_ledger(used) as ledger:
            await ledger.open_channel_in(ChannelId(b"c" * 32), payer=account, signer=account, peer=PeerId("peer"))
        with pytest.raises(ConfigError, match="give the owner to another one"):
            await give_owner("used", put)
        assert not Keyring(used).has_owner
        assert await give_owner("new", put) == OWNER
        assert Keyring(tmp_path / "profiles" / "new").open(told).account.address == OWNER

    trio.run(main)


def test_an_owner_is_for_a_profile_without_a_stake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is staked is its own key's: an owner could not bring it home."""
    monkeypatch.setenv("P2PCOMPUTE_HOME", str(tmp_path))

    async def main() -> None:
        staked = tmp_path / "profiles" / "staked"
        key = WalletKey.load_or_create(Keyring(staked).wallet)

        chain = ModelChain(ChainTerms(chain_id=1, hub=b"h" * 20, token=b"t" * 20, decimals=6))
        chain.mines = False
        async with open_ledger(staked) as ledger:
            outbox = Outbox(ledger=ledger, hub=chain.hub(key.address), timeout_s=0)
            with pytest.raises(SettlementPending):  # it may be mined any time
                await outbox.run(ContractCall(to=Address(b"r" * 20), data=b"stake"))
        with pytest.raises(ConfigError, match="unstake"):
            await give_owner("staked", lambda keyring: keyring.create_owner(SECRET, PASSWORD, n=16))
        assert not Keyring(staked).has_owner

    trio.run(main)


# Who signs for the owner


def test_a_hot_key_that_somebody_has_put_there_is_not_used(keyring: Keyring) -> None:
    """Channels would be funded for it, and it could spend them."""
    thief = WalletKey.generate()
    keyring.wallet.write_text(f"p2pcompute wallet key v1\n{thief.private_key.hex()}\n")
    with pytest.raises(IdentityError, match="is not the key that the owner"):
        keyring.open(told)
    # Without the statement it is as bad: it may have been taken away.
    (keyring.path / "delegation.json").unlink()
    with pytest.raises(IdentityError, match="is not the key that the owner"):
        keyring.open(told)
    # Nor does a statement help that the thief has signed.
    for said in (
        delegate(thief, thief.address, sequence=2**62),
        Delegation(owner=OWNER, signer=thief.address, sequence=2**62, signature=thief.sign_digest(bytes(32))),
    ):
        (keyring.path / "delegation.json").write_bytes(said.encode())
        (keyring.path / "delegation.json").chmod(0o600)
        with pytest.raises(IdentityError, match=r"another owner's|not signed by its owner"):
            keyring.open(told)
    # The owner may bring in a new one, whoever the last one was.
    (keyring.path / "delegation.json").unlink()
    keys = keyring.end_rotation(keyring.open(told, checked=False).account, now_ms=1)
    assert keyring.open(told).signer.address == keys.signer.address != thief.address


def test_a_statement_is_read_as_it_was_written() -> None:
    owner, hot = WalletKey(SECRET), WalletKey.generate()
    said = delegate(owner, hot.address, sequence=7)
    assert Delegation.decode(said.encode()) == said
    text = (
        f"p2pcompute hot signer\nowner: 0x{owner.address.hex()}\nsigner: 0x{hot.address.hex()}\nsequence: 7\n"
        "The signer may spend what this owner puts into payment channels for it.\n"
    )
    # Other wallets sign the same text (EIP-191).
    signed = Account.sign_message(encode_defunct(text=text), SECRET)
    assert bytes(signed.signature) == said.signature


@pytest.mark.parametrize("name", ["owner", "signer", "sequence", "signature"])
@pytest.mark.parametrize("value", [None, 5, "0x00", "", [], {}, -1, "x" * 10_000])
def test_damaged_statements(name: str, value: Any) -> None:
    fields = json.loads(delegate(WalletKey(SECRET), OWNER, sequence=7).encode())
    if fields[name] == value:
        return
    with pytest.raises(IdentityError):
        Delegation.decode(json.dumps(fields | {name: value}).encode())
    del fields[name]
    with pytest.raises(IdentityError):
        Delegation.decode(json.dumps(fields).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"7", b"\xff", b"[" * 5_000])
def test_statements_that_are_none(data: bytes) -> None:
    with pytest.raises(IdentityError):
        Delegation.decode(data)


# Rotation


def test_a_new_hot_key_takes_the_place_of_the_last(keyring: Keyring) -> None:
    before = keyring.open(told)
    following = keyring.begin_rotation()
    assert keyring.is_rotating
    assert keyring.open(told).signer.address == before.signer.address  # until the owner says otherwise
    after = keyring.end_rotation(before.account, now_ms=1)
    assert after.signer.address == following.address != before.signer.address
    assert after.retired == keyring.retired() == (before.signer.address,)
    assert not keyring.is_rotating
    assert keyring.open(told).signer.address == following.address
    again = keyring.end_rotation(before.account, now_ms=1)
    assert set(again.retired) == {before.signer.address, following.address}


def test_a_retired_key_is_not_used_again(keyring: Keyring) -> None:
    """It may be rotated away because it was stolen, and its statement is signed by the owner for good."""
    files = (keyring.wallet, keyring.path / "delegation.json")
    kept = {file: file.read_bytes() for file in files}
    before = keyring.open(told)
    keyring.end_rotation(before.account, now_ms=1)
    for file, data in kept.items():
        file.write_bytes(data)
    with pytest.raises(IdentityError, match="a rotation has retired"):
        keyring.open(told)
    # The owner can bring in a new one; and what names the retired key is all that tells it from one.
    after = keyring.end_rotation(keyring.open(told, checked=False).account, now_ms=1)
    assert keyring.open(told).signer.address == after.signer.address != before.signer.address
    for file, data in kept.items():
        file.write_bytes(data)
    (keyring.path / "retired" / f"{before.signer.address.hex()}.key").unlink()
    assert keyring.open(told).signer.address == before.signer.address


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", range(1, 40))
def test_killed_anywhere_a_rotation_goes_on(step: int, keyring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call that changes a directory or syncs the disk is the last one once, before and after it is done."""
    before = keyring.open(told)
    calls = 0

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step:
                raise Killed
            done = call(*args, **options)
            calls += 1
            if calls == step:
                raise Killed
            return done

        return wrapped

    finished = False
    with monkeypatch.context() as patch:
        for module, name in ((os, "link"), (os, "unlink"), (os, "fsync"), (Path, "replace")):
            patch.setattr(module, name, dying(getattr(module, name)))
        try:
            keyring.end_rotation(before.account, now_ms=1)
            finished = True
        except Killed:
            pass
    keys = keyring.open(told)  # whichever it is, it is the one that the owner has named
    if keys.signer.address == before.signer.address:
        assert not finished
        chosen = keyring.begin_rotation().address
        keys = keyring.end_rotation(keys.account, now_ms=1)
        assert keys.signer.address == chosen
    assert keyring.open(told).signer.address == keys.signer.address != before.signer.address
    assert before.signer.address in keys.retired
    assert (calls < step) == finished


def test_the_last_step_is_far_behind(keyring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the test above has not become too short."""
    calls = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 2
            return call(*args, **options)

        return wrapped

    owner = keyring.open(told).account
    for module, name in ((os, "link"), (os, "unlink"), (os, "fsync"), (Path, "replace")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    keyring.end_rotation(owner, now_ms=1)
    assert 10 < calls < 39


def test_forged_keystores(keyring: Keyring) -> None:
    for data in (b"", b"{}", b"x" * 100_000, b'{"version": 3, "crypto": {}}'):
        keyring.owner.write_bytes(data)
        with pytest.raises(IdentityError):
            keyring.open(told)
    keyring.owner.write_bytes(b'{"version": 3}')
    with pytest.raises(KeystoreError, match="names no account"):
        keyring.owner_address()


def test_nothing_of_key_and_password_is_said(keyring: Keyring) -> None:
    keys = keyring.open(told)
    said = [repr(keys), str(keys), repr(keyring)]
    for wrong in (lambda: None, lambda: PASSWORD + "x"):
        with pytest.raises(IdentityError) as caught:
            keyring.open(wrong)
        said.append("".join(traceback.format_exception(caught.value)))
    said += [repr(thing) for thing in gc.get_objects() if str(type(thing).__module__).startswith("p2pcompute.identity")]
    for secret in (SECRET.hex(), repr(SECRET)[2:-1], keys.signer.private_key.hex()):
        assert all(secret not in text for text in said)
    assert all(PASSWORD not in text for text in said)
