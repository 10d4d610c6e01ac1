"""Attacks on the hub, each of which succeeds on the same contract without one of its defences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from eth.vm.chain_context import ChainContext

from p2pcompute.chain import (
    CLOSE_DELAY_S,
    ClaimRow,
    FundRow,
    encode_claim,
    encode_deposit,
    encode_finalize,
    encode_fund,
    encode_request_close,
    encode_withdraw,
)
from p2pcompute.chain._hub import encode_balances
from p2pcompute_protocols.channel._voucher import Voucher, sign_voucher
from p2pcompute_protocols.ids import Address, ChannelId

from .weakened import Case, Compiler, needs_compiler

Bench = Any  # tests/unit/chain/conftest.py: HubBench


def stale_voucher(bench: Bench) -> bool:
    """An old voucher, after the newer one has been withdrawn, makes money out of nothing."""
    payer, payee = bench.account("payer"), bench.account("payee")
    bench.open(payer, payee, payer, 1000)
    bench.claim(payee, [bench.row(payer, payee, payer, 100)])
    bench.do(payee, encode_withdraw(100, payee.address))
    bench.claim(payee, [bench.row(payer, payee, payer, 50)])
    return bench.balance(payee) > 0


def forged(bench: Bench) -> bool:
    """A stranger signs in the signer's stead."""
    payer, payee = bench.account("payer"), bench.account("payee")
    bench.open(payer, payee, payer, 1000)
    bench.claim(payee, [bench.row(payer, payee, payer, 1000, signed_by=payee)])
    return bench.balance(payee) > 0


def signature_of_nobody(bench: Bench) -> bool:
    """ecrecover gives zero for garbage, which is also the address of nobody."""
    payer, payee, nobody = bench.account("payer"), bench.account("payee"), bytes(20)
    bench.deposit(payer, 1000)
    fund = encode_fund([FundRow(payee=payee.address, signer=nobody, amount_uusd=1000)])
    bench.send(payer, bench.hub, fund)
    garbage = bytes(64) + b"\x1b"
    row = ClaimRow(payer=payer.address, signer=nobody, amount_uusd=1000, memo=bytes(32), signature=garbage)
    bench.claim(payee, [row])
    return bench.balance(payee) > 0


def above_the_deposit(bench: Bench) -> bool:
    """A voucher of a conspirator takes the money of everybody else."""
    victim, payer, payee = bench.account("victim"), bench.account("payer"), bench.account("payee")
    bench.deposit(victim, 10_000)
    bench.open(payer, payee, payer, 1)
    bench.claim(payee, [bench.row(payer, payee, payer, 10_001)])
    bench.send(payee, bench.hub, encode_withdraw(10_001, payee.address))
    return bench.tokens(payee.address) > 1


def other_channel(bench: Bench) -> bool:
    """A voucher for one payee is used by another one of the same payer and signer."""
    payer, payee, thief = bench.account("payer"), bench.account("payee"), bench.account("thief")
    bench.open(payer, payee, payer, 1000)
    bench.open(payer, thief, payer, 1000)
    honest = bench.row(payer, payee, payer, 1000)
    # What a signer would sign if vouchers did not name their channel.
    nameless = Voucher(channel=ChannelId(bytes(32)), amount_uusd=1000)
    careless = replace(honest, signature=sign_voucher(bench.domain(), nameless, payer.key))
    bench.claim(thief, [honest, careless])
    return bench.balance(thief) > 0


def other_hub(bench: Bench) -> bool:
    """A voucher for one hub is used at another one."""
    payer, payee = bench.account("payer"), bench.account("payee")
    bench.open(payer, payee, payer, 1000)
    second = bench.create(bench.hub_bytecode + bench.token.rjust(32, b"\0"))
    honest = bench.row(payer, payee, payer, 1000, domain=bench.domain(second))
    # What a signer would sign if vouchers did not name their hub.
    careless = bench.row(payer, payee, payer, 1000, domain=bench.domain(Address(bytes(20))))
    bench.claim(payee, [honest, careless])
    return bench.balance(payee) > 0


