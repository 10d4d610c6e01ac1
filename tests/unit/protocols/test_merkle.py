"""Merkle trees against the recursive definition, and what a proof can't be made to show."""

from __future__ import annotations

import hashlib

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from p2pcompute_protocols import limits
from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.ids import TaskId
from p2pcompute_protocols.merkle import (
    EMPTY_ROOT,
    Frontier,
    InclusionProof,
    MerkleTree,
    PathFinder,
    _path_length,
    node_hash,
    verify_inclusion,
)
from p2pcompute_protocols.task import open_proven_receipt, open_receipt, receipts_tree, seal_receipt

from .vectors._material import NETWORK, PROVIDER, STRANGER
from .vectors._merkle import path_of, root_of
from .vectors._task import TASK_ID, a_receipt

LEAVES = st.lists(st.binary(max_size=40), min_size=1, max_size=70)


@given(LEAVES)
@settings(deadline=None)
def test_a_tree_is_the_one_of_the_definition(leaves: list[bytes]) -> None:
    tree = MerkleTree(leaves)
    assert (len(tree), tree.root) == (len(leaves), root_of(leaves))
    for index, leaf in enumerate(leaves):
        proof = tree.proof(index)
        assert list(proof.path) == path_of(index, leaves)
        verify_inclusion(leaf, proof, tree.root)
        assert InclusionProof.decode(proof.encode()) == proof


@given(LEAVES)
@settings(deadline=None)
def test_a_path_is_found_in_leaves_that_are_not_kept(leaves: list[bytes]) -> None:
    tree = MerkleTree(leaves)
    for index in range(len(leaves)):
        finder = PathFinder()
        for at, leaf in enumerate(leaves):
            finder.add(leaf, wanted=at >= index)
            assert finder.root == root_of(leaves[: at + 1])
        assert (finder.leaves, finder.index) == (len(leaves), index)
        assert finder.proof() == tree.proof(index)
        assert len(finder._peaks) + len(finder._path) <= 40


def test_a_path_of_a_leaf_that_has_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    finder = PathFinder()
    finder.add(b"a")
    with pytest.raises(LocalProtocolError, match="no such leaf"):
        finder.proof()
    monkeypatch.setattr("p2pcompute_protocols.merkle.MAX_LEAVES", 1)
    with pytest.raises(LocalProtocolError) as refused:
        finder.add(b"b")
    assert refused.value.code is WireCode.OVERSIZED


@given(LEAVES, st.data())
@settings(deadline=None)
def test_a_tree_grows_from_what_its_frontier_keeps(leaves: list[bytes], data: st.DataObject) -> None:
    """Whatever is appended at once, and through its bytes: each root is that of the tree over the same leaves."""
    frontier, at = Frontier(), 0
    assert frontier.root == EMPTY_ROOT
    while at < len(leaves):
        count = data.draw(st.integers(1, len(leaves) - at))
        frontier, at = frontier.grown(leaves[at : at + count]), at + count
        assert frontier.root == root_of(leaves[:at])
        assert len(frontier.peaks) == at.bit_count()
        frontier = Frontier.of(frontier.leaves, bytes(frontier))
    assert frontier.leaves == len(leaves)


@pytest.mark.parametrize(
    ("leaves", "raw", "code"),
    [
        (-1, b"", WireCode.OVERSIZED),
        (limits.MAX_LEAVES + 1, bytes(64), WireCode.OVERSIZED),
        (1, b"", WireCode.MALFORMED),
        (2, bytes(64), WireCode.MALFORMED),
        (1, bytes(31), WireCode.MALFORMED),
    ],
)
def test_a_frontier_that_can_not_be_is_refused(leaves: int, raw: bytes, code: WireCode) -> None:
    with pytest.raises(LocalProtocolError) as found:
        Frontier.of(leaves, raw)
    assert found.value.code == code


