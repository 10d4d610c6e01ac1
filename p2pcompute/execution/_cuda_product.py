"""The product of matrices in fast mode on CUDA: `p2p.matmul` on tensor cores, from compute capability 8.0 on.

The kernel is our own, compiled as kernels are, and what it may do beyond them is one instruction, ``mma.sync``. Of
float64 that is a fused multiplication and addition. Of float32 it has tf32, of eleven bits: so each operand is two of
these, the upper bits and what they leave, and a product is three (Ootomo and Yokota, "Recovering single precision
accuracy from Tensor Cores", 2022). It is as far off as sums of float32 are, not as tf32 is. Sums over k are added
outside of the tensor cores, which round towards zero. Where an element does not come out finite, perhaps only since an
infinity has no rest, a loop computes it again.

None of it has run on a device: the tests run its PTX by an interpreter, and link it.
"""

from __future__ import annotations

import contextlib
import re
import weakref
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from p2pcompute.errors import ExecutionError
from p2pcompute.execution._api import Array
from p2pcompute.execution._cuda_compile import CudaCompiler
from p2pcompute.execution._ptx_lint import PtxRefused, find_faults

if TYPE_CHECKING:
    from p2pcompute.execution._cuda import CudaBackend

__all__ = ["LEAST_CAPABILITY", "TensorCode", "TensorProduct"]

LEAST_CAPABILITY: Final = (8, 0)
_THREADS: Final = 128
_COLUMNS: Final = 32  # of a block's tile
_DEPTH: Final = 16  # of what a block holds of both matrices at a time
_FRAGMENT: Final = {"float32": (16, 8), "float64": (8, 4)}  # rows and depth of one instruction, of eight columns
_ROWS: Final = {name: 4 * rows for name, (rows, _) in _FRAGMENT.items()}  # of a block's tile
_TENSOR: Final = re.compile(
    r"mma\.sync\.aligned\.(?:m16n8k8\.row\.col\.f32\.tf32\.tf32\.f32|m8n8k4\.row\.col\.f64\.f64\.f64\.f64) "
)


