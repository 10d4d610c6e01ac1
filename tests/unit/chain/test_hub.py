"""What the hub does, on py-evm, from the committed artefact."""

from __future__ import annotations

from typing import Any

import pytest

from p2pcompute.chain import (
    CLOSE_DELAY_S,
    ClaimRow,
    FundRow,
    encode_approve,
    encode_claim,
    encode_deposit,
    encode_finalize,
    encode_fund,
    encode_request_close,
    encode_withdraw,
    load_artifact,
)
from p2pcompute.chain._devchain_evm import CALL_GAS_LIMIT, CallFailed
from p2pcompute.chain._devchain_reads import Allowance
from p2pcompute.chain._hub import encode_channel, encode_transfer
from p2pcompute_protocols.channel._voucher import keccak256
from p2pcompute_protocols.ids import Address

Bench = Any  # tests/unit/chain/conftest.py: HubBench


def people(bench: Bench) -> tuple[Any, Any, Any]:
    return bench.account("payer"), bench.account("payee"), bench.account("signer")


def test_every_function_is_called_by_its_selector() -> None:
    """The selectors and topics written by hand are those of the ABI."""
    from p2pcompute.chain import _hub, _hub_signed

    made = {value for name, value in vars(_hub).items() if name.isupper() and isinstance(value, bytes)}
    made |= {value for name, value in vars(_hub_signed).items() if isinstance(value, bytes) and len(value) == 4}

    def kind(item: dict[str, Any]) -> str:
        if item["type"].startswith("tuple"):
            return "(" + ",".join(map(kind, item["components"])) + ")" + item["type"][5:]
        return str(item["type"])

    of_abi = set()
    for contract in ("ChannelHub", "TestToken"):
        for item in load_artifact(contract).abi:
            if item["type"] in ("function", "event"):
                text = item["name"] + "(" + ",".join(map(kind, item["inputs"])) + ")"
                digest = keccak256(text.encode())
                of_abi.add(digest if item["type"] == "event" else digest[:4])
    assert made
    assert made <= of_abi


def test_constants_are_those_of_the_contract(bench: Bench) -> None:
    def read(name: str) -> int:
        return int.from_bytes(bench.call(bench.hub, keccak256(name.encode())[:4]), "big")

    assert read("CLOSE_DELAY()") == CLOSE_DELAY_S
    assert read("MAX_BATCH()") == 256
    assert read("token()") == int.from_bytes(bench.token, "big")
    assert read("domain_separator()") == int.from_bytes(bench.domain().separator, "big")


def test_deposit_fund_claim_withdraw(bench: Bench) -> None:
    payer, payee, signer = people(bench)
    bench.open(payer, payee, signer, 1000)
    assert bench.balance(payer) == 0
    events, checkpoint = bench.claim(payee, [bench.row(payer, payee, signer, 300, memo=b"\x07" * 32)])
    (event,) = events
    assert (event.credited_uusd, event.claimed_uusd, event.memo) == (300, 300, b"\x07" * 32)
    assert (checkpoint.credited_uusd, checkpoint.skipped) == (300, ())
    events, _ = bench.claim(payee, [bench.row(payer, payee, signer, 450)])
    assert (events[0].credited_uusd, events[0].claimed_uusd) == (150, 450)
    assert bench.balance(payee) == 450
    stranger = bench.account("stranger")
    bench.do(payee, encode_withdraw(400, stranger.address))
    assert bench.tokens(stranger.address) == 400
    assert bench.balance(payee) == 50
    assert bench.reason(payee, encode_withdraw(51, stranger.address)) == "balance too low"


def test_a_payee_pays_on_with_what_it_earned(bench: Bench) -> None:
    payer, payee, signer = people(bench)
    bench.open(payer, payee, signer, 1000)
    bench.claim(payee, [bench.row(payer, payee, signer, 600)])
    third = bench.account("third")
    bench.fund(payee, third, payee, 600)
    bench.claim(third, [bench.row(payee, third, payee, 600)])
    assert bench.balance(third) == 600


