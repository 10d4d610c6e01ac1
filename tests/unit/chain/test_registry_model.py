"""The stake registry against a model of it in Python, in random order. The invariants are numbered in
docs/contracts.md: R1 solvency, R2 conservation, R3 no slash without its proof, R4 bounds of a slash, R5 the delay,
R6 the cap."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import hypothesis.stateful
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2pcompute.chain._hub import encode_approve, encode_transfer
from p2pcompute.chain._registry import (
    CUT_PARTS,
    CUT_PAUSE_S,
    UNSTAKE_DELAY_S,
    encode_allow,
    encode_allowance_left,
    encode_anchor,
    encode_declare,
    encode_request_unstake,
    encode_set_receipt_key,
    encode_slash_anchored,
    encode_stake,
    encode_stake_withdraw,
    encode_unstake,
    encode_weight,
)
from p2pcompute.chain._registry_signed import StrictReceipt, receipt_key_digest, strict_receipts_tree
from p2pcompute_protocols._evm import sign_digest
from p2pcompute_protocols.ids import Address, TaskId

from .machines import limits
from .registry_bench import MIN_UUSD, PER_CORE_UUSD, RegistryBench

OWNERS = ("ada", "bob", "cy", "dan")
KEYS = ("key 0", "key 1", "key 2")
TASKS = tuple(TaskId(bytes([n]) * 32) for n in (1, 2, 3))
owners = st.sampled_from(OWNERS)
keys = st.sampled_from(KEYS)
tasks = st.sampled_from(TASKS)
amounts = st.sampled_from([0, 1, MIN_UUSD - 1, MIN_UUSD, MIN_UUSD + 1]) | st.integers(0, 3 * MIN_UUSD)
FUNDS = 10_000


def machine(bench_type: Any) -> type[RuleBasedStateMachine]:
    class RegistryMachine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.bench = bench_type()
            self.registry = RegistryBench(self.bench)
            self.people = {name: self.bench.account(name) for name in (*OWNERS, *KEYS)}
            self.tokens = dict.fromkeys(OWNERS, FUNDS)
            self.stakes = dict.fromkeys(OWNERS, 0)
            self.leaving = dict.fromkeys(OWNERS, 0)
            self.leave_at = dict.fromkeys(OWNERS, 0)
            self.credits = dict.fromkeys(OWNERS, 0)
            self.cores = dict.fromkeys(OWNERS, 0)
            self.burned = 0
            self.donated = 0
            self.key_of: dict[str, str] = {}  # owner to key
            self.spoken: dict[str, str] = {}  # key to owner, for good
            self.retired: dict[str, int] = {}
            self.next_cut = dict.fromkeys(OWNERS, 0)
            self.cut_for: set[tuple[str, TaskId]] = set()
            self.anchors: dict[tuple[str, TaskId], int] = {}
            self.judged: set[bytes] = set()
            self.allowances = dict.fromkeys(KEYS, 0)
            for name in OWNERS:
                owner = self.people[name]
                self.bench.give(owner, FUNDS)
                self.bench.do(owner, encode_approve(self.registry.address, 2**255), to=self.bench.token)
                # A run that happens to be without `stake` still has something to lose.
                self.registry.do(owner, encode_declare(15))
                self.registry.do(owner, encode_stake(MIN_UUSD + 100))
                self.cores[name], self.stakes[name], self.tokens[name] = 15, MIN_UUSD + 100, FUNDS - MIN_UUSD - 100

        # What follows from the model

        @property
        def now(self) -> int:
            return int(self.bench.now_s)

        def cap(self, name: str) -> int:
            return max(MIN_UUSD, self.cores[name] * PER_CORE_UUSD)

        def staying(self, name: str) -> int:
            return self.stakes[name] - self.leaving[name]

        def active(self, name: str) -> bool:
            return self.staying(name) >= MIN_UUSD

        def speaks(self, owner: str, signer: str) -> bool:
            if signer == owner:
                return True
            if self.spoken.get(signer) != owner:
                return False
            return signer not in self.retired or self.now < self.retired[signer] + UNSTAKE_DELAY_S

        def take(self, owner: str, amount: int, beneficiary: str) -> bool:
            taken = min(amount, self.stakes[owner])
            if taken == 0:
                return False
            self.stakes[owner] -= taken
            self.leaving[owner] = min(self.leaving[owner], self.stakes[owner])
            self.credits[beneficiary] += taken // 2
            self.burned += taken - taken // 2
            return True

        def cut(self, owner: str, task: TaskId, reporter: str) -> bool:
            if (owner, task) in self.cut_for or self.now < self.next_cut[owner]:
                return False
            if not self.take(owner, min(self.stakes[owner], MIN_UUSD) // CUT_PARTS, reporter):
                return False
            self.cut_for.add((owner, task))
            self.next_cut[owner] = self.now + CUT_PAUSE_S
            return True

        # What anybody can do

        @rule(who=owners, amount=amounts)
        def stake(self, who: str, amount: int) -> None:
            fits = self.stakes[who] + amount <= self.cap(who) and self.staying(who) + amount >= MIN_UUSD
            ok = self.registry.send(self.people[who], encode_stake(amount))
            assert ok == (fits and amount <= self.tokens[who])
            if ok:
                self.stakes[who] += amount
                self.tokens[who] -= amount

        @rule(who=owners, cores=st.integers(0, 40))
        def declare(self, who: str, cores: int) -> None:
            self.registry.do(self.people[who], encode_declare(cores))
            self.cores[who] = cores

        @rule(who=owners, amount=amounts, whole=st.booleans())
        def request_unstake(self, who: str, amount: int, whole: bool) -> None:
            amount = self.staying(who) if whole else amount
            left = self.staying(who) - amount
            ok = self.registry.send(self.people[who], encode_request_unstake(amount))
            assert ok == (amount > 0 and (left == 0 or left >= MIN_UUSD))
            if ok:
                self.leaving[who] += amount
                self.leave_at[who] = self.now + UNSTAKE_DELAY_S

        @rule(who=owners)
        def unstake(self, who: str) -> None:
            ok = self.registry.send(self.people[who], encode_unstake())
            assert ok == (self.leaving[who] > 0 and self.now >= self.leave_at[who])
            if ok:
                self.stakes[who] -= self.leaving[who]
                self.credits[who] += self.leaving[who]
                self.leaving[who] = self.leave_at[who] = 0

        @rule(who=owners, amount=amounts)
        def withdraw(self, who: str, amount: int) -> None:
            ok = self.registry.send(self.people[who], encode_stake_withdraw(amount, self.people[who].address))
            assert ok == (amount <= self.credits[who])
            if ok:
                self.credits[who] -= amount
                self.tokens[who] += amount

        @rule(who=owners, key=keys, honest=st.booleans())
        def set_key(self, who: str, key: str, honest: bool) -> None:
            signer = self.people[key] if honest else self.people[who]
            signature = sign_digest(signer.key, receipt_key_digest(self.registry.domain, self.people[who].address))
            data = encode_set_receipt_key(self.people[key].address, signature)
            ok = self.registry.send(self.people[who], data)
            assert ok == (honest and key not in self.spoken)
            if ok:
                self.retire(who)
                self.key_of[who] = key
                self.spoken[key] = who

        @rule(who=owners, key=keys, amount=amounts)
        def allow(self, who: str, key: str, amount: int) -> None:
            ok = self.registry.send(self.people[who], encode_allow(self.people[key].address, amount))
            assert ok == (self.spoken.get(key) == who and amount >= self.allowances[key])
            if ok:
                self.allowances[key] = amount

        @rule(who=owners)
        def drop_key(self, who: str) -> None:
            self.registry.do(self.people[who], encode_set_receipt_key(Address(bytes(20)), None))
            self.retire(who)

        def retire(self, who: str) -> None:
            old = self.key_of.pop(who, None)
            if old is not None:
                self.retired[old] = self.now

        @rule(owner=owners, signer=owners | keys, task=tasks, reporter=owners)
        def equivocation(self, owner: str, signer: str, task: TaskId, reporter: str) -> None:
            data = self.registry.equivocation(self.people[owner], self.people[signer], task=task)
            ok = self.registry.send(self.people[reporter], data)
            assert ok == (self.speaks(owner, signer) and self.cut(owner, task, reporter))

        @rule(who=owners, task=tasks, count=st.integers(1, 5))
        def anchor(self, who: str, task: TaskId, count: int) -> None:
            tree = strict_receipts_tree(self.receipts(task, count))
            ok = self.registry.send(self.people[who], encode_anchor(task, tree.root, count))
            assert ok == ((who, task) not in self.anchors)
            if ok:
                self.anchors[who, task] = count

        @staticmethod
        def receipts(task: TaskId, count: int) -> dict[int, StrictReceipt]:
            return {i: StrictReceipt(task=task, index=i, output=bytes([i + 1]) * 32) for i in range(count)}

        @rule(owner=owners, signer=owners | keys, task=tasks, count=st.integers(1, 5), data=st.data())
        def anchored(self, owner: str, signer: str, task: TaskId, count: int, data: st.DataObject) -> None:
            count = self.anchors.get((owner, task), count) if data.draw(st.booleans()) else count
            place = data.draw(st.integers(0, count - 1))
            receipts = self.receipts(task, count)
            tree = strict_receipts_tree(receipts)
            other = self.registry.receipt(self.people[signer], b"\xff" * 32, task=task, index=place)
            call = encode_slash_anchored(
                self.people[owner].address, receipts[place], tree.proof(place), tree.root, other
            )
            ok = self.registry.send(self.people["ada"], call)
            proven = self.anchors.get((owner, task)) == count and self.speaks(owner, signer)
            assert ok == (proven and self.cut(owner, task, "ada"))

        @rule(provider=owners, signer=owners | keys, requester=owners, task=tasks, data=st.data())
        def verdict(self, provider: str, signer: str, requester: str, task: TaskId, data: st.DataObject) -> None:
            others = [name for name in OWNERS if name not in (provider, requester)]
            court = data.draw(st.lists(st.sampled_from(others), min_size=1, max_size=2, unique=True))
            voters = data.draw(st.lists(st.sampled_from(court), min_size=1, max_size=2, unique=True))
            threshold = data.draw(st.integers(1, len(voters)))
            forger = data.draw(st.none() | st.sampled_from(KEYS))
            at_risk, amount = data.draw(st.integers(0, 2000)), data.draw(st.integers(1, 2000))
            expires_s = self.now + data.draw(st.sampled_from([-1, 0, 1000]))
            terms = self.registry.terms(
                self.people[provider],
                self.people[requester],
                self.of(court),
                threshold=threshold,
                at_risk=at_risk,
                task=task,
                expires_s=expires_s,
            )
            signers = [voter if forger is None else forger for voter in voters]
            call = self.registry.verdict(
                terms,
                self.people[signer],
                self.people[requester],
                self.of(voters),
                amount=amount,
                keys=self.of(signers),
            )
            ok = self.registry.send(self.people["ada"], call)
            proven = (
                expires_s >= self.now
                and terms.struct_hash not in self.judged
                and self.speaks(provider, signer)
                and all(map(self.speaks, voters, signers))
                and all(map(self.active, voters))
            )
            most, before = min(at_risk, amount), self.stakes[provider]
            if signer != provider:
                most = min(most, self.allowances.get(signer, 0))
            assert ok == (proven and self.take(provider, most, requester))
            if ok:
                self.judged.add(terms.struct_hash)
                if signer != provider:
                    self.allowances[signer] -= before - self.stakes[provider]

        def of(self, names: Iterable[str]) -> list[Any]:
            return [self.people[name] for name in names]

        @rule(amount=amounts)
        def donate(self, amount: int) -> None:
            self.bench.do(self.bench.bank, encode_transfer(self.registry.address, amount), to=self.bench.token)
            self.donated += amount

        @rule(seconds=st.sampled_from([1, CUT_PAUSE_S - 1, CUT_PAUSE_S, UNSTAKE_DELAY_S - 1, UNSTAKE_DELAY_S]))
        def wait(self, seconds: int) -> None:
            self.bench.now_s += seconds

        @invariant()
        def it_is_its_model(self) -> None:
            owed = 0
            for name in OWNERS:
                owner = self.people[name]
                state = self.registry.state(owner)
                assert state.stake_uusd == self.stakes[name]  # R3: it fell where the model saw a proof, and only there
                assert state.leaving_uusd == self.leaving[name]
                assert state.leave_at_s == self.leave_at[name] or not self.leaving[name]
                assert self.registry.credit(owner) == self.credits[name]
                assert self.bench.tokens(owner.address) == self.tokens[name]
                weight = min(self.staying(name), self.cap(name)) if self.active(name) else 0
                assert self.registry.read(encode_weight(owner.address)) == weight  # R6
                owed += self.stakes[name] + self.credits[name]
            for key in KEYS:
                left = self.registry.read(encode_allowance_left(self.people[key].address))
                assert left == self.allowances[key]
            assert self.registry.burned() == self.burned
            held = self.bench.tokens(self.registry.address)
            assert owed + self.burned + self.donated == held  # R1, R2
            assert held + sum(self.tokens.values()) == len(OWNERS) * FUNDS + self.donated

    return RegistryMachine


def test_the_registry_is_its_model(bench_type: Any) -> None:
    hypothesis.stateful.run_state_machine_as_test(machine(bench_type), settings=limits(10, 30))
