"""Signing and verifying ads."""

from __future__ import annotations

from .._binding import verify_binding
from ..envelope import Envelope, Signer, open_envelope, seal
from ..errors import LocalProtocolError, WireCode
from ..limits import MAX_AD_BYTES, MAX_CLOCK_SKEW_MS
from ._messages import AD_KIND, CapabilityAd

__all__ = ["open_ad", "seal_ad"]


def seal_ad(ad: CapabilityAd, *, network: str, signer: Signer) -> bytes:
    """Sign an ad; raises `LocalProtocolError` when it is above MAX_AD_BYTES."""
    if ad.peer_id != signer.peer_id:
        raise LocalProtocolError("an ad is signed by the peer that it is about", code=WireCode.WRONG_PEER)
    raw = seal(AD_KIND, network, signer, ad.encode())
    if len(raw) > MAX_AD_BYTES:
        raise LocalProtocolError(f"an ad of {len(raw)} bytes; at most {MAX_AD_BYTES}", code=WireCode.OVERSIZED)
    return raw


def open_ad(raw: bytes, *, network: str, now_ms: int) -> tuple[Envelope, CapabilityAd]:
    """Verify an ad: signature, peer, binding, time.

    Raises:
        LocalProtocolError: with the code that says why; EXPIRED for an ad that is over or from the future.
    """
    if len(raw) > MAX_AD_BYTES:
        raise LocalProtocolError(f"an ad of {len(raw)} bytes; at most {MAX_AD_BYTES}", code=WireCode.OVERSIZED)
    envelope = open_envelope(raw, kind=AD_KIND, network=network)
    ad = CapabilityAd.decode(envelope.payload, max_bytes=MAX_AD_BYTES)
    if ad.peer_id != envelope.signer:
        raise LocalProtocolError("the ad is about another peer than the one that signed it", code=WireCode.WRONG_PEER)
    if ad.issued_ms > now_ms + MAX_CLOCK_SKEW_MS:
        raise LocalProtocolError("the ad is from the future; check both clocks", code=WireCode.EXPIRED)
    if ad.expires_ms <= now_ms:
        raise LocalProtocolError("the ad has expired", code=WireCode.EXPIRED)
    verify_binding(ad.binding, network=network, peer_id=ad.peer_id, now_ms=now_ms)
    return envelope, ad
