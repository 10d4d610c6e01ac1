"""Who a node is: its Ed25519 network key and the secp256k1 key that signs for its money.

The two are bound to each other by mutual signatures (`p2pcompute_protocols.ads`); neither can stand in for
the other, and losing the wallet key does not lose the name. The money may be a third key's, an owner's, which lies
encrypted in a keystore and names the one that signs for it.
"""

from __future__ import annotations

from ._delegation import Delegation, delegate
from ._keyring import AskPassword, Keyring, MoneyKeys, OwnerLocked, password_from_environment, password_from_file
from ._keystore import KeystoreError, WrongPassword, decrypt_keystore, encrypt_keystore, keystore_address
from ._node_key import NodeKey
from ._signer import WalletKey

__all__ = [
    "AskPassword",
    "Delegation",
    "Keyring",
    "KeystoreError",
    "MoneyKeys",
    "NodeKey",
    "OwnerLocked",
    "WalletKey",
    "WrongPassword",
    "decrypt_keystore",
    "delegate",
    "encrypt_keystore",
    "keystore_address",
    "password_from_environment",
    "password_from_file",
]
