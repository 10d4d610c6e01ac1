"""Which hub lies at an endpoint: ours, another contract that looks like it, or none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pcompute._chain_choice import ChainChoice, account, choose_chain, keep_choice, kept_choice
from p2pcompute._profile import Profile
from p2pcompute.chain import ChainClient, HubPlace, NoHub, RateLimited, WrongHub, find_hub, load_artifact
from p2pcompute.chain._artifacts import hub_immutables
from p2pcompute.errors import ConfigError, WrongChain
from p2pcompute_protocols.channel._voucher import Domain
from p2pcompute_protocols.ids import Address

HUB, TOKEN, OTHER = (Address(bytes([n]) * 20) for n in (1, 2, 3))
RUNTIME = load_artifact("ChannelHub").runtime
TAIL = hub_immutables(TOKEN, 5, Domain(chain_id=5, contract=HUB).separator)


def word(value: int) -> bytes:
    return value.to_bytes(32, "big")


SYMBOL = word(32) + word(4) + b"USDC".ljust(32, b"\0")


def found(
    code: bytes = RUNTIME + TAIL,
    *,
    decimals: bytes | None = word(6),
    symbol: bytes | None = SYMBOL,
    info: dict[str, Any] | None = None,
    limited: bool = False,
    hub: Address | None = HUB,
    token: Address | None = None,
    expected: int | None = None,
) -> HubPlace:
    """What `find_hub` makes of an endpoint of chain 5 with a contract of this code at `HUB`."""

    def one(request: dict[str, Any]) -> dict[str, Any]:
        head = {"jsonrpc": "2.0", "id": request["id"]}
        method, params = request["method"], request["params"]
        refused = {"error": {"code": -32005 if limited else -32601, "message": "no"}}
        if method == "eth_chainId":
            return head | {"result": "0x5"}
        if method == "dev_info":
            return head | (refused if info is None else {"result": info})
        if method == "eth_getCode":
            return head | {"result": "0x" + (code if params[0] == "0x" + HUB.hex() else b"").hex()}
        answer = decimals if params[0]["data"] == "0x313ce567" else symbol
        return head | (refused if answer is None else {"result": "0x" + answer.hex()})

    async def exchange(body: bytes) -> bytes:
        message = json.loads(body)
        return json.dumps([one(r) for r in message] if isinstance(message, list) else one(message)).encode()

    async def main() -> HubPlace:
        async with ChainClient("test", exchange=exchange, expected_chain_id=expected) as rpc:
            return await find_hub(rpc, hub=hub, token=token)

    return trio.run(main)


def test_ours_is_found() -> None:
    place = found()
    assert place == HubPlace(chain_id=5, hub=HUB, token=TOKEN, symbol="USDC", development=False)
    assert found(token=TOKEN) == place
    info = {"chain_id": 5, "hub": "0x" + HUB.hex(), "token": "0x" + TOKEN.hex()}
    assert found(hub=None, info=info).development


def altered(change: Callable[[bytearray], None]) -> bytes:
    code = bytearray(RUNTIME + TAIL)
    change(code)
    return bytes(code)


@pytest.mark.parametrize(
    "code",
    [
        RUNTIME,
        RUNTIME + TAIL[:-1],
        RUNTIME + TAIL + b"\0",
        b"\0" + RUNTIME + TAIL,
        load_artifact("TestToken").runtime,
        # the same instructions, with other constants in them: vouchers for elsewhere would count there
        RUNTIME + hub_immutables(TOKEN, 6, Domain(chain_id=5, contract=HUB).separator),
        RUNTIME + hub_immutables(TOKEN, 5, Domain(chain_id=5, contract=OTHER).separator),
        RUNTIME + hub_immutables(TOKEN, 5, Domain(chain_id=1, contract=HUB).separator),
        RUNTIME + b"\x01" + TAIL[1:],
        altered(lambda code: code.__setitem__(1_000, code[1_000] ^ 1)),
    ],
)
def test_what_only_looks_like_it_is_refused(code: bytes) -> None:
    with pytest.raises(WrongHub, match="is not the hub of this version"):
        found(code)
    info = {"chain_id": 5, "hub": "0x" + HUB.hex(), "token": "0x" + TOKEN.hex()}
    with pytest.raises(WrongHub, match="made by another version"):
        found(code, hub=None, info=info)


def test_what_is_missing_or_of_another_token() -> None:
    with pytest.raises(WrongHub, match="no contract at 0x0303"):
        found(hub=OTHER)
    with pytest.raises(WrongHub, match="is of the token 0x0202"):
        found(token=OTHER)
    with pytest.raises(NoHub, match="--hub 0x"):
        found(hub=None)
    with pytest.raises(RateLimited):  # it says nothing of what kind of chain it is
        found(hub=None, limited=True)
    with pytest.raises(WrongChain, match="serves chain 5, not 1"):
        found(expected=1)


@pytest.mark.parametrize(
    ("decimals", "words"),
    [
        (word(18), "18 decimals"),
        (word(2**255 + 6), "decimals"),
        (None, "no ERC-20"),
        (b"", "no ERC-20"),
        (b"\x06", "no ERC"),
    ],
)
def test_tokens_that_cannot_be_paid_with(decimals: bytes | None, words: str) -> None:
    with pytest.raises(WrongHub, match=words):
        found(decimals=decimals)


@pytest.mark.parametrize(
    ("symbol", "shown"),
    [
        (None, "token"),
        (b"", "token"),
        (b"MKR".ljust(32, b"\0"), "MKR"),
        (word(32) + word(2**200) + b"x" * 32, "x" * 16),
        (word(32) + word(9) + b"\x1b[31mUSDC\xff".ljust(32, b"\0"), "31mUSDC"),
    ],
)
def test_a_symbol_is_only_shown(symbol: bytes | None, shown: str) -> None:
    assert found(symbol=symbol).symbol == shown


# What a profile keeps

PLACE = HubPlace(chain_id=5, hub=HUB, token=TOKEN, symbol="USDC", development=False)


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    monkeypatch.setenv("P2PCOMPUTE_HOME", str(tmp_path))
    for name in ("CHAIN", "HUB", "TOKEN"):
        monkeypatch.delenv(f"P2PCOMPUTE_{name}", raising=False)
    return Profile.named("default")


def chosen(profile: Profile | None, **said: str) -> ChainChoice | None:
    return choose_chain(profile, "local", **({"chain": None, "hub": None, "token": None} | said))


def test_what_was_named_once_is_kept(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(profile) is None
    keep_choice(profile, "http://a/key", PLACE)
    kept = ChainChoice(url="http://a/key", chain_id=5, hub=HUB, token=TOKEN)
    assert kept_choice(profile) == chosen(profile) == kept
    assert (profile.path / "chain.json").stat().st_mode & 0o077 == 0
    # Another endpoint of the same chain, or another chain altogether.
    assert chosen(profile, chain="http://b") == ChainChoice(url="http://b", chain_id=5, hub=HUB, token=TOKEN)
    other = "0x" + OTHER.hex()
    assert chosen(profile, chain="http://b", hub=other) == ChainChoice(url="http://b", hub=OTHER)
    assert chosen(None, chain="http://b", hub=other, token=other) == ChainChoice(url="http://b", hub=OTHER, token=OTHER)
    monkeypatch.setenv("P2PCOMPUTE_CHAIN", "http://c")
    assert chosen(profile) == ChainChoice(url="http://c", chain_id=5, hub=HUB, token=TOKEN)
    monkeypatch.setenv("P2PCOMPUTE_HUB", other)
    assert chosen(profile) == ChainChoice(url="http://c", hub=OTHER)
    assert chosen(profile, chain="http://d", hub="0x" + HUB.hex()) == ChainChoice(url="http://d", hub=HUB)


def test_nothing_is_kept_of_a_development_chain(profile: Profile) -> None:
    place = HubPlace(chain_id=5, hub=HUB, token=TOKEN, symbol="tUSD", development=True)
    keep_choice(profile, "http://a", place)
    assert kept_choice(profile) is None


def test_what_cannot_be_chosen(profile: Profile) -> None:
    with pytest.raises(ConfigError, match="a hub or a token is named and no chain"):
        chosen(profile, hub="0x" + HUB.hex())
    with pytest.raises(ConfigError, match="is no account"):
        chosen(profile, chain="http://a", hub="0x12")
    assert account("0x" + HUB.hex()) == HUB
    profile.path.mkdir(parents=True)
    (profile.path / "chain.json").write_text('{"url": 5}')
    with pytest.raises(ConfigError, match="damaged; move it away"):
        chosen(profile)
