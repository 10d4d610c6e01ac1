"""The password of an owner's key: from a file, the environment, or whoever sits here; never from an argument."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from p2pcompute.identity import AskPassword

__all__ = ["given_password", "new_password", "owner_password", "password_option"]

F = TypeVar("F", bound=Callable[..., Any])


def password_option(function: F) -> F:
    """--password-file. What is said of P2PCOMPUTE_PASSWORD_FILE is looked up where it is needed."""
    return click.option(
        "--password-file",
        metavar="FILE",
        help="its first line is the password of the owner's key, where the profile has an owner; else "
        "P2PCOMPUTE_PASSWORD_FILE, P2PCOMPUTE_PASSWORD, or a prompt",
    )(function)


def given_password(password_file: str | None) -> str | None:
    """The password that was given without a prompt; None where none was. Raises `IdentityError`."""
    from p2pcompute.identity import password_from_environment, password_from_file

    return password_from_environment() if password_file is None else password_from_file(Path(password_file))


def owner_password(directory: Path, password_file: str | None) -> AskPassword:
    """For `open_node` and `open_wallet`; asks now, where the profile in `directory` has an owner and nothing is given.

    Raises:
        IdentityError: the file with the password can't be read, or others can read it.
    """
    from p2pcompute.identity import Keyring

    if not Keyring(directory).has_owner:
        return lambda: None
    password = given_password(password_file)
    if password is None and sys.stdin.isatty():
        asked: str = click.prompt("password of the owner's key", hide_input=True, err=True)
        password = asked
    return lambda: password


def new_password(password_file: str | None, what: str, *, confirm: bool) -> str:
    """A password that is needed: given, or asked for, twice where it is a new one.

    Raises:
        UsageError: none is given and nobody can be asked.
    """
    password = given_password(password_file)
    if password is None:
        if not sys.stdin.isatty():
            raise click.UsageError("nobody can be asked for a password here; name a file with it: --password-file")
        asked: str = click.prompt(what, hide_input=True, confirmation_prompt=confirm, err=True)
        password = asked
    return password
