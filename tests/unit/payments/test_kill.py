"""A process killed at each point where something is written or leaves: what the next one finds on the disk.

One test for each line of the table in `docs/guarantees.md`. The process ends by `os._exit`, so nothing is closed,
flushed or rolled back by Python. (A power cut is SQLite's and the disk's part: `synchronous=FULL` is read back.)
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from p2pcompute.errors import ChannelClosing
from p2pcompute.payments import Approve, Deposit, Fund, FundRow, ModelHub, SettlementPending, Wallet
from p2pcompute.storage import ReceiptConflict

KILLED = 77
CONFTEST = Path(__file__).with_name("conftest.py")


def die() -> None:
    os._exit(KILLED)


def child(directory: str, point: str) -> None:
    """Runs in the process that is killed."""
    spec = importlib.util.spec_from_file_location("payments_world", CONFTEST)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["payments_world"] = module
    spec.loader.exec_module(module)
    trio.run(scenario, module.World(Path(directory)), point, clock=trio.testing.MockClock(autojump_threshold=0))
    sys.exit(f"the scenario went past {point}")


async def scenario(world: Any, point: str) -> None:
    async with world.open():
        task = await world.agree()
        if point == "agreement stored":
            die()
        if point.startswith("batch"):
            two = [world.receipt(task, index, units=2 + index) for index in range(2)]

            def sign_two_and_die(signing: Any) -> Any:
                batch = world.sign_batch(signing)
                if point == "batch signed":
                    die()
                return batch

            await world.payee_ledger.record_receipts(two, sign=sign_two_and_die)
            die()
        receipt = world.receipt(task, 0, units=5)
        if point == "receipt signed":

            def sign_and_die(signing: Any) -> bytes:
                world.sign_receipt(signing)
                die()
                return b""

            await world.payee_ledger.record_receipt(receipt, sign=sign_and_die)
        envelope = await world.payee_ledger.record_receipt(receipt, sign=world.sign_receipt)
        if point == "receipt stored":
            die()
        await world.channel_out().accept(task, [(receipt, envelope)], sampled=1)
        if point == "work accepted":
            die()

        class DyingHub(ModelHub):
            async def signing(self, call: Any) -> Any:
                sign = await super().signing(call)

                def sign_and_die(nonce: int) -> tuple[bytes, bytes]:
                    sign(nonce)
                    die()
                    return b"", b""

                return sign_and_die if point == "transaction signed" else sign

            async def send(self, raw: bytes) -> None:
                if point == "transaction stored":
                    die()
                await super().send(raw)
                if point == "transaction sent":
                    die()

        if point.startswith("transaction"):
            world.payer_outbox._hub = DyingHub(world.chain, world.wallet.address)
        if point.startswith("fee"):
            await outbid(world, point)
        await world.payer.open_channels(world.need(1_000))

        class DyingWallet:
            address = world.wallet.address

            def sign_digest(self, digest: bytes) -> bytes:
                signature = world.wallet.sign_digest(digest)
                die()
                return bytes(signature)

        if point == "voucher signed":
            world.payer.wallet = DyingWallet()
        dial = world.dial

        async def watched(peer: Any) -> Any:
            client = await dial(peer)
            server = world.streams[-1][1]
            # The first thing that each side says is hello and sync.
            if point == "voucher stored":
                client.on_send = lambda _: die() if client.sent else None
            if point == "voucher taken":
                server.on_send = lambda _: die() if server.sent else None
            return client

        world.payer.dial = watched
        await world.channel_out().pay()
        if point == "voucher acked":
            die()
        assert (await world.payer_ledger.channel_out(world.channel)).acked_uusd == 5
        await world.payer_ledger.note_failure(world.provider.peer_id)  # whatever is written next takes the ack along
        if point == "ack written":
            die()
        await end_and_close(world, task, point)


async def outbid(world: Any, point: str) -> None:
    """The chain takes nothing for so little, so the payer signs the same at a higher fee."""

    class DyingHub(world.raising_hub):  # type: ignore[misc]
        async def raised(self, raw: bytes) -> tuple[bytes, bytes] | None:
            higher: tuple[bytes, bytes] | None = await super().raised(raw)
            if point == "fee signed":
                die()
            return higher

        async def send(self, raw: bytes) -> None:
            if self.fee and point == "fee stored":
                die()
            await super().send(raw)
            if self.fee:
                die()

    hub = world.payer_outbox._hub = DyingHub(world.chain, world.wallet.address)
    world.chain.mines = False
    try:
        await world.payer.open_channels(world.need(1_000))
    except SettlementPending:
        hub.fee = 1
        await world.payer_outbox.settle(raise_fees=True)


async def end_and_close(world: Any, task: Any, point: str) -> None:
    """The task ends, and the payer closes the channel with the payee's consent."""
    await world.payee_ledger.close_agreement(task, state="done")
    await world.payer_ledger.close_agreement(task, state="done")

    class DyingPayee:
        address = world.account.address

        def sign_digest(self, digest: bytes) -> bytes:
            signature = world.account.sign_digest(digest)
            die()
            return bytes(signature)

    if point == "consent signed":
        world.payee._consents._signer = DyingPayee()
    dial = world.dial

    async def watched(peer: Any) -> Any:
        client = await dial(peer)
        server = world.streams[-1][1]
        if point == "consent stored":
            server.on_send = lambda _: die() if server.sent else None  # the first thing that it says is the sync
        return client

    world.payer.dial = watched
    consent, signature = await world.channel_out().ask_close()
    if point == "consent given":
        die()
    closing = world.closing(consent, signature)
    hub = world.payer.hub

    def sign_nothing(nonce: int) -> tuple[bytes, bytes]:
        signed = sign(nonce)
        if point == "closing signed":
            die()
        return signed  # type: ignore[no-any-return]

    sign = await hub.signing(closing)
    await world.payer_ledger.queue_tx(
        world.wallet.address, kind="closesigned", chain_nonce=await hub.nonce(), sign=sign_nothing
    )
    die()


