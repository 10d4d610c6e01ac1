"""Ads, queries for ads and their answers."""

from __future__ import annotations

import dataclasses

import cbor2

from p2pcompute_protocols import ads
from p2pcompute_protocols._binding import bind_signer

from ._material import (
    CHAIN,
    NETWORK,
    NOW,
    PAYEE,
    PAYER,
    PROVIDER,
    STRANGER,
    THIEF,
    Json,
    Node,
    bad_message,
    binding,
    cose,
    edited,
    message,
    plain,
    provider_binding,
    transcript,
    vector,
)

__all__ = ["ads_vectors"]


def an_ad(**changes: object) -> ads.CapabilityAd:
    made = ads.CapabilityAd(
        version=1,
        peer_id=PROVIDER.peer_id,
        sequence=42,
        issued_ms=NOW - 1_000,
        expires_ms=NOW + 600_000,
        addresses=("/ip4/192.0.2.1/tcp/4001",),
        devices=(
            ads.Device(kind="cpu", name="core", slots=2, memory_bytes=2**33, score_milli=900, scores=((1, 5),)),
            ads.Device(kind="cuda", name="card", slots=1, memory_bytes=2**34, score_milli=250_000, scores=()),
        ),
        resources=((1, 1), (2, 2), (3, 2**33), (4, 2**36)),
        features=("shared-memory",),
        options=(ads.PricedOption(work=1, fp="strict", price_pusd=1_500, max_window=8),),
        language=("p2p-1",),
        chain=CHAIN,
        binding=provider_binding(),
        availability=ads.Availability(idle_only=True, draining=False, thermal_percent=80),
        region="eu",
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def ads_vectors() -> Json:
    ad = an_ad()

    def sealed(payload: bytes, node: Node = PROVIDER, **more: object) -> bytes:
        return cose("ad", payload, node, **more)  # type: ignore[arg-type]

    def taken(name: str, made: ads.CapabilityAd, payload: bytes | None = None) -> Json:
        return vector(name, "ad", sealed(payload or made.encode()), expect=plain(made))

    def refused(name: str, data: bytes, code: str) -> Json:
        return vector(name, "ad", data, code=code)

    device = cbor2.loads(ad.devices[0].encode())
    good = sealed(ad.encode())
    high_s = bytearray(provider_binding().signature)
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    high_s[32:64] = (order - int.from_bytes(high_s[32:64], "big")).to_bytes(32, "big")
    high_s[64] ^= 7  # 27 <-> 28
    accept = [
        taken("an ad", ad),
        taken("no addresses, no region", an_ad(addresses=(), region=None)),
        taken("the clock of the provider is two minutes ahead", an_ad(issued_ms=NOW + 120_000)),
        taken("an hour of life", an_ad(issued_ms=NOW, expires_ms=NOW + 3_600_000)),
        taken("its last millisecond", an_ad(expires_ms=NOW + 1)),
        taken("a free provider", an_ad(options=(ads.PricedOption(work=1, fp="fast", price_pusd=0, max_window=1),))),
        taken(
            "ticks and rounds may be offered",
            an_ad(options=tuple(ads.PricedOption(work=w, fp="strict", price_pusd=1, max_window=256) for w in (2, 3))),
        ),
        taken(
            "everything about availability",
            an_ad(
                availability=ads.Availability(
                    idle_only=False, draining=True, until_ms=NOW, thermal_percent=100, battery_percent=0
                )
            ),
        ),
        taken(
            "a binding for another owner",
            an_ad(
                binding=bind_signer(
                    NETWORK, PROVIDER.peer_id, PAYEE, owner=PAYER.address, sequence=7, expires_ms=NOW + 1
                )
            ),
        ),
        taken("an extension of the ad is ignored", ad, edited(ad, k1000=[1, {2: b"x"}])),
        taken(
            "an extension of a device is ignored",
            ad,
            edited(ad, k7=[{**device, 4_000_000_000: True}, *cbor2.loads(ad.encode())[7][1:]]),
        ),
        message("a query for anything", ads.AdQuery(limit=64)),
        message("a query with all filters", ads.AdQuery(limit=1, kind="cuda", fp="strict", peer_id=PROVIDER.peer_id)),
        message("an answer", ads.AdBatch(ads=(good,), more=True)),
        message("an empty answer", ads.AdBatch(ads=(), more=False)),
        message("a refusal", ads.AdRefusal(code=13, detail="busy")),
    ]
    reject = [
        refused("expired", sealed(an_ad(expires_ms=NOW).encode()), "EXPIRED"),
        refused("from the future", sealed(an_ad(issued_ms=NOW + 120_001).encode()), "EXPIRED"),
        refused("more than an hour of life", sealed(edited(ad, k5=ad.issued_ms + 3_600_001)), "EXPIRED"),
        refused("over before it begins", sealed(edited(ad, k5=ad.issued_ms)), "EXPIRED"),
        refused("another network", sealed(ad.encode(), network="other"), "WRONG_NETWORK"),
        refused("an order's envelope", cose("order", ad.encode(), PROVIDER), "UNSUPPORTED"),
        refused("signed by a stranger as itself", sealed(ad.encode(), STRANGER), "WRONG_PEER"),
        refused("a signature with one bit changed", good[:-1] + bytes([good[-1] ^ 1]), "BAD_SIGNATURE"),
        refused("somebody else's binding", sealed(edited(ad, k13=cbor2.loads(binding().encode()))), "WRONG_PEER"),
        refused(
            "a binding that has expired",
            sealed(an_ad(binding=bind_signer(NETWORK, PROVIDER.peer_id, PAYEE, sequence=7, expires_ms=NOW)).encode()),
            "EXPIRED",
        ),
        refused(
            "a binding of another network",
            sealed(
                an_ad(binding=bind_signer("other", PROVIDER.peer_id, PAYEE, sequence=7, expires_ms=NOW + 1)).encode()
            ),
            "BAD_SIGNATURE",
        ),
        refused(
            "a binding for a signer that did not sign",
            sealed(an_ad(binding=provider_binding(signer=THIEF.address)).encode()),
            "BAD_SIGNATURE",
        ),
        refused(
            "a binding with another sequence than signed",
            sealed(an_ad(binding=provider_binding(sequence=8)).encode()),
            "BAD_SIGNATURE",
        ),
        refused(
            "a binding with a high s",
            sealed(an_ad(binding=provider_binding(signature=bytes(high_s))).encode()),
            "BAD_SIGNATURE",
        ),
        refused("version 2", sealed(edited(ad, k1=2)), "OVERSIZED"),
        refused("no devices", sealed(edited(ad, k7=[])), "OVERSIZED"),
        refused("33 devices", sealed(edited(ad, k7=[device] * 33)), "OVERSIZED"),
        refused("a device of an unknown kind", sealed(edited(ad, k7=[{**device, 1: "tpu"}])), "UNSUPPORTED"),
        refused("an unknown key below 1000", sealed(edited(ad, k999=1)), "MALFORMED"),
        refused("a float", sealed(edited(ad, k3=1.0)), "MALFORMED"),
        refused("an extension with a float", sealed(edited(ad, k1000=[0.5])), "MALFORMED"),
        refused("without its sequence", sealed(edited(ad, k3=None)), "MALFORMED"),
        refused("above 8 KiB", sealed(edited(ad, k1000=bytes(8_192))), "OVERSIZED"),
        refused("a control character", sealed(edited(ad, k15="e\nu")), "MALFORMED"),
        refused("an indefinite map", sealed(b"\xbf" + ad.encode()[1:] + b"\xff"), "MALFORMED"),
        bad_message("a query for no ads", edited(ads.AdQuery(limit=1), k1=0), "OVERSIZED"),
        bad_message("a query for 65 ads", edited(ads.AdQuery(limit=1), k1=65), "OVERSIZED"),
        bad_message("an unknown filter", edited(ads.AdQuery(limit=1), k5=1), "MALFORMED"),
        bad_message("an unknown message", b"\xa1\x00\x04", "UNSUPPORTED"),
        bad_message("a message that is an array", b"\x81\x01", "MALFORMED"),
        bad_message("keys in falling order", b"\xa2\x01\x01\x00\x01", "MALFORMED"),
        bad_message(
            "an ad above 8 KiB in an answer", edited(ads.AdBatch(ads=(), more=False), k1=[bytes(8_193)]), "OVERSIZED"
        ),
    ]
    query, answer = ads.AdQuery(limit=1), ads.AdBatch(ads=(), more=False)
    transcripts = [
        transcript(
            "two queries",
            [
                ("requester", query),
                ("provider", answer),
                ("requester", query),
                ("provider", ads.AdRefusal(code=13, detail="busy")),
            ],
        ),
        transcript("an answer that nobody asked for", [("provider", answer, "OUT_OF_ORDER")]),
        transcript("two queries at once", [("requester", query), ("requester", query, "OUT_OF_ORDER")]),
        transcript("two answers", [("requester", query), ("provider", answer), ("provider", answer, "OUT_OF_ORDER")]),
        transcript("the provider asks", [("provider", query, "OUT_OF_ORDER")]),
    ]
    return {"accept": accept, "reject": reject, "transcripts": transcripts}
