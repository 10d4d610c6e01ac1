"""Accounts as people write them: a wrong digit is found before money goes there."""

from __future__ import annotations

import pytest

from p2pcompute.control import parse_address
from p2pcompute.errors import ConfigError

# From EIP-55.
KNOWN = (
    "0x52908400098527886E0F7030069857D2E4169EE7",
    "0xde709f2102306220921060314715629080e2fb77",
    "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
    "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
    "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
    "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
)


@pytest.mark.parametrize("text", KNOWN)
def test_an_account_is_taken_with_its_checksum_and_without_one(text: str) -> None:
    digits = text[2:]
    for written in (text, "0x" + digits.lower(), "0x" + digits.upper()):
        assert parse_address(written).hex() == digits.lower()


def test_an_account_whose_checksum_does_not_hold_is_refused() -> None:
    for wrong in ("0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAee", "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1Beaed"):
        with pytest.raises(ConfigError, match=r"checksum .* copy the account again"):
            parse_address(wrong)


@pytest.mark.parametrize(
    "text", ["", "0x", "0x1", KNOWN[0][2:], KNOWN[0] + "0", "0x" + "g" * 40, "0x" + "11" * 19 + "  ", 7, None]
)
def test_what_is_no_account_is_refused(text: object) -> None:
    with pytest.raises(ConfigError, match="is no account; write 0x and 40"):
        parse_address(text)
