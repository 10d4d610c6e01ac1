"""Deposits and closings on somebody's signature: what they do, and the attacks that they invite."""

from __future__ import annotations

from typing import Any

import pytest

from p2pcompute.chain import (
    CLOSE_DELAY_S,
    FundRow,
    encode_approve,
    encode_finalize,
    encode_fund,
    encode_request_close,
)
from p2pcompute.chain._hub import decode_word
from p2pcompute.chain._hub_signed import (
    MAX_EPOCH,
    Authorization,
    CloseConsent,
    Permit,
    authorization_digest,
    authorization_nonce,
    close_digest,
    encode_close_signed,
    encode_deposit_with_authorization,
    encode_deposit_with_permit,
    encode_epoch,
    encode_permit_nonce,
    permit_digest,
)
from p2pcompute_protocols._evm import sign_digest
from p2pcompute_protocols.channel._voucher import Domain, keccak256
from p2pcompute_protocols.errors import LocalProtocolError
from p2pcompute_protocols.ids import Address

from .weakened import Case, Compiler, needs_compiler

Bench = Any  # tests/unit/chain/conftest.py: HubBench
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
FOREVER_S = 2**40 - 1


def permit(bench: Bench, owner: Any, amount: int, *, deadline_s: int = FOREVER_S) -> tuple[Permit, bytes]:
    nonce = decode_word(bench.call(bench.token, encode_permit_nonce(owner.address)))
    made = Permit(owner=owner.address, amount_uusd=amount, nonce=nonce, deadline_s=deadline_s)
    return made, sign_digest(owner.key, permit_digest(bench.token_domain(), made, hub=bench.hub))


def token_permit(made: Permit, signature: bytes, hub: Address) -> bytes:
    """Calldata for the token itself: what a front-runner takes out of somebody's deposit."""
    words = [made.owner.rjust(32, b"\0"), hub.rjust(32, b"\0")]
    words += [value.to_bytes(32, "big") for value in (made.amount_uusd, made.deadline_s, signature[64])]
    selector = keccak256(b"permit(address,address,uint256,uint256,uint8,bytes32,bytes32)")[:4]
    return selector + b"".join(words) + signature[:64]


def authorize(
    bench: Bench, owner: Any, amount: int, *, salt: bytes = b"\x05" * 32, after_s: int = 0, before_s: int = FOREVER_S
) -> tuple[Authorization, bytes]:
    made = Authorization(
        owner=owner.address, amount_uusd=amount, valid_after_s=after_s, valid_before_s=before_s, salt=salt
    )
    return made, sign_digest(owner.key, authorization_digest(bench.token_domain(), made, hub=bench.hub))


def consent(
    bench: Bench,
    payer: Any,
    payee: Any,
    *,
    amount: int = 0,
    epoch: int = 0,
    deadline_s: int = FOREVER_S,
    signed_by: Any = None,
    domain: Domain | None = None,
) -> bytes:
    """Calldata that closes the channel on which `payer` signs for itself."""
    channel = bench.id(payer, payee, payer)
    made = CloseConsent(channel=channel, epoch=epoch, amount_uusd=amount, deadline_s=deadline_s)
    signature = sign_digest((signed_by or payee).key, close_digest(domain or bench.domain(), made))
    return encode_close_signed(made, signature, payer=payer.address, payee=payee.address, signer=payer.address)


def people(bench: Bench) -> tuple[Any, Any, Any]:
    return bench.account("payer"), bench.account("payee"), bench.account("stranger")


# Permits


def test_a_permit_approves_and_deposits_in_one(bench: Bench) -> None:
    payer, payee, _ = people(bench)
    bench.give(payer, 1000)
    made, signature = permit(bench, payer, 1000)
    data = encode_deposit_with_permit(made, signature, beneficiary=payee.address)
    bench.do(payer, data)
    assert (bench.balance(payee), bench.balance(payer), bench.tokens(payer.address)) == (1000, 0, 0)
    assert bench.reason(payer, data) == "allowance too low"  # it counts once


def test_a_permit_is_of_no_use_to_others(bench: Bench) -> None:
    payer, _, thief = people(bench)
    bench.give(payer, 1000)
    made, signature = permit(bench, payer, 1000)
    assert bench.reason(thief, encode_deposit_with_permit(made, signature, beneficiary=thief.address))
    assert bench.balance(thief) == 0
    assert bench.tokens(payer.address) == 1000