def killed_at(directory: Path, point: str) -> None:
    code = f"import runpy; runpy.run_path({str(__file__)!r})['child']({str(directory)!r}, {point!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == KILLED, done.stderr


async def go_on(world: Any, *, receipts: int = 1) -> None:
    """The rest of the life of the nodes: everything is paid and claimed once."""
    await world.payer.open_channels(world.need(1_000))
    assert await world.channel_out().pay() == 5
    assert await world.payee.unpaid_pusd(world.channel) == 0
    assert (await world.payee_ledger.channel_in(world.channel)).rooted_leaves == receipts  # both come to the same root
    assert await world.settler.checkpoint() == {world.channel: 5}
    assert world.chain.free[world.account.address] == 5
    assert world.chain.total_uusd() == 10_000_000
    await world.payer_ledger.verify(full=True)
    await world.payee_ledger.verify(full=True)


async def do_the_work(world: Any, task: Any) -> None:
    receipt = world.receipt(task, 0, units=5)
    envelope = await world.payee_ledger.record_receipt(receipt, sign=world.sign_receipt)
    await world.channel_out().accept(task, [(receipt, envelope)], sampled=1)


def after_kill(tmp_path: Path, make_world: Any, point: str, body: Callable[[Any], Any]) -> None:
    killed_at(tmp_path, point)

    async def main() -> None:
        async with make_world(tmp_path).open() as world:
            await body(world)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def only_task(world: Any) -> Any:
    (row,) = await world.payee_ledger.open_agreements()
    return row.task


def test_killed_after_the_agreement_is_stored(tmp_path: Path, make_world: Any) -> None:
    async def body(world: Any) -> None:
        await do_the_work(world, await only_task(world))
        await go_on(world)

    after_kill(tmp_path, make_world, "agreement stored", body)


def test_killed_between_signing_a_receipt_and_its_commit(tmp_path: Path, make_world: Any) -> None:
    """Nobody saw that signature, so another result may be signed."""

    async def body(world: Any) -> None:
        task = await only_task(world)
        assert await world.payee_ledger.issued_receipt(task, 0) is None
        assert await world.payee.unpaid_pusd(world.channel) == 0
        receipt = world.receipt(task, 0, units=5, output=b"x" * 32)
        envelope = await world.payee_ledger.record_receipt(receipt, sign=world.sign_receipt)
        await world.channel_out().accept(task, [(receipt, envelope)], sampled=1)
        await go_on(world)

    after_kill(tmp_path, make_world, "receipt signed", body)


