"""Each reason for which a payee refuses a hello or a voucher has a code on the wire, and words that say what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

import p2pcompute.payments
import p2pcompute_protocols
from p2pcompute.errors import ChainUnreachable, DiskFull, InsufficientFunds, StreamError, VoucherRefused
from p2pcompute.payments._payee import CHAIN_TTL_S
from p2pcompute.payments._refusals import REASONS, refused_error
from p2pcompute_protocols.channel import (
    ChannelHello,
    ChannelSync,
    CloseAsk,
    ConsentFrame,
    VoucherAck,
    VoucherFrame,
    VoucherRefusal,
)
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.money import ChainTerms

from .whole_mallory import Wire

Run = Callable[..., None]
PAYMENTS = Path(p2pcompute.payments.__file__).parent
PROTOCOLS = Path(p2pcompute_protocols.__file__).parent
SOURCES = (
    PAYMENTS / "_payee.py",
    PAYMENTS / "_consents.py",
    PAYMENTS.parent / "_dialogue.py",
    *(PROTOCOLS / name for name in ("_binding.py", "_evm.py", "connection.py", "framing.py")),
    *(PROTOCOLS / "channel").glob("*.py"),
)


def hello(world: Any, **changes: Any) -> ChannelHello:
    fields: dict[str, Any] = {
        "chain": world.chain.terms,
        "payer": world.binding(),
        "payee": bytes(world.account.address),
    }
    return ChannelHello(**(fields | changes))


def voucher(world: Any, amount: int) -> VoucherFrame:
    return VoucherFrame(amount_uusd=amount, memo=bytes(32), signature=world.voucher(amount))


async def greeted(world: Any) -> Wire:
    wire = Wire(world.connect())
    await wire.say(hello(world))
    assert isinstance(await wire.hear(), ChannelSync)
    await trio.sleep(1)  # the chain is asked seldom
    return wire


async def said(world: Any, payload: bytes) -> Any:
    wire = await greeted(world)
    await wire.say_bytes(payload)
    return await wire.hear()


async def greeting(world: Any, **changes: Any) -> Any:
    wire = Wire(world.connect())
    await wire.say(hello(world, **changes))
    return await wire.hear()


async def paying(world: Any, amount: int) -> Any:
    wire = await greeted(world)
    await wire.say(voucher(world, amount))
    return await wire.hear()


async def other_chain(world: Any) -> Any:
    return await greeting(world, chain=ChainTerms(chain_id=1, hub=b"h" * 20, token=b"t" * 20, decimals=6))


async def other_payee(world: Any) -> Any:
    return await greeting(world, payee=b"x" * 20)


async def old_binding(world: Any) -> Any:
    return await greeting(world, payer=world.binding(expires_ms=10))


async def forged_binding(world: Any) -> Any:
    import dataclasses

    return await greeting(world, payer=dataclasses.replace(world.binding(), signer=b"v" * 20))


async def forged_voucher(world: Any) -> Any:
    wire = await greeted(world)
    await wire.say(VoucherFrame(amount_uusd=5, memo=bytes(32), signature=world.voucher(6)))
    return await wire.hear()


async def not_above(world: Any) -> Any:
    assert isinstance(await paying(world, 5), VoucherAck)
    return await paying(world, 5)


async def overtaken(world: Any) -> Any:
    """Two streams have checked a voucher each, and the higher one is stored first."""
    slow, fast = await greeted(world), await greeted(world)
    take = world.payee_ledger.take_voucher

    async def after(*args: Any, **kwargs: Any) -> Any:
        world.payee_ledger.take_voucher = take
        await fast.say(voucher(world, 7))
        assert isinstance(await fast.hear(), VoucherAck)
        return await take(*args, **kwargs)

    world.payee_ledger.take_voucher = after
    await slow.say(voucher(world, 6))
    return await slow.hear()


async def above_the_deposit(world: Any) -> Any:
    return await paying(world, 1_001)


async def less_there_than_it_was(world: Any) -> Any:
    """What was a deposit when the last voucher came is none any more, and the payee's settler has seen that."""
    wire = await greeted(world)
    await wire.say(voucher(world, 5))
    assert isinstance(await wire.hear(), VoucherAck)
    await world.payee_ledger.set_chain_in(world.channel, deposit_uusd=5, claimed_uusd=0, close_at_s=0)
    await wire.say(voucher(world, 6))
    return await wire.hear()


