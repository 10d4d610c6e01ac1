"""Attacks on stakes, each of which succeeds on the same contract without one of its defences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from p2pcompute.chain._hub import encode_approve, encode_transfer
from p2pcompute.chain._registry import (
    UNSTAKE_DELAY_S,
    encode_allow,
    encode_anchor,
    encode_declare,
    encode_request_unstake,
    encode_set_receipt_key,
    encode_slash_anchored,
    encode_stake,
    encode_stake_withdraw,
    encode_unstake,
)
from p2pcompute.chain._registry_signed import StrictReceipt, strict_receipts_tree
from p2pcompute_protocols._evm import sign_digest
from p2pcompute_protocols.ids import Address, TaskId
from p2pcompute_protocols.merkle import InclusionProof

from .registry_bench import MIN_UUSD, TASK, RegistryBench
from .weakened import Case, Compiler, needs_compiler

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def lost(registry: RegistryBench, owner: Any, before: int = 1000) -> bool:
    return registry.state(owner).stake_uusd < before


def staked(registry: RegistryBench, name: str = "owner", amount: int = 1000) -> Any:
    owner = registry.account(name)
    registry.stake(owner, amount)
    return owner


def court(registry: RegistryBench) -> tuple[Any, Any, list[Any]]:
    provider, requester = staked(registry, "provider"), registry.account("requester")
    arbiters = sorted((staked(registry, f"arbiter {i}") for i in range(3)), key=lambda a: a.address)
    return provider, requester, arbiters


def forged_receipts(registry: RegistryBench) -> bool:
    """Somebody signs two receipts in a provider's name."""
    owner, thief = staked(registry), registry.account("thief")
    registry.send(thief, registry.equivocation(owner, thief))
    return lost(registry, owner)


def one_receipt_twice(registry: RegistryBench) -> bool:
    """An honest receipt, shown twice, passes for two."""
    owner, thief = staked(registry), registry.account("thief")
    data = bytearray(registry.equivocation(owner, owner))
    data[4 + 4 * 32 : 4 + 5 * 32] = data[4 + 3 * 32 : 4 + 4 * 32]  # the second output is the first one
    data[4 + 7 * 32 : 4 + 9 * 32] = data[4 + 5 * 32 : 4 + 7 * 32]  # and so is the second signature
    registry.send(thief, bytes(data))
    return lost(registry, owner)


def someone_elses_key(registry: RegistryBench) -> bool:
    """A provider that has signed two outputs names a key of an honest one as its own... and the honest one pays."""
    honest, cheat = staked(registry, "honest"), staked(registry, "cheat")
    registry.key(cheat, registry.account("cheat's key"))
    registry.send(cheat, registry.equivocation(honest, registry.account("cheat's key")))
    return lost(registry, honest)


def key_named_without_its_signature(registry: RegistryBench) -> bool:
    """Somebody names a provider's key before the provider does, and the provider can't."""
    owner, key, thief = registry.account("owner"), registry.account("key"), registry.account("thief")
    signature = sign_digest(thief.key, b"\x01" * 32)
    registry.send(thief, encode_set_receipt_key(key.address, signature))
    return (
        registry.read(_key_owner(key)) == int.from_bytes(thief.address, "big") != int.from_bytes(owner.address, "big")
    )


def _key_owner(key: Any) -> bytes:
    from p2pcompute_protocols.channel._voucher import keccak256

    return keccak256(b"key_owner(address)")[:4] + key.address.rjust(32, b"\0")


def new_key_washes_clean(registry: RegistryBench) -> bool:
    """A provider changes its key before its two receipts are shown: without the old key they prove nothing."""
    owner, old = staked(registry), registry.account("old")
    registry.key(owner, old)
    registry.do(owner, encode_set_receipt_key(Address(bytes(20)), None))
    registry.bench.now_s += 1
    registry.send(registry.account("reporter"), registry.equivocation(owner, old))
    return not lost(registry, owner)


def stolen_old_key(registry: RegistryBench) -> bool:
    """A key that was retired long ago is stolen, and signs two receipts."""
    owner, old = staked(registry), registry.account("old")
    registry.key(owner, old)
    registry.do(owner, encode_set_receipt_key(Address(bytes(20)), None))
    registry.bench.now_s += UNSTAKE_DELAY_S
    registry.send(registry.account("thief"), registry.equivocation(owner, old))
    return lost(registry, owner)


