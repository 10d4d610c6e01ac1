"""Keys, records and helpers from which the vectors are made. Keys are fixed, so the output is always the same."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from typing import Any, Final

import cbor2
import coincurve
import nacl.bindings

from p2pcompute_protocols._binding import SignerBinding, bind_signer
from p2pcompute_protocols._evm import address_of_public_key, sign_digest
from p2pcompute_protocols.framing import frame
from p2pcompute_protocols.ids import Address, PeerId, peer_id_from_public_key, peer_id_to_bytes
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

NETWORK: Final = "vectors"
NOW: Final = 1_800_000_000_000  # ms; every vector is judged at this time
L: Final = 2**252 + 27742317777372353535851937790883648493  # the order of Ed25519's base point (RFC 8032 §5.1)
Json = dict[str, Any]


class Node:
    """A deterministic Ed25519 key."""

    def __init__(self, number: int) -> None:
        self.seed = bytes([number]) * 32
        self.public_key, self._secret = nacl.bindings.crypto_sign_seed_keypair(self.seed)
        self.peer_id: PeerId = peer_id_from_public_key(self.public_key)

    def sign(self, message: bytes) -> bytes:
        return nacl.bindings.crypto_sign(message, self._secret)[:64]


class Wallet:
    """A deterministic secp256k1 key."""

    def __init__(self, number: int) -> None:
        self.key = coincurve.PrivateKey(bytes([number]) * 32)
        self.address: Address = address_of_public_key(self.key.public_key)

    def sign_digest(self, digest: bytes) -> bytes:
        return sign_digest(self.key, digest)


REQUESTER, PROVIDER, STRANGER = Node(1), Node(2), Node(3)
PAYER, PAYEE, THIEF = Wallet(0x11), Wallet(0x12), Wallet(0x13)
KEYS: Final[Json] = {
    "ed25519": {
        name: {"seed": n.seed.hex(), "public_key": n.public_key.hex(), "peer_id": n.peer_id}
        for name, n in (("requester", REQUESTER), ("provider", PROVIDER), ("stranger", STRANGER))
    },
    "secp256k1": {
        name: {"private_key": w.key.secret.hex(), "address": w.address.hex()}
        for name, w in (("payer", PAYER), ("payee", PAYEE), ("thief", THIEF))
    },
}
CHAIN = ChainTerms(chain_id=31337, hub=b"\xaa" * 20, token=b"\xbb" * 20, decimals=6)
KERNEL = b"def kernel(out):\n    out[cuda.grid(1)] = 1\n"
DATA = bytes(range(16))


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def plain(value: object) -> Any:
    """A decoded value as JSON: bytes as hex, records as objects with the names of their fields."""
    if isinstance(value, Record):
        fields = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))  # type: ignore[arg-type]
        return {name: plain(item) for name, item in fields if item is not None}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value


def edited(record: Record, **keys: object) -> bytes:
    """The record's map with some keys changed ("k4"), or dropped where the value is None; checked by nobody."""
    raw = dict(cbor2.loads(record.encode()))
    for name, value in keys.items():
        raw[int(name[1:])] = value
        if value is None:
            del raw[int(name[1:])]
    return cbor2.dumps(dict(sorted(raw.items())))


def cose(
    kind: str,
    payload: bytes,
    node: Node,
    *,
    network: str = NETWORK,
    aad: bytes = b"",
    headers: dict[Any, Any] | None = None,
    protected: bytes | None = None,
    unprotected: object = None,
    signature: bytes | None = None,
    tag: bytes = b"\xd2",
) -> bytes:
    """A COSE_Sign1 in which anything may be wrong, and the signature is right for it unless it is given."""
    if headers is None:
        headers = {
            1: -8,
            4: peer_id_to_bytes(node.peer_id),
            16: f"application/p2pcompute.{kind}+cbor",
            -65537: network,
        }
    if protected is None:
        protected = cbor2.dumps(headers)
    if signature is None:
        signature = node.sign(cbor2.dumps(["Signature1", protected, aad, payload]))
    return tag + cbor2.dumps([protected, {} if unprotected is None else unprotected, payload, signature])


def spelled(data: bytes) -> Json:
    """Bytes in hex; a long run of zeros in them is given by its length, between `hex` and `tail`."""
    run = max(re.findall(rb"\0{1024,}", data), key=len, default=b"")
    if not run:
        return {"hex": data.hex()}
    head, _, tail = data.partition(run)
    return {"hex": head.hex(), "zeros": len(run), "tail": tail.hex()}