def _text(dtype: str) -> str:
    """Four warps of a block have a strip of rows each, and all of the tile's columns. Lane 4 g + t of a warp has the
    elements that the ISA says ("Matrix Fragments for mma.m16n8k8", "mma.m8n8k4"): of the left operand those of row g
    (and g + 8) at t (and t + 4), of the right one those of column g there, of the result those of its rows at 2 t and
    2 t + 1."""
    rows, depth = _FRAGMENT[dtype]
    single = dtype == "float32"
    halves = ("", "+ 8") if single else ("",)
    tiles = range(_COLUMNS // 8)
    sums = [f"s{tile}_{at}" for tile in tiles for at in range(2 * len(halves))]
    code = (
        "def product(out, a, b, rows, inner, columns):\n"
        " place = int64(cuda.threadIdx.x)\n"
        " group = place % 32 // 4\n"
        " four = place % 4\n"
        f" strip = place // 32 * {rows} + group\n"
        f" across = (columns + {_COLUMNS - 1}) // {_COLUMNS}\n"
        f" top = int64(cuda.blockIdx.x) // across * {_ROWS[dtype]}\n"
        f" left = int64(cuda.blockIdx.x) % across * {_COLUMNS}\n"
        f" held_a = cuda.shared.array({_ROWS[dtype] * _DEPTH}, kind)\n"
        f" held_b = cuda.shared.array({_DEPTH * _COLUMNS}, kind)\n"
        " zero = kind(0)\n" + "".join(f" {name} = zero\n" for name in sums) + " start = int64(0)\n"
        " while start < inner:\n"
        f"  for at in range(place, {_ROWS[dtype] * _DEPTH}, {_THREADS}):\n"
        f"   r = top + at // {_DEPTH}\n   k = start + at % {_DEPTH}\n"
        "   held_a[at] = a[r * inner + k] if r < rows and k < inner else zero\n"
        f"  for at in range(place, {_DEPTH * _COLUMNS}, {_THREADS}):\n"
        f"   k = start + at // {_COLUMNS}\n   c = left + at % {_COLUMNS}\n"
        "   held_b[at] = b[k * columns + c] if k < inner and c < columns else zero\n"
        "  syncthreads()\n"
    )
    for step in range(0, _DEPTH, depth):
        parts = [(half, more) for more in (range(0, depth, 4)) for half in halves]
        left = []
        for number, (half, more) in enumerate(parts):
            code += f"  a{number} = held_a[(strip {half}) * {_DEPTH} + {step + more} + four]\n"
            left.append(f"a{number}")
            if single:
                code += f"  h{number} = upper(a{number})\n  l{number} = rest(a{number}, h{number})\n"
        for tile in tiles:
            right = []
            for number, more in enumerate(range(0, depth, 4)):
                code += f"  b{number} = held_b[({step + more} + four) * {_COLUMNS} + {8 * tile} + group]\n"
                right.append(f"b{number}")
                if single:
                    code += f"  u{number} = upper(b{number})\n  v{number} = rest(b{number}, u{number})\n"
            if single:
                code += "  d0, d1, d2, d3 = mma(l0, l1, l2, l3, u0, u1, zero, zero, zero, zero)\n"
                code += "  d0, d1, d2, d3 = mma(h0, h1, h2, h3, v0, v1, d0, d1, d2, d3)\n"
                code += "  d0, d1, d2, d3 = mma(h0, h1, h2, h3, u0, u1, d0, d1, d2, d3)\n"
                code += "".join(f"  s{tile}_{at} += d{at}\n" for at in range(4))
            else:
                code += f"  s{tile}_0, s{tile}_1 = mma({left[0]}, {right[0]}, s{tile}_0, s{tile}_1)\n"
    code += f"  syncthreads()\n  start += {_DEPTH}\n"
    for tile in tiles:
        for at in range(2 * len(halves)):
            code += (
                f" r = top + strip {halves[at // 2]}\n c = left + {8 * tile + at % 2} + 2 * four\n"
                " if r < rows and c < columns:\n"
                f"  out[r * columns + c] = checked(s{tile}_{at}, a, b, r, c, inner, columns)\n"
            )
    return code


_HELPERS: Final = """
def upper(x):
 bits = float_bits(x)
 if bits & 2139095040 >= 2130706432:
  return int32(bits & -8192)
 return int32((bits + 4096) & -8192)

def rest(x, bits):
 return upper(x - bits_float(bits))

def checked(s, a, b, r, c, inner, columns):
 if abs(s) <= most:
  return s
 s = kind(0)
 for k in range(inner):
  s += a[r * inner + k] * b[k * columns + c]
 return s
"""


class TensorCode:
    """The kernel for both types of floats; compiled when it is first asked for.

    Args:
        compiler: of strict mode, so that nothing but the product itself is near only.
    """

    def __init__(self, compiler: CudaCompiler) -> None:
        self._compiler = compiler
        self._ptx: dict[str, str] = {}
        self._loaded: dict[tuple[str, int], Any] = {}

    def ptx(self, dtype: str) -> str:
        """Its checked PTX."""
        if dtype not in self._ptx:
            from numba import types

            compiler = self._compiler
            kind = getattr(types, dtype)
            names: dict[str, Any] = {
                "cuda": compiler.cuda,
                "syncthreads": compiler.cuda.syncthreads,
                "int64": types.int64,
                "int32": types.int32,
                "kind": kind,
                "most": np.dtype(dtype).type(np.finfo(dtype).max),
                "mma": compiler.multiply_add(dtype),
                "float_bits": compiler.single_bits,
                "bits_float": compiler.bits_single,
            }
            exec(compile(_HELPERS + _text(dtype), "<product>", "exec"), names)
            for name in ("upper", "rest", "checked"):
                names[name] = compiler.jit(names[name])
            array = types.Array(kind, 1, "C", readonly=True)
            kinds = [types.Array(kind, 1, "C"), array, array, types.int64, types.int64, types.int64]
            ptx = compiler.ptx(names["product"], kinds, _THREADS)
            for fault in find_faults(ptx, together=True):
                if not _TENSOR.match(fault.text):
                    raise PtxRefused(f"line {fault.line} of the product's PTX: {fault.text!r}")
            self._ptx[dtype] = ptx
        return self._ptx[dtype]

    def load(self, dtype: str, device: Any) -> Any:
        """Its code on a device."""
        key = (dtype, id(device))
        if key not in self._loaded:
            self._loaded[key] = device.load(self.ptx(dtype))
        return self._loaded[key]


class TensorProduct:
    """Multiplies matrices on a device; the right one stays there while it is the same."""

    def __init__(self, backend: CudaBackend, code: TensorCode) -> None:
        self._backend = backend
        self._code = code
        self._held: list[tuple[Any, int, Array]] = []  # the device, where, and what
        weakref.finalize(self, _release, self._held).atexit = False

    def multiply(self, left: Array, right: Array, out: Array) -> None:
        """``out[...] = left @ right``, of one type of floats."""
        from p2pcompute.execution._cuda import Parameters, RunMemory  # which makes these

        device = self._backend.device
        (rows, inner), columns, dtype = left.shape, right.shape[1], left.dtype.name
        if not (rows and inner and columns):
            out[...] = 0
            return
        with RunMemory(device) as memory:
            given = Parameters()
            result = np.empty((rows, columns), left.dtype)
            address = memory.room(result.nbytes)
            given.vector(address, result.size, result.itemsize)
            given.vector(memory.put(np.ascontiguousarray(left)), left.size, left.itemsize)
            given.vector(self._put(device, right), right.size, right.itemsize)
            for number in (rows, inner, columns):
                given.scalar("int64", number)
            tiles = -(-rows // _ROWS[dtype]) * -(-columns // _COLUMNS)
            device.launch(self._code.load(dtype, device), "product", (tiles, 1, 1), (_THREADS, 1, 1), bytes(given.data))
            device.download(address, result)
        out[...] = result

    def _put(self, device: Any, right: Array) -> int:
        if self._held and self._held[0][0] is device and self._held[0][2] is right and not right.flags.writeable:
            return self._held[0][1]
        _release(self._held)
        address = int(device.allocate(right.nbytes))
        self._held.append((device, address, right))
        device.upload(address, np.ascontiguousarray(right))
        return address


def _release(held: list[tuple[Any, int, Array]]) -> None:
    while held:
        device, address, _ = held.pop()
        with contextlib.suppress(ExecutionError):  # a device that is lost has nothing to give back
            device.release(address)
