"""Who a node is: its Ed25519 network key and the secp256k1 key that signs for its money.

The two are bound to each other by mutual signatures (`p2pcompute_protocols.ads`); neither can stand in for
the other, and losing the wallet key does not lose the name.
"""

from __future__ import annotations

from ._node_key import NodeKey
from ._signer import WalletKey

__all__ = ["NodeKey", "WalletKey"]
