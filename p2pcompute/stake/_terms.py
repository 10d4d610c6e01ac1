"""Terms on the wire and terms on chain are one thing; here is the way between them, and who has signed."""

from __future__ import annotations

from p2pcompute.chain import StakeTerms, terms_digest
from p2pcompute_protocols._evm import recover_address
from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.ids import Address, TaskId
from p2pcompute_protocols.stake import PledgedTerms

from ._registry import Registry

__all__ = ["check_place", "signer_of", "terms_of"]


def terms_of(terms: PledgedTerms) -> StakeTerms:
    """As the registry takes them."""
    return StakeTerms(
        task=TaskId(terms.task),
        provider=Address(terms.provider),
        requester=Address(terms.requester),
        at_risk_uusd=terms.at_risk_uusd,
        threshold=terms.threshold,
        expires_s=terms.expires_s,
        arbiters=tuple(map(Address, terms.arbiters)),
    )


def check_place(terms: PledgedTerms, registry: Registry) -> None:
    """Refuse terms for another registry, chain or token than ours: nothing that is signed for them counts here.

    Raises:
        LocalProtocolError: CHAIN_MISMATCH.
    """
    if terms.chain != registry.chain or terms.registry != registry.address:
        raise LocalProtocolError("these terms are for another chain or stake registry", code=WireCode.CHAIN_MISMATCH)


def signer_of(terms: PledgedTerms, signature: bytes, registry: Registry) -> Address:
    """Whose signature over the terms it is.

    Raises:
        LocalProtocolError: BAD_SIGNATURE.
    """
    return recover_address(terms_digest(registry.domain, terms_of(terms)), signature)