def gone_before_the_proof(registry: RegistryBench) -> bool:
    """A provider takes its stake out at once."""
    owner = staked(registry)
    registry.do(owner, encode_request_unstake(1000))
    registry.bench.now_s += UNSTAKE_DELAY_S - 1
    registry.send(owner, encode_unstake())
    return registry.credit(owner) > 0


def waiting_once_for_all(registry: RegistryBench) -> bool:
    """An old request that has waited lets a later one out at once."""
    owner = staked(registry, amount=3000)
    registry.do(owner, encode_request_unstake(1))
    registry.bench.now_s += UNSTAKE_DELAY_S
    registry.do(owner, encode_request_unstake(2999))
    registry.send(owner, encode_unstake())
    return registry.credit(owner) > 1


def leaving_twice(registry: RegistryBench) -> bool:
    """Stake that was asked for is asked for again, and comes out twice."""
    staked(registry, "victim")
    owner = staked(registry)
    registry.do(owner, encode_request_unstake(1000))
    registry.send(owner, encode_request_unstake(1000))
    registry.bench.now_s += UNSTAKE_DELAY_S
    registry.send(owner, encode_unstake())
    return registry.credit(owner) > 1000


def leaving_what_was_taken(registry: RegistryBench) -> bool:
    """Stake that was taken while it was on its way out comes out all the same, at the cost of others."""
    staked(registry, "victim")
    owner = staked(registry)
    registry.do(owner, encode_request_unstake(1000))
    registry.do(registry.account("reporter"), registry.equivocation(owner, owner))
    registry.bench.now_s += UNSTAKE_DELAY_S
    registry.send(owner, encode_unstake())
    return registry.credit(owner) > 950


def accusing_oneself(registry: RegistryBench) -> bool:
    """A provider takes its stake out without the delay, as a reward for its own two receipts, and loses nothing."""
    owner = staked(registry)
    registry.do(registry.account("puppet"), registry.equivocation(owner, owner))
    return registry.credit(registry.account("puppet")) + registry.state(owner).stake_uusd >= 1000


def cut_for_every_chunk(registry: RegistryBench) -> bool:
    """An honest provider restores an old backup in the middle of a task, and pays for each chunk of it."""
    owner = staked(registry)
    for index in range(5):
        registry.send(registry.account("reporter"), registry.equivocation(owner, owner, index=index))
        registry.bench.now_s += 86_400
    return lost(registry, owner, 950)


def cut_for_every_task_at_once(registry: RegistryBench) -> bool:
    """It had many tasks on that day."""
    owner = staked(registry)
    for n in range(5):
        task = TaskId(bytes([n]) * 32)
        registry.send(registry.account("reporter"), registry.equivocation(owner, owner, task=task))
    return lost(registry, owner, 950)


def _anchored(registry: RegistryBench, owner: Any, by: Any) -> Callable[[InclusionProof | None], bytes]:
    receipts = {i: StrictReceipt(task=TASK, index=i, output=bytes([i + 1]) * 32) for i in range(4)}
    tree = strict_receipts_tree(receipts)
    registry.do(by, encode_anchor(TASK, tree.root, 4))
    other = registry.receipt(owner, b"\xff" * 32, index=2)
    return lambda proof: encode_slash_anchored(owner.address, receipts[2], proof or tree.proof(2), tree.root, other)


def roots_of_others(registry: RegistryBench) -> bool:
    """A requester makes up receipts, anchors their root, and shows an honest receipt that differs."""
    owner, thief = staked(registry), registry.account("thief")
    registry.send(thief, _anchored(registry, owner, thief)(None))
    return lost(registry, owner)


def leaves_that_are_not_there(registry: RegistryBench) -> bool:
    """A receipt that was never anchored is shown with a path that leads elsewhere."""
    owner, thief = staked(registry), registry.account("thief")
    made = {0: StrictReceipt(task=TASK, index=0, output=b"\x01" * 32)}
    tree = strict_receipts_tree(made)
    registry.do(owner, encode_anchor(TASK, tree.root, 1))
    false = StrictReceipt(task=TASK, index=2, output=b"\xee" * 32)
    honest = registry.receipt(owner, b"\xff" * 32, index=2)
    registry.send(thief, encode_slash_anchored(owner.address, false, tree.proof(0), tree.root, honest))
    return lost(registry, owner)


