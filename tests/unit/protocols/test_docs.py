"""The specifications say what the code does: tables, limits, codes, signing texts and links."""

from __future__ import annotations

import re
from typing import Any

import pytest

from p2pcompute_protocols import _binding, ads, blob, channel, dispute, negotiation, stake, task, watch
from p2pcompute_protocols._evm import keccak256
from p2pcompute_protocols.connection import Connection
from p2pcompute_protocols.ids import peer_id_from_public_key
from p2pcompute_protocols.money import ChainTerms
from p2pcompute_protocols.wire import Record
from p2pcompute_protocols.work import (
    ArrayArg,
    BlobRef,
    ChunkWork,
    LaunchSpec,
    NextArg,
    OutArg,
    ProgramRef,
    ProgramWork,
    RoundArg,
    RoundLaunch,
    RoundSplit,
    RoundWork,
    ScalarArg,
    SplitArg,
    StateArg,
)

from ._docs import ROOT, code_rows, fields, limit_rows, readme, table_after, transitions
from ._strategies import PAYLOADS, PROTOCOLS

CONNECTIONS: dict[str, type[Connection[Any]]] = {
    "ads": ads.AdsConnection,
    "negotiation": negotiation.NegotiationConnection,
    "task": task.TaskConnection,
    "blob": blob.BlobConnection,
    "channel": channel.ChannelConnection,
    "watch": watch.WatchConnection,
    "stake": stake.StakeConnection,
    "dispute": dispute.DisputeConnection,
}
INNER: dict[str, list[type[Record]]] = {
    "ads": [ads.Device, ads.PricedOption, ads.Availability, ChainTerms, _binding.SignerBinding],
    "negotiation": [
        negotiation.Requirement,
        negotiation.CheckPolicy,
        negotiation.Tolerance,
        ChunkWork,
        RoundWork,
        RoundLaunch,
        StateArg,
        RoundSplit,
        NextArg,
        RoundArg,
        ProgramWork,
        ProgramRef,
        BlobRef,
        LaunchSpec,
        ScalarArg,
        ArrayArg,
        OutArg,
        SplitArg,
    ],
}
RECORDS = [
    pytest.param(name, cls, id=f"{name}-{cls.__name__}")
    for name in PROTOCOLS
    for cls in (*PROTOCOLS[name].values(), *PAYLOADS[name], *INNER.get(name, []))
]


@pytest.mark.parametrize("protocol", CONNECTIONS)
def test_transition_tables(protocol: str) -> None:
    assert table_after(readme(protocol), "States") == transitions(CONNECTIONS[protocol])


@pytest.mark.parametrize(("protocol", "cls"), RECORDS)
def test_message_tables(protocol: str, cls: type[Record]) -> None:
    rows = table_after(readme(protocol), cls.__name__)
    assert [row[:4] for row in rows] == fields(cls)
    assert all(row[4] for row in rows)


@pytest.mark.parametrize(("protocol", "cls"), RECORDS)
def test_extensible_records_are_said_to_be(protocol: str, cls: type[Record]) -> None:
    text = readme(protocol)
    start = re.search(rf"^#+ {cls.__name__}$", text, re.MULTILINE)
    assert start is not None
    before_table = text[start.end() : text.index("|", start.end())]
    assert cls.extensible == bool(re.search(r"\bExtensible\.", before_table))


def test_every_limit_has_a_row() -> None:
    rows = table_after(readme(""), "Limits")
    assert {row[0].strip("`"): int(row[1]) for row in rows} == limit_rows()
    assert len(rows) == len(limit_rows())


def test_every_wire_code_has_a_row() -> None:
    rows = table_after(readme(""), "Wire codes")
    assert {row[1]: int(row[0]) for row in rows} == code_rows()


def test_limits_that_a_specification_names_are_limits() -> None:
    for protocol in ("", "envelope", *PROTOCOLS):
        named = set(re.findall(r"\b(?:MAX|UINT)[0-9]*_[A-Z0-9_]+\b", readme(protocol)))
        assert named <= limit_rows().keys(), f"{protocol}: {named - limit_rows().keys()}"


def test_wire_codes_that_a_specification_names_are_codes() -> None:
    words = set(code_rows())
    for protocol in ("envelope", *PROTOCOLS):
        text = readme(protocol)
        for table in ("Verification", "Taking an ad", "Taking a voucher"):
            if f"## {table}\n" in text:
                for row in table_after(text, table):
                    assert row[-1] in words or row[-1].startswith("see") or ", " in row[-1], row


