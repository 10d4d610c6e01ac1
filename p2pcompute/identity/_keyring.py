"""The money keys of a profile: one key for all, or an owner's under a password and a hot one that signs vouchers.

wallet.key          the hot key; where there is no owner it holds the money as well
owner.json          the owner's key, a keystore of version 3
delegation.json     the owner's statement which hot key signs for it
wallet.next.key     the next hot key, while a rotation is under way
retired/<hex>.key   hot keys of before, under their addresses: channels may still be closing
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from p2pcompute._private_files import private_directory
from p2pcompute.errors import IdentityError
from p2pcompute_protocols.ids import Address

from ._delegation import Delegation, delegate
from ._keyfile import read_private, store_new, sync_directory
from ._keystore import (
    MAX_KEYSTORE_BYTES,
    SCRYPT_N,
    KeystoreError,
    decrypt_keystore,
    encrypt_keystore,
    keystore_address,
)
from ._signer import WalletKey

__all__ = ["AskPassword", "Keyring", "MoneyKeys", "OwnerLocked", "password_from_environment", "password_from_file"]

AskPassword: TypeAlias = Callable[[], str | None]
"""Gives the owner's password, or None where there is none to be had."""

PASSWORD_VARIABLE: Final = "P2PCOMPUTE_PASSWORD"
PASSWORD_FILE_VARIABLE: Final = "P2PCOMPUTE_PASSWORD_FILE"
_MAX_PASSWORD_BYTES: Final = 4_096


class OwnerLocked(IdentityError):
    """The money of this profile is its owner's, whose key is under a password, and none was given."""


def password_from_file(path: Path) -> str:
    """The password in a file: its first line.

    Raises:
        IdentityError: others can read it, or it can't be read.
    """
    data = read_private(path, most_bytes=_MAX_PASSWORD_BYTES)
    if data is None:
        raise IdentityError(f"{path}: there is no such file; name one that holds the password")
    try:
        return data.decode().split("\n", 1)[0].removesuffix("\r")
    except UnicodeDecodeError:
        raise IdentityError(f"{path}: a password is UTF-8 text; write it anew") from None


def password_from_environment() -> str | None:
    """What P2PCOMPUTE_PASSWORD says, else the first line of the file that P2PCOMPUTE_PASSWORD_FILE names."""
    if (password := os.environ.get(PASSWORD_VARIABLE)) is not None:
        return password
    if name := os.environ.get(PASSWORD_FILE_VARIABLE):
        return password_from_file(Path(name))
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class MoneyKeys:
    """The keys of a profile's money.

    Attributes:
        account: holds the money and signs transactions.
        signer: signs vouchers; the same key where the profile has no owner.
        retired: addresses of signers of before.
    """

    account: WalletKey
    signer: WalletKey
    retired: tuple[Address, ...] = ()

    @property
    def has_owner(self) -> bool:
        """Whether the money is another key's than the one that signs vouchers."""
        return self.account.address != self.signer.address


