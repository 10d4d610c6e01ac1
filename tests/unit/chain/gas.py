"""What the contracts' operations cost, in gas: exact, since py-evm counts by Ethereum's rules and every key is fixed.

    python -m pytest tests/unit/chain/test_gas.py           compares with gas.json
    P2PCOMPUTE_WRITE_GAS=1 python -m pytest …/test_gas.py   writes it anew

Everything is the cost of a whole transaction: 21,000 of it, its calldata and all cold storage included.
"""

from __future__ import annotations

from typing import Any

from p2pcompute.chain import (
    CLOSE_DELAY_S,
    FundRow,
    encode_approve,
    encode_claim,
    encode_deposit,
    encode_finalize,
    encode_fund,
    encode_request_close,
    encode_withdraw,
)
from p2pcompute.chain._hub_signed import (
    Authorization,
    CloseConsent,
    Permit,
    authorization_digest,
    close_digest,
    encode_close_signed,
    encode_deposit_with_authorization,
    encode_deposit_with_permit,
    permit_digest,
)
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
from p2pcompute.chain._registry_signed import StrictReceipt, receipt_key_digest, strict_receipts_tree
from p2pcompute_protocols._evm import sign_digest
from p2pcompute_protocols.ids import TaskId

from .registry_bench import MIN_UUSD, TASK, RegistryBench

Bench = Any  # tests/unit/chain/conftest.py: HubBench
DOLLAR_UUSD = 1_000_000


def hub_gas(bench: Bench) -> dict[str, int]:
    """Deposits of 500 and more dollars, channels of 5, vouchers with a receipts root, all at one payee."""
    found: dict[str, int] = {}
    one, payee = bench.account("one"), bench.account("payee")

    def do(name: str, sender: Any, data: bytes, *, to: Any = None) -> None:
        found[name] = bench.do(sender, data, to=to).gas_used

    bench.give(one, 10_000 * DOLLAR_UUSD)
    do("approve", one, encode_approve(bench.hub, 8000 * DOLLAR_UUSD), to=bench.token)
    do("deposit, first", one, encode_deposit(4000 * DOLLAR_UUSD, one.address))
    do("deposit, again", one, encode_deposit(2000 * DOLLAR_UUSD, one.address))
    permit = Permit(owner=one.address, amount_uusd=500 * DOLLAR_UUSD, nonce=0, deadline_s=2**40 - 1)
    signature = sign_digest(one.key, permit_digest(bench.token_domain(), permit, hub=bench.hub))
    do("deposit by permit", one, encode_deposit_with_permit(permit, signature, beneficiary=one.address))
    authorization = Authorization(
        owner=one.address, amount_uusd=500 * DOLLAR_UUSD, valid_after_s=0, valid_before_s=2**40 - 1, salt=b"\x05" * 32
    )
    signature = sign_digest(one.key, authorization_digest(bench.token_domain(), authorization, hub=bench.hub))
    do("deposit by authorization", bench.bank, encode_deposit_with_authorization(authorization, signature))

    signers = [bench.account(f"signer {i}") for i in range(367)]
    single, ten, hundred, most = signers[0], signers[1:11], signers[11:111], signers[111:367]

    def fund(name: str, rows: list[Any]) -> None:
        made = [FundRow(payee=payee.address, signer=s.address, amount_uusd=5 * DOLLAR_UUSD) for s in rows]
        do(name, one, encode_fund(made))

    def claim(name: str, rows: list[Any], amount: int) -> None:
        made = [bench.row(one, payee, s, amount, memo=b"\x11" * 32) for s in rows]
        do(name, bench.bank, encode_claim(payee.address, made))

    for verb in ("open", "top up"):
        fund(f"{verb} 1", [single])
        fund(f"{verb} 10", ten)
        fund(f"{verb} 100", hundred)
    claim("claim 1, the payee's first", [single], 1_234_567)
    claim("claim 1", [single], 2_345_678)
    claim("claim 10", ten, 1_234_567)
    claim("claim 100", hundred, 1_234_567)
    for half in (most[:128], most[128:]):
        made = [FundRow(payee=payee.address, signer=s.address, amount_uusd=5 * DOLLAR_UUSD) for s in half]
        bench.do(one, encode_fund(made))
    claim("claim 256", most, 1_234_567)
    stale = [bench.row(one, payee, s, 1_234_567, memo=b"\x11" * 32) for s in most]
    do("claim 256, all stale", bench.bank, encode_claim(payee.address, stale))
    forged = [bench.row(one, payee, s, 2_345_678, memo=b"\x11" * 32, signed_by=bench.account("forger")) for s in most]
    do("claim 256, all forged", bench.bank, encode_claim(payee.address, forged))
    do("request_close", one, encode_request_close(payee.address, single.address))
    bench.now_s += CLOSE_DELAY_S
    do("finalize", one, encode_finalize(one.address, payee.address, single.address))
    consent = CloseConsent(channel=bench.id(one, payee, ten[0]), epoch=0, amount_uusd=1_234_567, deadline_s=2**40 - 1)
    signature = sign_digest(payee.key, close_digest(bench.domain(), consent))
    who = {"payer": one.address, "payee": payee.address, "signer": ten[0].address}
    do("close_signed", one, encode_close_signed(consent, signature, **who))
    do("withdraw", payee, encode_withdraw(DOLLAR_UUSD, payee.address))
    return found