def vector(name: str, op: str, data: bytes, **more: object) -> Json:
    return {"name": name, "op": op, **spelled(data), **more}


def message(name: str, record: Record) -> Json:
    return vector(name, "message", record.encode(), type=type(record).__name__, expect=plain(record))


def bad_message(name: str, data: bytes, code: str) -> Json:
    return vector(name, "message", data, code=code)


def binding(**changes: object) -> SignerBinding:
    made = bind_signer(NETWORK, REQUESTER.peer_id, PAYER, sequence=1, expires_ms=NOW + 86_400_000)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def work(**changes: object) -> ChunkWork:
    made = ChunkWork(
        kernel=BlobRef(digest=sha(KERNEL), size=len(KERNEL)),
        entry="kernel",
        launch=LaunchSpec(dims=1, grid=(5, 1, 1), block=(4, 1, 1)),
        args=(
            ScalarArg(dtype="float32", value=bytes.fromhex("0000803f")),
            ArrayArg(dtype="uint8", shape=(16,), digest=sha(DATA)),
            OutArg(dtype="uint8", shape=(20,)),
        ),
        blocks_per_chunk=2,
        chunk_output_bytes=8,
        units_per_chunk=1_000,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


TILES: Final = [bytes([number]) * 24 for number in range(5)]
MANIFEST: Final = b"".join(map(sha, TILES))


def split_work(**changes: object) -> ChunkWork:
    """The same over an input in five tiles; a chunk is a block."""
    arg = SplitArg(dtype="uint8", shape=(20, 6), tile=(4, 6), axes=(0,), halo=(1,), edge="zero", manifest=sha(MANIFEST))
    args = (*work().args[:1], arg, *work().args[2:])
    return work(**{"args": args, "blocks_per_chunk": 1, "chunk_output_bytes": 4, **changes})


def program_work(**changes: object) -> ProgramWork:
    made = ProgramWork(
        program=ProgramRef(distribution="soft-steps", version="1.2", name="step", digest=sha(b"files")),
        items=20,
        args=(
            OutArg(dtype="float32", shape=(20, 3)),
            ScalarArg(dtype="float64", value=bytes.fromhex("000000000000f03f")),
            ArrayArg(dtype="uint8", shape=(16,), digest=sha(DATA)),
            OutArg(dtype="uint8", shape=(20,)),
        ),
        items_per_chunk=8,
        units_per_chunk=1_000,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def round_work(**changes: object) -> RoundWork:
    def launch(*args: Any, splits: tuple[RoundSplit, ...] = ()) -> RoundLaunch:
        return RoundLaunch(
            kernel=BlobRef(digest=sha(KERNEL), size=len(KERNEL)),
            entry="kernel",
            launch=LaunchSpec(dims=1, grid=(4, 1, 1), block=(4, 1, 1)),
            args=args,
            splits=splits,
        )

    made = RoundWork(
        launches=(
            launch(
                NextArg(array=0),
                StateArg(array=0),
                StateArg(array=1),
                RoundArg(dtype="int64"),
                splits=(RoundSplit(arg=1, axes=(0,), halo=(1,), edge="wrap"),),
            ),
            launch(NextArg(array=1, shape=(16,), reduce="sum"), StateArg(array=0)),
        ),
        state=(
            ArrayArg(dtype="uint8", shape=(16,), digest=sha(DATA)),
            ArrayArg(dtype="uint8", shape=(1,), digest=sha(b"\x00")),
        ),
        first=100,
        rounds=20,
        rounds_per_chunk=8,
        units_per_chunk=1_000,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def provider_binding(**changes: object) -> SignerBinding:
    made = bind_signer(NETWORK, PROVIDER.peer_id, PAYEE, sequence=7, expires_ms=NOW + 86_400_000)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def transcript(name: str, steps: list[Any], **setup: object) -> Json:
    """Frames in the order in which they are said; the last one may be refused by its receiver."""
    said: list[Json] = []
    for sender, what, *code in steps:
        data = what if isinstance(what, bytes) else frame(what.encode(), max_bytes=1 << 20)
        step: Json = {"from": sender, "hex": data.hex()}
        if code:
            step["code"] = code[0]
        else:
            step["event"] = type(what).__name__
        said.append(step)
    return {"name": name, "setup": setup, "steps": said} if setup else {"name": name, "steps": said}
