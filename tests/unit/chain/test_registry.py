"""What the stake registry does, on py-evm, from the committed artefact. Invariants: docs/contracts.md."""

from __future__ import annotations

from typing import Any

import pytest

from p2pcompute.chain import load_artifact
from p2pcompute.chain._artifacts import registry_creation
from p2pcompute.chain._hub import encode_approve, encode_transfer
from p2pcompute.chain._registry import (
    CUT_PARTS,
    CUT_PAUSE_S,
    UNSTAKE_DELAY_S,
    encode_active,
    encode_allow,
    encode_allowance_left,
    encode_anchor,
    encode_cap,
    encode_declare,
    encode_request_unstake,
    encode_set_receipt_key,
    encode_slash_anchored,
    encode_slash_by_verdict,
    encode_slash_equivocation,
    encode_speaks_for,
    encode_stake,
    encode_stake_withdraw,
    encode_unstake,
    encode_weight,
)
from p2pcompute.chain._registry_signed import (
    MAX_ARBITERS,
    StakeTerms,
    StrictReceipt,
    Verdict,
    receipt_key_digest,
    strict_receipts_tree,
    terms_digest,
    verdict_digest,
)
from p2pcompute_protocols._evm import sign_digest
from p2pcompute_protocols.channel._voucher import keccak256
from p2pcompute_protocols.ids import Address, TaskId

from .registry_bench import MIN_UUSD, PER_CORE_UUSD, TASK, RegistryBench

NOBODY = Address(bytes(20))


@pytest.fixture
def registry(bench: Any) -> RegistryBench:
    return RegistryBench(bench)


def test_every_function_is_called_by_its_selector() -> None:
    """The selectors and topics written by hand are those of the ABI."""
    from p2pcompute.chain import _registry

    made = {value for name, value in vars(_registry).items() if name.isupper() and isinstance(value, bytes)}

    def kind(item: dict[str, Any]) -> str:
        if item["type"].startswith("tuple"):
            return "(" + ",".join(map(kind, item["components"])) + ")" + item["type"][5:]
        return str(item["type"])

    of_abi = set()
    for item in [*load_artifact("StakeRegistry").abi]:
        if item["type"] in ("function", "event"):
            digest = keccak256((item["name"] + "(" + ",".join(map(kind, item["inputs"])) + ")").encode())
            of_abi.add(digest if item["type"] == "event" else digest[:4])
    assert made
    assert made <= of_abi


def test_constants_are_those_of_the_contract(registry: RegistryBench) -> None:
    def read(name: str) -> int:
        return registry.read(keccak256(name.encode())[:4])

    assert read("UNSTAKE_DELAY()") == UNSTAKE_DELAY_S
    assert read("CUT_PAUSE()") == CUT_PAUSE_S
    assert read("CUT_PARTS()") == CUT_PARTS
    assert read("PAID_PARTS()") == 2
    assert read("MAX_ARBITERS()") == MAX_ARBITERS
    assert read("min_stake()") == MIN_UUSD
    assert read("stake_per_core()") == PER_CORE_UUSD
    assert read("domain_separator()") == int.from_bytes(registry.domain.separator, "big")


# Stake


def test_stake_leaves_after_the_delay(registry: RegistryBench) -> None:
    owner = registry.account("owner")
    registry.stake(owner, 1500)
    assert registry.read(encode_active(owner.address)) == 1
    assert registry.read(encode_weight(owner.address)) == 1500
    registry.do(owner, encode_request_unstake(500))
    state = registry.state(owner)
    assert (state.stake_uusd, state.leaving_uusd, state.leave_at_s) == (
        1500,
        500,
        registry.bench.now_s + UNSTAKE_DELAY_S,
    )
    assert registry.read(encode_weight(owner.address)) == 1000
    registry.bench.now_s += UNSTAKE_DELAY_S - 1
    assert registry.reason(owner, encode_unstake()) == "too early"
    registry.bench.now_s += 1
    registry.do(owner, encode_unstake())
    assert registry.credit(owner) == 500
    assert registry.reason(owner, encode_unstake()) == "nothing asked for"
    assert registry.reason(owner, encode_stake_withdraw(501, owner.address)) == "credit too low"
    registry.do(owner, encode_stake_withdraw(500, owner.address))
    assert registry.bench.tokens(owner.address) == 500
    for nowhere in (NOBODY, registry.address):
        assert registry.reason(owner, encode_stake_withdraw(0, nowhere)) == "bad receiver"


