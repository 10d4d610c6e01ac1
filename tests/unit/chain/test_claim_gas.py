"""What a claim is reckoned to cost, against the contract."""

from __future__ import annotations

from typing import Any

import pytest

from p2pcompute.chain import FundRow, encode_claim, encode_fund
from p2pcompute.payments._settle_policy import claim_gas


@pytest.mark.parametrize("rows", [1, 10, 100])
def test_a_claim_costs_about_what_it_is_reckoned_to(bench: Any, rows: int) -> None:
    payer, payee = bench.account("payer"), bench.account("payee")
    signers = [bench.account(f"signer {n}") for n in range(rows)]
    bench.deposit(payer, 1_000_000)
    bench.do(payer, encode_fund([FundRow(payee=payee.address, signer=one.address, amount_uusd=100) for one in signers]))
    claims = [bench.row(payer, payee, one, 50, memo=bytes([7]) * 32) for one in signers]
    used = bench.do(payee, encode_claim(payee.address, claims)).gas_used
    assert used <= claim_gas(rows) <= used * 1.25