def test_killed_after_a_receipt_is_stored(tmp_path: Path, make_world: Any) -> None:
    """It may be out, so it is the only one there will ever be."""

    async def body(world: Any) -> None:
        task = await only_task(world)
        with pytest.raises(ReceiptConflict):
            await world.payee_ledger.record_receipt(
                world.receipt(task, 0, units=5, output=b"x" * 32), sign=world.sign_receipt
            )
        assert await world.payee_ledger.issued_receipt(task, 0) == world.sign_receipt(world.receipt(task, 0, units=5))
        assert await world.payee.unpaid_pusd(world.channel) == 5_000_000
        await do_the_work(world, task)
        await go_on(world)

    after_kill(tmp_path, make_world, "receipt stored", body)


def test_killed_between_signing_a_batch_of_receipts_and_its_commit(tmp_path: Path, make_world: Any) -> None:
    """Nobody saw that signature, so all of them may have other results."""

    async def body(world: Any) -> None:
        task = await only_task(world)
        assert await world.payee_ledger.receipts(task) == []
        assert await world.payee.unpaid_pusd(world.channel) == 0
        two = [world.receipt(task, index, units=2 + index, output=b"x" * 32) for index in range(2)]
        batch = await world.payee_ledger.record_receipts(two, sign=world.sign_batch)
        await world.channel_out().accept(task, list(zip(two, batch.receipts, strict=True)), sampled=1)
        await go_on(world, receipts=2)

    after_kill(tmp_path, make_world, "batch signed", body)


def test_killed_after_a_batch_of_receipts_is_stored(tmp_path: Path, make_world: Any) -> None:
    """All of them may be out, so they are the only ones there will ever be."""

    async def body(world: Any) -> None:
        task = await only_task(world)
        two = [world.receipt(task, index, units=2 + index) for index in range(2)]
        assert await world.payee.unpaid_pusd(world.channel) == 5_000_000
        other = [world.receipt(task, index, output=b"x" * 32) for index in range(2)]
        assert await world.payee_ledger.record_receipts(other, sign=world.sign_batch) is None
        for receipt in other:
            with pytest.raises(ReceiptConflict):
                await world.payee_ledger.record_receipt(receipt, sign=world.sign_receipt)
        envelopes = [await world.payee_ledger.record_receipt(receipt, sign=world.sign_receipt) for receipt in two]
        assert envelopes == list(world.sign_batch(two).receipts)
        await world.channel_out().accept(task, list(zip(two, envelopes, strict=True)), sampled=1)
        await go_on(world, receipts=2)

    after_kill(tmp_path, make_world, "batch stored", body)


@pytest.mark.parametrize(
    ("point", "voucher", "best", "acked"),
    [
        ("work accepted", 0, 0, 0),
        ("voucher signed", 0, 0, 0),
        ("voucher stored", 5, 0, 0),
        ("voucher taken", 5, 5, 0),
        ("voucher acked", 5, 5, 0),
        ("ack written", 5, 5, 5),
    ],
)
def test_killed_on_the_way_of_a_voucher(
    tmp_path: Path, make_world: Any, point: str, voucher: int, best: int, acked: int
) -> None:
    async def body(world: Any) -> None:
        out = await world.payer_ledger.channel_out(world.channel)
        into = await world.payee_ledger.channel_in(world.channel)
        assert (out.voucher_uusd, into.best_uusd, out.acked_uusd) == (voucher, best, acked)
        assert (out.accepted_uusd, into.owed_uusd) == (5, 5)
        await go_on(world)
        out = await world.payer_ledger.channel_out(world.channel)
        assert (out.voucher_uusd, out.acked_uusd) == (5, 5)

    after_kill(tmp_path, make_world, point, body)


@pytest.mark.parametrize(
    ("point", "held"),
    [("consent signed", False), ("consent stored", True), ("consent given", True), ("closing signed", True)],
)
def test_killed_on_the_way_of_a_consent(tmp_path: Path, make_world: Any, point: str, held: bool) -> None:
    """What was signed and not stored, nobody has seen: the payee goes on. What is stored it keeps to, and gives again:
    the payer that died, or whose answer was lost, gets its money back all the same."""

    async def body(world: Any) -> None:
        out = await world.payee_ledger.consent(world.channel)
        assert (out is not None) == held
        await fund_anew(world)
        if held:
            with pytest.raises(ChannelClosing):
                await world.payee_ledger.take_voucher(
                    world.channel, amount_uusd=6, memo=bytes(32), signature=world.voucher(6), peer="peer"
                )
        else:
            await world.payee.check_open(world.channel)
        consent, signature = await world.channel_out().ask_close()
        if held:
            assert (consent.epoch, consent.deadline_s, signature) == (out.epoch, out.deadline_s, out.signature)
        wallet = Wallet(
            ledger=world.payer_ledger,
            hub=world.payer.hub,
            outbox=world.payer_outbox,
            clock_ms=lambda: world.now_ms,
            ask=lambda row: world.channel_out().ask_close(),
        )
        world.chain.clock_ms = lambda: world.now_ms
        closed = await wallet.close(world.channel.hex())
        assert (closed.state, closed.refund_uusd, closed.claimed_uusd) == ("closed", 1_000, 5)
        assert world.chain.free == {world.wallet.address: 1_000, world.account.address: 5}
        await world.payee.check_open(world.channel)
        await world.payer_ledger.verify(full=True)
        await world.payee_ledger.verify(full=True)

    after_kill(tmp_path, make_world, point, body)