@dataclass(frozen=True, slots=True)
class Keyring:
    """The key files in a profile's directory. Whoever changes them has the profile's ledger open."""

    path: Path

    @property
    def wallet(self) -> Path:
        """The hot key."""
        return self.path / "wallet.key"

    @property
    def next_wallet(self) -> Path:
        """The hot key that a rotation is about to bring in."""
        return self.path / "wallet.next.key"

    @property
    def owner(self) -> Path:
        """The owner's keystore."""
        return self.path / "owner.json"

    @property
    def _delegation(self) -> Path:
        return self.path / "delegation.json"

    @property
    def _retired(self) -> Path:
        return self.path / "retired"

    @property
    def has_owner(self) -> bool:
        """Whether the profile's money is an owner's."""
        return self.owner.exists()

    def owner_address(self) -> Address | None:
        """The owner's account, as its file says; None where there is none.

        Raises:
            KeystoreError: the file is none.
        """
        data = read_private(self.owner, most_bytes=MAX_KEYSTORE_BYTES)
        if data is None:
            return None
        address = keystore_address(data)
        if address is None:
            raise KeystoreError(f"{self.owner}: names no account; import it again with `p2pcompute wallet import`")
        return address

    def export_owner(self) -> bytes:
        """The owner's keystore, as it lies there: still under its password.

        Raises:
            IdentityError: there is none.
        """
        data = read_private(self.owner, most_bytes=MAX_KEYSTORE_BYTES)
        if data is None:
            raise IdentityError(f"{self.path} has no owner key; `p2pcompute wallet new` makes one")
        return data

    def open(self, ask: AskPassword = password_from_environment, *, checked: bool = True) -> MoneyKeys:
        """The keys of the profile's money, made on first use; takes a second where an owner's is to be decrypted.

        Raises:
            OwnerLocked: there is an owner, and no password.
            WrongPassword, KeystoreError: see `decrypt_keystore`.
            IdentityError: a file is malformed or open to others, or the hot key is not the one that the owner has
                named, or one that a rotation has retired; the last two not where `checked` is False.
        """
        if not self.has_owner:
            key = WalletKey.load_or_create(self.wallet)
            return MoneyKeys(account=key, signer=key)
        owner = self.unlock(ask)
        self._finish_rotation()
        signer, retired = WalletKey.load_or_create(self.wallet), self.retired()
        if checked:
            # What the owner has signed once is signed for good: a statement from before may have been put back.
            if signer.address in retired:
                raise IdentityError(
                    f"{self.wallet} is a key that a rotation has retired; restore it and delegation.json from a backup "
                    "that was made since, or run `p2pcompute wallet rotate`"
                )
            said = self._said(owner)
            if said is None or said.signer != signer.address:
                named = "none" if said is None else f"0x{said.signer.hex()}"
                raise IdentityError(
                    f"{self.wallet} is not the key that the owner 0x{owner.address.hex()} has named to sign for it "
                    f"({named}); restore it from a backup, or run `p2pcompute wallet rotate`"
                )
        return MoneyKeys(account=owner, signer=signer, retired=retired)

    def unlock(self, ask: AskPassword) -> WalletKey:
        """The owner's key.

        Raises:
            OwnerLocked, WrongPassword, KeystoreError: as `open`.
        """
        password = ask()
        if password is None:
            raise OwnerLocked(
                f"the money of {self.path.name} is its owner's, whose key is under a password: give it by "
                f"--password-file, {PASSWORD_FILE_VARIABLE} or {PASSWORD_VARIABLE}"
            )
        return WalletKey(decrypt_keystore(self.export_owner(), password))

    def create_owner(self, secret: bytes, password: str, *, n: int = SCRYPT_N) -> WalletKey:
        """Put an owner's key into the profile, under a password.

        Raises:
            IdentityError: there is one already, or another profile beside this one has it; the password is empty.
        """
        self._refuse_second_owner()
        data = encrypt_keystore(secret, password, n=n)
        owner = WalletKey(decrypt_keystore(data, password))  # what is written can be read again
        self._store_owner(data, owner)
        return owner

    def import_owner(self, data: bytes, password: str) -> WalletKey:
        """Put a keystore that was made elsewhere into the profile; it stays under its password.

        Raises:
            IdentityError: there is one already, or another profile beside this one has it.
            WrongPassword, KeystoreError: see `decrypt_keystore`.
        """
        self._refuse_second_owner()
        secret = decrypt_keystore(data, password)
        if keystore_address(data) is None:
            data = encrypt_keystore(secret, password)  # ours say whose they are
        owner = WalletKey(secret)
        self._store_owner(data, owner)
        return owner

    def _refuse_second_owner(self) -> None:
        if self.has_owner:
            raise IdentityError(f"{self.owner} is there already: a profile has one owner; use another --profile")

    def _store_owner(self, data: bytes, owner: WalletKey) -> None:
        private_directory(self.path)
        signer = WalletKey.load_or_create(self.wallet)
        if signer.address == owner.address:
            raise IdentityError(
                f"the key is the profile's own {self.wallet}, which lies on the disk in the open; an owner's is another"
            )
        self._refuse_owner_of_another(owner)
        # First: an owner without a statement counts as one whose statement somebody has taken away.
        self._say(delegate(owner, signer.address, sequence=time.time_ns() // 1_000_000))
        if not store_new(self.owner, data):
            self._refuse_second_owner()

    def _refuse_owner_of_another(self, owner: WalletKey) -> None:
        """Two nodes that are paid on one account take each other's vouchers for their own, and send transactions with
        the same nonces."""
        for file in sorted(self.path.parent.glob(f"*/{self.owner.name}")):
            if file.parent == self.path:
                continue
            try:
                found = Keyring(file.parent).owner_address()
            except IdentityError:
                continue  # it opens for nobody as it is
            if found == owner.address:
                raise IdentityError(
                    f"the profile {file.parent.name} has this owner: nodes with one account would be paid once for "
                    f"what they do twice. Use that profile, or remove {file} where it is of no more use"
                )

    # Rotation

    def begin_rotation(self) -> WalletKey:
        """The next hot key, on disk; the same one again after a crash."""
        return WalletKey.load_or_create(self.next_wallet)

    @property
    def is_rotating(self) -> bool:
        """Whether a rotation has begun and not ended."""
        return self.next_wallet.exists()

    def end_rotation(self, owner: WalletKey, *, now_ms: int) -> MoneyKeys:
        """The next hot key takes the place of the last one, in one step: the owner's statement.

        A crash before it leaves the last one in its place, a crash behind it is finished by the next `open`.
        """
        following = self.begin_rotation()
        said = self._said(owner)
        sequence = now_ms if said is None else max(now_ms, said.sequence + 1)
        self._say(delegate(owner, following.address, sequence=sequence))
        self._finish_rotation()
        return MoneyKeys(account=owner, signer=WalletKey.load_or_create(self.wallet), retired=self.retired())

    def _finish_rotation(self) -> None:
        if not self.is_rotating:
            return
        following = WalletKey.load_or_create(self.next_wallet)
        data = read_private(self._delegation, most_bytes=MAX_KEYSTORE_BYTES)
        if data is None or Delegation.decode(data).signer != following.address:
            return  # not come so far
        last = WalletKey.load_or_create(self.wallet)
        if last.address != following.address:
            private_directory(self._retired)
            with contextlib.suppress(FileExistsError):
                os.link(self.wallet, self._retired / f"{last.address.hex()}.key")
            sync_directory(self._retired)
        self.next_wallet.replace(self.wallet)
        sync_directory(self.path)

    def retired(self) -> tuple[Address, ...]:
        """The addresses of hot keys of before."""
        found: list[Address] = []
        for file in sorted(self._retired.glob("*.key")):
            with contextlib.suppress(ValueError):
                address = bytes.fromhex(file.stem)
                if len(address) == 20:
                    found.append(Address(address))
        return tuple(found)

    def _said(self, owner: WalletKey) -> Delegation | None:
        data = read_private(self._delegation, most_bytes=MAX_KEYSTORE_BYTES)
        if data is None:
            return None
        said = Delegation.decode(data)
        if said.owner != owner.address:
            raise IdentityError(
                f"{self._delegation} is another owner's; restore owner.json and delegation.json from one backup"
            )
        return said

    def _say(self, said: Delegation) -> None:
        temporary = self._delegation.with_name(f".{self._delegation.name}.{secrets.token_hex(4)}.tmp")
        if not store_new(temporary, said.encode()):
            raise IdentityError(f"{temporary} is there already; try again")
        temporary.replace(self._delegation)
        sync_directory(self.path)
