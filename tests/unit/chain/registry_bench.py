"""A stake registry beside the hub's token, and short ways to use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from p2pcompute.chain._artifacts import load_artifact
from p2pcompute.chain._devchain_json import receipt_json
from p2pcompute.chain._hub import decode_word, encode_approve
from p2pcompute.chain._registry import (
    SlashedEvent,
    StakeState,
    decode_slashes,
    decode_stake,
    encode_burned,
    encode_credits,
    encode_declare,
    encode_set_receipt_key,
    encode_slash_by_verdict,
    encode_slash_equivocation,
    encode_stake,
    encode_stake_account,
)
from p2pcompute.chain._registry_signed import (
    RegistryDomain,
    StakeTerms,
    StrictReceipt,
    Verdict,
    receipt_key_digest,
    strict_receipt_digest,
    terms_digest,
    verdict_digest,
)
from p2pcompute_protocols._evm import sign_digest
from p2pcompute_protocols.ids import Address, TaskId

MIN_UUSD = 1000
PER_CORE_UUSD = 100
TASK = TaskId(b"\x07" * 32)

Bench = Any  # tests/unit/chain/conftest.py: HubBench


class RegistryBench:
    """A registry with a minimum of 1000 and 100 for each core; `bytecode` puts another contract in its place."""

    def __init__(self, bench: Bench, bytecode: bytes | None = None) -> None:
        self.bench = bench
        self.code = code = bytecode or load_artifact("StakeRegistry").bytecode
        words = [bench.token.rjust(32, b"\0"), *(n.to_bytes(32, "big") for n in (MIN_UUSD, PER_CORE_UUSD))]
        self.address: Address = bench.create(code + b"".join(words))
        self.domain = RegistryDomain(chain_id=bench.domain().chain_id, contract=self.address)

    def account(self, name: str) -> Any:
        return self.bench.account(name)

    def do(self, sender: Any, data: bytes) -> list[SlashedEvent]:
        """A transaction that has to go through; what it took from whom."""
        mined = self.bench.do(sender, data, to=self.address)
        return decode_slashes(receipt_json(mined, self.bench.chain.header(mined.block)), self.address)

    def send(self, sender: Any, data: bytes) -> bool:
        return bool(self.bench.send(sender, self.address, data).ok)

    def reason(self, sender: Any, data: bytes) -> str:
        found: str = self.bench.reason(sender, data, to=self.address)
        return found

    def read(self, data: bytes) -> int:
        return decode_word(self.bench.call(self.address, data))

    def state(self, owner: Any) -> StakeState:
        return decode_stake(self.bench.call(self.address, encode_stake_account(owner.address)))

    def credit(self, owner: Any) -> int:
        return self.read(encode_credits(owner.address))

    def burned(self) -> int:
        return self.read(encode_burned())

    def stake(self, owner: Any, amount: int) -> None:
        """Tokens out of the bank, at stake, with the cores that this takes."""
        self.bench.give(owner, amount)
        self.bench.do(owner, encode_approve(self.address, amount), to=self.bench.token)
        total = self.state(owner).stake_uusd + amount
        self.do(owner, encode_declare(-(-total // PER_CORE_UUSD)))
        self.do(owner, encode_stake(amount))

    def key(self, owner: Any, key: Any) -> None:
        signature = sign_digest(key.key, receipt_key_digest(self.domain, owner.address))
        self.do(owner, encode_set_receipt_key(key.address, signature))

    def receipt(self, key: Any, output: bytes, *, task: TaskId = TASK, index: int = 3) -> tuple[StrictReceipt, bytes]:
        made = StrictReceipt(task=task, index=index, output=output)
        return made, sign_digest(key.key, strict_receipt_digest(self.domain, made))

    def equivocation(self, owner: Any, key: Any, *, task: TaskId = TASK, index: int = 3) -> bytes:
        """Calldata that shows two outputs for one chunk, by `key`, as the owner's."""
        pair = [self.receipt(key, bytes([n]) * 32, task=task, index=index) for n in (1, 2)]
        return encode_slash_equivocation(owner.address, pair[0], pair[1])

    def terms(
        self,
        provider: Any,
        requester: Any,
        arbiters: Sequence[Any],
        *,
        threshold: int = 2,
        at_risk: int = 500,
        task: TaskId = TASK,
        expires_s: int | None = None,
    ) -> StakeTerms:
        return StakeTerms(
            task=task,
            provider=provider.address,
            requester=requester.address,
            at_risk_uusd=at_risk,
            threshold=threshold,
            expires_s=self.bench.now_s + 10_000 if expires_s is None else expires_s,
            arbiters=tuple(sorted(arbiter.address for arbiter in arbiters)),
        )

    def signed(self, terms: StakeTerms, *keys: Any) -> list[bytes]:
        return [sign_digest(key.key, terms_digest(self.domain, terms)) for key in keys]

    def verdict(
        self,
        terms: StakeTerms,
        provider_key: Any,
        requester: Any,
        voters: Sequence[Any],
        *,
        amount: int = 300,
        keys: Sequence[Any] = (),
    ) -> bytes:
        """Calldata for a verdict of `voters`, signed by `keys` in their stead where there are any."""
        verdict = Verdict(terms=terms.struct_hash, amount_uusd=amount, evidence=b"\x0e" * 32)
        digest = verdict_digest(self.domain, verdict)
        votes = {
            terms.arbiters.index(voter.address): sign_digest(key.key, digest)
            for voter, key in zip(voters, keys or voters, strict=True)
        }
        first, second = self.signed(terms, provider_key, requester)
        return encode_slash_by_verdict(terms, first, second, verdict, votes)
