"""Merkle trees and inclusion proofs. Roots and paths are made here by the recursive definition of RFC 9162 §2.1."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from p2pcompute_protocols.merkle import InclusionProof

from ._material import Json, edited, sha, vector

__all__ = ["merkle_vectors", "path_of", "root_of"]


def _split(count: int) -> int:
    """The largest power of two below `count`."""
    return 1 << ((count - 1).bit_length() - 1)


def root_of(leaves: Sequence[bytes]) -> bytes:
    """MTH of RFC 9162 §2.1.1."""
    if not leaves:
        return sha(b"")
    if len(leaves) == 1:
        return sha(b"\x00" + leaves[0])
    k = _split(len(leaves))
    return sha(b"\x01" + root_of(leaves[:k]) + root_of(leaves[k:]))


def path_of(index: int, leaves: Sequence[bytes]) -> list[bytes]:
    """PATH of RFC 9162 §2.1.3.1."""
    if len(leaves) == 1:
        return []
    k = _split(len(leaves))
    if index < k:
        return [*path_of(index, leaves[:k]), root_of(leaves[k:])]
    return [*path_of(index - k, leaves[k:]), root_of(leaves[:k])]


def _proof(index: int, leaves: Sequence[bytes]) -> InclusionProof:
    return InclusionProof(index=index, leaves=len(leaves), path=tuple(path_of(index, leaves)))


def merkle_vectors() -> Json:
    # The leaves of the test data of Certificate Transparency.
    leaves = [bytes.fromhex(d) for d in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657")]
    leaves.append(bytes.fromhex("606162636465666768696a6b6c6d6e6f"))

    def taken(index: int, count: int) -> Json:
        some = leaves[:count]
        proof = _proof(index, some)
        return vector(
            f"leaf {index} of {count}",
            "inclusion",
            proof.encode(),
            context={"leaf": some[index].hex(), "root": root_of(some).hex()},
            expect={"index": index, "leaves": count, "path": [node.hex() for node in proof.path]},
        )

    def refused(name: str, data: bytes, leaf: bytes, root: bytes, code: str) -> Json:
        return vector(name, "inclusion", data, context={"leaf": leaf.hex(), "root": root.hex()}, code=code)

    proof, root = _proof(2, leaves[:7]), root_of(leaves[:7])
    node = sha(b"\x00" + leaves[0]) + sha(b"\x00" + leaves[1])
    flat = sha(sha(leaves[0]) + sha(leaves[1]))
    accept = [taken(*case) for case in ((0, 1), (0, 2), (1, 2), (2, 3), (3, 5), (4, 5), (0, 7), (5, 7), (6, 7))]
    accept += [taken(index, 8) for index in (0, 3, 7)]
    short, turned = edited(proof, k3=list(proof.path[:-1])), edited(proof, k3=list(proof.path[::-1]))
    reject = [
        refused("another leaf", proof.encode(), leaves[3], root, "BAD_DIGEST"),
        refused("another root", proof.encode(), leaves[2], root_of(leaves), "BAD_DIGEST"),
        refused("another place", edited(proof, k1=3), leaves[2], root, "BAD_DIGEST"),
        refused("a path from the top down", turned, leaves[2], root, "BAD_DIGEST"),
        refused(
            "one bit of the path changed", edited(proof, k3=[bytes(32), *proof.path[1:]]), leaves[2], root, "BAD_DIGEST"
        ),
        refused("a node as a leaf", _proof(0, leaves[:1]).encode(), node, root_of(leaves[:2]), "BAD_DIGEST"),
        refused(
            "a tree without bytes before its hashes", _proof(0, leaves[:2]).encode(), leaves[0], flat, "BAD_DIGEST"
        ),
        refused("a path that is short", short, leaves[2], root, "MALFORMED"),
        refused("a path that is long", edited(proof, k3=[*proof.path, bytes(32)]), leaves[2], root, "MALFORMED"),
        refused("a leaf beyond the last", edited(proof, k1=7), leaves[2], root, "MALFORMED"),
        refused("a tree of nothing", edited(proof, k2=0), leaves[2], root, "OVERSIZED"),
        refused("a tree above the bound", edited(proof, k2=2**20 + 1), leaves[2], root, "OVERSIZED"),
        refused("21 digests", edited(proof, k3=[bytes(32)] * 21), leaves[2], root, "OVERSIZED"),
        refused("a digest of 31 bytes", edited(proof, k3=[bytes(31)] * 3), leaves[2], root, "OVERSIZED"),
        refused("an unknown key", edited(proof, k4=1), leaves[2], root, "MALFORMED"),
        refused("cut short", proof.encode()[:-1], leaves[2], root, "MALFORMED"),
    ]
    assert root_of(leaves).hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"  # as published
    assert hashlib.sha256(b"").digest() == root_of([])
    return {"accept": accept, "reject": reject}
