"""The interpreter on PTX written by hand: control, memory, calls, and what it refuses."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from .ptx_machine import Machine, PtxError

REGISTERS = """
	.reg .pred %p<9>;
	.reg .b16 %rs<9>;
	.reg .b32 %r<9>;
	.reg .f32 %f<9>;
	.reg .f64 %fd<9>;
	.reg .b64 %rd<9>;
"""


def execute(body: str, *, threads: int = 1, head: str = "", machine: Machine | None = None) -> list[int]:
    """Run `body`, which finds the address of its 8-byte result in %rd0."""
    machine = machine or Machine()
    address = machine.allocate(8 * threads)
    text = f"""{head}
.visible .entry kernel(.param .u64 out)
{{ {REGISTERS}
	ld.param.u64 %rd0, [out];
	mov.u32 %r0, %tid.x;
	mul.wide.u32 %rd1, %r0, 8;
	add.s64 %rd0, %rd0, %rd1;
	{body}
	ret;
}}"""
    machine.launch(machine.load(text), "kernel", (1, 1, 1), (threads, 1, 1), struct.pack("<Q", address))
    found = np.zeros(threads, np.uint64)
    machine.download(address, found)
    machine.release(address)
    return [int(value) for value in found]


STORE = "st.global.u64 [%rd0], %rd2;"
ONE = [
    ("mov.u64 %rd2, -1; shr.u64 %rd2, %rd2, 60;", 15),
    ("mov.u64 %rd2, -16; shr.s64 %rd2, %rd2, 99;", 2**64 - 1),
    ("mov.u32 %r1, 3; shl.b32 %r1, %r1, 31; cvt.s64.s32 %rd2, %r1;", 2**64 - 2**31),
    ("mov.u32 %r1, -7; cvt.u64.u32 %rd2, %r1;", 2**32 - 7),
    ("mov.u32 %r1, 200; cvt.s32.s8 %r1, %r1; cvt.u64.u32 %rd2, %r1;", 2**32 - 56),
    ("mov.u64 %rd3, -7; mov.u64 %rd4, 2; div.s64 %rd2, %rd3, %rd4;", 2**64 - 3),
    ("mov.u64 %rd3, -7; mov.u64 %rd4, 2; rem.s64 %rd2, %rd3, %rd4;", 2**64 - 1),
    ("mov.u64 %rd3, -7; mov.u64 %rd4, 2; div.u64 %rd2, %rd3, %rd4;", (2**64 - 7) // 2),
    ("mov.u64 %rd3, -1; mul.hi.u64 %rd2, %rd3, %rd3;", 2**64 - 2),
    ("mov.u64 %rd3, -1; mul.hi.s64 %rd2, %rd3, %rd3;", 0),
    ("mov.u32 %r1, -2; mul.wide.s32 %rd2, %r1, 3;", 2**64 - 6),
    ("mov.u32 %r1, 6; mov.u32 %r2, -1; mad.lo.s32 %r3, %r1, %r1, %r2; cvt.u64.u32 %rd2, %r3;", 35),
    ("mov.u64 %rd3, -5; neg.s64 %rd2, %rd3;", 5),
    ("mov.u64 %rd3, -5; abs.s64 %rd2, %rd3;", 5),
    ("mov.u64 %rd3, -5; min.s64 %rd2, %rd3, 2;", 2**64 - 5),
    ("mov.u64 %rd3, -5; min.u64 %rd2, %rd3, 2;", 2),
    ("mov.f32 %f1, 0f3FC00000; add.rn.f32 %f2, %f1, %f1; mov.b32 %r1, %f2; cvt.u64.u32 %rd2, %r1;", 0x40400000),
    ("mov.f64 %fd1, 0d3FF8000000000000; cvt.rzi.s64.f64 %rd2, %fd1;", 1),
    ("mov.f64 %fd1, 0dBFF8000000000000; cvt.rmi.f64.f64 %fd2, %fd1; cvt.rzi.s64.f64 %rd2, %fd2;", 2**64 - 2),
    ("mov.f32 %f1, 0f7FC00000; cvt.rzi.u32.f32 %r1, %f1; cvt.u64.u32 %rd2, %r1;", 0),
    ("mov.f32 %f1, 0f7FC00001; setp.neu.f32 %p1, %f1, %f1; selp.u64 %rd2, 1, 2, %p1;", 1),
    ("mov.f32 %f1, 0f7FC00001; setp.ne.f32 %p1, %f1, %f1; selp.u64 %rd2, 1, 2, %p1;", 2),
    ("mov.f32 %f1, 0f7FC00001; setp.gtu.f32 %p1, %f1, 0f00000000; selp.u64 %rd2, 1, 2, %p1;", 1),
    ("mov.f32 %f1, 0f7FC00001; setp.num.f32 %p1, %f1, %f1; selp.u64 %rd2, 1, 2, %p1;", 2),
    ("mov.f32 %f1, 0f80000000; setp.eq.f32 %p1, %f1, 0f00000000; selp.u64 %rd2, 1, 2, %p1;", 1),
    ("mov.u64 %rd3, -1; setp.lt.s64 %p1, %rd3, 0; setp.gt.and.u64 %p2, %rd3, 5, %p1; selp.u64 %rd2, 1, 2, %p2;", 1),
    ("mov.u64 %rd3, -1; setp.lt.s64 %p1, %rd3, 0; setp.gt.or.s64 %p2|%p3, %rd3, 5, !%p1; selp.u64 %rd2, 1, 2, %p2;", 2),
    ("mov.u32 %r1, 7; mov.u32 %r2, 9; mov.b64 %rd2, {%r1, %r2};", 9 << 32 | 7),
    ("mov.u64 %rd3, 0x900000007; mov.b64 {%r1, %r2}, %rd3; add.s32 %r3, %r1, %r2; cvt.u64.u32 %rd2, %r3;", 16),
    ("mov.u16 %rs1, -1; cvt.u64.u16 %rd2, %rs1;", 65535),
    ("mov.u64 %rd3, 1; not.b64 %rd2, %rd3;", 2**64 - 2),
    ("mov.u64 %rd3, 255; popc.b64 %r1, %rd3; clz.b64 %r2, %rd3; add.s32 %r1, %r1, %r2; cvt.u64.u32 %rd2, %r1;", 64),
]


@pytest.mark.parametrize(("body", "due"), ONE)
def test_single_instructions(body: str, due: int) -> None:
    assert execute(body + STORE) == [due]


def test_loops_and_guards() -> None:
    body = (
        """
	mov.u64 %rd2, 0; mov.u32 %r1, 0;