def verdict_of_too_few(registry: RegistryBench) -> bool:
    """One arbiter decides where two have to."""
    provider, requester, arbiters = court(registry)
    one = registry.verdict(registry.terms(provider, requester, arbiters), provider, requester, arbiters[:2])
    registry.send(requester, _drop_last_vote(one))
    return lost(registry, provider)


def _drop_last_vote(data: bytes) -> bytes:
    cut = bytearray(data[:-96])
    at = 4 + int.from_bytes(data[4 + 7 * 32 : 4 + 8 * 32], "big")
    cut[at : at + 32] = (int.from_bytes(cut[at : at + 32], "big") - 1).to_bytes(32, "big")
    return bytes(cut)


def one_arbiter_twice(registry: RegistryBench) -> bool:
    """One arbiter's vote is counted twice."""
    provider, requester, arbiters = court(registry)
    data = registry.verdict(registry.terms(provider, requester, arbiters), provider, requester, arbiters[:2])
    registry.send(requester, data[:-96] + data[-192:-96])
    return lost(registry, provider)


def false_arbiter(registry: RegistryBench) -> bool:
    """Somebody votes in an arbiter's place."""
    provider, requester, arbiters = court(registry)
    terms = registry.terms(provider, requester, arbiters)
    data = registry.verdict(terms, provider, requester, arbiters[:2], keys=[requester, requester])
    registry.send(requester, data)
    return lost(registry, provider)


def arbiters_without_a_stake(registry: RegistryBench) -> bool:
    """The arbiters are accounts that somebody has made a moment ago."""
    provider, requester = staked(registry, "provider"), registry.account("requester")
    puppets = sorted((registry.account(f"puppet {i}") for i in range(3)), key=lambda a: a.address)
    terms = registry.terms(provider, requester, puppets)
    registry.send(requester, registry.verdict(terms, provider, requester, puppets))
    return lost(registry, provider)


def arbiters_that_the_provider_did_not_name(registry: RegistryBench) -> bool:
    """A requester signs terms in the provider's name."""
    provider, requester, arbiters = court(registry)
    terms = registry.terms(provider, requester, arbiters)
    registry.send(requester, registry.verdict(terms, requester, requester, arbiters))
    return lost(registry, provider)


def requester_that_never_agreed(registry: RegistryBench) -> bool:
    """A provider about to lose its stake names a puppet as its requester."""
    provider, requester, arbiters = court(registry)
    terms = registry.terms(provider, requester, arbiters)
    registry.send(provider, registry.verdict(terms, provider, provider, arbiters))
    return lost(registry, provider)


def stolen_receipt_key(registry: RegistryBench) -> bool:
    """Whoever steals the key from the machine signs terms with itself, names its arbiters, and is judged right."""
    provider, thief, arbiters = court(registry)
    hot = registry.account("hot")
    registry.key(provider, hot)
    registry.do(provider, encode_allow(hot.address, 100))
    for number in range(5):
        terms = registry.terms(provider, thief, arbiters, at_risk=1000, task=TaskId(bytes([number]) * 32))
        registry.send(thief, registry.verdict(terms, hot, thief, arbiters, amount=1000))
    return lost(registry, provider, 900)


def allowance_taken_back(registry: RegistryBench) -> bool:
    """A provider lowers what its key may put at risk when it sees the verdict coming."""
    provider, requester, arbiters = court(registry)
    hot = registry.account("hot")
    registry.key(provider, hot)
    registry.do(provider, encode_allow(hot.address, 500))
    registry.send(provider, encode_allow(hot.address, 0))
    terms = registry.terms(provider, requester, arbiters)
    registry.send(requester, registry.verdict(terms, hot, requester, arbiters))
    return not lost(registry, provider)