@pytest.mark.parametrize("protocol", CONNECTIONS)
def test_protocol_ids(protocol: str) -> None:
    module = {
        "ads": ads,
        "negotiation": negotiation,
        "task": task,
        "blob": blob,
        "channel": channel,
        "watch": watch,
        "stake": stake,
        "dispute": dispute,
    }[protocol]
    assert f"\n    {module.PROTOCOL_ID}\n" in readme(protocol)
    assert f"`{module.PROTOCOL_ID}`" in readme("")
    assert "| 1A | Working Draft | Active |" in readme(protocol)


def test_links_lead_somewhere() -> None:
    for protocol in ("", "envelope", *PROTOCOLS):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", readme(protocol)):
            assert (ROOT / protocol / target).exists(), f"{protocol}: {target}"


def test_text_of_a_binding() -> None:
    text = re.search(r"^    p2pcompute signer binding\n(?:    .*\n)+", readme("ads"), re.MULTILINE)
    assert text is not None
    peer = peer_id_from_public_key(bytes(32))
    filled = re.sub(r"^    ", "", text[0], flags=re.MULTILINE)
    for word, value in {
        "NETWORK": "net",
        "PEER_ID": peer,
        "0xOWNER": "0x" + "0a" * 20,
        "0xSIGNER": "0x" + "0b" * 20,
        "EXPIRES_MS": "9",
        "SEQUENCE": "7",
    }.items():
        filled = filled.replace(word, value)
    message = filled.encode()
    expected = keccak256(b"\x19Ethereum Signed Message:\n" + str(len(message)).encode() + message)
    assert _binding._digest("net", peer, b"\x0a" * 20, b"\x0b" * 20, 7, 9) == expected


def test_voucher_types() -> None:
    text = readme("channel")
    types = [
        "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)",
        "Voucher(bytes32 channel,uint96 amount,bytes32 memo)",
    ]
    assert all(f"    {t}\n" in text for t in types)
    name = re.search(r'name +"([^"]+)"', text)
    version = re.search(r'version +"([^"]+)"', text)
    assert name is not None
    assert version is not None

    def word(value: int | bytes) -> bytes:
        return value.to_bytes(32, "big") if isinstance(value, int) else value.rjust(32, b"\0")

    payer, payee, signer, hub = (bytes([n]) * 20 for n in (1, 2, 3, 4))
    channel_id = keccak256(word(payer) + word(payee) + word(signer))
    domain = keccak256(
        keccak256(types[0].encode())
        + keccak256(name[1].encode())
        + keccak256(version[1].encode())
        + word(31337)
        + word(hub)
    )
    struct = keccak256(keccak256(types[1].encode()) + channel_id + word(5) + bytes(32))
    made = channel.Voucher(channel=channel.channel_id(payer, payee, signer), amount_uusd=5)  # type: ignore[arg-type]
    assert made.channel == channel_id
    assert channel.voucher_digest(channel.Domain(chain_id=31337, contract=hub), made) == keccak256(  # type: ignore[arg-type]
        b"\x19\x01" + domain + struct
    )
    close = "Close(bytes32 channel,uint24 epoch,uint96 amount,uint40 deadline)"
    assert f"    {close}\n" in text
    consent = channel.CloseConsent(channel=made.channel, epoch=2, amount_uusd=5, deadline_s=9)
    closing = keccak256(keccak256(close.encode()) + channel_id + word(2) + word(5) + word(9))
    assert channel.close_digest(channel.Domain(chain_id=31337, contract=hub), consent) == keccak256(  # type: ignore[arg-type]
        b"\x19\x01" + domain + closing
    )


def test_where_ads_go() -> None:
    import hashlib

    peer = peer_id_from_public_key(bytes(32))
    assert ads.shard_of(peer) == hashlib.sha256(peer.encode()).digest()[0] % 16
    assert ads.gossip_topic("net", 3) == "p2pcompute/net/ads/1/3"
    key = hashlib.sha256(b"p2pcompute/ads/1\0net\0cuda/strict\x003\x00491000").digest()
    assert ads.bucket_key("net", "cuda/strict", 3, 491000) == key
    assert ads.record_key("net", peer) == hashlib.sha256(b"p2pcompute/ad-record/1\0net\0" + peer.encode()).digest()
