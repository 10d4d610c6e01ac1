"""Our implementation against `protocols/*/vectors.json`, read as a stranger would: from the files alone."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2pcompute_protocols import ads, blob, channel, dispute, negotiation, stake, task, watch
from p2pcompute_protocols._binding import SignerBinding, verify_binding
from p2pcompute_protocols.connection import NEED_DATA, Connection, Role
from p2pcompute_protocols.envelope import open_envelope
from p2pcompute_protocols.errors import LocalProtocolError, RemoteProtocolError, WireCode
from p2pcompute_protocols.evidence import open_evidence
from p2pcompute_protocols.ids import Address, PeerId, TaskId
from p2pcompute_protocols.merkle import InclusionProof, verify_inclusion
from p2pcompute_protocols.wire import decode_message
from p2pcompute_protocols.work import ChunkWork, ProgramWork

from .vectors import build
from .vectors._material import plain

ROOT = Path(__file__).parents[3] / "protocols"
NAMES = ("envelope", "ads", "negotiation", "task", "blob", "channel", "watch", "stake", "merkle", "dispute", "evidence")
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


@functools.cache
def load(protocol: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / protocol / "vectors.json").read_text(encoding="utf-8"))
    return found


def cases(*groups: str) -> list[Any]:
    return [
        pytest.param(name, vector, id=f"{name}-{vector['name']}")
        for name in NAMES
        for group in groups
        for vector in load(name).get(group, [])
    ]


def spelled(vector: dict[str, Any]) -> bytes:
    return bytes.fromhex(vector["hex"]) + bytes(vector.get("zeros", 0)) + bytes.fromhex(vector.get("tail", ""))


def peer(protocol: str, who: str) -> PeerId:
    return PeerId(load(protocol)["keys"]["ed25519"][who]["peer_id"])


def run(protocol: str, vector: dict[str, Any]) -> Any:
    """What the implementation makes of a vector, in the form of its `expect`."""
    file, context, data = load(protocol), vector.get("context", {}), spelled(vector)
    network, now_ms = file["network"], file["now_ms"]
    requester, provider = peer(protocol, "requester"), peer(protocol, "provider")
    both = {"network": network, "requester": requester, "provider": provider}

    def envelope() -> Any:
        found = open_envelope(
            data,
            kind=context["kind"],
            network=context.get("network", network),
            signer=context.get("signer"),
            external_aad=bytes.fromhex(context.get("external_aad", "")),
        )
        return {"signer": found.signer, "payload": found.payload.hex(), "digest": found.digest.hex()}

    def message() -> Any:
        return decode_message(data, CONNECTIONS[protocol].messages, max_bytes=CONNECTIONS[protocol].max_frame_bytes)

    def order() -> Any:
        found = negotiation.open_order(data, **both, now_ms=now_ms)[1]
        if "feature" in vector:
            assert isinstance(found.work, ProgramWork)
            assert found.work.program.feature == vector["feature"]
        return found

    def bid() -> Any:
        return negotiation.open_bid(data, **both)[1]

    def bid_answers_order() -> Any:
        asked, payload = negotiation.open_order(bytes.fromhex(context["order"]), **both, now_ms=now_ms)
        _, offered = negotiation.open_bid(data, **both)
        negotiation.check_bid_answers_order(offered, asked, payload, now_ms=now_ms)
        return offered

    def terms() -> Any:
        return negotiation.open_terms(data, network=network, requester=requester)[1]

    def terms_follow_bid() -> Any:
        asked, payload = negotiation.open_order(bytes.fromhex(context["order"]), **both, now_ms=now_ms)
        offer, offered = negotiation.open_bid(bytes.fromhex(context["bid"]), **both)
        made = terms()
        negotiation.check_terms_follow_bid(made, order=asked, order_payload=payload, bid=offer, bid_payload=offered)
        return made

    def agreement() -> Any:
        found = negotiation.open_agreement(data, **both)
        assert found.task_id.hex() == vector.get("task_id", found.task_id.hex())
        return found.terms

    def binding() -> Any:
        found = SignerBinding.decode(data)
        verify_binding(found, network=network, peer_id=context["peer_id"], now_ms=now_ms)
        return found

    def receipt() -> Any:
        return task.open_receipt(
            data,
            network=network,
            provider=PeerId(context["provider"]),
            task=TaskId(bytes.fromhex(context["task"])),
            index=context["index"],
        )[1]

    def voucher() -> Any:
        parties = [Address(bytes.fromhex(context[who])) for who in ("payer", "payee", "signer")]
        domain = channel.Domain(chain_id=context["chain_id"], contract=Address(bytes.fromhex(context["hub"])))
        made = channel.Voucher(
            channel=channel.channel_id(*parties),
            amount_uusd=context["amount_uusd"],
            memo=bytes.fromhex(context["memo"]),
        )
        signer = channel.recover_signer(domain, made, data)
        if signer != parties[2]:
            raise LocalProtocolError("signed by somebody else", code=WireCode.BAD_VOUCHER)
        return {
            "signer": signer.hex(),
            "channel": made.channel.hex(),
            "digest": channel.voucher_digest(domain, made).hex(),
        }

    def consent() -> Any:
        parties = [Address(bytes.fromhex(context[who])) for who in ("payer", "payee", "signer")]
        domain = channel.Domain(chain_id=context["chain_id"], contract=Address(bytes.fromhex(context["hub"])))
        made = channel.CloseConsent(
            channel=channel.channel_id(*parties),
            epoch=context["epoch"],
            amount_uusd=context["amount_uusd"],
            deadline_s=context["deadline_s"],
        )
        closer = channel.recover_closer(domain, made, data)
        if closer != parties[1]:
            raise LocalProtocolError("signed by somebody else", code=WireCode.BAD_SIGNATURE)
        return {
            "closer": closer.hex(),
            "channel": made.channel.hex(),
            "digest": channel.close_digest(domain, made).hex(),
        }

    def inclusion() -> Any:
        found = InclusionProof.decode(data)
        verify_inclusion(bytes.fromhex(context["leaf"]), found, bytes.fromhex(context["root"]))
        return found

    def rounds() -> Any:
        return dispute.open_rounds(
            data, network=network, provider=PeerId(context["provider"]), task=TaskId(bytes.fromhex(context["task"]))
        )[1]

    def arbiter_card() -> Any:
        return stake.open_card(data, network=network, now_ms=now_ms).card

    def evidence() -> Any:
        found = open_evidence(data)
        assert found.needs.keys() == found.blobs.keys() | found.missing.keys()
        return {
            "accuser": found.accuser,
            "provider": found.provider,
            "task": found.agreement.task_id.hex(),
            "kind": found.accusation.kind,
            "missing": sorted(digest.hex() for digest in found.missing),
        }

    ops: dict[str, Callable[[], Any]] = {
        "envelope": envelope,
        "message": message,
        "ad": lambda: ads.open_ad(data, network=network, now_ms=now_ms)[1],
        "order": order,
        "bid": bid,
        "refusal": lambda: negotiation.open_refusal(data, **both),
        "terms": terms,
        "agreement": agreement,
        "bid-answers-order": bid_answers_order,
        "terms-follow-bid": terms_follow_bid,
        "binding": binding,
        "receipt": receipt,
        "voucher": voucher,
        "inclusion": inclusion,
        "consent": consent,
        "rounds": rounds,
        "arbiter-card": arbiter_card,
        "evidence": evidence,
    }
    result = ops[vector["op"]]()
    if "type" in vector:
        assert type(result).__name__ == vector["type"]
        assert result.encode() == data
    return plain(result)


@pytest.mark.parametrize(("protocol", "vector"), cases("accept"))
def test_accepted(protocol: str, vector: dict[str, Any]) -> None:
    assert run(protocol, vector) == vector["expect"]


@pytest.mark.parametrize(("protocol", "vector"), cases("reject"))
def test_refused(protocol: str, vector: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError) as refused:
        run(protocol, vector)
    assert refused.value.code.name == vector["code"], refused.value


def players(protocol: str, setup: dict[str, Any]) -> dict[str, Connection[Any]]:
    found: dict[str, Connection[Any]] = {}
    for role in Role:
        conn = CONNECTIONS[protocol](role)
        if isinstance(conn, task.TaskConnection):
            conn.chunks, conn.chunk_bytes = setup["chunks"], (setup["chunk_bytes"], setup["last_chunk_bytes"])
            conn.chunk_rounds, conn.state_arrays = setup.get("chunk_rounds", 0), tuple(setup.get("state_arrays", ()))
            conn.blob_sizes = {bytes.fromhex(digest): size for digest, size in setup["blobs"].items()}
            if "split" in setup:
                work = ChunkWork.decode(bytes.fromhex(setup["split"]["work"]), max_bytes=1 << 16)
                manifests = {int(at): bytes.fromhex(data) for at, data in setup["split"]["manifests"].items()}
                conn.tiles = task.HeldTiles(work, manifests)
            if "standing" in setup:
                work = ChunkWork.decode(bytes.fromhex(setup["standing"]["work"]), max_bytes=1 << 16)
                conn.calls = conn.tiles = task.CallInputs(work)
                conn.call_chunks = work.chunks
        if isinstance(conn, dispute.DisputeConnection):
            conn.network, conn.provider = load(protocol)["network"], peer(protocol, "provider")
        found[role.value] = conn
    return found


@pytest.mark.parametrize("pieces", ["whole", "bytes"])
@pytest.mark.parametrize(("protocol", "vector"), cases("transcripts"))
def test_transcript(protocol: str, vector: dict[str, Any], pieces: str) -> None:
    both = players(protocol, vector.get("setup", {}))
    for step in vector["steps"]:
        sender, receiver = both[step["from"]], both[Role(step["from"]).other.value]
        data = bytes.fromhex(step["hex"])
        heard: list[Any] = []

        def feed(receiver: Connection[Any] = receiver, data: bytes = data, heard: list[Any] = heard) -> None:
            for piece in [data] if pieces == "whole" else [bytes([byte]) for byte in data]:
                receiver.receive_data(piece)
                while (event := receiver.next_event()) is not NEED_DATA:
                    heard.append(event)

        if "code" in step:
            assert step is vector["steps"][-1]
            with pytest.raises(RemoteProtocolError) as refused:
                feed()
            assert refused.value.code.name == step["code"], refused.value
            return
        feed()
        assert [type(event).__name__ for event in heard] == [step["event"]]
        assert sender.send(heard[0]) == data  # the only form of these bytes, and the sender may say it
    assert both["requester"].is_done
    assert both["provider"].is_done


@pytest.mark.parametrize("protocol", NAMES)
def test_there_are_enough_of_each(protocol: str) -> None:
    found = load(protocol)
    for group in ("accept", "reject"):
        assert len(found[group]) >= 12
        names = [vector["name"] for vector in found[group]]
        assert len(set(names)) == len(names)
    if protocol in CONNECTIONS:
        kinds = {step.get("event") for t in found["transcripts"] for step in t["steps"]}
        assert kinds >= {cls.__name__ for cls in CONNECTIONS[protocol].messages.values()}
        assert any("code" in t["steps"][-1] for t in found["transcripts"])


def test_the_files_are_up_to_date() -> None:
    for path, text in build().items():
        assert path.read_text(encoding="utf-8") == text, f"run scripts/make-vectors.py: {path.name} is stale"


def test_keys_are_what_the_files_say() -> None:
    import coincurve
    import nacl.signing

    from p2pcompute_protocols._evm import address_of_public_key
    from p2pcompute_protocols.ids import peer_id_from_public_key

    keys = load("envelope")["keys"]
    for key in keys["ed25519"].values():
        public = bytes(nacl.signing.SigningKey(bytes.fromhex(key["seed"])).verify_key)
        assert (public.hex(), peer_id_from_public_key(public)) == (key["public_key"], key["peer_id"])
    for key in keys["secp256k1"].values():
        private = coincurve.PrivateKey(bytes.fromhex(key["private_key"]))
        assert address_of_public_key(private.public_key).hex() == key["address"]