def more_than_was_at_risk(registry: RegistryBench) -> bool:
    """The arbiters take the whole stake for a task of which half was at risk."""
    provider, requester, arbiters = court(registry)
    terms = registry.terms(provider, requester, arbiters, at_risk=500)
    registry.send(requester, registry.verdict(terms, provider, requester, arbiters, amount=1000))
    return lost(registry, provider, 500)


def judged_twice(registry: RegistryBench) -> bool:
    """One verdict is carried out again and again."""
    provider, requester, arbiters = court(registry)
    terms = registry.terms(provider, requester, arbiters)
    for _ in range(2):
        registry.send(requester, registry.verdict(terms, provider, requester, arbiters))
    return lost(registry, provider, 700)


def verdict_of_yesterday(registry: RegistryBench) -> bool:
    """A verdict turns up when the terms have expired, and the provider has long counted on its stake."""
    provider, requester, arbiters = court(registry)
    terms = registry.terms(provider, requester, arbiters, expires_s=registry.bench.now_s)
    registry.bench.now_s += 1
    registry.send(requester, registry.verdict(terms, provider, requester, arbiters))
    return lost(registry, provider)


def judge_in_ones_own_cause(registry: RegistryBench) -> bool:
    """The requester, which has a stake of its own, is the arbiter as well."""
    provider, requester = staked(registry, "provider"), staked(registry, "requester")
    terms = registry.terms(provider, registry.account("other"), [requester], threshold=1)
    object.__setattr__(terms, "requester", requester.address)  # `StakeTerms` would not have it
    registry.send(requester, registry.verdict(terms, provider, requester, [requester]))
    return lost(registry, provider)


def credit_of_others(registry: RegistryBench) -> bool:
    """Somebody withdraws what is another's, or nobody's."""
    staked(registry, "victim")
    thief = registry.account("thief")
    registry.send(thief, encode_stake_withdraw(1, thief.address))
    return registry.bench.tokens(thief.address) > 0


def stake_without_tokens(registry: RegistryBench) -> bool:
    """A token that moves nothing and says that it did: stake out of nothing."""
    runtime = bytes.fromhex("60015f5260205ff3")  # it answers 1 to whatever it is asked
    liar = registry.bench.create(bytes.fromhex("67") + runtime + bytes.fromhex("5f5260086018f3"))
    words = [liar.rjust(32, b"\0"), MIN_UUSD.to_bytes(32, "big"), (1).to_bytes(32, "big")]
    registry.address = registry.bench.create(registry.code + b"".join(words))
    thief = registry.account("thief")
    registry.send(thief, encode_stake(MIN_UUSD))
    return registry.state(thief).stake_uusd > 0


def stake_beyond_the_machine(registry: RegistryBench) -> bool:
    """A whale with one core buys the weight of a data centre."""
    whale = registry.account("whale")
    registry.bench.give(whale, 10**9)
    registry.bench.do(whale, encode_approve(registry.address, 10**9), to=registry.bench.token)
    registry.do(whale, encode_declare(1))
    registry.send(whale, encode_stake(10**9))
    return registry.state(whale).stake_uusd > MIN_UUSD