def permit_run_ahead_of(bench: Bench) -> bool:
    """Somebody submits the permit alone, and the deposit that it came with fails."""
    payer, _, thief = people(bench)
    bench.give(payer, 1000)
    made, signature = permit(bench, payer, 1000)
    bench.do(thief, token_permit(made, signature, bench.hub), to=bench.token)
    bench.send(payer, bench.hub, encode_deposit_with_permit(made, signature, beneficiary=payer.address))
    return bench.balance(payer) == 0


@pytest.mark.parametrize("spoil", ["signature", "deadline", "nonce"])
def test_a_permit_that_is_none_moves_nothing(bench: Bench, spoil: str) -> None:
    payer, payee, _ = people(bench)
    bench.give(payer, 1000)
    made, signature = permit(bench, payer, 1000, deadline_s=1 if spoil == "deadline" else FOREVER_S)
    if spoil == "signature":
        signature = sign_digest(payee.key, permit_digest(bench.token_domain(), made, hub=bench.hub))
    if spoil == "nonce":
        later = Permit(owner=payer.address, amount_uusd=1000, nonce=7, deadline_s=FOREVER_S)
        signature = sign_digest(payer.key, permit_digest(bench.token_domain(), later, hub=bench.hub))
    data = encode_deposit_with_permit(made, signature, beneficiary=payer.address)
    assert bench.reason(payer, data) == "allowance too low"


# Authorisations


def test_an_authorisation_brings_money_in_for_its_signer_whoever_submits_it(bench: Bench) -> None:
    payer, _, stranger = people(bench)
    bench.give(payer, 1000)
    made, signature = authorize(bench, payer, 700)
    data = encode_deposit_with_authorization(made, signature)
    bench.do(stranger, data)
    assert (bench.balance(payer), bench.balance(stranger), bench.tokens(payer.address)) == (700, 0, 300)
    assert bench.reason(stranger, data) == "authorisation is used"


def test_an_authorisation_has_its_time(bench: Bench) -> None:
    payer, _, stranger = people(bench)
    bench.give(payer, 1000)
    early = authorize(bench, payer, 1, after_s=bench.now_s + 10)
    late = authorize(bench, payer, 1, before_s=bench.now_s)
    assert bench.reason(stranger, encode_deposit_with_authorization(*early)) == "not valid yet"
    assert bench.reason(stranger, encode_deposit_with_authorization(*late)) == "not valid any more"
    bench.now_s += 11
    bench.do(stranger, encode_deposit_with_authorization(*early))


def test_the_nonce_is_that_of_the_contract(bench: Bench) -> None:
    salt = bytes(range(32))
    data = keccak256(b"authorization_nonce(bytes32)")[:4] + salt
    assert bench.call(bench.hub, data) == authorization_nonce(bench.hub, salt)


def authorisation_credited_to_who_submits(bench: Bench) -> bool:
    """A relayer brings the money in for itself."""
    payer, _, thief = people(bench)
    bench.give(payer, 1000)
    bench.send(thief, bench.hub, encode_deposit_with_authorization(*authorize(bench, payer, 1000)))
    return bench.balance(thief) > 0


def authorisation_for_something_else(bench: Bench) -> bool:
    """A signature over money to the hub, with a nonce that means something else, is spent as a deposit."""
    payer, _, thief = people(bench)
    bench.give(payer, 1000)
    made, _ = authorize(bench, payer, 1000)
    words = [payer.address.rjust(32, b"\0"), bench.hub.rjust(32, b"\0")]
    words += [v.to_bytes(32, "big") for v in (1000, 0, FOREVER_S)] + [made.salt]  # the bare salt as the nonce
    type_hash = keccak256(
        b"ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,"
        b"bytes32 nonce)"
    )
    struct_hash = keccak256(type_hash + b"".join(words))
    signature = sign_digest(payer.key, keccak256(b"\x19\x01" + bench.token_domain().separator + struct_hash))
    bench.send(thief, bench.hub, encode_deposit_with_authorization(made, signature))
    return bench.tokens(payer.address) < 1000