def test_asking_again_starts_the_delay_anew(registry: RegistryBench) -> None:
    owner = registry.account("owner")
    registry.stake(owner, 3000)
    registry.do(owner, encode_request_unstake(500))
    registry.bench.now_s += UNSTAKE_DELAY_S
    registry.do(owner, encode_request_unstake(500))
    assert registry.reason(owner, encode_unstake()) == "too early"
    registry.bench.now_s += UNSTAKE_DELAY_S
    registry.do(owner, encode_unstake())
    assert registry.credit(owner) == 1000


def test_what_stays_is_nothing_or_the_minimum(registry: RegistryBench) -> None:
    owner = registry.account("owner")
    registry.bench.give(owner, 5000)
    registry.bench.do(owner, encode_approve(registry.address, 5000), to=registry.bench.token)
    assert registry.reason(owner, encode_stake(MIN_UUSD - 1)) == "below the minimum"
    assert registry.reason(owner, encode_stake(0)) == "below the minimum"
    registry.do(owner, encode_stake(MIN_UUSD))
    assert registry.reason(owner, encode_request_unstake(1)) == "below the minimum"
    assert registry.reason(owner, encode_request_unstake(0)) == "not staked"
    assert registry.reason(owner, encode_request_unstake(MIN_UUSD + 1)) == "not staked"
    registry.do(owner, encode_request_unstake(MIN_UUSD))
    assert registry.read(encode_active(owner.address)) == 0
    assert registry.read(encode_weight(owner.address)) == 0
    assert registry.reason(owner, encode_request_unstake(1)) == "not staked"


def test_stake_follows_machines(registry: RegistryBench) -> None:
    owner = registry.account("owner")
    registry.bench.give(owner, 5000)
    registry.bench.do(owner, encode_approve(registry.address, 5000), to=registry.bench.token)
    assert registry.read(encode_cap(owner.address)) == MIN_UUSD
    assert registry.reason(owner, encode_stake(MIN_UUSD + 1)) == "above the cap"
    registry.do(owner, encode_declare(20))
    assert registry.read(encode_cap(owner.address)) == 2000
    registry.do(owner, encode_stake(2000))
    for amount in (1, 2**96, 2**256 - 1):
        assert registry.reason(owner, encode_stake(amount)) == "above the cap"
    registry.do(owner, encode_declare(12))  # the stake stays, and no longer counts whole
    assert registry.state(owner).stake_uusd == 2000
    assert registry.read(encode_weight(owner.address)) == 1200
    registry.do(owner, encode_declare(2**64 - 1))
    assert registry.read(encode_cap(owner.address)) == PER_CORE_UUSD * (2**64 - 1)
    assert registry.reason(owner, encode_declare(2**64)) == "too many cores"


def test_stake_needs_tokens_and_approval(registry: RegistryBench) -> None:
    owner = registry.account("owner")
    assert registry.reason(owner, encode_stake(MIN_UUSD)) == "allowance too low"
    registry.bench.do(owner, encode_approve(registry.address, MIN_UUSD), to=registry.bench.token)
    assert registry.reason(owner, encode_stake(MIN_UUSD)) == "balance too low"
    assert registry.state(owner).stake_uusd == 0


