"""`p2pcompute close`, `withdraw` and `fund` look at what is there before they announce anything."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pcompute._profile import Profile
from p2pcompute.control import MoneyOnChain
from p2pcompute.errors import ChainError
from p2pcompute.identity import Keyring, WalletKey
from p2pcompute.payments import Outbox, Wallet
from p2pcompute.storage import InlineExecutor, open_ledger
from p2pcompute_cli.main import main
from p2pcompute_protocols.ids import PeerId, TaskId
from p2pcompute_protocols.merkle import InclusionProof
from p2pcompute_protocols.task import open_proven_receipt

from .conftest import NOW_MS, TERMS, World

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    """The profile of a payer that has paid for one chunk, and gone. Whoever starts a chain or asks for a password
    fails."""

    def refused(*_: Any) -> Any:
        raise ChainError("a chain is started")

    monkeypatch.setenv("P2PCOMPUTE_HOME", str(tmp_path))
    monkeypatch.setattr("p2pcompute.wallet._local_chain", refused)
    profile = Profile.named("left")
    world = World(tmp_path / "world")
    WalletKey.load_or_create(profile.wallet_key)

    async def begin() -> None:
        async with world.open():
            await world.payer_ledger.bind_chain(TERMS)
            task = await world.agree()
            await world.payer.open_channels(world.need(1_000))
            await world.work(task, 0)
            await world.channel_out().pay()

    trio.run(begin)
    for part in (tmp_path / "world" / "payer").iterdir():
        part.rename(profile.path / part.name)
    return profile


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = main([*words, "--profile", "left", "--json"])
    said = capsys.readouterr()
    return code, json.loads(said.out or said.err)


def test_what_the_ledger_has_is_shown_without_a_chain(left: Profile, capsys: pytest.CaptureFixture[str]) -> None:
    account = "0x" + WalletKey.load_or_create(left.wallet_key).address.hex()
    chain = {"url": None, "chain_id": TERMS.chain_id, "hub": "0x" + TERMS.hub.hex()}
    code, channels = asked(capsys, "channels")
    assert (code, channels["account"], channels["chain"]) == (0, account, chain)
    (row,) = channels["channels"]
    assert (row["deposit_uusd"], row["voucher_uusd"], row["direction"]) == (1_000, 1, "out")
    code, receipts = asked(capsys, "receipts")
    assert (code, receipts["chain"]) == (0, chain)
    (receipt,) = receipts["receipts"]
    assert asked(capsys, "receipts", "--prove", receipt["task"], "0")[1]["leaves"] == 1
    code, earned = asked(capsys, "earnings")
    assert (code, earned["earned_uusd"], earned["account"]) == (0, 0, account)
    # What only the chain knows is asked of the chain.
    assert main(["wallet", "--profile", "left"]) != 0
    assert "a chain is started" in capsys.readouterr().err


def test_what_a_ledger_is_enough_for_is_read_where_the_chain_is_down(
    left: Profile, capsys: pytest.CaptureFixture[str]
) -> None:
    """An endpoint is named and nobody answers there; the money is an owner's, whose password nobody gives."""
    owner = Keyring(left.path).create_owner(b"o" * 32, "password").address
    named = ("--chain", "http://user:secret@127.0.0.1:9/v3/secret?key=secret", "--hub", "0x" + TERMS.hub.hex())
    code, earned = asked(capsys, "earnings", *named)
    assert (code, earned["account"]) == (0, "0x" + owner.hex())
    code, receipts = asked(capsys, "receipts", *named)
    assert (code, receipts["chain"]["url"]) == (0, "http://127.0.0.1:9")
    code, said = asked(capsys, "receipts", "--chain", "http://127.0.0.1:9", "--hub", "0x" + "11" * 20)
    assert code != 0
    assert "belongs to the hub 0x" + TERMS.hub.hex() in said["message"]


