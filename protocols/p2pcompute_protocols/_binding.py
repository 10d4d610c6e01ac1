"""The binding of a node's Ed25519 identity to its secp256k1 signer, by mutual signatures.

The signer signs EIP-191 personal-sign text that names the network, the peer ID, the owner and the time; the node
key signs whatever holds the binding (an ad, an order, an agreement), since it always travels inside an envelope
of that peer. So neither can be claimed by somebody else.
"""

from __future__ import annotations

from typing import Protocol

from ._evm import keccak256, recover_address
from .errors import LocalProtocolError, WireCode
from .ids import Address
from .wire import Bytes, Peer, Record, Uint, record, wire

__all__ = ["SignerBinding", "WalletSigner", "bind_signer", "verify_binding"]


class WalletSigner(Protocol):
    """Whoever holds a secp256k1 key."""

    @property
    def address(self) -> Address: ...
    def sign_digest(self, digest: bytes) -> bytes:
        """65 bytes r ‖ s ‖ v over a 32-byte digest, s low, v 27 or 28."""
        ...


@record
class SignerBinding(Record):
    """`signer` may sign vouchers for `owner`, whose node is `peer_id`, until `expires_ms`."""

    peer_id: str = wire(1, Peer())
    owner: bytes = wire(2, Bytes(20))
    signer: bytes = wire(3, Bytes(20))
    sequence: int = wire(4, Uint())
    expires_ms: int = wire(5, Uint())
    signature: bytes = wire(6, Bytes(65))


def _digest(network: str, peer_id: str, owner: bytes, signer: bytes, sequence: int, expires_ms: int) -> bytes:
    text = (
        f"p2pcompute signer binding\nnetwork: {network}\npeer: {peer_id}\nowner: 0x{owner.hex()}\n"
        f"signer: 0x{signer.hex()}\nsequence: {sequence}\nexpires_ms: {expires_ms}\n"
    ).encode()
    return keccak256(b"\x19Ethereum Signed Message:\n%d" % len(text) + text)


def bind_signer(
    network: str,
    peer_id: str,
    wallet: WalletSigner,
    *,
    owner: bytes | None = None,
    sequence: int,
    expires_ms: int,
) -> SignerBinding:
    """The signer's half of a binding; `owner` is the signer's own account unless given."""
    account = wallet.address if owner is None else owner
    digest = _digest(network, peer_id, account, wallet.address, sequence, expires_ms)
    return SignerBinding(
        peer_id=peer_id,
        owner=bytes(account),
        signer=bytes(wallet.address),
        sequence=sequence,
        expires_ms=expires_ms,
        signature=wallet.sign_digest(digest),
    )


def verify_binding(binding: SignerBinding, *, network: str, peer_id: str, now_ms: int) -> None:
    """Check the signer's half; the node's half is the signature of the envelope that the binding came in.

    Raises:
        LocalProtocolError: WRONG_PEER, EXPIRED or BAD_SIGNATURE.
    """
    if binding.peer_id != peer_id:
        raise LocalProtocolError("the binding is of another peer", code=WireCode.WRONG_PEER)
    if binding.expires_ms <= now_ms:
        raise LocalProtocolError("the binding has expired", code=WireCode.EXPIRED)
    digest = _digest(network, peer_id, binding.owner, binding.signer, binding.sequence, binding.expires_ms)
    if recover_address(digest, binding.signature) != binding.signer:
        raise LocalProtocolError("the binding is not signed by its signer", code=WireCode.BAD_SIGNATURE)
