"""The hub against a model of it in Python, in random order. The invariants are numbered in docs/contracts.md:
H1 solvency, H2 claimed <= deposit, H3 claimed never falls, H4 conservation, H5 a consent counts in its epoch only."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import hypothesis.stateful
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from p2pcompute.chain import (
    CLOSE_DELAY_S,
    FundRow,
    encode_claim,
    encode_finalize,
    encode_fund,
    encode_request_close,
    encode_withdraw,
)
from p2pcompute.chain._hub import decode_word, encode_transfer
from p2pcompute.chain._hub_signed import (
    Authorization,
    CloseConsent,
    Permit,
    authorization_digest,
    close_digest,
    encode_close_signed,
    encode_deposit_with_authorization,
    encode_deposit_with_permit,
    encode_epoch,
    permit_digest,
)
from p2pcompute_protocols._evm import keccak256, sign_digest

from .machines import limits

NAMES = ("ada", "bob", "cy")
names = st.sampled_from(NAMES)
amounts = st.integers(0, 1000)
# Payer, payee, signer. Few, so that much happens on each; one with oneself, two that differ in the signer.
CHANNELS = (("ada", "bob", "ada"), ("ada", "bob", "cy"), ("bob", "ada", "cy"), ("cy", "cy", "cy"))
channels = st.sampled_from(CHANNELS)


def token_permit(permit: Permit, signature: bytes, hub: bytes) -> bytes:
    """The permit alone, as somebody who runs ahead of the deposit submits it to the token."""
    words = [permit.owner.rjust(32, b"\0"), hub.rjust(32, b"\0")]
    words += [value.to_bytes(32, "big") for value in (permit.amount_uusd, permit.deadline_s, signature[64])]
    selector = keccak256(b"permit(address,address,uint256,uint256,uint8,bytes32,bytes32)")[:4]
    return selector + b"".join(words) + signature[:64]


def machine(bench_type: Any) -> type[RuleBasedStateMachine]:
    class HubMachine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.bench = bench_type()
            self.people = {name: self.bench.account(name) for name in NAMES}
            for person in self.people.values():
                self.bench.deposit(person, 1000)
            self.free = dict.fromkeys(NAMES, 1000)
            self.out = 0
            self.donated = 0
            self.deposited: dict[Any, int] = defaultdict(int)
            self.claimed: dict[Any, int] = defaultdict(int)
            self.closing: dict[Any, int] = defaultdict(int)
            self.watermarks: dict[Any, int] = defaultdict(int)
            self.epochs: dict[Any, int] = defaultdict(int)
            self.consents: list[tuple[Any, CloseConsent, bytes, bool]] = []
            self.permits = dict.fromkeys(NAMES, 0)
            self.salts: set[tuple[str, bytes]] = set()
            # Open from the start: a run that happens to be without `fund` still has something to do.
            for channel in CHANNELS:
                self.bench.fund(*self.accounts(channel), 300)
                self.free[channel[0]] -= 300
                self.deposited[channel] += 300

        def addresses(self, *who: str) -> list[Any]:
            return [self.people[name].address for name in who]

        def accounts(self, channel: tuple[str, str, str]) -> list[Any]:
            return [self.people[name] for name in channel]

        def send(self, sender: str, data: bytes) -> bool:
            return bool(self.bench.send(self.people[sender], self.bench.hub, data).ok)

        @rule(who=names, amount=amounts)
        def deposit(self, who: str, amount: int) -> None:
            self.bench.deposit(self.people[who], amount)
            self.free[who] += amount

        @rule(who=names, amount=amounts, nonce_off=st.sampled_from([0, 0, 1]), run_ahead=st.booleans())
        def deposit_by_permit(self, who: str, amount: int, nonce_off: int, run_ahead: bool) -> None:
            bench, owner = self.bench, self.people[who]
            bench.give(owner, amount)
            nonce = self.permits[who] + nonce_off
            permit = Permit(owner=owner.address, amount_uusd=amount, nonce=nonce, deadline_s=2**40 - 1)
            signature = sign_digest(owner.key, permit_digest(bench.token_domain(), permit, hub=bench.hub))
            if run_ahead:
                data = token_permit(permit, signature, bench.hub)
                assert bench.send(bench.bank, bench.token, data).ok == (not nonce_off)
            ok = self.send(who, encode_deposit_with_permit(permit, signature, beneficiary=owner.address))
            assert ok == (not nonce_off or amount == 0)
            self.permits[who] += not nonce_off
            if ok:
                self.free[who] += amount
            else:
                bench.do(owner, encode_transfer(bench.bank.address, amount), to=bench.token)

        @rule(owner=names, sender=names, amount=amounts, salt=st.sampled_from([b"\0" * 32, b"\1" * 32]))
        def deposit_by_authorization(self, owner: str, sender: str, amount: int, salt: bytes) -> None:
            bench, account = self.bench, self.people[owner]
            bench.give(account, amount)
            made = Authorization(
                owner=account.address, amount_uusd=amount, valid_after_s=0, valid_before_s=2**40, salt=salt
            )
            digest = authorization_digest(bench.token_domain(), made, hub=bench.hub)
            ok = self.send(sender, encode_deposit_with_authorization(made, sign_digest(account.key, digest)))
            assert ok == ((owner, salt) not in self.salts)
            if ok:
                self.salts.add((owner, salt))
                self.free[owner] += amount
            else:
                bench.do(account, encode_transfer(bench.bank.address, amount), to=bench.token)

        @rule(channel=channels, amount=amounts, seconds=st.sampled_from([0, CLOSE_DELAY_S]), honest=st.booleans())
        def consent(self, channel: tuple[str, str, str], amount: int, seconds: int, honest: bool) -> None:
            made = CloseConsent(
                channel=self.bench.id(*self.accounts(channel)),
                epoch=self.epochs[channel],
                amount_uusd=amount,
                deadline_s=self.bench.now_s + seconds,
            )
            signer = self.people[channel[1]] if honest else self.bench.account("forger")
            signature = sign_digest(signer.key, close_digest(self.bench.domain(), made))
            self.consents.append((channel, made, signature, honest))

        @precondition(lambda self: self.consents)
        @rule(sender=names, data=st.data())
        def close_signed(self, sender: str, data: st.DataObject) -> None:
            channel, made, signature, honest = data.draw(st.sampled_from(self.consents))
            payer, payee, signer = self.addresses(*channel)
            ok = self.send(sender, encode_close_signed(made, signature, payer=payer, payee=payee, signer=signer))
            is_open = self.deposited[channel] > self.claimed[channel] or self.closing[channel]
            good = honest and made.epoch == self.epochs[channel]
            in_time = self.bench.now_s <= made.deadline_s and self.claimed[channel] >= made.amount_uusd
            assert ok == bool(is_open and good and in_time)
            if ok:
                self.closed(channel)

        @rule(who=names, amount=amounts)
        def withdraw(self, who: str, amount: int) -> None:
            ok = self.send(who, encode_withdraw(amount, self.people[who].address))
            assert ok == (amount <= self.free[who])
            if ok:
                self.free[who] -= amount
                self.out += amount

        @rule(amount=amounts)
        def donate(self, amount: int) -> None:
            data = encode_transfer(self.bench.hub, amount)
            self.bench.do(self.bench.bank, data, to=self.bench.token)
            self.donated += amount

        @rule(payer=names, data=st.data())
        def fund(self, payer: str, data: st.DataObject) -> None:
            ours = [channel[1:] for channel in CHANNELS if channel[0] == payer]
            row = st.tuples(st.sampled_from(ours), st.integers(0, 600)).map(lambda r: (*r[0], r[1]))
            rows = data.draw(st.lists(row, min_size=1, max_size=3))
            made = [
                FundRow(payee=self.people[p].address, signer=self.people[s].address, amount_uusd=a) for p, s, a in rows
            ]
            ok = self.send(payer, encode_fund(made))
            total = sum(amount for _, _, amount in rows)
            assert ok == (total <= self.free[payer])
            if ok:
                self.free[payer] -= total
                for payee, signer, amount in rows:
                    self.deposited[payer, payee, signer] += amount
                    self.closing[payer, payee, signer] = 0

        @rule(payee=names, data=st.data())
        def claim(self, payee: str, data: st.DataObject) -> None:
            ours = [(channel[0], channel[2]) for channel in CHANNELS if channel[1] == payee]
            honest = st.sampled_from([True, True, True, False])
            row = st.tuples(st.sampled_from(ours), st.integers(0, 1500), honest).map(lambda r: (*r[0], *r[1:]))
            rows = data.draw(st.lists(row, min_size=1, max_size=4))
            made, skipped, credited = [], [], 0
            for i, (payer, signer, amount, honest) in enumerate(rows):
                channel = (payer, payee, signer)
                forger = None if honest else self.bench.account("forger")
                made.append(self.bench.row(*self.accounts(channel), amount, signed_by=forger))
                total = min(amount, self.deposited[channel])
                if honest and total > self.claimed[channel]:
                    credited += total - self.claimed[channel]
                    self.claimed[channel] = total
                else:
                    skipped.append(i)
            calldata = encode_claim(self.people[payee].address, made)
            _, checkpoint = self.bench.claim_raw(calldata)
            assert checkpoint.credited_uusd == credited
            assert checkpoint.skipped == tuple(skipped)
            self.free[payee] += credited

        @rule(channel=channels)
        def request_close(self, channel: tuple[str, str, str]) -> None:
            payer, payee, signer = channel
            ok = self.send(payer, encode_request_close(*self.addresses(payee, signer)))
            assert ok == (self.deposited[channel] > self.claimed[channel] and not self.closing[channel])
            if ok:
                self.closing[channel] = self.bench.now_s + CLOSE_DELAY_S

        @rule(sender=st.none() | names, channel=channels)
        def finalize(self, sender: str | None, channel: tuple[str, str, str]) -> None:
            sender = sender or channel[1]
            ok = self.send(sender, encode_finalize(*self.addresses(*channel)))
            close_at = self.closing[channel]
            is_open = self.deposited[channel] > self.claimed[channel] or close_at
            may = sender == channel[1] or (close_at and self.bench.now_s >= close_at)
            assert ok == bool(is_open and may)
            if ok:
                self.closed(channel)

        def closed(self, channel: tuple[str, str, str]) -> None:
            self.free[channel[0]] += self.deposited[channel] - self.claimed[channel]
            self.deposited[channel] = self.claimed[channel]
            self.closing[channel] = 0
            self.epochs[channel] += 1

        @precondition(lambda self: any(self.closing.values()))
        @rule(seconds=st.sampled_from([1, CLOSE_DELAY_S - 1, CLOSE_DELAY_S]))
        def wait(self, seconds: int) -> None:
            self.bench.now_s += seconds

        @invariant()
        def the_hub_is_solvent_and_agrees(self) -> None:
            bench = self.bench
            owed = 0
            for name, person in self.people.items():
                assert bench.balance(person) == self.free[name]
                owed += self.free[name]
            for channel in list(self.deposited):
                state = bench.channel(*self.accounts(channel))
                assert state.deposit_uusd == self.deposited[channel]
                assert state.claimed_uusd == self.claimed[channel]
                assert state.close_at_s == self.closing[channel]
                assert state.claimed_uusd <= state.deposit_uusd
                assert state.claimed_uusd >= self.watermarks[channel]
                self.watermarks[channel] = state.claimed_uusd
                epoch = decode_word(bench.call(bench.hub, encode_epoch(bench.id(*self.accounts(channel)))))
                assert epoch == self.epochs[channel]
                owed += state.open_uusd
            assert owed + self.donated == bench.tokens(bench.hub)

    return HubMachine


def test_the_hub_is_its_model(bench_type: Any) -> None:
    hypothesis.stateful.run_state_machine_as_test(machine(bench_type), settings=limits(15, 25))
