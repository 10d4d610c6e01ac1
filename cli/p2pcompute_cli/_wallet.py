"""`p2pcompute wallet`: where a profile's money lies, whose it is, and which key signs for it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ._money import Place, _Asker, _day, _options, _show_wallet
from ._passwords import new_password, owner_password, password_option
from ._shared import common_options, count, fail, json_line, profile_option, usd

if TYPE_CHECKING:
    from p2pcompute.identity import Keyring, WalletKey

__all__ = ["wallet"]


@click.group(
    invoke_without_command=True,
    epilog="\b\nExamples:\n  p2pcompute wallet\n  p2pcompute wallet --profile requester --json\n"
    "  p2pcompute wallet new --profile safe\n  p2pcompute wallet rotate --profile safe\n\n"
    "A profile has one key, without a password, unless an owner is given to it: then the money is the owner's, whose "
    "key lies encrypted, and the profile's own key only signs vouchers.",
)
@_options
@click.pass_context
def wallet(ctx: click.Context, profile: str, network: str, place: Place, as_json: bool, debug: bool) -> None:
    """Show where this profile's money lies; give it an owner, or a new key to sign with."""
    if ctx.invoked_subcommand is not None:
        # They would be of no effect there, and the command would go to another profile than is meant.
        source = click.core.ParameterSource.COMMANDLINE
        given = [param.opts[0] for param in ctx.command.params if ctx.get_parameter_source(param.name or "") is source]
        if given:
            raise click.UsageError(f"write {', '.join(given)} behind {ctx.invoked_subcommand}, whose option it is")
        return
    answer = _Asker(profile, network, place, as_json=as_json, debug=debug)("/wallet")
    if as_json:
        json_line(**answer)
    else:
        _show_wallet(answer)


def _put(profile: str, put: Callable[[Keyring], WalletKey], *, as_json: bool, debug: bool) -> None:
    import trio

    from p2pcompute.wallet import give_owner

    try:
        owner = trio.run(partial(give_owner, profile, put))
    except BaseException as exc:  # noqa: BLE001  said in one line
        fail(exc, as_json=as_json, debug=debug)
    if as_json:
        json_line(owner="0x" + owner.hex(), profile=profile)
        return
    click.echo(f"the money of {profile} is 0x{owner.hex()}'s from now on; nobody can get it without the password")
    click.echo(f"send tokens there, and keep a copy: `p2pcompute wallet export --profile {profile} > owner.json`")


@wallet.command(
    epilog="\b\nExamples:\n  p2pcompute wallet new --profile safe\n"
    "  p2pcompute wallet new --profile safe --password-file ~/.owner-password"
)
@profile_option
@password_option
@common_options
def new(profile: str, password_file: str | None, as_json: bool, debug: bool) -> None:
    """Make an owner's key for a profile without channels, under a password."""
    try:
        password = new_password(password_file, "a new password for the owner's key", confirm=True)
    except Exception as exc:  # noqa: BLE001  said in one line
        fail(exc, as_json=as_json, debug=debug)

    def put(keyring: Keyring) -> WalletKey:
        from p2pcompute.identity import WalletKey

        return keyring.create_owner(WalletKey.generate().private_key, password)

    _put(profile, put, as_json=as_json, debug=debug)


