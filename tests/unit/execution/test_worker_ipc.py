"""Packets between node and worker: only canonical CBOR of a small subset, and bounds on everything."""

from __future__ import annotations

import cbor2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.execution import _ipc as ipc
from p2pcompute.execution._api import InputSpec, OutputSpec, ScalarSpec

LIMIT = ipc.MAX_REPLY_BYTES
leaf = st.one_of(st.integers(-(2**64), 2**64 - 1), st.booleans(), st.binary(max_size=20), st.text(max_size=20))
packets = st.lists(st.one_of(leaf, st.lists(leaf, max_size=4)), min_size=2, max_size=8)


@given(packets)
def test_what_is_encoded_decodes_to_the_same(packet: list[object]) -> None:
    assert ipc.decode(ipc.encode(packet), limit=LIMIT) == packet


@given(
    st.lists(
        st.integers(0, 2**64 - 1) | st.sampled_from([23, 24, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32]),
        min_size=2,
        max_size=23,
    )
)
def test_numbers_have_a_short_way_that_gives_the_same(numbers: list[int]) -> None:
    frame = ipc.encode(numbers)
    assert ipc.encode_numbers(*numbers) == frame
    assert ipc._numbers(frame) == numbers


@given(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=6), st.data())
def test_the_short_way_takes_nothing_that_the_long_one_refuses(numbers: list[int], data: st.DataObject) -> None:
    frame = bytearray(ipc.encode(numbers))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    found = ipc._numbers(bytes(frame))
    if found is not None:
        assert ipc.encode(found) == frame


@given(st.binary(max_size=200))
def test_any_bytes_decode_canonically_or_are_refused(frame: bytes) -> None:
    try:
        packet = ipc.decode(frame, limit=LIMIT)
    except ipc.FrameError:
        return
    assert ipc.encode(packet) == frame


@given(packets, st.data())
def test_a_cut_or_longer_packet_is_refused(packet: list[object], data: st.DataObject) -> None:
    frame = ipc.encode(packet)
    cut = data.draw(st.integers(0, len(frame) - 1))
    for bad in (frame[:cut], frame + b"\0"):
        with pytest.raises(ipc.FrameError):
            ipc.decode(bad, limit=LIMIT)


@pytest.mark.parametrize(
    "frame",
    [
        cbor2.dumps({1: 2}),
        cbor2.dumps([1, {2: 3}]),
        cbor2.dumps([1, 2.5]),
        cbor2.dumps([1, None]),
        cbor2.dumps([1, cbor2.CBORTag(35, "(a+)+$")]),  # a regex
        cbor2.dumps([1, 1 << 70]),  # a bignum
        cbor2.dumps(5),
        cbor2.dumps([1]),
        b"\x9f\x01\x02\xff",  # indefinite length
        b"\x82\x18\x01\x02",  # 1 in two bytes
        b"\x82\x01\x62\xc3\x28",  # not UTF-8
        b"\x82\x01\x5b\xff\xff\xff\xff\xff\xff\xff\xff",  # a byte string of 2**64 - 1 bytes
        b"\x9b\x00\x00\x00\xff\xff\xff\xff\xff",  # an array of 2**40 items
        b"\x82" * 500,
        b"\x82\x00" + b"\x81" * 50 + b"\x00",
        cbor2.dumps([0] * (ipc.MAX_ITEMS + 1)),
        b"\x82\x01\xf6",
        b"\x82\x01\xfc",
        b"",
        cbor2.dumps([1, b"x" * LIMIT]),
    ],
)
def test_what_the_subset_leaves_out_is_refused(frame: bytes) -> None:
    with pytest.raises(ipc.FrameError):
        ipc.decode(frame, limit=LIMIT)


def test_a_packet_over_its_limit_is_not_sent() -> None:
    with pytest.raises(ipc.FrameError, match="over the limit"):
        ipc.encode([1, b"x" * ipc.MAX_PACKET_BYTES])


def test_arguments_keep_their_bits() -> None:
    nan = np.frombuffer(b"\x01\x00\xa0\x7f", dtype="float32")[0]  # a signalling NaN with a payload
    args = [
        ScalarSpec(dtype="float32", value=nan),
        ScalarSpec(dtype="int64", value=np.int64(-5)),
        ScalarSpec(dtype="bool", value=np.bool_(True)),
        InputSpec(dtype="uint8", shape=(3, 0, 2)),
        OutputSpec(dtype="float64", shape=()),
    ]
    back = ipc.decode_arguments(ipc.decode(ipc.encode([1, 2, ipc.encode_arguments(args)]), limit=LIMIT)[2])
    assert back[1:] == args[1:]
    assert isinstance(back[0], ScalarSpec)
    assert np.float32(back[0].value).tobytes() == nan.tobytes()


@pytest.mark.parametrize(
    "items",
    [
        [[0, "float32", b"123"]],
        [[0, "object", b"12345678"]],
        [[1, "float32", [-1]]],
        [[1, "float32", [1] * 5]],
        [[1, "float32", [1 << 60]]],
        [[3, "float32", [1]]],
        [[1, "float32"]],
        [[True, "float32", [1]]],
        [[1, "float32", [1]]] * (ipc.MAX_ARGUMENTS + 1),
        "float32",
    ],
)
def test_odd_arguments_are_refused(items: object) -> None:
    with pytest.raises(ipc.FrameError):
        ipc.decode_arguments(items)


@given(st.lists(st.tuples(st.sampled_from(sorted(ipc.DTYPES)), st.integers(0, 7)), max_size=5), st.integers(1, 1000))
def test_a_layout_overlaps_nothing(outputs: list[tuple[str, int]], threads: int) -> None:
    specs = [OutputSpec(dtype=dtype, shape=(threads, row)) for dtype, row in outputs]
    plan = ipc.layout(specs, [(row,) for _, row in outputs], threads, with_ids=True)
    end = plan.ids_bytes
    for (offset, size), spec in zip(plan.spans, specs, strict=True):
        assert offset >= end
        assert offset % ipc.ALIGNMENT == 0
        assert size == threads * spec.shape[1] * ipc.DTYPES[spec.dtype].itemsize
        end = offset + size
    assert plan.total_bytes >= end