def test_an_authorisation_for_another_hub_is_none_here(bench: Bench) -> None:
    payer, _, stranger = people(bench)
    bench.give(payer, 1000)
    second = bench.create(bench.hub_bytecode + bench.token.rjust(32, b"\0"))
    data = encode_deposit_with_authorization(*authorize(bench, payer, 1000))
    assert bench.reason(stranger, data, to=second) == "not signed by the owner"


# Closing by signature


def test_a_payee_closes_by_signature_and_anyone_submits_it(bench: Bench) -> None:
    payer, payee, stranger = people(bench)
    bench.open(payer, payee, payer, 1000)
    data = consent(bench, payer, payee, amount=400)
    assert bench.reason(stranger, data) == "claim first"
    bench.claim(payee, [bench.row(payer, payee, payer, 400)])
    bench.do(stranger, data)
    assert (bench.balance(payer), bench.balance(payee)) == (600, 400)
    state = bench.channel(payer, payee, payer)
    assert (state.deposit_uusd, state.claimed_uusd, state.close_at_s) == (400, 400, 0)
    assert bench.reason(stranger, data) == "not open"


def test_a_consent_is_good_up_to_its_deadline(bench: Bench) -> None:
    payer, payee, _ = people(bench)
    bench.open(payer, payee, payer, 1000)
    data = consent(bench, payer, payee, deadline_s=bench.now_s + 60)
    bench.now_s += 60
    assert bench.reason(payer, data) == ""
    bench.now_s += 1
    assert bench.reason(payer, data) == "too late"


def test_a_signature_closes_what_the_payer_has_asked_to_close(bench: Bench) -> None:
    payer, payee, _ = people(bench)
    bench.open(payer, payee, payer, 1000)
    bench.do(payer, encode_request_close(payee.address, payer.address))
    bench.do(payer, consent(bench, payer, payee))
    assert bench.balance(payer) == 1000
    assert bench.channel(payer, payee, payer).close_at_s == 0


def test_an_epoch_counts_closings_and_nothing_else(bench: Bench) -> None:
    payer, payee, _ = people(bench)
    channel = bench.id(payer, payee, payer)

    def epoch() -> int:
        return decode_word(bench.call(bench.hub, encode_epoch(channel)))

    finalize = encode_finalize(payer.address, payee.address, payer.address)
    for closed in range(3):
        bench.open(payer, payee, payer, 2**95)
        bench.claim(payee, [bench.row(payer, payee, payer, 10 + closed)])
        bench.do(payer, encode_request_close(payee.address, payer.address))
        bench.do(payer, encode_fund([FundRow(payee=payee.address, signer=payer.address, amount_uusd=0)]))
        assert epoch() == closed
        bench.do(payee, finalize if closed % 2 else consent(bench, payer, payee, epoch=closed))
    assert epoch() == 3
    state = bench.channel(payer, payee, payer)
    assert (state.deposit_uusd, state.claimed_uusd, state.close_at_s) == (12, 12, 0)


@pytest.mark.parametrize("twin", ["high s", "other parity", "garbage"])
def test_a_twin_of_a_signature_is_none(bench: Bench, twin: str) -> None:
    payer, payee, _ = people(bench)
    bench.open(payer, payee, payer, 1000)
    data = consent(bench, payer, payee)
    vs = int.from_bytes(data[-32:], "big")
    s, parity = vs & (2**255 - 1), vs >> 255
    forms = {
        "high s": [(ORDER - s) | bit << 255 for bit in (0, 1)] + [ORDER - s],
        "other parity": [s | (1 - parity) << 255],
        "garbage": [0, 2**256 - 1, s + 1],
    }
    for form in forms[twin]:
        changed = data[:-32] + (form % 2**256).to_bytes(32, "big")
        if changed != data:
            assert bench.reason(payer, changed) == "not signed by the payee"
    bench.do(payer, data)


def replayed_closing(bench: Bench) -> bool:
    """The payer opens the channel anew, takes work on credit, and closes it with the old signature."""
    payer, payee, _ = people(bench)
    bench.open(payer, payee, payer, 1000)
    data = consent(bench, payer, payee)
    bench.do(payer, data)
    bench.open(payer, payee, payer, 1000)
    bench.send(payer, bench.hub, data)
    return bench.channel(payer, payee, payer).open_uusd == 0