def test_a_voucher_above_the_deposit_counts_up_to_it_and_stays_good(bench: Bench) -> None:
    payer, payee, signer = people(bench)
    bench.open(payer, payee, signer, 100)
    row = bench.row(payer, payee, signer, 250)
    assert bench.claim(payee, [row])[1].credited_uusd == 100
    assert bench.claim(payee, [row])[1].skipped == (0,)
    bench.open(payer, payee, signer, 1000)
    assert bench.claim(payee, [row])[1].credited_uusd == 150
    assert bench.channel(payer, payee, signer).claimed_uusd == 250


def test_bad_rows_do_not_stop_good_ones(bench: Bench) -> None:
    payer, payee, _ = people(bench)
    signers = [bench.account(f"signer {i}") for i in range(8)]
    bench.deposit(payer, 8000)
    for signer in signers:
        bench.fund(payer, payee, signer, 1000)
    good = [bench.row(payer, payee, signer, 10) for signer in signers]
    stranger = bench.account("stranger")
    rows = [
        good[0],
        bench.row(payer, payee, signers[1], 10, signed_by=stranger),  # forged
        bench.row(payer, payee, signers[2], 0),  # nothing
        bench.row(payer, stranger, signers[3], 10),  # another payee's
        bench.row(stranger, payee, signers[4], 10),  # no such channel
        ClaimRow(  # as high as can be said, and not what was signed
            payer=payer.address,
            signer=signers[5].address,
            amount_uusd=2**96 - 1,
            memo=bytes(32),
            signature=good[5].signature,
        ),
        good[0],  # twice
        good[6],
    ]
    events, checkpoint = bench.claim(payee, rows)
    assert checkpoint.skipped == (1, 2, 3, 4, 5, 6)
    assert checkpoint.credited_uusd == 20 == bench.balance(payee)
    assert [event.channel for event in events] == [bench.id(payer, payee, signers[i]) for i in (0, 7 - 1)]


def test_the_whole_of_the_largest_batch(bench: Bench) -> None:
    payer, payee, _ = people(bench)
    signers = [bench.account(f"signer {i}") for i in range(256)]
    bench.deposit(payer, 2560)
    for start in (0, 128):
        some = signers[start : start + 128]
        bench.do(payer, encode_fund([FundRow(payee=payee.address, signer=s.address, amount_uusd=10) for s in some]))
    rows = [bench.row(payer, payee, s, 10, signed_by=signers[0] if i == 255 else s) for i, s in enumerate(signers)]
    events, checkpoint = bench.claim(payee, rows)
    assert len(events) == 255
    assert checkpoint.skipped == (255,)
    assert bench.balance(payee) == 2550
    with pytest.raises(ValueError, match="at most 256"):
        encode_claim(payee.address, [*rows, rows[0]])


def test_the_largest_batch_can_be_estimated_with_the_gas_of_one_request(bench: Bench) -> None:
    payer, payee, _ = people(bench)
    bench.deposit(payer, 2560)
    rows = [
        FundRow(payee=payee.address, signer=bench.account(f"signer {i}").address, amount_uusd=10) for i in range(256)
    ]
    allowance = Allowance()
    gas = bench.chain.estimate(
        sender=payer.address,
        to=bench.hub,
        data=encode_fund(rows),
        value_wei=0,
        gas=CALL_GAS_LIMIT,
        number=bench.chain.head,
        allowance=allowance,
    )
    assert gas * 5 // 4 < CALL_GAS_LIMIT  # and there is room for a client's margin
    assert allowance.gas_left > 0


def test_an_empty_batch_is_harmless(bench: Bench) -> None:
    payee = bench.account("payee")
    assert bench.claim(payee, []) == ([], bench.claim(payee, [])[1])
    assert bench.balance(payee) == 0


def test_anyone_may_claim_for_a_payee(bench: Bench) -> None:
    payer, payee, signer = people(bench)
    bench.open(payer, payee, signer, 100)
    stranger = bench.account("stranger")
    bench.claim(payee, [bench.row(payer, payee, signer, 60)], sender=stranger)
    assert bench.balance(payee) == 60
    assert bench.balance(stranger) == 0