CASES = [
    Case(forged_receipts, (("self._speaks(owner, struct_hash, signatures[i].r, signatures[i].vs)", "True"),)),
    Case(one_receipt_twice, (('    assert outputs[0] != outputs[1], "the same output"\n', ""),)),
    Case(
        someone_elses_key,
        (("    if self.key_owner[signer] != owner:\n", "    if self.key_owner[signer] == empty(address):\n"),),
    ),
    Case(
        key_named_without_its_signature,
        (("self._recover(struct_hash, signature.r, signature.vs) == key", "key != empty(address)"),),
    ),
    Case(new_key_washes_clean, (("retired == 0 or block.timestamp < retired + UNSTAKE_DELAY", "retired == 0"),)),
    Case(stolen_old_key, (("retired == 0 or block.timestamp < retired + UNSTAKE_DELAY", "True"),)),
    Case(gone_before_the_proof, (('    assert block.timestamp >= account.leave_at, "too early"\n', ""),)),
    Case(
        waiting_once_for_all,
        (
            (
                "account.leave_at = block.timestamp + UNSTAKE_DELAY",
                "account.leave_at = block.timestamp + UNSTAKE_DELAY if account.leave_at == 0 else account.leave_at",
            ),
        ),
    ),
    Case(
        leaving_twice,
        (
            ("    staying: uint256 = account.stake - account.leaving\n", "    staying: uint256 = account.stake\n"),
            ("stake=account.stake - amount, leaving=0", "stake=0, leaving=0"),
        ),
    ),
    Case(
        leaving_what_was_taken,
        (
            ("    account.leaving = min(account.leaving, account.stake)\n", ""),
            ("stake=account.stake - amount, leaving=0", "stake=0, leaving=0"),
        ),
    ),
    Case(accusing_oneself, (("paid: uint256 = taken // PAID_PARTS", "paid: uint256 = taken"),)),
    Case(cut_for_every_chunk, (('    assert not self.cut_for[place], "cut for this task before"\n', ""),)),
    Case(
        cut_for_every_task_at_once,
        (('    assert block.timestamp >= self.next_cut[owner], "cut a moment ago"\n', ""),),
    ),
    Case(
        roots_of_others,
        (("self.anchors[self._place(owner, task)] ==", "self.anchors[self._place(msg.sender, task)] =="),),
    ),
    Case(
        leaves_that_are_not_there,
        (('    assert self._climb(leaf, count, position, path) == root, "not in the tree"\n', ""),),
    ),
    Case(verdict_of_too_few, (('    assert len(votes) >= terms.threshold, "too few votes"\n', ""),)),
    Case(one_arbiter_twice, (("vote.arbiter >= after and ", ""),)),
    Case(
        false_arbiter,
        (('        assert self._speaks(arbiter, struct_hash, vote.r, vote.vs), "not signed by the arbiter"\n', ""),),
    ),
    Case(arbiters_without_a_stake, (('        assert self._active(arbiter), "arbiter has no stake"\n', ""),)),
    Case(
        arbiters_that_the_provider_did_not_name,
        (
            ("self._speaks_for(terms.provider, signer)", "True"),
            ("min(most, self.allowance[signer])", "most"),
            ("        self.allowance[signer] -= taken\n", "        pass\n"),
        ),
    ),
    Case(
        requester_that_never_agreed,
        (("requester_signature.vs) == terms.requester", "requester_signature.vs) != empty(address)"),),
    ),
    Case(
        stolen_receipt_key,
        (
            ("min(most, self.allowance[signer])", "most"),
            ("        self.allowance[signer] -= taken\n", "        pass\n"),
        ),
    ),
    Case(allowance_taken_back, (('    assert amount >= self.allowance[key], "can not be lowered"\n', ""),)),
    Case(more_than_was_at_risk, (("min(amount, terms.at_risk)", "amount"),)),
    Case(judged_twice, (('    assert not self.judged[terms_hash], "judged before"\n', ""),)),
    Case(verdict_of_yesterday, (('    assert block.timestamp <= terms.expires, "too late"\n', ""),)),
    Case(judge_in_ones_own_cause, (("arbiter != terms.provider and arbiter != terms.requester", "True"),)),
    Case(
        credit_of_others,
        (
            ('    assert self.credits[msg.sender] >= amount, "credit too low"\n', ""),
            ("    self.credits[msg.sender] -= amount\n", ""),
        ),
    ),
    Case(
        stake_without_tokens,
        (('    assert staticcall token.balanceOf(self) == before + amount, "token takes a cut"\n', ""),),
    ),
    Case(
        stake_beyond_the_machine,
        (("account.stake + amount <= self._cap(msg.sender)", "account.stake + amount <= MAX_AMOUNT"),),
    ),
]
NAMES = [case.name for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_attack_fails(bench: Any, case: Case) -> None:
    assert not case.attack(RegistryBench(bench))


@needs_compiler
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_attack_succeeds_without_the_defence(bench: Any, case: Case, compiler: Compiler) -> None:
    assert case.attack(RegistryBench(bench, compiler.without("StakeRegistry", case)))


def test_a_donation_is_nobodys_credit(bench: Any) -> None:
    registry, thief = RegistryBench(bench), bench.account("thief")
    bench.do(bench.bank, encode_transfer(registry.address, 1000), to=bench.token)
    assert registry.reason(thief, encode_stake_withdraw(1, thief.address)) == "credit too low"