@pytest.mark.parametrize("amounts", [(0, 1), (2**96, 1), (1, 2**96)])
def test_a_registry_that_makes_no_sense_can_not_be_made(bench: Any, amounts: tuple[int, int]) -> None:
    least, per_core = amounts
    data = registry_creation(bench.token, min_stake_uusd=least, stake_per_core_uusd=per_core)
    assert not bench.send(bench.bank, None, data).ok
    data = registry_creation(Address(b"\x01" * 20), min_stake_uusd=1, stake_per_core_uusd=1)
    assert not bench.send(bench.bank, None, data).ok


# Keys


def test_keys_speak_for_their_owner_until_a_while_after_they_are_retired(registry: RegistryBench) -> None:
    owner, first, second, other = map(registry.account, ("owner", "first", "second", "other"))

    def speaks(key: Any, who: Any = owner) -> bool:
        return bool(registry.read(encode_speaks_for(who.address, key.address)))

    assert speaks(owner)
    assert not speaks(first)
    registry.key(owner, first)
    assert speaks(first)
    assert not speaks(first, other)
    registry.bench.now_s += 10
    registry.key(owner, second)
    assert speaks(first)
    assert speaks(second)
    registry.bench.now_s += UNSTAKE_DELAY_S - 1
    assert speaks(first)
    registry.bench.now_s += 1
    assert not speaks(first)
    registry.do(owner, encode_set_receipt_key(NOBODY, None))
    assert speaks(second)
    registry.bench.now_s += UNSTAKE_DELAY_S
    assert not speaks(second)
    assert not speaks(registry.account("nobody"))
    assert not registry.read(encode_speaks_for(owner.address, NOBODY))


def test_a_key_is_named_once_and_by_itself(registry: RegistryBench) -> None:
    owner, key, other = map(registry.account, ("owner", "key", "other"))
    digest = receipt_key_digest(registry.domain, owner.address)
    stolen = encode_set_receipt_key(key.address, sign_digest(other.key, digest))
    assert registry.reason(owner, stolen) == "not signed by the key"
    for_owner = encode_set_receipt_key(key.address, sign_digest(key.key, digest))
    assert registry.reason(other, for_owner) == "not signed by the key"
    registry.do(owner, for_owner)
    assert registry.reason(owner, for_owner) == "key was used before"
    again = sign_digest(key.key, receipt_key_digest(registry.domain, other.address))
    assert registry.reason(other, encode_set_receipt_key(key.address, again)) == "key was used before"
    with pytest.raises(ValueError, match="comes with its signature"):
        encode_set_receipt_key(key.address, None)


# Equivocation


