"""Where a chain has its stake registry, and what is taken for one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pcompute.chain import NoRegistry, RegistryPlace, WrongRegistry, dev_registry, find_registry
from p2pcompute.chain._artifacts import load_artifact
from p2pcompute.chain._devchain_journal import Journal
from p2pcompute.chain._devchain_node import DevNode
from p2pcompute.chain._registry import DEFAULT_MIN_STAKE_UUSD, DEFAULT_STAKE_PER_CORE_UUSD
from p2pcompute.chain._registry_place import registry_immutables
from p2pcompute_protocols.ids import Address

TOKEN = Address(b"t" * 20)
PLACE = Address(b"r" * 20)


class Rpc:
    """An endpoint that has one contract."""

    def __init__(self, code: bytes) -> None:
        self.code = code
        self.asked: list[str] = []

    async def call(self, method: str, params: list[str]) -> str:
        assert method == "eth_getCode"
        self.asked.append(params[0])
        await trio.lowlevel.checkpoint()
        return "0x" + self.code.hex()


def found(code: bytes, **options: Any) -> RegistryPlace:
    async def main() -> RegistryPlace:
        given = {"token": TOKEN, "registry": PLACE, "development": False, **options}
        return await find_registry(Rpc(code), **given)  # type: ignore[arg-type]

    return trio.run(main)


def code_of(token: Address = TOKEN) -> bytes:
    return load_artifact("StakeRegistry").runtime + registry_immutables(token, min_stake_uusd=7, stake_per_core_uusd=3)


def test_ours_is_taken_with_what_it_is_set_to() -> None:
    assert found(code_of()) == RegistryPlace(registry=PLACE, min_stake_uusd=7, per_core_uusd=3)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (b"", "no contract"),
        (b"\x60\x00", "not the stake registry"),
        (code_of()[:-1], "not the stake registry"),
        (code_of() + b"\0", "not the stake registry"),
        (b"\x01" + code_of()[1:], "not the stake registry"),
        (code_of(Address(b"u" * 20)), "is of the token 0x7575"),
    ],
)
def test_anything_else_is_given_no_money(code: bytes, said: str) -> None:
    with pytest.raises(WrongRegistry, match=said):
        found(code)


def test_on_another_chain_it_has_to_be_named() -> None:
    with pytest.raises(NoRegistry, match="--registry"):
        found(code_of(), registry=None)


def on_a_development_chain(node: DevNode) -> RegistryPlace:
    code = node.chain.state(node.chain.head).get_code(node.registry)
    return found(code, token=node.token, registry=None, development=True)


def test_every_development_chain_has_one_at_the_same_place() -> None:
    node = DevNode(None)
    assert node.chain.head == 1
    expected = RegistryPlace(
        registry=dev_registry(),
        min_stake_uusd=DEFAULT_MIN_STAKE_UUSD,
        per_core_uusd=DEFAULT_STAKE_PER_CORE_UUSD,
    )
    assert on_a_development_chain(node) == expected


def test_a_chain_of_a_version_that_had_none_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def older(node: DevNode) -> None:
        pass

    with monkeypatch.context() as patch:
        patch.setattr(DevNode, "_deploy_registry", older)
        real: Callable[..., Any] = DevNode._genesis
        patch.setattr(DevNode, "_genesis", lambda self, at, **_: real(self, at, with_registrar=False))
        node = DevNode(tmp_path)
        node.faucet(Address(b"s" * 20), 5, 6)
        assert not node.chain.state(node.chain.head).get_code(node.registry)
        node.close()
    journal = Journal(tmp_path)
    entries = journal.entries
    journal.close()
    (tmp_path / "chain.journal").unlink()
    journal = Journal(tmp_path)
    journal.append({name: value for name, value in entries[0].items() if name != "registrar"})
    for entry in entries[1:]:
        journal.append(entry)
    journal.close()
    for _ in range(2):  # made once, and there from then on
        node = DevNode(tmp_path)
        assert node.chain.head == 4
        assert on_a_development_chain(node).registry == dev_registry()
        node.close()


def test_without_a_registry_a_development_chain_says_what_to_do() -> None:
    with pytest.raises(WrongRegistry, match="start its nodes again"):
        found(b"", registry=None, development=True)