async def while_the_chain_is_asked(world: Any) -> Any:
    """The deposit has left long after it was last read; one stream has it read again, and another does not wait."""
    import dataclasses

    first, other = await greeted(world), await greeted(world)
    await first.say(voucher(world, 5))
    assert isinstance(await first.hear(), VoucherAck)
    await trio.sleep(CHAIN_TTL_S + 1)
    channels, read = world.chain.channels, world.payee._hub.channel
    channels[world.channel] = dataclasses.replace(channels[world.channel], deposit_uusd=5, claimed_uusd=5)

    async def slowly(channel: Any) -> Any:
        await trio.sleep(0.3)
        return await read(channel)

    world.payee._hub.channel = slowly
    await first.say(voucher(world, 6))
    await trio.sleep(0.1)
    await other.say(voucher(world, 900))
    return await other.hear()


async def asked_again_at_once(world: Any) -> Any:
    wire = await greeted(world)
    for _ in range(2):
        await wire.say(voucher(world, 1_001))
        answer = await wire.hear()
    return answer


async def about_to_close(world: Any) -> Any:
    channels = world.chain.channels
    import dataclasses

    channels[world.channel] = dataclasses.replace(channels[world.channel], close_at_s=world.payee._clock_ms() // 1000)
    return await paying(world, 5)


async def too_large(world: Any) -> Any:
    return await paying(world, 2**64 - 1)


async def large_frame(world: Any) -> Any:
    wire = await greeted(world)
    await wire.stream.send_all(b"\xff\xff\xff\x7f")
    return await wire.hear()


async def no_chain(world: Any) -> Any:
    async def down(_: Any) -> Any:
        raise ChainUnreachable("down")

    world.payee._hub.channel = down
    return await paying(world, 5)


async def no_room(world: Any) -> Any:
    async def full(*_: Any, **__: Any) -> Any:
        raise DiskFull("full")

    world.payee_ledger.take_voucher = full
    return await paying(world, 5)


async def silence(world: Any) -> Any:
    wire = await greeted(world)
    return await wire.hear()  # fifteen minutes later


async def garbage(world: Any) -> Any:
    return await said(world, b"\xff")


async def two_hellos(world: Any) -> Any:
    return await said(world, hello(world).encode())


async def unknown_message(world: Any) -> Any:
    return await said(world, b"\xa1\x00\x18\x63")


async def consented(world: Any) -> Any:
    wire = await greeted(world)
    await wire.say(voucher(world, 5))
    assert isinstance(await wire.hear(), VoucherAck)
    for agreement in await world.payee_ledger.open_agreements():
        await world.payee_ledger.close_agreement(agreement.task, state="done")
    await wire.say(CloseAsk(amount_uusd=5))
    assert isinstance(await wire.hear(), ConsentFrame)
    return await paying(world, 6)


async def closing_under_way(world: Any) -> Any:
    wire = await greeted(world)
    await wire.say(voucher(world, 5))
    assert isinstance(await wire.hear(), VoucherAck)
    await wire.say(CloseAsk(amount_uusd=5))  # an agreement is open
    return await wire.hear()


async def nothing_reserved(world: Any) -> Any:
    del world.chain.channels[world.channel]
    return await paying(world, 5)


CASES: list[tuple[Callable[[Any], Any], WireCode, str]] = [
    (other_chain, WireCode.CHAIN_MISMATCH, "another chain, hub or token"),
    (other_payee, WireCode.WRONG_PEER, "to another account"),
    (old_binding, WireCode.EXPIRED, "has expired"),
    (forged_binding, WireCode.BAD_SIGNATURE, "signed"),
    (forged_voucher, WireCode.BAD_SIGNATURE, "not signed by the channel's signer"),
    (not_above, WireCode.BAD_VOUCHER, "5 is held"),
    (overtaken, WireCode.BAD_VOUCHER, "0.000007 USD are held already"),
    (above_the_deposit, WireCode.UNFUNDED, "holds 0.001000 USD"),
    (less_there_than_it_was, WireCode.UNFUNDED, "looked up a moment ago"),
    (while_the_chain_is_asked, WireCode.UNFUNDED, "looked up a moment ago"),
    (asked_again_at_once, WireCode.UNFUNDED, "try again shortly"),
    (about_to_close, WireCode.UNFUNDED, "about to close"),
    (consented, WireCode.CLOSING, "consent"),
    (closing_under_way, WireCode.PAYMENT_REQUIRED, "under way"),
    (nothing_reserved, WireCode.UNFUNDED, "holds 0.000000 USD"),
    (too_large, WireCode.OVERSIZED, "keeps account of"),
    (large_frame, WireCode.OVERSIZED, "are allowed"),
    (no_chain, WireCode.INTERNAL, "try again later"),
    (no_room, WireCode.INTERNAL, "no room"),
    (silence, WireCode.STALLED, "said nothing for 900 s"),
    (garbage, WireCode.MALFORMED, ""),
    (two_hellos, WireCode.OUT_OF_ORDER, ""),
    (unknown_message, WireCode.UNSUPPORTED, "unknown message type 99"),
]


@pytest.mark.parametrize(("refused", "code", "words"), CASES, ids=[case[0].__name__ for case in CASES])
def test_a_payee_says_why(run: Run, refused: Callable[[Any], Any], code: WireCode, words: str) -> None:
    """With a code and a text; and what its payer reads has both, and what to do."""

    async def body(world: Any) -> None:
        await world.agree()
        await world.payer.open_channels(world.need(1_000))
        answer = await refused(world)
        assert isinstance(answer, VoucherRefusal)
        assert answer.code == code
        assert words in answer.detail
        assert world.payee.counters.refused[code] > 0
        text = str(refused_error(answer))
        assert code.name in text
        assert answer.detail in text
        assert REASONS[code] in text

    run(body)


# What no honest payer sends; the rest may be its clock, its chain, its backup or what crossed something else.
OFFENCES = {forged_binding, forged_voucher, large_frame, garbage, two_hellos}


@pytest.mark.parametrize("refused", [case[0] for case in CASES], ids=[case[0].__name__ for case in CASES])
def test_what_only_a_payer_can_have_done_is_held_against_it(run: Run, refused: Callable[[Any], Any]) -> None:
    async def body(world: Any) -> None:
        await world.agree()
        await world.payer.open_channels(world.need(1_000))
        await refused(world)
        blamed = [server for _, server in world.streams if server.blamed]
        assert bool(blamed) == (refused in OFFENCES)

    run(body)


def test_every_code_that_a_payee_can_send_has_a_case_and_words() -> None:
    named = {WireCode[name] for path in SOURCES for name in re.findall(r"WireCode\.([A-Z_]+)", path.read_text())}
    # What decoding says of a message, in `wire.py`.
    sent = named | {WireCode.MALFORMED, WireCode.UNSUPPORTED, WireCode.OVERSIZED}
    assert sent == set(REASONS) == {code for _, code, _ in CASES}
    assert all(text[0].islower() and not text.endswith(".") for text in REASONS.values())


@pytest.mark.parametrize("code", [*WireCode][1:])
def test_a_payer_tells_what_to_do_about_any_refusal(run: Run, pair: Any, code: WireCode) -> None:
    """Whatever code it is given, of the hello: it ends in an error that names it, and in nothing else."""

    async def body(world: Any) -> None:
        task = await world.agree()
        await world.payer.open_channels(world.need(1_000))
        await world.work(task, 0)

        async def dial(_: Any) -> Any:
            client, server = pair(world.requester.peer_id, world.provider.peer_id)

            async def refuse() -> None:
                wire = Wire(server)
                assert isinstance(await wire.hear(), ChannelHello)
                await wire.say(VoucherRefusal(code=int(code), detail="as I say", best_uusd=0))

            world.nursery.start_soon(refuse)
            return client

        world.payer.dial = dial
        with pytest.raises((VoucherRefused, InsufficientFunds, StreamError)) as caught:
            await world.channel_out().pay()
        assert code.name in str(caught.value)
        assert "as I say" in str(caught.value)
        advice = REASONS.get(code, "deal with another provider")
        assert advice in str(caught.value)

    run(body)


def test_a_reason_of_a_later_release_is_shown_as_it_is() -> None:
    error = refused_error(VoucherRefusal(code=200, detail="", best_uusd=3))
    assert "200, no reason given (it holds 0.000003 USD)" in str(error)
    assert "deal with another provider" in str(error)