async def fund_anew(world: Any) -> None:
    """That chain lived in the killed process, so this one has none of its transactions yet."""
    await world.payer_outbox.deposit(1_005)
    row = FundRow(payee=world.account.address, signer=world.wallet.address, amount_uusd=1_005)
    await world.payer_outbox.run(Fund(rows=(row,)))


def test_killed_after_a_closing_is_stored(tmp_path: Path, make_world: Any) -> None:
    """The next start sends it, and it closes the channel once."""

    async def body(world: Any) -> None:
        (queued,) = await world.payer_ledger.unsettled(world.wallet.address)
        assert queued.kind == "closesigned"
        # The chain as it was when the process died: the voucher claimed, the nonces used.
        world.chain.clock_ms = lambda: world.now_ms
        hub = world.chain.hub(world.wallet.address)
        row = FundRow(payee=world.account.address, signer=world.wallet.address, amount_uusd=1_005)
        for call in (Approve(amount_uusd=1_005), Deposit(amount_uusd=1_005), Fund(rows=(row,))):
            await hub.send((await hub.signing(call))(await hub.nonce())[1])
        await world.settler.checkpoint()
        await world.payer_outbox.settle()
        state = await hub.channel(world.channel)
        assert (state.deposit_uusd, state.claimed_uusd, await hub.epoch(world.channel)) == (5, 5, 1)
        await world.payer_outbox.settle()
        assert await hub.epoch(world.channel) == 1
        assert world.chain.free == {world.wallet.address: 1_000, world.account.address: 5}

    after_kill(tmp_path, make_world, "closing stored", body)


@pytest.mark.parametrize(
    ("point", "states"),
    [("transaction signed", []), ("transaction stored", ["pending"]), ("transaction sent", ["pending"])],
)
def test_killed_on_the_way_of_a_transaction(tmp_path: Path, make_world: Any, point: str, states: list[str]) -> None:
    async def body(world: Any) -> None:
        waiting = await world.payer_ledger.unsettled(world.wallet.address)
        assert [row.state for row in waiting] == states
        if point == "transaction sent":
            # That chain lived in the killed process; this one takes the same bytes, as the real one did.
            world.chain.submit(waiting[0].raw)
        await go_on(world)
        assert world.chain.nonces[world.wallet.address] == 3  # approve, deposit, fund: none of them twice
        assert world.chain.channels[world.channel].deposit_uusd == 1_005  # 5 accepted before, and room for 1 000

    after_kill(tmp_path, make_world, point, body)


@pytest.mark.parametrize("mined", ["neither", "lower", "higher"])
@pytest.mark.parametrize(
    ("point", "states"),
    [("fee signed", ["sent"]), ("fee stored", ["failed", "pending"]), ("fee sent", ["failed", "pending"])],
)
def test_killed_on_the_way_of_a_higher_fee(
    tmp_path: Path, make_world: Any, point: str, states: list[str], mined: str
) -> None:
    """The chain takes one of the two, and whichever that is counts once."""

    async def body(world: Any) -> None:
        rows = world.payer_ledger._database.connection.execute("SELECT state, raw, nonce FROM outbox ORDER BY id")
        found, raws, nonces = zip(*rows, strict=True)
        assert list(found) == states
        assert set(nonces) == {0}
        # That chain lived in the killed process.
        if mined != "neither":
            world.chain.submit(raws[0 if mined == "lower" else -1])
        await go_on(world)
        assert world.chain.nonces[world.wallet.address] == 3  # approve, deposit, fund: none of them twice
        assert world.chain.channels[world.channel].deposit_uusd == 1_005

    after_kill(tmp_path, make_world, point, body)