def test_two_outputs_for_one_chunk_cost_a_small_part_half_of_it_burned(registry: RegistryBench) -> None:
    owner, key, reporter = map(registry.account, ("owner", "key", "reporter"))
    registry.stake(owner, 1400)
    registry.key(owner, key)
    (event,) = registry.do(reporter, registry.equivocation(owner, key))
    cut = MIN_UUSD // CUT_PARTS  # a twentieth of the stake would be more
    assert (event.owner, event.proof, event.beneficiary) == (owner.address, TASK, reporter.address)
    assert (event.taken_uusd, event.paid_uusd) == (cut, cut // 2)
    assert registry.state(owner).stake_uusd == 1400 - cut
    assert registry.credit(reporter) == cut // 2
    assert registry.burned() == cut - cut // 2


def test_equivocation_counts_once_a_task_and_once_a_day(registry: RegistryBench) -> None:
    owner, reporter = registry.account("owner"), registry.account("reporter")
    registry.stake(owner, 1000)
    registry.do(reporter, registry.equivocation(owner, owner))
    other = TaskId(b"\x08" * 32)
    assert registry.reason(reporter, registry.equivocation(owner, owner, task=other)) == "cut a moment ago"
    assert registry.reason(reporter, registry.equivocation(owner, owner, index=4)) == "cut for this task before"
    registry.bench.now_s += CUT_PAUSE_S
    assert registry.reason(reporter, registry.equivocation(owner, owner, index=4)) == "cut for this task before"
    (event,) = registry.do(reporter, registry.equivocation(owner, owner, task=other))
    assert event.taken_uusd == 950 // CUT_PARTS


def test_what_is_leaving_can_still_be_lost(registry: RegistryBench) -> None:
    owner, reporter = registry.account("owner"), registry.account("reporter")
    registry.stake(owner, 1000)
    registry.do(owner, encode_request_unstake(1000))
    registry.bench.now_s += UNSTAKE_DELAY_S
    registry.do(reporter, registry.equivocation(owner, owner))
    state = registry.state(owner)
    assert (state.stake_uusd, state.leaving_uusd) == (950, 950)
    registry.do(owner, encode_unstake())
    assert registry.credit(owner) == 950
    assert (
        registry.reason(reporter, registry.equivocation(owner, owner, task=TaskId(b"\x09" * 32))) == "cut a moment ago"
    )
    registry.bench.now_s += CUT_PAUSE_S
    nothing = registry.equivocation(owner, owner, task=TaskId(b"\x09" * 32))
    assert registry.reason(reporter, nothing) == "nothing to take"


def test_receipts_that_prove_nothing_are_not_even_encoded(registry: RegistryBench) -> None:
    owner = registry.account("owner")
    one = registry.receipt(owner, b"\x01" * 32)
    for other in (
        registry.receipt(owner, b"\x01" * 32),
        registry.receipt(owner, b"\x02" * 32, index=4),
        registry.receipt(owner, b"\x02" * 32, task=TaskId(bytes(32))),
    ):
        with pytest.raises(ValueError, match="prove nothing"):
            encode_slash_equivocation(owner.address, one, other)


@pytest.mark.parametrize("leaves", [1, 2, 3, 6, 7, 8, 13])
def test_an_anchored_receipt_convicts_wherever_it_stands(registry: RegistryBench, leaves: int) -> None:
    owner, reporter = registry.account("owner"), registry.account("reporter")
    registry.stake(owner, 1000)
    receipts = {2 * i: StrictReceipt(task=TASK, index=2 * i, output=bytes([i]) * 32) for i in range(leaves)}
    tree = strict_receipts_tree(receipts)
    registry.do(owner, encode_anchor(TASK, tree.root, leaves))
    for place in range(leaves):
        other = registry.receipt(owner, b"\xff" * 32, index=2 * place)
        data = encode_slash_anchored(owner.address, receipts[2 * place], tree.proof(place), tree.root, other)
        assert registry.reason(reporter, data) == ""
        if leaves > 1:
            wrong = encode_slash_anchored(
                owner.address, receipts[2 * place], tree.proof((place + 1) % leaves), tree.root, other
            )
            assert registry.reason(reporter, wrong) == "not in the tree"
    (event,) = registry.do(reporter, data)
    assert event.taken_uusd == 50


def test_only_the_provider_anchors_and_once(registry: RegistryBench) -> None:
    owner, other = registry.account("owner"), registry.account("other")
    registry.stake(owner, 1000)
    receipt = StrictReceipt(task=TASK, index=0, output=b"\x01" * 32)
    tree = strict_receipts_tree({0: receipt})
    registry.do(other, encode_anchor(TASK, tree.root, 1))
    proof = encode_slash_anchored(
        owner.address, receipt, tree.proof(0), tree.root, registry.receipt(owner, b"\x02" * 32, index=0)
    )
    assert registry.reason(other, proof) == "not anchored by the owner"
    registry.do(owner, encode_anchor(TASK, tree.root, 1))
    assert registry.reason(owner, encode_anchor(TASK, bytes(32), 1)) == "anchored before"
    assert registry.reason(other, proof) == ""
    for count in (0, 2**20 + 1):
        assert registry.reason(owner, encode_anchor(TaskId(bytes(32)), tree.root, count)) == "bad count"


# Verdicts


def court(registry: RegistryBench) -> tuple[Any, Any, list[Any]]:
    """A provider with a stake, a requester, and three arbiters with one, in ascending order."""
    provider, requester = registry.account("provider"), registry.account("requester")
    registry.stake(provider, 1000)
    arbiters = sorted((registry.account(f"arbiter {i}") for i in range(3)), key=lambda a: a.address)
    for arbiter in arbiters:
        registry.stake(arbiter, MIN_UUSD)
    return provider, requester, arbiters


def test_a_verdict_takes_what_the_arbiters_say_and_pays_the_requester_half(registry: RegistryBench) -> None:
    provider, requester, arbiters = court(registry)
    terms = registry.terms(provider, requester, arbiters)
    data = registry.verdict(terms, provider, requester, arbiters[1:], amount=301)
    (event,) = registry.do(registry.account("anyone"), data)
    assert (event.owner, event.proof, event.beneficiary) == (provider.address, terms.struct_hash, requester.address)
    assert (event.taken_uusd, event.paid_uusd) == (301, 150)
    assert registry.state(provider).stake_uusd == 699
    assert registry.credit(requester) == 150
    assert registry.burned() == 151
    assert registry.reason(requester, data) == "judged before"
    again = registry.verdict(terms, provider, requester, arbiters[:2], amount=10)
    assert registry.reason(requester, again) == "judged before"
    registry.do(requester, encode_stake_withdraw(150, requester.address))
    assert registry.bench.tokens(requester.address) == 150


def test_no_more_is_taken_than_is_at_risk_nor_than_there_is(registry: RegistryBench) -> None:
    provider, requester, arbiters = court(registry)
    small = registry.terms(provider, requester, arbiters, at_risk=200)
    (event,) = registry.do(requester, registry.verdict(small, provider, requester, arbiters, amount=2**96 - 1))
    assert event.taken_uusd == 200
    large = registry.terms(provider, requester, arbiters, at_risk=2**96 - 1)
    (event,) = registry.do(requester, registry.verdict(large, provider, requester, arbiters, amount=2**96 - 1))
    assert event.taken_uusd == 800
    assert registry.state(provider).stake_uusd == 0


def test_receipt_keys_sign_terms_and_verdicts_too(registry: RegistryBench) -> None:
    provider, requester, arbiters = court(registry)
    hot, arbiter_key = registry.account("hot"), registry.account("arbiter's key")
    registry.key(provider, hot)
    registry.key(arbiters[0], arbiter_key)
    terms = registry.terms(provider, requester, arbiters, threshold=1)
    data = registry.verdict(terms, hot, requester, arbiters[:1], keys=[arbiter_key])
    assert registry.reason(requester, data) == "nothing to take"  # the key may put nothing at risk yet
    registry.do(provider, encode_allow(hot.address, 400))
    (event,) = registry.do(requester, data)
    assert event.taken_uusd == 300
    assert registry.read(encode_allowance_left(hot.address)) == 100
    other = registry.terms(provider, requester, arbiters, threshold=1, task=TaskId(b"\x08" * 32))
    (event,) = registry.do(requester, registry.verdict(other, hot, requester, arbiters[:1]))
    assert event.taken_uusd == 100
    assert registry.read(encode_allowance_left(hot.address)) == 0
    assert registry.state(provider).stake_uusd == 600


def test_an_allowance_is_the_owners_to_give_and_not_to_take_back(registry: RegistryBench) -> None:
    owner, key, other = map(registry.account, ("owner", "key", "other"))
    assert registry.reason(owner, encode_allow(key.address, 1)) == "not the caller's key"
    registry.key(owner, key)
    assert registry.reason(other, encode_allow(key.address, 1)) == "not the caller's key"
    assert registry.reason(owner, encode_allow(other.address, 1)) == "not the caller's key"
    assert registry.reason(other, encode_allow(NOBODY, 1)) == "not the caller's key"
    registry.do(owner, encode_allow(key.address, 500))
    assert registry.reason(owner, encode_allow(key.address, 499)) == "can not be lowered"
    registry.do(owner, encode_allow(key.address, 501))
    assert registry.read(encode_allowance_left(key.address)) == 501


def test_the_largest_court(registry: RegistryBench) -> None:
    provider, requester = registry.account("provider"), registry.account("requester")
    registry.stake(provider, 1000)
    arbiters = [registry.account(f"arbiter {i}") for i in range(MAX_ARBITERS)]
    for arbiter in arbiters:
        registry.stake(arbiter, MIN_UUSD)
    terms = registry.terms(provider, requester, arbiters, threshold=MAX_ARBITERS)
    (event,) = registry.do(requester, registry.verdict(terms, provider, requester, arbiters))
    assert event.taken_uusd == 300


def test_a_verdict_has_to_come_in_time_from_arbiters_with_a_stake(registry: RegistryBench) -> None:
    provider, requester, arbiters = court(registry)
    terms = registry.terms(provider, requester, arbiters, expires_s=registry.bench.now_s)
    data = registry.verdict(terms, provider, requester, arbiters[:2])
    assert registry.reason(requester, data) == ""
    registry.do(arbiters[0], encode_request_unstake(MIN_UUSD))
    assert registry.reason(requester, data) == "arbiter has no stake"
    registry.bench.now_s += 1
    assert registry.reason(requester, data) == "too late"


def test_a_verdict_for_another_registry_is_none_here(registry: RegistryBench) -> None:
    provider, requester, arbiters = court(registry)
    second = RegistryBench(registry.bench)
    terms = registry.terms(provider, requester, arbiters)
    foreign = second.verdict(terms, provider, requester, arbiters[:2])
    assert registry.reason(requester, foreign) == "not the provider's"
    verdict = Verdict(terms=terms.struct_hash, amount_uusd=300, evidence=bytes(32))
    votes = {i: sign_digest(arbiters[i].key, verdict_digest(second.domain, verdict)) for i in range(2)}
    first, other = registry.signed(terms, provider, requester)
    data = encode_slash_by_verdict(terms, first, other, verdict, votes)
    assert registry.reason(requester, data) == "not signed by the arbiter"


def test_terms_that_make_no_sense_can_not_exist(registry: RegistryBench) -> None:
    provider, requester, *arbiters = (registry.account(f"account {i}") for i in range(4))
    good = registry.terms(provider, requester, arbiters)
    assert len(terms_digest(registry.domain, good)) == 32
    fields = {name: getattr(good, name) for name in good.__dataclass_fields__}
    for change in (
        {"threshold": 0},
        {"threshold": 3},
        {"arbiters": ()},
        {"arbiters": good.arbiters[::-1]},
        {"arbiters": good.arbiters[:1] * 2},
        {"arbiters": tuple(sorted((good.provider, good.arbiters[0])))},
        {"arbiters": tuple(sorted((good.requester, good.arbiters[0])))},
        {"at_risk_uusd": 2**96},
        {"expires_s": 2**40},
        {"task": b"short"},
    ):
        with pytest.raises(ValueError):
            StakeTerms(**{**fields, **change})
    with pytest.raises(ValueError, match="of the arbiters have to sign"):
        registry.verdict(good, provider, requester, [])
    other = Verdict(terms=bytes(32), amount_uusd=1, evidence=bytes(32))
    with pytest.raises(ValueError, match="other terms"):
        encode_slash_by_verdict(good, *registry.signed(good, provider, requester), other, {})


def test_money_sent_past_stake_belongs_to_nobody(registry: RegistryBench) -> None:
    registry.bench.do(registry.bench.bank, encode_transfer(registry.address, 77), to=registry.bench.token)
    owner = registry.account("owner")
    registry.stake(owner, MIN_UUSD)
    assert registry.state(owner).stake_uusd == MIN_UUSD
    assert registry.burned() == 0