def closing_ahead_of_a_claim(bench: Bench) -> bool:
    """The payee has signed for the channel at 400; the payer submits that before the payee's claim is mined."""
    payer, payee, _ = people(bench)
    bench.open(payer, payee, payer, 1000)
    data = consent(bench, payer, payee, amount=400)
    bench.send(payer, bench.hub, data)
    bench.claim(payee, [bench.row(payer, payee, payer, 400)])
    return bench.balance(payee) == 0


def closing_by_a_stranger(bench: Bench) -> bool:
    """Somebody who is neither party closes a channel."""
    payer, payee, stranger = people(bench)
    bench.open(payer, payee, payer, 1000)
    bench.send(stranger, bench.hub, consent(bench, payer, payee, signed_by=stranger))
    return bench.channel(payer, payee, payer).open_uusd == 0


def closing_by_the_payer(bench: Bench) -> bool:
    """The payer signs in the payee's stead."""
    payer, payee, _ = people(bench)
    bench.open(payer, payee, payer, 1000)
    bench.send(payer, bench.hub, consent(bench, payer, payee, signed_by=payer))
    return bench.channel(payer, payee, payer).open_uusd == 0


def closing_after_the_deadline(bench: Bench) -> bool:
    """The payer keeps a signature that it was given long ago, while the payee works on."""
    payer, payee, _ = people(bench)
    bench.open(payer, payee, payer, 1000)
    data = consent(bench, payer, payee, deadline_s=bench.now_s + 60)
    bench.now_s += 61
    bench.send(payer, bench.hub, data)
    return bench.channel(payer, payee, payer).open_uusd == 0


def closing_another_channel(bench: Bench) -> bool:
    """A signature for one channel closes another of the same payee."""
    payer, payee, other = people(bench)
    bench.open(payer, payee, payer, 1000)
    made = CloseConsent(channel=bench.id(other, payee, other), epoch=0, amount_uusd=0, deadline_s=FOREVER_S)
    signature = sign_digest(payee.key, close_digest(bench.domain(), made))
    # What a payee would sign if closings did not name their channel.
    nameless = CloseConsent(channel=bytes(32), epoch=0, amount_uusd=0, deadline_s=FOREVER_S)
    careless = sign_digest(payee.key, close_digest(bench.domain(), nameless))
    who = {"payer": payer.address, "payee": payee.address, "signer": payer.address}
    for proof in (signature, careless):
        bench.send(payer, bench.hub, encode_close_signed(made, proof, **who))
    return bench.channel(payer, payee, payer).open_uusd == 0


def test_a_signature_for_another_hub_or_chain_closes_nothing(bench: Bench) -> None:
    payer, payee, _ = people(bench)
    bench.open(payer, payee, payer, 1000)
    chain_id = bench.domain().chain_id
    for domain in (Domain(chain_id=chain_id, contract=bench.token), Domain(chain_id=chain_id + 1, contract=bench.hub)):
        assert bench.reason(payer, consent(bench, payer, payee, domain=domain)) == "not signed by the payee"


def test_a_voucher_is_no_consent(bench: Bench) -> None:
    """Both are signed in one domain: the type in front keeps them apart."""
    payer, payee, _ = people(bench)
    bench.open(payer, payee, payee, 1000)  # the payee is the signer of this channel's vouchers
    voucher = bench.row(payer, payee, payee, 5)
    made = CloseConsent(channel=bench.id(payer, payee, payee), epoch=0, amount_uusd=0, deadline_s=FOREVER_S)
    data = encode_close_signed(made, voucher.signature, payer=payer.address, payee=payee.address, signer=payee.address)
    assert bench.reason(payer, data) == "not signed by the payee"


def test_a_request_does_not_run_ahead_of_a_claim(bench: Bench) -> None:
    """The payer sees the payee's claim coming and asks to close first: the claim still counts, for a day."""
    payer, payee, _ = people(bench)
    bench.open(payer, payee, payer, 1000)
    bench.do(payer, encode_request_close(payee.address, payer.address))
    bench.now_s += CLOSE_DELAY_S - 1
    bench.send(payer, bench.hub, encode_finalize(payer.address, payee.address, payer.address))
    bench.claim(payee, [bench.row(payer, payee, payer, 1000)])
    assert bench.balance(payee) == 1000