$L1:
	setp.ge.u32 %p1, %r1, %r0;
	@%p1 bra $L2;
	cvt.u64.u32 %rd3, %r1;
	add.s64 %rd2, %rd2, %rd3;
	add.s32 %r1, %r1, 1;
	bra.uni $L1;
$L2:
	setp.eq.u32 %p2, %r0, 2;
	@%p2 mov.u64 %rd2, 100;
	@!%p2 add.s64 %rd2, %rd2, 1000;
	"""
        + STORE
    )
    assert execute(body, threads=5) == [1000, 1000, 100, 1003, 1006]


def test_calls_tables_and_local_memory() -> None:
    head = """
.global .align 8 .u64 table[4] = {10, 20, 30, 0x28};
.func (.param .b64 func_retval0) twice(.param .b64 twice_param_0, .param .b32 twice_param_1)
{
	.local .align 8 .b8 __local_depot0[16];
	.reg .b64 %SP;
	.reg .b64 %SPL;
	.reg .b64 %rd<5>;
	.reg .b32 %r<3>;
	mov.u64 %SPL, __local_depot0;
	cvta.local.u64 %SP, %SPL;
	ld.param.u64 %rd1, [twice_param_0];
	ld.param.u32 %r1, [twice_param_1];
	cvt.u64.u32 %rd4, %r1;
	st.u64 [%SP+8], %rd1;
	ld.local.u64 %rd2, [%SPL+8];
	mad.lo.s64 %rd3, %rd2, 2, %rd4;
	st.param.b64 [func_retval0+0], %rd3;
	ret;
}"""
    body = (
        """
	mov.u64 %rd3, table;
	mul.wide.u32 %rd4, %r0, 8;
	add.s64 %rd3, %rd3, %rd4;
	ld.global.u64 %rd5, [%rd3];
	mov.u32 %r1, 7;
	{ // callseq 0, 0
	.reg .b32 temp_param_reg;
	.param .b64 param0;
	st.param.b64 [param0+0], %rd5;
	.param .b32 param1;
	st.param.b32 [param1+0], %r1;
	.param .b64 retval0;
	call.uni (retval0),
	twice,
	(
	param0,
	param1
	);
	ld.param.b64 %rd2, [retval0+0];
	} // callseq 0
	"""
        + STORE
    )
    assert execute(body, threads=4, head=head) == [27, 47, 67, 87]


def test_vectors_and_narrow_values() -> None:
    body = """
	mov.u32 %r1, 0x11223344; mov.u32 %r2, -2;
	st.global.v2.u32 [%rd0], {%r1, %r2};
	ld.global.v2.u32 {%r3, %r4}, [%rd0];
	st.global.u8 [%rd0+1], %r4;
	ld.global.s8 %r5, [%rd0+4];
	st.global.u32 [%rd0+4], %r5;
	"""
    assert execute(body) == [0xFFFFFFFE_1122FE44]


SHARED = ".shared .align 8 .b8 sm[64]; .shared .align 4 .b8 other[4];\n"
MINE = "mov.u64 %rd3, sm; mul.wide.u32 %rd4, %r0, 8; add.s64 %rd3, %rd3, %rd4; cvt.u64.u32 %rd5, %r0;"


def test_barriers_and_shared_memory() -> None:
    body = MINE + "st.shared.u64 [%rd3], %rd5; bar.sync 0; mov.u64 %rd6, 56; sub.s64 %rd4, %rd6, %rd4;"
    body += "mov.u64 %rd3, sm; add.s64 %rd3, %rd3, %rd4; ld.shared.u64 %rd2, [%rd3];" + STORE
    assert execute(body, threads=8, head=SHARED) == list(range(7, -1, -1))


def test_without_a_barrier_others_elements_are_anything() -> None:
    body = MINE + "st.shared.u64 [%rd3], %rd5; mov.u64 %rd3, sm; ld.shared.u64 %rd2, [%rd3+24];" + STORE
    found = execute(body, threads=8, head=SHARED)
    assert found[3] == 3
    assert found.count(3) == 1


def test_shared_memory_holds_anything_and_is_the_blocks_own() -> None:
    body = "ld.shared.u64 %rd2, [sm+8];" + STORE
    one, other = execute(body, threads=2, head=SHARED)
    assert one == other not in (0, 2**64 - 1)
    assert execute(body, head=SHARED, machine=Machine(seed=2)) != [one]


def test_atomic_operations() -> None:
    body = """
	setp.eq.u32 %p1, %r0, 0;
	@%p1 st.shared.u64 [sm], -5;
	bar.sync 0;
	cvt.u64.u32 %rd5, %r0;
	atom.shared.{0} %rd6, [sm], %rd5;
	bar.sync 0;
	ld.shared.u64 %rd2, [sm];
	"""
    due = {
        "add.u64": 21 - 5,
        "max.s64": 6,
        "max.u64": 2**64 - 5,
        "min.s64": 2**64 - 5,
        "min.u64": 0,
        "and.b64": 0,
        "or.b64": 2**64 - 1,
        "xor.b64": 2**64 - 5 ^ 0 ^ 1 ^ 2 ^ 3 ^ 4 ^ 5 ^ 6,
    }
    for operation, value in due.items():
        assert execute(body.format(operation) + STORE, threads=7, head=SHARED) == [value] * 7, operation
    body = "atom.relaxed.cta.shared.add.u32 %r1, [other], 1; bar.sync 0; ld.shared.u32 %rd2, [other];" + STORE
    assert len(set(execute(body, threads=5, head=SHARED))) == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("setp.eq.u32 %p1, %r0, 0; @%p1 bra $L1; bar.sync 0; $L1:", "a thread has ended while others"),
        ("setp.eq.u32 %p1, %r0, 0; @%p1 bra $L1; bar.sync 0; bra $L2; $L1: bar.sync 0; $L2:", "different barriers"),
        ("st.shared.u32 [sm], %r0;", "two threads store"),
        ("st.global.u32 [%rd0], 1; sub.s64 %rd0, %rd0, %rd1; st.global.u32 [%rd0], %r0;", "two threads store"),
        ("atom.shared.add.u32 %r1, [sm], 1; atom.shared.max.u32 %r1, [sm], 1;", "touched otherwise"),
        ("atom.shared.add.u32 %r1, [sm], 1; ld.shared.u32 %r1, [sm];", "a load of what atomic"),
        ("atom.shared.add.u32 %r1, [sm], 1; st.shared.u32 [sm], %r1;", "a store to what atomic"),
        ("st.shared.u32 [sm], 1; atom.shared.add.u32 %r1, [sm], 1;", "touched otherwise"),
        ("ld.shared.u32 %r1, [sm+64];", "outside of shared memory"),
        ("ld.shared.u64 %rd2, [sm+60];", "not aligned"),
        ("ld.global.u32 %r1, [sm];", "outside of all memory"),
    ],
)
def test_faults_of_threads_that_work_together(body: str, message: str) -> None:
    with pytest.raises(PtxError, match=message):
        execute(body, threads=4, head=SHARED)


def test_what_is_open_differs() -> None:
    body = "mov.u64 %rd3, 0; div.u64 %rd2, %rd0, %rd3;" + STORE
    assert execute(body, machine=Machine(lambda width: 77)) == [77]
    assert execute(body, machine=Machine(lambda width: 78)) == [78]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("st.global.u64 [%rd0+8], %rd1;", "outside of all memory"),
        ("ld.global.u64 %rd2, [%rd0+-8];", "outside of all memory"),
        ("mov.u64 %rd3, 0; ld.global.u8 %rs1, [%rd3];", "outside of all memory"),
        ("ld.global.u32 %r1, [%rd0+2];", "not aligned"),
        ("$L1: bra $L1;", "instructions"),
    ],
)
def test_faults_of_the_code(body: str, message: str) -> None:
    with pytest.raises(PtxError, match=message):
        execute(body, machine=Machine(most_instructions=10_000))


@pytest.mark.parametrize(
    "body",
    [
        "add.s64 %rd2, %rd3, 1;",
        "selp.u64 %rd2, 1, 2, %p4;" + STORE,
        "mov.f32 %f1, %f2;",
        "setp.eq.s64 %p1, %rd3, %rd4;",
    ],
)
def test_registers_are_written_before_they_are_read(body: str) -> None:
    with pytest.raises(PtxError, match="before it is written"):
        execute(body)


@pytest.mark.parametrize(
    "instruction",
    [
        "add.f32 %f1, %f2, %f3;",
        "add.rn.ftz.f32 %f1, %f2, %f3;",
        "sqrt.approx.f32 %f1, %f2;",
        "div.full.f32 %f1, %f2, %f3;",
        "ex2.approx.f32 %f1, %f2;",
        "cvt.rz.f32.f64 %f1, %fd1;",
        "bar.sync 1;",
        "barrier.sync 0;",
        "@%p1 bar.sync 0;",
        "atom.shared.add.f32 %f1, [%rd1], %f2;",
        "atom.global.add.u32 %r1, [%rd1], %r2;",
        "mov.u32 %r1, %laneid;",
        "add.sat.s32 %r1, %r2, %r3;",
        "trap;",
    ],
)
def test_unknown_instructions_are_errors(instruction: str) -> None:
    with pytest.raises((PtxError, KeyError)):
        Machine().load(f".visible .entry kernel(.param .u64 out) {{ {REGISTERS} {instruction} ret; }}")