@wallet.command(
    "import",
    epilog="\b\nExamples:\n  p2pcompute wallet import UTC--2026-11-22--5aaeb605.json --profile safe\n\n"
    "The file is a keystore of version 3, as geth, MetaMask's exporters and most wallets write it; it stays under the "
    "password that it has.",
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@profile_option
@password_option
@common_options
def import_(file: Path, profile: str, password_file: str | None, as_json: bool, debug: bool) -> None:
    """Have the owner's key of FILE own a profile without channels."""
    from p2pcompute.identity import KeystoreError, decrypt_keystore, keystore_address

    try:
        with file.open("rb") as stream:
            data = stream.read(1 << 20)
        try:
            # Before anybody is asked for a password, and before there is a profile: this may be another file.
            keystore_address(data)
            password = new_password(password_file, f"the password of {file.name}", confirm=False)
            decrypt_keystore(data, password)
        except KeystoreError as exc:
            raise type(exc)(f"{file}: {exc}") from exc
    except Exception as exc:  # noqa: BLE001  said in one line
        fail(exc, as_json=as_json, debug=debug)
    _put(profile, lambda keyring: keyring.import_owner(data, password), as_json=as_json, debug=debug)


@wallet.command(epilog="\b\nExamples:\n  p2pcompute wallet export --profile safe > owner-backup.json")
@profile_option
@common_options
def export(profile: str, as_json: bool, debug: bool) -> None:
    """Write the owner's keystore to standard output, under its password as it is."""
    from p2pcompute._profile import Profile
    from p2pcompute.identity import Keyring

    try:
        data = Keyring(Profile.named(profile).path).export_owner()
    except Exception as exc:  # noqa: BLE001  said in one line
        fail(exc, as_json=as_json, debug=debug)
    sys.stdout.write(data.decode())


@wallet.command(epilog="\b\nExamples:\n  p2pcompute wallet address --profile safe")
@profile_option
@common_options
def address(profile: str, as_json: bool, debug: bool) -> None:
    """Show whose the money is and which key signs vouchers; asks for no password and no chain."""
    from p2pcompute._profile import Profile
    from p2pcompute.errors import ConfigError
    from p2pcompute.identity import Keyring, WalletKey

    try:
        keyring = Keyring(Profile.named(profile).path)
        if not keyring.wallet.exists():
            raise ConfigError(
                f"the profile {profile} has no keys yet; `p2pcompute wallet new --profile {profile}` makes them with "
                f"an owner, `p2pcompute up --profile {profile}` without"
            )
        signer = WalletKey.load_or_create(keyring.wallet).address
        owner = keyring.owner_address()
    except Exception as exc:  # noqa: BLE001  said in one line
        fail(exc, as_json=as_json, debug=debug)
    account = signer if owner is None else owner
    if as_json:
        json_line(account="0x" + account.hex(), signer="0x" + signer.hex(), has_owner=owner is not None)
        return
    click.echo(f"account 0x{account.hex()}" + (" (an owner's, under a password)" if owner is not None else ""))
    click.echo(f"signer  0x{signer.hex()}")


@wallet.command(
    epilog="\b\nExamples:\n  p2pcompute wallet rotate --profile safe\n\n"
    "Stop the node first. What was earned is claimed; channels are closed at once where their payees answer and agree, "
    "else in a day by `p2pcompute close`. New work opens channels for the new key. Stopped anywhere, the same command "
    "goes on."
)
@click.option("--yes", is_flag=True, help="do not ask")
@_options
def rotate(profile: str, network: str, place: Place, yes: bool, as_json: bool, debug: bool) -> None:
    """Put a new key in the place of the one that signs vouchers for the owner."""
    import trio

    from p2pcompute._profile import Profile
    from p2pcompute.wallet import rotate_signer

    asker = _Asker(profile, network, place, as_json=as_json, debug=debug)
    facts = asker("/channels", from_ledger=True)
    unclaimed_uusd = sum(row["unclaimed_uusd"] for row in facts["channels"] if row["direction"] == "in")
    asker.confirm(
        f"claiming {usd(unclaimed_uusd)}, closing what of {count(len(facts['channels']), 'channel')} is open, and "
        "signing with a new key",
        facts,
        yes=yes,
    )
    try:
        done = trio.run(
            partial(
                rotate_signer,
                profile=profile,
                network=network,
                chain=place["chain"],
                hub=place["hub"],
                token=place["token"],
                password=owner_password(Profile.named(profile).path, asker.password_file),
            )
        )
    except BaseException as exc:  # noqa: BLE001  said in one line
        fail(exc, as_json=as_json, debug=debug)
    if as_json:
        json_line(
            old="0x" + done.old.hex(),
            new="0x" + done.new.hex(),
            settled_uusd=done.settled_uusd,
            channels=[
                {
                    "channel": row.channel.hex(),
                    "state": row.state,
                    "close_at_s": row.close_at_s,
                    "refund_uusd": row.refund_uusd,
                }
                for row in done.closed
            ],
        )
        return
    click.echo(f"0x{done.new.hex()} signs from now on, in the place of 0x{done.old.hex()}")
    click.echo(f"claimed {usd(done.settled_uusd)}")
    for row in done.closed:
        name = row.channel.hex()[:8]
        if row.state == "closed":
            click.echo(f"closed {name}: {usd(row.refund_uusd)} came back")
        else:
            click.echo(f"closing {name}: `p2pcompute close {name}` from {_day(row.close_at_s * 1000)} on")