@given(LEAVES, st.data())
@settings(deadline=None)
def test_nothing_else_is_shown_to_belong(leaves: list[bytes], data: st.DataObject) -> None:
    tree = MerkleTree(leaves)
    index = data.draw(st.integers(0, len(leaves) - 1))
    proof = tree.proof(index)
    other = data.draw(st.binary(max_size=40).filter(lambda leaf: leaf != leaves[index]))
    forged = [(other, proof.path)]
    if proof.path:
        at = data.draw(st.integers(0, len(proof.path) - 1))
        changed = bytes(32) if proof.path[at] != bytes(32) else b"\1" * 32
        forged.append((leaves[index], (*proof.path[:at], changed, *proof.path[at + 1 :])))
    for leaf, path in forged:
        with pytest.raises(LocalProtocolError) as refused:
            verify_inclusion(leaf, InclusionProof(index=index, leaves=len(leaves), path=path), tree.root)
        assert refused.value.code is WireCode.BAD_DIGEST


def test_without_bytes_before_the_hashes_a_node_passes_for_a_leaf() -> None:
    """The attack, in a tree without domain separation, and against ours."""
    a, b = hashlib.sha256(b"a").digest(), hashlib.sha256(b"b").digest()
    plain_root = hashlib.sha256(a + b).digest()
    assert hashlib.sha256(a + b).digest() == plain_root  # the node's 64 bytes, hashed as a leaf, are the root
    tree = MerkleTree([b"a", b"b"])
    inside = b"".join(hashlib.sha256(b"\0" + leaf).digest() for leaf in (b"a", b"b"))
    assert node_hash(inside[:32], inside[32:]) == tree.root
    with pytest.raises(LocalProtocolError) as refused:
        verify_inclusion(inside, InclusionProof(index=0, leaves=1, path=()), tree.root)
    assert refused.value.code is WireCode.BAD_DIGEST


def test_the_bounds_of_a_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MerkleTree([]).root == EMPTY_ROOT == root_of([])
    assert _path_length(0, limits.MAX_LEAVES) == limits.MAX_PROOF_DIGESTS
    monkeypatch.setattr("p2pcompute_protocols.merkle.MAX_LEAVES", 4)
    assert len(MerkleTree([b""] * 4)) == 4
    with pytest.raises(LocalProtocolError) as refused:
        MerkleTree([b""] * 5)
    assert refused.value.code is WireCode.OVERSIZED
    for index in (-1, 4):
        with pytest.raises(LocalProtocolError, match="no leaf"):
            MerkleTree([b""] * 4).proof(index)


def test_a_third_party_sees_one_receipt_of_a_root() -> None:
    made = {n: seal_receipt(a_receipt(index=n, units=n), network=NETWORK, signer=PROVIDER) for n in (5, 0, 9, 2, 7)}
    tree = receipts_tree(made)
    assert tree.root == root_of([made[n] for n in (0, 2, 5, 7, 9)])
    assert tree.root == receipts_tree(dict(sorted(made.items()))).root

    def shown(raw: bytes, leaf: int, index: int) -> int:
        receipt = open_proven_receipt(
            raw,
            tree.proof(leaf),
            tree.root,
            network=NETWORK,
            provider=PROVIDER.peer_id,
            task=TaskId(TASK_ID),
            index=index,
        )
        return receipt.units

    assert shown(made[7], 3, 7) == 7
    for raw, leaf, index, code in (
        (made[7], 2, 7, WireCode.BAD_DIGEST),  # another leaf's proof
        (made[7], 3, 5, WireCode.REPLAYED),  # another chunk
        (seal_receipt(a_receipt(index=7), network=NETWORK, signer=PROVIDER), 3, 7, WireCode.BAD_DIGEST),
        (seal_receipt(a_receipt(index=7, units=7), network=NETWORK, signer=STRANGER), 3, 7, WireCode.WRONG_PEER),
    ):
        with pytest.raises(LocalProtocolError) as refused:
            shown(raw, leaf, index)
        assert refused.value.code is code
    # A good signature says nothing of the root, and the root nothing of the signature: each alone lets one through.
    unlisted = seal_receipt(a_receipt(index=7), network=NETWORK, signer=PROVIDER)
    open_receipt(unlisted, network=NETWORK, provider=PROVIDER.peer_id, task=TaskId(TASK_ID), index=7)
    forged = receipts_tree({7: b"not signed by anybody"})
    verify_inclusion(b"not signed by anybody", forged.proof(0), forged.root)