def registry_gas(bench: Bench) -> dict[str, int]:
    """Stakes of the minimum, with receipt keys; a tree of 16 receipts; a court of three."""
    found: dict[str, int] = {}
    registry = RegistryBench(bench)
    provider, requester, reporter = map(registry.account, ("provider", "requester", "reporter"))
    key = registry.account("key")

    def do(name: str, sender: Any, data: bytes) -> None:
        found[name] = bench.do(sender, data, to=registry.address).gas_used

    bench.give(provider, 2 * MIN_UUSD)
    bench.do(provider, encode_approve(registry.address, 2 * MIN_UUSD), to=bench.token)
    do("declare", provider, encode_declare(20))
    do("stake, first", provider, encode_stake(MIN_UUSD))
    do("stake, again", provider, encode_stake(MIN_UUSD))
    signature = sign_digest(key.key, receipt_key_digest(registry.domain, provider.address))
    do("set_receipt_key", provider, encode_set_receipt_key(key.address, signature))
    do("allow", provider, encode_allow(key.address, MIN_UUSD))
    receipts = {i: StrictReceipt(task=TASK, index=i, output=bytes([i + 1]) * 32) for i in range(16)}
    tree = strict_receipts_tree(receipts)
    do("anchor", provider, encode_anchor(TASK, tree.root, 16))
    do("slash_equivocation", reporter, registry.equivocation(provider, key, task=TaskId(b"\x08" * 32)))
    bench.now_s += 86_400
    other = registry.receipt(key, b"\xff" * 32, index=5)
    do(
        "slash_anchored",
        reporter,
        encode_slash_anchored(provider.address, receipts[5], tree.proof(5), tree.root, other),
    )
    arbiters = [registry.account(f"arbiter {i}") for i in range(3)]
    for arbiter in arbiters:
        registry.stake(arbiter, MIN_UUSD)
    terms = registry.terms(provider, requester, arbiters)
    do("slash_by_verdict, 2 of 3", requester, registry.verdict(terms, key, requester, arbiters[:2]))
    do("request_unstake", provider, encode_request_unstake(registry.state(provider).stake_uusd))
    bench.now_s += UNSTAKE_DELAY_S
    do("unstake", provider, encode_unstake())
    do("withdraw", provider, encode_stake_withdraw(registry.credit(provider), provider.address))
    return found


def lives(hub: dict[str, int]) -> dict[str, int]:
    """What the whole life of a channel comes to, for accounts that the hub knows.

    Alone: a deposit, the opening, one claim, the request to close, the closing. In batches of 100, used up: a
    hundredth of a deposit, of an opening and of a claim; a channel whose deposit is claimed has nothing to close.
    """
    alone = sum(hub[name] for name in ("deposit, again", "open 1", "claim 1", "request_close", "finalize"))
    agreed = sum(hub[name] for name in ("deposit, again", "open 1", "claim 1", "close_signed"))
    batched = sum(hub[name] for name in ("deposit, again", "open 100", "claim 100"))
    first = sum(
        hub[name]
        for name in ("approve", "deposit, first", "open 1", "claim 1, the payee's first", "request_close", "finalize")
    )
    return {
        "alone": alone,
        "alone, closed by signature": agreed,
        "alone, the first of both accounts": first,
        "in batches of 100, used up": -(-batched // 100),
    }
