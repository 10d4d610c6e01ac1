"""A hot key changed on the contract, without its payee: stopped at several points, the same call goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from p2pcompute._profile import Profile
from p2pcompute.chain import ChainClient, DevChainProcess, HubClient, dev_info, faucet
from p2pcompute.errors import ConfigError
from p2pcompute.identity import Keyring, WalletKey, WrongPassword
from p2pcompute.payments import Fund, FundRow, Wallet
from p2pcompute.wallet import _open, give_owner, open_wallet, rotate_signer
from p2pcompute_protocols.channel import channel_id
from p2pcompute_protocols.ids import PeerId

pytestmark = pytest.mark.net

SECRET, PASSWORD = bytes(range(100, 132)), "correct horse"
PAYEE = WalletKey(b"P" * 32).address


class Killed(BaseException):
    pass


def told() -> str:
    return PASSWORD


async def fund_a_channel(place: Profile, chain: str) -> None:
    """A channel to a payee that is gone for good."""
    async with _open(place, "alone", chain=chain, hub=None, token=None, bootstrap=(), password=told) as (money, keys):
        channel = channel_id(keys.account.address, PAYEE, keys.signer.address)
        await money.ledger.open_channel_out(channel, payee=PAYEE, peer=PeerId("12D3KooW" + "x" * 44))
        await money.wallet.fund(5_000)
        row = FundRow(payee=PAYEE, signer=keys.signer.address, amount_uusd=2_000)
        await money.wallet._outbox.run(Fund(rows=(row,)))


def test_stopped_anywhere_a_rotation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PCOMPUTE_HOME", str(tmp_path / "home"))
    place = Profile.named("safe")
    keyring = Keyring(place.path)

    async def rotate() -> Any:
        return await rotate_signer(profile=place, network="alone", chain=chain.url, password=told)

    async def killed_in(owner: Any, name: str) -> None:
        async def die(*_: Any, **__: Any) -> None:
            await trio.lowlevel.checkpoint()
            raise Killed

        def die_now(*_: Any, **__: Any) -> None:
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, die_now if owner is Keyring else die)
            with pytest.RaisesGroup(Killed, allow_unwrapped=True, flatten_subgroups=True):
                await rotate()

    async def main() -> None:
        nonlocal chain
        with trio.fail_after(300):
            async with DevChainProcess(tmp_path / "chain") as chain, ChainClient(chain.url) as rpc:
                info = await dev_info(rpc)
                client = HubClient(rpc, info.hub, info.token)
                owner = await give_owner(place, lambda ring: ring.create_owner(SECRET, PASSWORD, n=16))
                await faucet(rpc, owner, token_uusd=50_000)
                await fund_a_channel(place, chain.url)
                old = WalletKey.load_or_create(keyring.wallet).address
                channel = channel_id(owner, PAYEE, old)
                with pytest.raises(WrongPassword):
                    await rotate_signer(profile=place, network="alone", chain=chain.url, password=lambda: "wrong")
                assert not keyring.is_rotating
                for which, name in ((Keyring, "begin_rotation"), (Wallet, "settle"), (Wallet, "close")):
                    await killed_in(which, name)
                    assert keyring.open(told).signer.address == old
                assert (await client.channel_state(channel)).close_at_s == 0
                chosen = keyring.begin_rotation().address
                sent = await client.nonce(owner)
                await killed_in(Keyring, "end_rotation")
                assert keyring.open(told).signer.address == old
                asked = (await client.channel_state(channel)).close_at_s
                assert asked > 0
                done = await rotate()
                assert (done.old, done.new) == (old, chosen)
                assert [(row.channel, row.state, row.close_at_s) for row in done.closed] == [
                    (channel, "closing", asked)
                ]
                assert await client.nonce(owner) == sent + 1  # it was asked for once
                assert keyring.open(told).signer.address == chosen
                # The channel of the old key is still this profile's to bring back, when its day has passed.
                async with open_wallet(profile=place, network="alone", chain=chain.url, password=told) as money:
                    again = await money.wallet.close(channel.hex())
                    assert (again.state, again.close_at_s) == ("closing", asked)

    chain: Any = None
    trio.run(main)


def test_a_profile_without_an_owner_has_nothing_to_rotate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PCOMPUTE_HOME", str(tmp_path / "home"))
    place = Profile.named("plain")
    WalletKey.load_or_create(place.wallet_key)

    async def main() -> None:
        with pytest.raises(ConfigError, match="wallet new"):
            await rotate_signer(profile=place, network="alone", chain="http://127.0.0.1:1")

    trio.run(main)
