"""Receipts that share a signature: each proves itself, and nothing that was not signed does."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute_protocols import task
from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.ids import TaskId
from p2pcompute_protocols.merkle import InclusionProof, MerkleTree, leaf_hash, node_hash, verify_inclusion
from p2pcompute_protocols.task import BatchedReceipt, ReceiptBatch, ReceiptPayload, ReceiptsPayload

from .vectors._material import NETWORK, PROVIDER, STRANGER
from .vectors._task import TASK_ID, a_receipt

ID = TaskId(TASK_ID)


def receipts(count: int) -> list[ReceiptPayload]:
    return [a_receipt(index=index, units=1 + index) for index in range(count)]


def sealed(made: list[ReceiptPayload]) -> ReceiptBatch:
    return task.seal_batch(made, network=NETWORK, signer=PROVIDER)


def opened(raw: bytes, index: int, *, node: object = PROVIDER, of: TaskId = ID) -> ReceiptPayload:
    return task.open_receipt(raw, network=NETWORK, provider=node.peer_id, task=of, index=index)[1]  # type: ignore[attr-defined]


@pytest.mark.parametrize("count", [2, 3, 7, 64, 255, 256])
def test_each_receipt_of_a_batch_proves_itself(count: int) -> None:
    made = receipts(count)
    batch = sealed(made)
    assert len(batch.receipts) == count
    for index in {0, 1, count // 2, count - 1}:
        raw = batch.receipts[index]
        assert task.stands_in_batch(raw)
        assert opened(raw, index) == made[index]
        assert BatchedReceipt.decode(raw).encode() == raw  # there is one form of it


def test_both_sides_make_the_same_of_a_batch() -> None:
    made = receipts(5)
    batch = sealed(made)
    known = {"network": NETWORK, "provider": PROVIDER.peer_id, "task": ID}
    assert task.open_batch(batch.envelope, made, **known) == batch  # type: ignore[arg-type]
    for other in (made[:4], made[::-1], [*made[:4], dataclasses.replace(made[4], units=9_999)]):
        with pytest.raises(LocalProtocolError) as caught:
            task.open_batch(batch.envelope, other, **known)  # type: ignore[arg-type]
        assert caught.value.code is WireCode.BAD_DIGEST


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 23, 24, 255, 256, 65_535, 65_536, 999_999]),  # what takes 1, 2, 3 and 5 bytes
            st.sampled_from([(0, 0, None), (0, 1 << 40, None), (0, 7, bytes(range(32))), (5, 0, None), (64, 0, None)]),
            st.binary(min_size=32, max_size=32),
        ),
        min_size=2,
        max_size=40,
    )
)
def test_receipts_that_differ_in_all_are_encoded_as_each_by_itself(drawn: list[tuple[int, Any, bytes]]) -> None:
    made = [
        a_receipt(index=index, code=code, units=units, call=call, output=bytes(32) if code else output)
        for index, (code, units, call), output in drawn
    ]
    batch, tree = sealed(made), MerkleTree(one.encode() for one in made)
    for at, (one, raw) in enumerate(zip(made, batch.receipts, strict=True)):
        due = BatchedReceipt(receipt=one.encode(), proof=tree.proof(at), envelope=batch.envelope)
        assert raw == due.encode()


@given(st.integers(2, 40), st.data())
def test_a_receipt_under_anothers_path_is_refused(count: int, data: st.DataObject) -> None:
    batch = sealed(receipts(count))
    one = data.draw(st.integers(0, count - 1))
    other = data.draw(st.integers(0, count - 1).filter(lambda index: index != one))
    mixed = dataclasses.replace(
        BatchedReceipt.decode(batch.receipts[one]), proof=BatchedReceipt.decode(batch.receipts[other]).proof
    )
    with pytest.raises(LocalProtocolError) as caught:
        opened(mixed.encode(), one)
    assert caught.value.code is WireCode.BAD_DIGEST


@given(st.integers(2, 12), st.data())
def test_no_byte_of_it_can_be_changed(count: int, data: st.DataObject) -> None:
    batch = sealed(receipts(count))
    index = data.draw(st.integers(0, count - 1))
    raw = bytearray(batch.receipts[index])
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(LocalProtocolError):
        opened(bytes(raw), index)


def test_a_node_of_the_tree_is_no_receipt() -> None:
    # Without a byte before leaves and another before nodes, the 64 bytes below a node were a leaf under the same root;
    # beside that the number of leaves is signed.
    made = receipts(4)
    leaves = [leaf_hash(one.encode()) for one in made]
    tree = MerkleTree(one.encode() for one in made)
    proof = InclusionProof(index=0, leaves=2, path=(tree.path(0)[1],))
    assert node_hash(node_hash(*leaves[:2]), proof.path[0]) == tree.root  # so much is right about it
    with pytest.raises(LocalProtocolError):
        verify_inclusion(leaves[0] + leaves[1], proof, tree.root)
    shown = BatchedReceipt(receipt=leaves[0] + leaves[1], proof=proof, envelope=sealed(made).envelope)
    with pytest.raises(LocalProtocolError) as caught:
        opened(shown.encode(), 0)
    assert caught.value.code is WireCode.BAD_DIGEST


def test_who_signed_what_for_which_task() -> None:
    batch = sealed(receipts(3))
    with pytest.raises(LocalProtocolError) as caught:
        opened(batch.receipts[0], 0, node=STRANGER)
    assert caught.value.code is WireCode.WRONG_PEER
    with pytest.raises(LocalProtocolError) as caught:
        opened(batch.receipts[0], 0, of=TaskId(bytes(32)))
    assert caught.value.code is WireCode.REPLAYED
    with pytest.raises(LocalProtocolError) as caught:
        opened(batch.receipts[0], 1)
    assert caught.value.code is WireCode.REPLAYED


def test_a_batch_is_of_one_task_and_of_two_at_least() -> None:
    with pytest.raises(LocalProtocolError):
        sealed([a_receipt(index=0), a_receipt(index=1, task=bytes(32))])
    with pytest.raises(LocalProtocolError):
        sealed(receipts(1))
    with pytest.raises(LocalProtocolError):
        sealed(receipts(257))


def test_the_number_of_leaves_is_signed() -> None:
    # A path of leaf 0 in a tree of 3 is also one of leaf 0 in a tree of 4: what is signed says which it is.
    made = receipts(4)
    batch = sealed(made)
    shown = BatchedReceipt.decode(batch.receipts[0])
    other = dataclasses.replace(shown, proof=InclusionProof(index=0, leaves=3, path=shown.proof.path))
    with pytest.raises(LocalProtocolError) as caught:
        opened(other.encode(), 0)
    assert caught.value.code is WireCode.BAD_DIGEST
    assert ReceiptsPayload(task=TASK_ID, root=bytes(32), leaves=256).leaves == 256
