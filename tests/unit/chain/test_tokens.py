"""The hub and the registry with tokens that are not as they should be: tests/contracts/*.vy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from p2pcompute.chain import (
    FundRow,
    encode_approve,
    encode_claim,
    encode_deposit,
    encode_finalize,
    encode_fund,
    encode_withdraw,
)
from p2pcompute.chain._hub import encode_transfer
from p2pcompute.chain._hub_signed import (
    Authorization,
    Permit,
    encode_deposit_with_authorization,
    encode_deposit_with_permit,
)
from p2pcompute.chain._registry import (
    UNSTAKE_DELAY_S,
    encode_request_unstake,
    encode_stake,
    encode_stake_withdraw,
    encode_unstake,
)
from p2pcompute_protocols.channel._voucher import keccak256

from .registry_bench import MIN_UUSD, RegistryBench
from .weakened import Case, Compiler, needs_compiler

FOLDER = Path(__file__).parents[2] / "contracts"
Bench = Any  # tests/unit/chain/conftest.py: HubBench


def code(name: str) -> bytes:
    return bytes.fromhex(json.loads((FOLDER / f"{name}.json").read_text())["bytecode"][2:])


def call(signature: str, *words: int | bytes | bool) -> bytes:
    """Calldata of a function whose arguments are words; a call that carries bytes of its own is written out below."""
    encoded = [w.rjust(32, b"\0") if isinstance(w, bytes) else int(w).to_bytes(32, "big") for w in words]
    return keccak256(signature.encode())[:4] + b"".join(encoded)


class TokenBench:
    """A hub for one of those tokens, and two people who have 1000 of it each and have approved them."""

    def __init__(self, bench_type: Any, name: str, hub_bytecode: bytes | None = None) -> None:
        self.bench = bench_type(hub_bytecode, token_code=code(name))
        self.ada, self.bob = self.bench.account("ada"), self.bench.account("bob")
        for person in (self.ada, self.bob):
            self.token(call("mint(address,uint256)", person.address, 1000))
            self.bench.do(person, encode_approve(self.bench.hub, 1000), to=self.bench.token)

    def token(self, data: bytes) -> None:
        self.bench.do(self.bench.bank, data, to=self.bench.token)

    def deposit(self, who: Any, amount: int) -> bool:
        return bool(self.bench.send(who, self.bench.hub, encode_deposit(amount, who.address)).ok)

    def hook(self, to: bytes, data: bytes) -> None:
        """In the middle of the next transfer the token calls `to`."""
        tail = len(data).to_bytes(32, "big") + data + bytes(-len(data) % 32)
        self.token(call("set_hook(address,bytes)", to, 64) + tail)

    def solvent(self) -> bool:
        people = (self.ada, self.bob, self.bench.account("token's own"))
        return self.bench.tokens(self.bench.hub) >= sum(map(self.bench.balance, people))


@pytest.fixture
def hostile(bench_type: Any) -> TokenBench:
    return TokenBench(bench_type, "HostileToken")


def test_a_token_that_says_nothing_is_a_token(bench_type: Any) -> None:
    made = TokenBench(bench_type, "QuietToken")
    assert made.deposit(made.ada, 1000)
    made.bench.fund(made.ada, made.bob, made.ada, 600)
    made.bench.claim(made.bob, [made.bench.row(made.ada, made.bob, made.ada, 600)])
    made.bench.do(made.bob, encode_withdraw(600, made.bob.address))
    assert made.bench.tokens(made.bob.address) == 1600
    assert not made.deposit(made.ada, 1)  # no allowance is left


def test_a_token_that_takes_a_cut_is_refused(hostile: TokenBench) -> None:
    hostile.token(call("set_cut(uint256)", 1))
    assert hostile.bench.reason(hostile.ada, encode_deposit(1000, hostile.ada.address)) == ""  # of 1000 that is nothing
    hostile.token(call("set_cut(uint256)", 10))
    assert hostile.bench.reason(hostile.ada, encode_deposit(1000, hostile.ada.address)) == "token takes a cut"
    hostile.token(call("set_cut(uint256)", 10_000))
    assert not hostile.deposit(hostile.ada, 1)
    assert hostile.solvent()


def test_a_token_that_begins_to_take_a_cut_takes_it_from_who_withdraws(hostile: TokenBench) -> None:
    assert hostile.deposit(hostile.ada, 1000)
    assert hostile.deposit(hostile.bob, 1000)
    hostile.token(call("set_cut(uint256)", 5000))
    hostile.bench.do(hostile.ada, encode_withdraw(1000, hostile.ada.address))
    assert hostile.bench.tokens(hostile.ada.address) == 500
    assert hostile.bench.tokens(hostile.bench.hub) == 1000 == hostile.bench.balance(hostile.bob)


def test_a_token_that_says_no_is_heard(hostile: TokenBench) -> None:
    assert hostile.deposit(hostile.ada, 500)
    hostile.token(call("set_lies(bool)", True))
    assert hostile.bench.reason(hostile.ada, encode_deposit(500, hostile.ada.address)) == "transfer failed"
    assert hostile.bench.reason(hostile.ada, encode_withdraw(500, hostile.ada.address)) == "transfer failed"
    assert hostile.bench.balance(hostile.ada) == 500


@pytest.mark.parametrize("who", ["payer", "payee"])
def test_a_token_that_blocks_one_account_stops_nobody_else(hostile: TokenBench, who: str) -> None:
    """Money moves inside the hub, so a batch and a closing go on without the token."""
    bench, payer, payee = hostile.bench, hostile.ada, hostile.bob
    other = bench.account("other")
    assert hostile.deposit(payer, 1000)
    bench.do(
        payer,
        encode_fund([FundRow(payee=p.address, signer=payer.address, amount_uusd=400) for p in (payee, other)]),
    )
    blocked = payer if who == "payer" else payee
    hostile.token(call("block_account(address,bool)", blocked.address, True))
    for earner in (payee, other):
        bench.do(bench.bank, encode_claim(earner.address, [bench.row(payer, earner, payer, 300)]))
    bench.do(payee, encode_finalize(payer.address, payee.address, payer.address))
    assert (bench.balance(payee), bench.balance(other), bench.balance(payer)) == (300, 300, 300)
    amount = bench.balance(blocked)
    assert bench.reason(blocked, encode_withdraw(amount, blocked.address)) == "blocked"
    bench.do(other, encode_withdraw(300, other.address))
    fresh = bench.account("fresh")
    bench.do(blocked, encode_withdraw(amount, fresh.address))  # its money is not lost: it goes somewhere else
    assert bench.tokens(fresh.address) == amount


def test_a_token_that_takes_any_call_for_a_permit_moves_nobody_elses_tokens(hostile: TokenBench) -> None:
    """It has a fallback, so a permit for nothing "succeeds". Ada has approved the hub; a thief brings her permit."""
    thief = hostile.bench.account("thief")
    made = Permit(owner=hostile.ada.address, amount_uusd=1000, nonce=0, deadline_s=2**40)
    data = encode_deposit_with_permit(made, bytes(64) + b"\x1b", beneficiary=thief.address)
    assert not hostile.bench.send(thief, hostile.bench.hub, data).ok
    assert hostile.bench.balance(thief) == 0
    assert hostile.bench.tokens(hostile.ada.address) == 1000


def test_a_token_that_takes_any_call_for_an_authorisation_brings_nothing(hostile: TokenBench) -> None:
    thief = hostile.bench.account("thief")
    made = Authorization(owner=thief.address, amount_uusd=1000, valid_after_s=0, valid_before_s=2**40, salt=bytes(32))
    data = encode_deposit_with_authorization(made, bytes(64) + b"\x1b")
    assert hostile.bench.reason(thief, data) == "token takes a cut"
    assert hostile.bench.balance(thief) == 0


ENTRIES = {
    "deposit": encode_deposit(0, b"\x01" * 20),
    "deposit_with_permit": encode_deposit_with_permit(
        Permit(owner=b"\x01" * 20, amount_uusd=0, nonce=0, deadline_s=2**40),
        bytes(64) + b"\x1b",
        beneficiary=b"\x01" * 20,
    ),
    "deposit_with_authorization": encode_deposit_with_authorization(
        Authorization(owner=b"\x01" * 20, amount_uusd=0, valid_after_s=0, valid_before_s=2**40, salt=bytes(32)),
        bytes(64) + b"\x1b",
    ),
    "withdraw": encode_withdraw(0, b"\x01" * 20),
}


@pytest.mark.parametrize("outer", ["deposit", "withdraw"])
@pytest.mark.parametrize("inner", ENTRIES)
def test_a_token_that_calls_back_is_not_let_in(hostile: TokenBench, outer: str, inner: str) -> None:
    assert hostile.deposit(hostile.ada, 500)
    hostile.hook(hostile.bench.hub, ENTRIES[inner])
    if outer == "deposit":
        assert hostile.deposit(hostile.ada, 500)
    else:
        hostile.bench.do(hostile.ada, encode_withdraw(500, hostile.ada.address))
    assert hostile.bench.call(hostile.bench.token, call("hook_called()"))[-1] == 1
    assert hostile.bench.call(hostile.bench.token, call("hook_worked()"))[-1] == 0
    assert hostile.solvent()


def test_a_token_that_calls_back_into_a_claim_changes_nothing(hostile: TokenBench) -> None:
    """`claim` calls no token, so it has no lock; in the middle of a withdrawal it does what it always does."""
    bench = hostile.bench
    assert hostile.deposit(hostile.ada, 1000)
    bench.fund(hostile.ada, hostile.bob, hostile.ada, 600)
    hostile.hook(bench.hub, encode_claim(hostile.bob.address, [bench.row(hostile.ada, hostile.bob, hostile.ada, 200)]))
    bench.do(hostile.ada, encode_withdraw(400, hostile.ada.address))
    assert bench.call(bench.token, call("hook_worked()"))[-1] == 1
    assert (bench.balance(hostile.ada), bench.balance(hostile.bob)) == (0, 200)
    assert bench.tokens(bench.hub) == 600


@needs_compiler
def test_what_calls_back_would_go_through_without_the_lock(bench_type: Any, compiler: Compiler) -> None:
    code_without = compiler.without("ChannelHub", Case(withdrawing_in_a_deposit, (("@nonreentrant\n", ""),)))
    for inner in ENTRIES.values():
        made = TokenBench(bench_type, "HostileToken", code_without)
        made.hook(made.bench.hub, inner)
        assert made.deposit(made.ada, 500)
        assert made.bench.call(made.bench.token, call("hook_worked()"))[-1] == 1


def withdrawing_in_a_deposit(made: TokenBench) -> bool:
    """A token lets its account withdraw in the middle of its own deposit, and what was paid out counts as paid in."""
    assert made.deposit(made.ada, 1000)  # somebody else's
    own, token = made.bench.account("token's own"), made.bench.token
    # The token itself is the account: it has a balance, and the hook is called in its name.
    made.token(call("mint(address,uint256)", made.bob.address, 1000))
    made.bench.do(made.bob, encode_deposit(500, token), to=made.bench.hub)
    before = made.bench.tokens(own.address)
    made.hook(made.bench.hub, encode_withdraw(500, own.address))
    made.deposit(made.bob, 500)
    return made.bench.tokens(own.address) > before


@needs_compiler
def test_the_lock_is_what_keeps_it_out(bench_type: Any, hostile: TokenBench, compiler: Compiler) -> None:
    assert not withdrawing_in_a_deposit(hostile)
    assert hostile.solvent()
    # Without the lock, and without the count of what came in that stands behind it, the call gets through.
    weak = Case(
        withdrawing_in_a_deposit,
        (
            ("@nonreentrant\n", ""),
            ('    assert staticcall token.balanceOf(self) == before + amount, "token takes a cut"\n', ""),
        ),
    )
    made = TokenBench(bench_type, "HostileToken", compiler.without("ChannelHub", weak))
    assert withdrawing_in_a_deposit(made)


# The registry


def test_the_registry_refuses_what_the_hub_refuses(hostile: TokenBench) -> None:
    registry = RegistryBench(hostile.bench)
    owner = hostile.bench.account("owner")
    hostile.token(call("mint(address,uint256)", owner.address, 2 * MIN_UUSD))
    hostile.bench.do(owner, encode_approve(registry.address, 2 * MIN_UUSD), to=hostile.bench.token)
    hostile.token(call("set_cut(uint256)", 10))
    assert registry.reason(owner, encode_stake(MIN_UUSD)) == "token takes a cut"
    hostile.token(call("set_cut(uint256)", 0))
    hostile.token(call("set_lies(bool)", True))
    assert registry.reason(owner, encode_stake(MIN_UUSD)) == "transfer failed"


def test_a_token_that_calls_back_is_not_let_into_the_registry(hostile: TokenBench) -> None:
    registry = RegistryBench(hostile.bench)
    owner = hostile.bench.account("owner")
    hostile.token(call("mint(address,uint256)", owner.address, MIN_UUSD))
    hostile.bench.do(owner, encode_approve(registry.address, MIN_UUSD), to=hostile.bench.token)
    # Outside of a transfer of the registry's the same call goes through.
    token = hostile.bench.token
    inner = encode_stake_withdraw(0, b"\x01" * 20)
    hostile.hook(registry.address, inner)
    hostile.bench.do(owner, encode_transfer(owner.address, 0), to=token)
    assert hostile.bench.call(token, call("hook_worked()"))[-1] == 1
    hostile.hook(registry.address, inner)
    registry.do(owner, encode_stake(MIN_UUSD))
    assert hostile.bench.call(token, call("hook_worked()"))[-1] == 0
    assert hostile.bench.tokens(registry.address) == MIN_UUSD


def test_a_blocked_beneficiary_does_not_stop_a_slash(hostile: TokenBench) -> None:
    registry = RegistryBench(hostile.bench)
    owner, reporter = hostile.bench.account("owner"), hostile.bench.account("reporter")
    hostile.token(call("mint(address,uint256)", owner.address, MIN_UUSD))
    hostile.bench.do(owner, encode_approve(registry.address, MIN_UUSD), to=hostile.bench.token)
    registry.do(owner, encode_stake(MIN_UUSD))
    for account in (owner, reporter):
        hostile.token(call("block_account(address,bool)", account.address, True))
    registry.do(reporter, registry.equivocation(owner, owner))
    assert registry.credit(reporter) == 25
    assert registry.reason(reporter, encode_stake_withdraw(25, reporter.address)) == "blocked"
    registry.do(owner, encode_request_unstake(950))
    hostile.bench.now_s += UNSTAKE_DELAY_S
    registry.do(owner, encode_unstake())
    fresh = hostile.bench.account("fresh")
    registry.do(owner, encode_stake_withdraw(950, fresh.address))
    assert hostile.bench.tokens(fresh.address) == 950
