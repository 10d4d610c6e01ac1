from __future__ import annotations

import contextlib
import random

import coincurve
import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute_protocols.channel._voucher import (
    MAX_AMOUNT_UUSD,
    Domain,
    Voucher,
    address_of,
    channel_id,
    keccak256,
    recover_signer,
    sign_voucher,
    voucher_digest,
)
from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.ids import Address, ChannelId

ORDER = coincurve.utils.GROUP_ORDER_INT
KEY = coincurve.PrivateKey(keccak256(b"signer"))
DOMAIN = Domain(chain_id=31337, contract=Address(b"\x11" * 20))
VOUCHER = Voucher(channel=ChannelId(b"\x22" * 32), amount_uusd=1_000_000, memo=b"\x33" * 32)

addresses = st.binary(min_size=20, max_size=20).map(Address)
domains = st.builds(Domain, chain_id=st.integers(1, 2**64), contract=addresses)
vouchers = st.builds(
    Voucher,
    channel=st.binary(min_size=32, max_size=32).map(ChannelId),
    amount_uusd=st.integers(0, MAX_AMOUNT_UUSD),
    memo=st.binary(min_size=32, max_size=32),
)
keys = st.integers(1, ORDER - 1).map(lambda n: coincurve.PrivateKey(n.to_bytes(32, "big")))


def typed_data(domain: Domain, voucher: Voucher) -> dict[str, object]:
    return {
        "domain": {
            "name": "p2pcompute hub",
            "version": "1",
            "chainId": domain.chain_id,
            "verifyingContract": "0x" + domain.contract.hex(),
        },
        "types": {
            "EIP712Domain": [
                {"name": "name", "type": "string"},
                {"name": "version", "type": "string"},
                {"name": "chainId", "type": "uint256"},
                {"name": "verifyingContract", "type": "address"},
            ],
            "Voucher": [
                {"name": "channel", "type": "bytes32"},
                {"name": "amount", "type": "uint96"},
                {"name": "memo", "type": "bytes32"},
            ],
        },
        "primaryType": "Voucher",
        "message": {"channel": voucher.channel, "amount": voucher.amount_uusd, "memo": voucher.memo},
    }


def test_digest_and_signature_are_those_of_eth_account() -> None:
    rng = random.Random(1)
    for _ in range(200):
        domain = Domain(chain_id=rng.randrange(1, 2**64), contract=Address(rng.randbytes(20)))
        voucher = Voucher(
            channel=ChannelId(rng.randbytes(32)),
            amount_uusd=rng.randrange(2 ** rng.randrange(1, 97)),
            memo=rng.randbytes(32),
        )
        key = coincurve.PrivateKey(rng.randbytes(32))
        theirs = Account.sign_message(encode_typed_data(full_message=typed_data(domain, voucher)), key.secret)
        assert voucher_digest(domain, voucher) == bytes(theirs.message_hash)
        assert sign_voucher(domain, voucher, key) == bytes(theirs.signature)
        assert address_of(key.public_key).hex() == Account.from_key(key.secret).address[2:].lower()


@given(domains, vouchers, keys)
def test_signature_leads_back_to_the_signer(domain: Domain, voucher: Voucher, key: coincurve.PrivateKey) -> None:
    signature = sign_voucher(domain, voucher, key)
    assert len(signature) == 65
    assert int.from_bytes(signature[32:64], "big") <= ORDER // 2
    assert recover_signer(domain, voucher, signature) == address_of(key.public_key)


@given(domains, vouchers)
def test_another_domain_or_voucher_has_another_digest(domain: Domain, voucher: Voucher) -> None:
    if (domain, voucher) == (DOMAIN, VOUCHER):
        return
    assert voucher_digest(domain, voucher) != voucher_digest(DOMAIN, VOUCHER)


@given(st.data())
def test_a_changed_signature_is_refused_or_another_signers(data: st.DataObject) -> None:
    good = sign_voucher(DOMAIN, VOUCHER, KEY)
    bad = data.draw(
        st.one_of(
            st.binary(max_size=70),
            st.integers(0, len(good) * 8 - 1).map(
                lambda bit: (int.from_bytes(good, "big") ^ 1 << bit).to_bytes(65, "big")
            ),
        )
    )
    signer = None
    with contextlib.suppress(LocalProtocolError):
        signer = recover_signer(DOMAIN, VOUCHER, bad)
    assert bad == good or signer != address_of(KEY.public_key)


def flipped(signature: bytes) -> bytes:
    """The other signature of the same key for the same digest: n - s and the other parity."""
    s = ORDER - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes([55 - signature[64]])


def test_the_twin_with_a_high_s_is_refused() -> None:
    good = sign_voucher(DOMAIN, VOUCHER, KEY)
    twin = flipped(good)
    # It is valid as such: without the rule on s the same voucher would have two signatures.
    recovered = coincurve.PublicKey.from_signature_and_message(
        twin[:64] + bytes([twin[64] - 27]), voucher_digest(DOMAIN, VOUCHER), hasher=None
    )
    assert address_of(recovered) == address_of(KEY.public_key)
    with pytest.raises(LocalProtocolError, match="upper half"):
        recover_signer(DOMAIN, VOUCHER, twin)


@pytest.mark.parametrize("v", [0, 1, 2, 3, 26, 29, 30, 35, 255])
def test_other_recovery_values_are_refused(v: int) -> None:
    good = sign_voucher(DOMAIN, VOUCHER, KEY)
    with pytest.raises(LocalProtocolError, match="neither 27 nor 28"):
        recover_signer(DOMAIN, VOUCHER, good[:64] + bytes([v]))


@pytest.mark.parametrize("r", [0, ORDER, 2**256 - 1])
@pytest.mark.parametrize("s", [0, 1])
def test_signatures_of_nobody_are_refused(r: int, s: int) -> None:
    signature = r.to_bytes(32, "big") + s.to_bytes(32, "big") + b"\x1b"
    with pytest.raises(LocalProtocolError, match="belongs to no key"):
        recover_signer(DOMAIN, VOUCHER, signature)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Voucher(channel=ChannelId(bytes(31)), amount_uusd=0),
        lambda: Voucher(channel=ChannelId(bytes(32)), amount_uusd=-1),
        lambda: Voucher(channel=ChannelId(bytes(32)), amount_uusd=2**96),
        lambda: Voucher(channel=ChannelId(bytes(32)), amount_uusd=True),
        lambda: Voucher(channel=ChannelId(bytes(32)), amount_uusd=1.0),  # type: ignore[arg-type]
        lambda: Voucher(channel=ChannelId(bytes(32)), amount_uusd=1, memo=b""),
        lambda: Domain(chain_id=0, contract=Address(bytes(20))),
        lambda: Domain(chain_id=2**256, contract=Address(bytes(20))),
        lambda: Domain(chain_id=1, contract=Address(bytes(19))),
        lambda: channel_id(Address(bytes(20)), Address(bytes(20)), Address(bytes(21))),
    ],
)
def test_what_can_not_be_a_voucher_can_not_be_made(make: object) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        make()  # type: ignore[operator]
    assert caught.value.code is WireCode.BAD_VOUCHER


@given(addresses, addresses, addresses)
def test_channel_id_is_the_hash_of_the_abi_encoding(payer: Address, payee: Address, signer: Address) -> None:
    from eth_abi import encode

    encoded = encode(["address", "address", "address"], [payer, payee, signer])
    assert channel_id(payer, payee, signer) == keccak256(encoded)
