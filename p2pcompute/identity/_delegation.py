"""Which hot key signs vouchers for an owner: a statement that the owner's key has signed.

The owner's key holds the money and lies encrypted on the disk; the hot key signs vouchers, lies there in the open, and
can spend what is in channels that name it, and nothing else. The statement keeps anybody who can write to the disk from
having channels funded for a key of his own.

It is EIP-191 personal-sign text, so that it can be read where it is signed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from p2pcompute.errors import IdentityError
from p2pcompute_protocols._binding import WalletSigner
from p2pcompute_protocols._evm import keccak256, recover_address
from p2pcompute_protocols.errors import LocalProtocolError
from p2pcompute_protocols.ids import Address

__all__ = ["Delegation", "delegate"]

_WHAT_TO_DO = "restore delegation.json and wallet.key from one backup, or run `p2pcompute wallet rotate`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delegation:
    """`signer` signs vouchers for `owner`, says the owner.

    Attributes:
        owner, signer: accounts.
        sequence: rises with each statement of the owner: UNIX time in milliseconds.
        signature: of the owner over the text, 65 bytes.
    """

    owner: Address
    signer: Address
    sequence: int
    signature: bytes

    def encode(self) -> bytes:
        """As a file."""
        return json.dumps(
            {
                "owner": "0x" + self.owner.hex(),
                "signer": "0x" + self.signer.hex(),
                "sequence": self.sequence,
                "signature": "0x" + self.signature.hex(),
            }
        ).encode()

    @classmethod
    def decode(cls, data: bytes) -> Delegation:
        """Read and verify a file.

        Raises:
            IdentityError: it is none, or not signed by the owner that it names.
        """
        try:
            value: Any = json.loads(data)
            owner, signer, signature = (
                bytes.fromhex(value[name].removeprefix("0x")) for name in ("owner", "signer", "signature")
            )
            sequence = value["sequence"]
            if len(owner) != 20 or len(signer) != 20 or type(sequence) is not int or not 0 <= sequence < 2**63:
                raise ValueError
            said = cls(owner=Address(owner), signer=Address(signer), sequence=sequence, signature=signature)
            good = recover_address(_digest(said.owner, said.signer, sequence), signature) == owner
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError, LocalProtocolError):
            raise IdentityError(f"the statement of who signs for the owner is damaged; {_WHAT_TO_DO}") from None
        if not good:
            raise IdentityError(f"the statement of who signs is not signed by its owner; {_WHAT_TO_DO}")
        return said


def _digest(owner: bytes, signer: bytes, sequence: int) -> bytes:
    text = (
        f"p2pcompute hot signer\nowner: 0x{owner.hex()}\nsigner: 0x{signer.hex()}\nsequence: {sequence}\n"
        "The signer may spend what this owner puts into payment channels for it.\n"
    ).encode()
    return keccak256(b"\x19Ethereum Signed Message:\n%d" % len(text) + text)


def delegate(owner: WalletSigner, signer: Address, *, sequence: int) -> Delegation:
    """The owner's statement that `signer` signs vouchers for it."""
    signature = owner.sign_digest(_digest(owner.address, signer, sequence))
    return Delegation(owner=owner.address, signer=signer, sequence=sequence, signature=signature)