def test_closing_takes_the_delay_and_claims_still_count(bench: Bench) -> None:
    payer, payee, signer = people(bench)
    bench.open(payer, payee, signer, 100)
    finalize = encode_finalize(payer.address, payee.address, signer.address)
    assert bench.reason(payer, finalize) == "no request to close"
    bench.do(payer, encode_request_close(payee.address, signer.address))
    assert bench.channel(payer, payee, signer).close_at_s == bench.now_s + CLOSE_DELAY_S
    assert bench.reason(payer, encode_request_close(payee.address, signer.address)) == "already closing"
    bench.now_s += CLOSE_DELAY_S - 1
    assert bench.reason(payer, finalize) == "too early"
    bench.claim(payee, [bench.row(payer, payee, signer, 30)])
    bench.now_s += 1
    bench.do(bench.account("stranger"), finalize)
    assert bench.balance(payer) == 70
    assert bench.balance(payee) == 30
    assert bench.reason(payer, finalize) == "not open"
    assert bench.reason(payee, finalize) == "not open"


def test_nobody_but_the_payee_closes_without_a_request(bench: Bench) -> None:
    payer, payee, signer = people(bench)
    bench.open(payer, payee, signer, 100)
    finalize = encode_finalize(payer.address, payee.address, signer.address)
    for other in (payer, signer, bench.account("stranger")):
        assert bench.reason(other, finalize) == "no request to close"
        # Only the payer can ask: another's request is for a channel of its own, which has no money.
        if other is not payer:
            assert bench.reason(other, encode_request_close(payee.address, signer.address)) == "nothing reserved"


def test_the_payee_closes_at_any_time(bench: Bench) -> None:
    payer, payee, signer = people(bench)
    bench.open(payer, payee, signer, 100)
    bench.do(payee, encode_finalize(payer.address, payee.address, signer.address))
    assert bench.balance(payer) == 100


def test_a_closed_channel_reopens_above_its_watermark(bench: Bench) -> None:
    payer, payee, signer = people(bench)
    bench.open(payer, payee, signer, 100)
    bench.claim(payee, [bench.row(payer, payee, signer, 40)])
    bench.do(payee, encode_finalize(payer.address, payee.address, signer.address))
    state = bench.channel(payer, payee, signer)
    assert (state.deposit_uusd, state.claimed_uusd, state.close_at_s) == (40, 40, 0)
    bench.open(payer, payee, signer, 500)
    assert bench.claim(payee, [bench.row(payer, payee, signer, 40)])[1].skipped == (0,)
    assert bench.claim(payee, [bench.row(payer, payee, signer, 41)])[1].credited_uusd == 1


@pytest.mark.parametrize("amount", [2**96 - 5, 2**96 - 1])
def test_amounts_that_do_not_fit_are_refused(bench: Bench, amount: int) -> None:
    payer, payee, signer = people(bench)
    bench.deposit(payer, 2**100)
    bench.fund(payer, payee, signer, 5)
    row = FundRow(payee=payee.address, signer=signer.address, amount_uusd=amount)
    assert bench.reason(payer, encode_fund([row])) == "amount too high"
    for beyond in (2**96, 2**255, -1):
        with pytest.raises(ValueError, match="from 0 to 2"):
            encode_fund([FundRow(payee=payee.address, signer=signer.address, amount_uusd=beyond)])


def test_the_highest_amount_fits(bench: Bench) -> None:
    payer, payee, signer = people(bench)
    most = 2**96 - 1
    bench.open(payer, payee, signer, most)
    assert bench.claim(payee, [bench.row(payer, payee, signer, most)])[1].credited_uusd == most
    state = bench.channel(payer, payee, signer)
    assert (state.deposit_uusd, state.claimed_uusd, state.close_at_s) == (most, most, 0)


def test_funding_needs_free_balance(bench: Bench) -> None:
    payer, payee, signer = people(bench)
    bench.deposit(payer, 100)
    rows = [FundRow(payee=payee.address, signer=signer.address, amount_uusd=60)] * 2
    assert bench.reason(payer, encode_fund(rows)) == "balance too low"
    assert bench.balance(payer) == 100