@pytest.mark.parametrize("length", [0, 63, 64, 66])
def test_signatures_of_another_length_are_refused_before_they_are_sent(bench: Bench, length: int) -> None:
    payer, payee, _ = people(bench)
    made = CloseConsent(channel=bench.id(payer, payee, payer), epoch=0, amount_uusd=0, deadline_s=1)
    who = {"payer": payer.address, "payee": payee.address, "signer": payer.address}
    with pytest.raises(ValueError, match="65 bytes"):
        encode_close_signed(made, bytes(length), **who)
    some_permit, _ = permit(bench, payer, 1)
    with pytest.raises(ValueError, match="65 bytes"):
        encode_deposit_with_permit(some_permit, bytes(length), beneficiary=payer.address)


@pytest.mark.parametrize(
    "fields",
    [{"epoch": MAX_EPOCH}, {"epoch": -1}, {"amount_uusd": 2**96}, {"deadline_s": 2**40}, {"channel": b"short"}],
)
def test_a_consent_out_of_range_can_not_exist(fields: dict[str, Any]) -> None:
    good = {"channel": bytes(32), "epoch": 0, "amount_uusd": 0, "deadline_s": 0}
    CloseConsent(**good)
    with pytest.raises(LocalProtocolError):
        CloseConsent(**{**good, **fields})


CASES = [
    Case(permit_run_ahead_of, (("revert_on_failure=False", "revert_on_failure=True"), ("permitted: bool = ", ""))),
    Case(
        authorisation_credited_to_who_submits,
        (("self._credit(msg.sender, owner, amount, before)", "self._credit(msg.sender, msg.sender, amount, before)"),),
    ),
    Case(
        authorisation_for_something_else,
        (("valid_before, self._nonce(salt), v, r, s", "valid_before, salt, v, r, s"),),
    ),
    Case(
        replayed_closing,
        (("channel_id, slot.epoch, amount, deadline", "channel_id, empty(uint256), amount, deadline"),),
    ),
    Case(closing_ahead_of_a_claim, (('    assert slot.claimed >= amount, "claim first"\n', ""),)),
    Case(
        closing_by_a_stranger,
        (('    assert self._by(payee, self._domain(), struct_hash, r, vs), "not signed by the payee"\n', ""),),
    ),
    Case(closing_by_the_payer, (("self._by(payee, self._domain()", "self._by(payer, self._domain()"),)),
    Case(closing_after_the_deadline, (('    assert block.timestamp <= deadline, "too late"\n', ""),)),
    Case(closing_another_channel, (("CLOSE_TYPEHASH, channel_id, ", "CLOSE_TYPEHASH, empty(bytes32), "),)),
]
NAMES = [case.name for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_attack_fails(bench: Bench, case: Case) -> None:
    assert not case.attack(bench)


@needs_compiler
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_attack_succeeds_without_the_defence(bench_type: type[Bench], case: Case, compiler: Compiler) -> None:
    assert case.attack(bench_type(compiler.without("ChannelHub", case)))


@needs_compiler
def test_the_last_epoch_has_no_signed_closing(bench_type: type[Bench], compiler: Compiler) -> None:
    """Where the count stands still a signature could count twice. Here that is after two closings, not 2**24 - 1."""
    short = Case(
        closing_by_a_stranger, (("MAX_EPOCH: constant(uint256) = 2**24 - 1", "MAX_EPOCH: constant(uint256) = 2"),)
    )
    bench = bench_type(compiler.without("ChannelHub", short))
    payer, payee, _ = people(bench)
    finalize = encode_finalize(payer.address, payee.address, payer.address)
    for epoch in (0, 1):
        bench.open(payer, payee, payer, 1000)
        bench.do(payer, consent(bench, payer, payee, epoch=epoch))
    for _ in range(2):
        bench.open(payer, payee, payer, 1000)
        assert decode_word(bench.call(bench.hub, encode_epoch(bench.id(payer, payee, payer)))) == 2
        for epoch in (1, 2):
            assert bench.reason(payer, consent(bench, payer, payee, epoch=epoch)) == "closed too often"
        bench.do(payee, finalize)


def test_an_approval_is_enough_for_a_deposit_with_a_spent_permit(bench: Bench) -> None:
    payer, _, _ = people(bench)
    bench.give(payer, 10)
    bench.do(payer, encode_approve(bench.hub, 10), to=bench.token)
    made, _ = permit(bench, payer, 10)
    bench.do(payer, encode_deposit_with_permit(made, bytes(64) + b"\x1b", beneficiary=payer.address))
    assert bench.balance(payer) == 10