def other_chain(bench: Bench) -> bool:
    """After a split, a voucher of one chain is used on the other, which has taken another chain ID."""
    payer, payee = bench.account("payer"), bench.account("payee")
    bench.open(payer, payee, payer, 1000)
    row = bench.row(payer, payee, payer, 1000)
    bench.chain._context = ChainContext(bench.chain.genesis.chain_id + 1)  # the other side of the split
    data = encode_claim(payee.address, [row])
    output = bench.call(bench.hub, data, sender=payee.address)
    return int.from_bytes(output[:32], "big") > 0


def replay_after_closing(bench: Bench) -> bool:
    """A voucher that has been paid is paid again after its channel was closed and opened anew."""
    payer, payee = bench.account("payer"), bench.account("payee")
    bench.open(payer, payee, payer, 1000)
    row = bench.row(payer, payee, payer, 400)
    bench.claim(payee, [row])
    bench.do(payee, encode_finalize(payer.address, payee.address, payer.address))
    bench.open(payer, payee, payer, 1000)
    bench.claim(payee, [row])
    return bench.balance(payee) > 400


def closing_without_a_request(bench: Bench) -> bool:
    """The payer takes the deposit back before the payee has claimed."""
    payer, payee = bench.account("payer"), bench.account("payee")
    bench.open(payer, payee, payer, 1000)
    bench.send(payer, bench.hub, encode_finalize(payer.address, payee.address, payer.address))
    return bench.balance(payer) > 0


def closing_too_early(bench: Bench) -> bool:
    """The payer asks for the deposit back, and does not wait."""
    payer, payee = bench.account("payer"), bench.account("payee")
    bench.open(payer, payee, payer, 1000)
    bench.do(payer, encode_request_close(payee.address, payer.address))
    bench.now_s += CLOSE_DELAY_S - 1
    bench.send(payer, bench.hub, encode_finalize(payer.address, payee.address, payer.address))
    return bench.balance(payer) > 0


def closing_kept_in_reserve(bench: Bench) -> bool:
    """The payer lets an old request run out, tops up to lure the payee, and closes at once."""
    payer, payee = bench.account("payer"), bench.account("payee")
    bench.open(payer, payee, payer, 1)
    bench.do(payer, encode_request_close(payee.address, payer.address))
    bench.now_s += CLOSE_DELAY_S
    bench.open(payer, payee, payer, 1000)
    bench.send(payer, bench.hub, encode_finalize(payer.address, payee.address, payer.address))
    return bench.balance(payer) > 0


def closing_clock_wound_back(bench: Bench) -> bool:
    """The payer asks again and again, so that nobody can ever finish closing (a payer's own loss, but a lie)."""
    payer, payee = bench.account("payer"), bench.account("payee")
    bench.open(payer, payee, payer, 1000)
    request = encode_request_close(payee.address, payer.address)
    bench.do(payer, request)
    first = bench.channel(payer, payee, payer).close_at_s
    bench.now_s += 1000
    bench.send(payer, bench.hub, request)
    return bench.channel(payer, payee, payer).close_at_s != first


def stolen_balance(bench: Bench) -> bool:
    """Somebody closes a channel of others and gets the money."""
    payer, payee, thief = bench.account("payer"), bench.account("payee"), bench.account("thief")
    bench.open(payer, payee, payer, 1000)
    bench.do(payee, encode_finalize(payer.address, payee.address, payer.address), to=bench.hub)
    bench.send(thief, bench.hub, encode_withdraw(1000, thief.address))
    return bench.tokens(thief.address) > 0


def money_without_tokens(bench: Bench) -> bool:
    """A token says that it moved money, and moved none."""
    # It answers 1 to whatever it is asked: PUSH1 1 PUSH0 MSTORE PUSH1 32 PUSH0 RETURN, with a loader in front.
    runtime = bytes.fromhex("60015f5260205ff3")
    loader = bytes.fromhex("67") + runtime + bytes.fromhex("5f5260086018f3")
    liar = bench.create(loader)
    hub = bench.create(bench.hub_bytecode + liar.rjust(32, b"\0"))
    thief = bench.account("thief")
    bench.send(thief, hub, encode_deposit(1000, thief.address))
    return int.from_bytes(bench.call(hub, encode_balances(thief.address)), "big") > 0