def test_a_profile_that_was_never_on_a_chain_has_no_channels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("P2PCOMPUTE_HOME", str(tmp_path))
    code, said = asked(capsys, "channels")
    assert code != 0
    assert "there is no profile" in said["message"]
    WalletKey.load_or_create(Profile.named("left").wallet_key)
    code, channels = asked(capsys, "channels")
    assert (code, channels["channels"], channels["chain"]) == (0, [], {"url": None, "chain_id": None, "hub": None})


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command on the payer's money of a world in which 1 micro-USD was paid of 1,000 reserved, and 10 are
    free at the hub. Its chain is a model, and is there when no other runs."""
    world = World(tmp_path / "world")

    async def begin() -> None:
        async with world.open():
            task = await world.agree()
            await world.payer.open_channels(world.need(1_000))
            await world.work(task, 0)
            await world.channel_out().pay()
            hub = world.payer.hub
            await Wallet(ledger=world.payer_ledger, hub=hub, outbox=world.payer_outbox).fund(10)

    trio.run(begin)

    @asynccontextmanager
    async def opened(*, on_start_chain: Callable[[str], None], **_: Any) -> AsyncGenerator[MoneyOnChain]:
        on_start_chain("starting the chain")
        async with open_ledger(
            tmp_path / "world" / "payer", executor=InlineExecutor(), clock_ms=lambda: NOW_MS
        ) as ledger:
            hub = world.chain.hub(world.wallet.address)
            wallet = Wallet(ledger=ledger, hub=hub, outbox=Outbox(ledger=ledger, hub=hub), clock_ms=lambda: NOW_MS)
            yield MoneyOnChain(
                wallet=wallet,
                account=wallet.address,
                ledger=ledger,
                network="test",
                chain_url=None,
                chain_id=TERMS.chain_id,
                hub=TERMS.hub,
            )

    monkeypatch.setenv("P2PCOMPUTE_HOME", str(tmp_path))

    @asynccontextmanager
    async def books(**_: Any) -> AsyncGenerator[MoneyOnChain]:
        async with opened(on_start_chain=lambda _: None) as money:
            yield money

    monkeypatch.setattr("p2pcompute.wallet.open_wallet", opened)
    monkeypatch.setattr("p2pcompute.wallet.open_books", books)
    assert not Profile.named("default").control_socket.exists()

    def run(*words: str) -> tuple[int, str, str]:
        nonces = dict(world.chain.nonces)
        code = main([*words])
        if code:
            assert world.chain.nonces == nonces  # nothing was sent
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("close", "ffffffff"), "no channel begins with ffffffff"),
        (("close", "xyz"), "'xyz' names no channel; write 8 digits or more"),
        (("withdraw", "1 USD", "--to", "0x" + "5a" * 20), "0.000010 USD are free at the hub and 1.000000 USD were"),
        (("fund", "1000 USD"), "of tokens and 1000.000000 USD were to be brought in; send tokens there first"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_said_before_anything_is_announced(
    words: tuple[str, ...], says: str, command: Command
) -> None:
    code, out, err = command(*words, "--yes")
    assert code > 2
    assert says in err
    for announced in ("closing channel", "go to", "go into"):
        assert announced not in out + err


def test_a_channel_is_announced_by_what_is_left_on_it(command: Command) -> None:
    _, listed, _ = command("channels", "--json")
    name = listed.partition('"channel": "')[2][:8]
    code, _, err = command("close", name)
    assert code == 2  # nobody can be asked
    assert f"closing channel {name}, on which we pay …" in err
    assert ": 0.000999 USD are left on it (network test, chain " in err
    code, out, err = command("close", name, "--yes")
    assert code == 0, err
    assert "asked for it" in out


def test_that_a_chain_is_started_is_said_once(command: Command) -> None:
    code, out, err = command("withdraw", "all", "--to", "0x" + "5a" * 20, "--yes")
    assert code == 0, err
    assert "withdrew 0.000010 USD" in out
    assert err.count("starting the chain") == 1  # though it was asked twice


def test_a_receipt_is_proven_by_the_command(command: Command) -> None:
    """What it prints is enough for a third party that knows the root; what can't be proven is said."""
    _, listed, _ = command("receipts", "--json")
    (row,) = json.loads(listed)["receipts"]
    code, out, err = command("receipts", "--prove", row["task"][:8], "0")
    assert code == 0, err
    shown = json.loads(out)
    proof = InclusionProof(
        index=shown["leaf"], leaves=shown["leaves"], path=tuple(bytes.fromhex(one) for one in shown["path"])
    )
    receipt = open_proven_receipt(
        bytes.fromhex(shown["receipt"]),
        proof,
        bytes.fromhex(shown["root"]),
        network=shown["network"],
        provider=PeerId(row["peer"]),
        task=TaskId(bytes.fromhex(shown["task"])),
        index=0,
    )
    assert receipt.output.hex() == row["digest"]
    assert json.loads(command("channels", "--json")[1])["channels"][0]["rooted_receipts"] == 1
    again = command("receipts", "--prove", row["task"], "0", "--root", "0x" + shown["root"])
    assert json.loads(again[1]) == shown
    for words, says in (
        (("--prove", "ffffffff", "0"), "no task begins with ffffffff"),
        (("--prove", "xyz", "0"), "names no task; write 8 digits"),
        (("--prove", row["task"], "1"), "no paid receipt for chunk 1"),
        (("--prove", row["task"], "9999999"), "is no chunk"),
        (("--prove", row["task"], "0", "--root", "11"), "is no root"),
        (("--prove", row["task"], "0", "--root", "11" * 32), "does not cover chunk 0"),
        (("--root", "11" * 32), "--root goes with --prove"),
    ):
        code, out, err = command("receipts", *words)
        assert code != 0, words
        assert says in err
        assert out == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("wallet", "rotate"), "claiming 0.000000 USD, closing what of 1 channel is open, and signing with a new key"),
        (("accuse", "task.p2pevidence"), "task.p2pevidence goes to the arbiters of its task"),
    ],
)
def test_what_is_spent_and_where_is_said_before_anybody_is_asked(
    left: Profile, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    account = "0x" + WalletKey.load_or_create(left.wallet_key).address.hex()
    assert main([*words, "--profile", "left"]) == 2
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith(said)
    assert first.endswith(f"(network local, chain {TERMS.chain_id}, account {account}, gas on top)")
    assert "add --yes" in last
