from __future__ import annotations

import random
from typing import Any

import coincurve
import pytest
import rlp
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.chain import UnsignedTx, sign_transaction, transaction_hash
from p2pcompute.chain._tx import contract_address, rlp_encode
from p2pcompute_protocols.ids import Address

nested = st.recursive(st.binary(max_size=80), lambda inner: st.lists(inner, max_size=5), max_leaves=40)


@given(nested)
def test_rlp_is_that_of_the_rlp_package(item: Any) -> None:
    assert rlp_encode(item) == rlp.encode(item)


@pytest.mark.parametrize("size", [0, 1, 55, 56, 255, 256, 65_535, 65_536])
def test_rlp_at_the_edges_of_its_lengths(size: int) -> None:
    item = [b"\x80" * size, [b"\x7f"] * size]
    assert rlp_encode(item) == rlp.encode(item)


def test_signed_transactions_are_those_of_eth_account() -> None:
    rng = random.Random(2)
    for i in range(100):
        key = coincurve.PrivateKey(rng.randbytes(32))
        fee = rng.randrange(2**40)
        to = None if i % 10 == 0 else Address(rng.randbytes(20))
        tx = UnsignedTx(
            chain_id=rng.randrange(1, 2**40),
            nonce=rng.choice([0, 1, 127, 128, rng.randrange(2**40)]),
            to=to,
            data=rng.randbytes(rng.choice([0, 1, 4, 55, 56, 300])),
            gas=rng.randrange(21_000, 2**25),
            max_fee_wei=fee + 1000,
            priority_fee_wei=fee,
            value_wei=rng.choice([0, 1, 10**18]),
        )
        theirs = Account.sign_transaction(
            {
                "type": 2,
                "chainId": tx.chain_id,
                "nonce": tx.nonce,
                "data": tx.data,
                "gas": tx.gas,
                "maxFeePerGas": tx.max_fee_wei,
                "maxPriorityFeePerGas": tx.priority_fee_wei,
                "value": tx.value_wei,
                **({} if to is None else {"to": to}),
            },
            key.secret,
        )
        ours = sign_transaction(tx, key)
        assert ours.raw == bytes(theirs.raw_transaction)
        assert ours.hash == bytes(theirs.hash) == transaction_hash(ours.raw)
        assert ours.sender.hex() == Account.from_key(key.secret).address[2:].lower()


def test_contract_address_of_a_known_deployment() -> None:
    # The first contract of a well-known example account: go-ethereum's TestCreateAddress.
    sender = Address(bytes.fromhex("970e8128ab834e8eac17ab8e3812f010678cf791"))
    assert contract_address(sender, 0).hex() == "333c3310824b7c685133f2bedb2ca4b8b4df633d"
    assert contract_address(sender, 1).hex() == "8bda78331c916a08481428e4b07c96d3e916d165"
    assert contract_address(sender, 2).hex() == "c9ddedf451bc62ce88bf9292afb13df35b670699"


@pytest.mark.parametrize(
    "change",
    [{"nonce": -1}, {"gas": 2**256}, {"to": b"\x01"}, {"priority_fee_wei": 2}, {"value_wei": -1}],
)
def test_a_transaction_out_of_range_can_not_be_made(change: dict[str, Any]) -> None:
    fields: dict[str, Any] = {
        "chain_id": 1,
        "nonce": 0,
        "to": Address(bytes(20)),
        "data": b"",
        "gas": 21_000,
        "max_fee_wei": 1,
        "priority_fee_wei": 1,
    }
    with pytest.raises(ValueError, match=r"is not|above"):
        UnsignedTx(**(fields | change))