def amount_into_the_neighbour(bench: Bench) -> bool:
    """A payer's deposit spills over into `claimed`, and the payee's vouchers are stale before they are used."""
    payer, payee = bench.account("payer"), bench.account("payee")
    bench.open(payer, payee, payer, 2**96 - 1)
    bench.deposit(payer, 1000)
    data = encode_fund([FundRow(payee=payee.address, signer=payer.address, amount_uusd=1000)])
    bench.send(payer, bench.hub, data)
    return bench.channel(payer, payee, payer).claimed_uusd > 0


CUT = '    assert staticcall token.balanceOf(self) == before + amount, "token takes a cut"\n'

CASES = [
    Case(
        stale_voucher,
        (
            ("good: bool = total > claimed", "good: bool = total > 0"),
            (
                "self.balances[payee] += credited",
                "self.balances[payee] = unsafe_add(self.balances[payee], credited)",
            ),
        ),
    ),
    Case(forged, (("s) == signer", "s) != empty(address)"),)),
    Case(
        signature_of_nobody,
        (
            (" or signer == empty(address)", ""),
            ("payee != empty(address) and row.signer != empty(address)", "payee != empty(address)"),
        ),
    ),
    Case(above_the_deposit, (("min(amount, word & MAX_AMOUNT)", "amount"),)),
    Case(other_channel, (("VOUCHER_TYPEHASH, channel_id, amount", "VOUCHER_TYPEHASH, empty(bytes32), amount"),)),
    Case(other_hub, (("VERSION_HASH, chain_id, self", "VERSION_HASH, chain_id, empty(address)"),)),
    Case(other_chain, (("    return self._domain_of(chain.id)\n", "    return BORN_DOMAIN\n"),)),
    Case(replay_after_closing, (("claimed=slot.claimed, close_at=0", "claimed=0, close_at=0"),)),
    Case(closing_without_a_request, (('        assert slot.close_at != 0, "no request to close"\n', ""),)),
    Case(closing_too_early, (('        assert block.timestamp >= slot.close_at, "too early"\n', ""),)),
    Case(closing_kept_in_reserve, (("~(MAX_AMOUNT | TIME_MASK)", "~MAX_AMOUNT"),)),
    Case(closing_clock_wound_back, (('    assert slot.close_at == 0, "already closing"\n', ""),)),
    Case(
        stolen_balance,
        (
            ("self.balances[payer] += refund", "self.balances[payer] += 0"),
            ("assert self.balances[msg.sender] >= amount", "assert True"),
            ("self.balances[msg.sender] -= amount", "self.balances[msg.sender] -= 0"),
        ),
    ),
    Case(money_without_tokens, ((CUT, ""),)),
    Case(
        amount_into_the_neighbour,
        (('        assert reserved <= MAX_AMOUNT, "amount too high"\n', ""),),
    ),
]
NAMES = [case.name for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_attack_fails(bench: Bench, case: Case) -> None:
    assert not case.attack(bench)


@needs_compiler
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_attack_succeeds_without_the_defence(bench_type: type[Bench], case: Case, compiler: Compiler) -> None:
    assert case.attack(bench_type(compiler.without("ChannelHub", case)))


def test_a_twin_with_a_high_s_is_skipped(bench: Bench) -> None:
    """In the 64 bytes of EIP-2098 a high s has no place of its own: its top bit is read as the parity."""
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    payer, payee = bench.account("payer"), bench.account("payee")
    bench.open(payer, payee, payer, 1000)
    row = bench.row(payer, payee, payer, 100)
    data = encode_claim(payee.address, [row])
    high_s = order - int.from_bytes(row.signature[32:64], "big")
    for twin in (high_s, high_s ^ 1 << 255, high_s & ~(1 << 255), high_s | 1 << 255):
        _, checkpoint = bench.claim_raw(data[:-32] + twin.to_bytes(32, "big"))
        assert checkpoint.skipped == (0,)
    assert bench.claim_raw(data)[1].credited_uusd == 100