@pytest.mark.parametrize("who", ["payee", "signer"])
def test_nobody_can_not_be_funded(bench: Bench, who: str) -> None:
    payer, payee, signer = people(bench)
    fields = {"payee": payee.address, "signer": signer.address, who: Address(bytes(20))}
    data = encode_fund([FundRow(**fields, amount_uusd=0)])
    assert bench.reason(payer, data) == "payee or signer is zero"


def test_money_can_not_be_sent_where_it_is_lost(bench: Bench) -> None:
    payer, _, _ = people(bench)
    bench.deposit(payer, 10)
    for nowhere in (Address(bytes(20)), bench.hub):
        assert bench.reason(payer, encode_withdraw(1, nowhere)) == "bad receiver"
    assert bench.reason(payer, encode_deposit(0, Address(bytes(20)))) == "beneficiary is zero"


def test_deposit_needs_approval_and_tokens(bench: Bench) -> None:
    payer, _, _ = people(bench)
    assert bench.reason(payer, encode_deposit(1, payer.address)) == "allowance too low"
    bench.do(payer, encode_approve(bench.hub, 1), to=bench.token)
    assert bench.reason(payer, encode_deposit(1, payer.address)) == "balance too low"


def test_a_hub_without_a_token_can_not_be_made(bench: Bench) -> None:
    code = load_artifact("ChannelHub").bytecode
    mined = bench.send(bench.bank, None, code + bytes(12) + b"\x01" * 20)
    assert not mined.ok


def test_calldata_that_is_cut_short_claims_nothing(bench: Bench) -> None:
    payer, payee, signer = people(bench)
    bench.open(payer, payee, signer, 100)
    data = encode_claim(payee.address, [bench.row(payer, payee, signer, 10)])
    for cut in range(0, len(data), 7):
        bench.send(payer, bench.hub, data[:cut])
        assert bench.channel(payer, payee, signer).claimed_uusd == 0
    bench.do(payer, data)
    assert bench.channel(payer, payee, signer).claimed_uusd == 10


def test_a_selector_that_is_no_functions_reverts(bench: Bench) -> None:
    """The table of functions is looked up by arithmetic on the selector: no other one may land in it."""
    some = [keccak256(b"no such function" + bytes([number]))[:4] + bytes(32 * 9) for number in range(256)]
    for data in (b"", b"\0", *some):
        with pytest.raises(CallFailed):
            bench.call(bench.hub, data)


@pytest.mark.parametrize("length", [257, 2**32, 2**255, 2**256 - 1])
def test_a_batch_that_lies_about_its_length_reverts(bench: Bench, length: int) -> None:
    payer, payee, signer = people(bench)
    data = encode_claim(payee.address, [bench.row(payer, payee, signer, 10)])
    assert bench.reason(payer, data[:68] + length.to_bytes(32, "big") + data[100:])


def test_the_hub_takes_no_ether(bench: Bench) -> None:
    payer, _, _ = people(bench)
    assert not bench.send(payer, bench.hub, b"", value_wei=1).ok
    assert not bench.send(payer, bench.hub, encode_channel(b"\0" * 32), value_wei=1).ok


def test_the_token_counts(bench: Bench) -> None:
    payer, payee, _ = people(bench)
    bench.give(payer, 10)
    assert bench.reason(payer, encode_transfer(payee.address, 11), to=bench.token) == "balance too low"
    assert bench.reason(payer, encode_transfer(Address(bytes(20)), 1), to=bench.token) == "receiver is zero"
    bench.do(payer, encode_transfer(payee.address, 10), to=bench.token)
    assert (bench.tokens(payer.address), bench.tokens(payee.address)) == (0, 10)
    forever = 2**256 - 1
    bench.do(payee, encode_approve(payer.address, forever), to=bench.token)
    pull = keccak256(b"transferFrom(address,address,uint256)")[:4]
    pull += payee.address.rjust(32, b"\0") + payer.address.rjust(32, b"\0") + (4).to_bytes(32, "big")
    bench.do(payer, pull, to=bench.token)
    assert bench.tokens(payer.address) == 4
    assert int.from_bytes(bench.call(bench.token, keccak256(b"totalSupply()")[:4]), "big") == 2**200
