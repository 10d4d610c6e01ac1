"""The one module that knows numba-cuda: typed Python to PTX, PTX to a cubin, neither of which needs a GPU.

numba-cuda is in maintenance, so its version is pinned and what is used of its inside stands here and nowhere else:
`compile_cuda`, `kernel_fixup`, the NVVM unit, and a dispatcher whose device functions are compiled for the capability
that they are asked for, where numba-cuda would ask the driver. NVVM is called with its own options because numba-cuda
has none against fused multiply-adds. docs/adr/0010 says what comes after it.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any

from p2pcompute.errors import ExecutionError, KernelError

__all__ = ["NUMBA_CUDA", "CudaCompiler", "CudaNotInstalled", "check_installed", "link_cubin"]

NUMBA_CUDA = "0.30.4"
_REMEDY = "run: pip install 'p2pcompute[cuda]'"

_OPTIONS = {"device": True, "opt": True, "debug": False, "lineinfo": False, "fastmath": False, "inline": "never"}

# Each is one instruction (abs, sqrt.rn): the other functions of libdevice approximate, or fuse by hand.
_EXACT = frozenset({"__nv_fabs", "__nv_fabsf", "__nv_sqrt", "__nv_sqrtf"})
# NVVM makes ``x if x < 0.0 else 0.0`` into a min, which takes -0.0 for less than 0.0.
_EXTREME = re.compile(r"^\s*(?:@!?%\w+\s+)?(?:min|max)(?:\.\w+)*\.f(?:32|64)\b", re.MULTILINE)
_ORDERED = re.compile(
    r'^(\s*)(%(?:"[^"]*"|[\w.]+)) = fcmp (?:\w+ )*?([ou])(lt|le|gt|ge) (float|double) ([^,\n]+), ([^,\n]+?)\s*$',
    re.MULTILINE,
)
_LIBDEVICE = re.compile(r'@"?(__nv_\w+)')


class CudaNotInstalled(ExecutionError):
    """What the CUDA back end is built on is not installed, or not in the version that it was written for."""


def check_installed() -> None:
    """Raises `CudaNotInstalled` where numba-cuda is missing, of another version, or replaced by its simulator. Looks
    only at what is installed, and imports none of it.

    numba has a ``numba.cuda`` of its own, so that import says nothing.
    """
    try:
        version = importlib.metadata.version("numba-cuda")
    except importlib.metadata.PackageNotFoundError:
        raise CudaNotInstalled(f"numba-cuda is not installed; {_REMEDY}") from None
    if version != NUMBA_CUDA:
        raise CudaNotInstalled(f"numba-cuda {version} is installed and {NUMBA_CUDA} is needed; {_REMEDY}")
    for package in ("cuda-bindings", "cuda-core"):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise CudaNotInstalled(f"{package} is not installed; {_REMEDY}") from None
    if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0"):
        raise CudaNotInstalled("numba's CUDA simulator is switched on; unset NUMBA_ENABLE_CUDASIM")


class CudaCompiler:
    """Compiles for one compute capability. Not safe to share between threads.

    Args:
        capability: (major, minor) of the device, from (7, 5) on.
        fast: whether floats may be fused, approximated and flushed to zero. LLVM is told nothing of that, so that it
            forgets no NaN; NVVM is.

    Raises:
        CudaNotInstalled: see `check_installed`.
    """

    def __init__(self, capability: tuple[int, int], *, fast: bool = False) -> None:
        check_installed()
        # by name: numba-cuda puts its modules under numba's, where no type checker finds them
        nvvm: Any = import_module("numba.cuda.cudadrv.nvvm")
        errors: list[Any] = [nvvm.nvvmError, import_module("numba.core.errors").NumbaError]
        errors.append(import_module("numba.cuda.core.errors").NumbaError)
        errors.append(import_module("numba.cuda.cudadrv.error").CudaSupportError)  # a feature that asks the driver
        if not nvvm.is_available():
            raise CudaNotInstalled(f"libNVVM does not load; {_REMEDY}")
        self.capability = capability
        self.fast = fast
        self.cuda: Any = import_module("numba.cuda")
        self._nvvm = nvvm
        self._errors: Any = tuple(errors)
        self._dispatcher = _dispatcher(capability)
        self.round_down = _rounding("floor")
        self.round_up = _rounding("ceil")
        self.float_bits = _bit_cast("float64", "int64")
        self.bits_float = _bit_cast("int64", "float64")
        self.single_bits = _bit_cast("float32", "int32")
        self.bits_single = _bit_cast("int32", "float32")

    def jit(self, function: Callable[..., Any]) -> Any:
        """A device function: compiled for the types that it is called with, and inlined by LLVM."""
        return self._dispatcher(function, targetoptions={**_OPTIONS, "forceinline": True})

    def jit_apart(self, function: Callable[..., Any]) -> Any:
        """The same for a long function: LLVM decides whether to inline it."""
        return self._dispatcher(function, targetoptions={**_OPTIONS, "forceinline": False})

    def atomic(self, operation: str) -> Any:
        """``operation(array, place, value)`` on an element of a one-dimensional array of integers, as a statement:
        what was there before is the order of threads, and nobody's to see.

        Args:
            operation: add, max, min, and_, or_ or xor.
        """
        return _atomic(operation.rstrip("_"))

    def multiply_add(self, dtype: str) -> Any:
        """``mma(left..., right..., sum...)``, the tensor cores' instruction for tf32 (as int32 with its bits; sums are
        float32) or float64: gives a warp's sums as a tuple. All 32 threads of the warp have to come to it."""
        return _multiply_add(dtype)

    def apart(self, function: Any) -> Any:
        """A function of floats that `jit_apart` made, called where it is: NVVM does not copy it into its callers."""
        return _out_of_line(function)

    def ptx(self, function: Callable[..., Any], types: Sequence[Any], most_threads: int) -> str:
        """PTX of a kernel whose ``.entry`` has the function's name.

        Args:
            function: returns nothing.
            types: numba's types of its parameters.
            most_threads: threads of the largest block that it is launched with; bounds the registers of a thread.

        Raises:
            KernelError: it can't be compiled, or needs a function of libdevice that is not exact.
        """
        try:
            compiler: Any = import_module("numba.cuda.compiler")
            void: Any = import_module("numba.core.types").void
            result = compiler.compile_cuda(function, void, tuple(types), nvvm_options={"opt": 3}, cc=self.capability)
            library: Any = result.library
            entry = library.get_function(result.fndesc.llvm_func_name)
            library._entry_name = entry.name
            compiler.kernel_fixup(entry, False)
            self._nvvm.set_launch_bounds(entry, most_threads)
            modules: list[str] = library.llvm_strs
            inexact = {name for text in modules for name in _LIBDEVICE.findall(text)} - _EXACT
            if inexact:
                raise KernelError(
                    f"this kernel would use {', '.join(sorted(inexact))} of libdevice, which is inexact",
                    instead="run it on a CPU, and report this as a fault of p2pcompute",
                )
            ptx = self._assembly(modules)
            if _EXTREME.search(ptx):
                ptx = self._assembly([_opaque_comparisons(text) for text in modules])
        except self._errors as error:
            raise KernelError(
                f"numba-cuda does not compile this kernel: {str(error)[:400]}",
                instead="run it on a CPU, and report this as a fault of p2pcompute",
            ) from error
        return ptx.replace(entry.name, function.__name__)

    def _assembly(self, modules: list[str]) -> str:
        """What NVVM makes of LLVM modules; in strict mode with each operation rounded by itself."""
        arch = f"compute_{_number(self.capability)}"
        exact = {"fma": 0, "ftz": 0, "prec_div": 1, "prec_sqrt": 1}
        near = {"fma": 1, "ftz": 1, "prec_div": 0, "prec_sqrt": 0}
        code: bytes = self._nvvm.compile_ir(modules, arch=arch, opt=3, **(near if self.fast else exact))
        return code.decode().strip("\0 \n") + "\n"


def link_cubin(ptx: str, capability: tuple[int, int]) -> bytes:
    """Machine code for a device, by nvJitLink; a driver of the same CUDA major version loads it.

    Raises:
        CudaNotInstalled: cuda.core or nvJitLink is missing.
        KernelError: the linker refuses the PTX.
    """
    check_installed()
    core: Any = import_module("cuda.core")
    try:
        options: Any = core.LinkerOptions(arch=f"sm_{_number(capability)}")
        linker: Any = core.Linker(core.ObjectCode.from_ptx(ptx.encode()), options=options)
        code: Any = linker.link("cubin").code
    except Exception as error:  # cuda.core raises what each of its libraries raises
        raise KernelError(
            f"nvJitLink does not link this kernel: {str(error)[:400]}",
            instead="run it on a CPU, and report this as a fault of p2pcompute",
        ) from error
    return bytes(code)


def _opaque_comparisons(module: str) -> str:
    """An LLVM module whose ordering of floats is PTX that LLVM does not look into, and so makes nothing else of."""

    def written(found: re.Match[str]) -> str:
        space, name, unordered, order, kind, one, other = found.groups()
        suffix, letter = ("f32", "f") if kind == "float" else ("f64", "d")
        order += "u" if unordered == "u" else ""
        code = f"{{ .reg .pred %order; setp.{order}.{suffix} %order, $1, $2; selp.u32 $0, 1, 0, %order; }}"
        held = f'{name[:-1]}.held"' if name.endswith('"') else f"{name}.held"
        call = f'{held} = call i32 asm "{code}", "=r,{letter},{letter}"({kind} {one}, {kind} {other})'
        return f"{space}{call}\n{space}{name} = icmp ne i32 {held}, 0"

    return _ORDERED.sub(written, module)


def _number(capability: tuple[int, int]) -> str:
    return f"{capability[0]}{capability[1]}"


def _dispatcher(capability: tuple[int, int]) -> Any:
    compiler: Any = import_module("numba.cuda.compiler")
    base: Any = import_module("numba.cuda.dispatcher").CUDADispatcher

    class Dispatcher(base):  # type: ignore[misc]  # untyped
        """A device function for `capability`. numba-cuda's own asks the driver which one that is."""

        def compile_device(self, args: Any, return_type: Any = None) -> Any:
            known = self.overloads.get(args)
            if known is not None:
                return known
            with self._compiling_counter:
                result: Any = compiler.compile_cuda(
                    self.py_func,
                    return_type,
                    args,
                    forceinline=self.targetoptions["forceinline"],
                    nvvm_options={"opt": 3},
                    cc=capability,
                )
                self.overloads[args] = result
                result.target_context.insert_user_function(result.entry_point, result.fndesc, [result.library])
            return result

    return Dispatcher


def _rounding(operation: str) -> Any:
    """``floor`` or ``ceil`` of a float as a float: one cvt. numba-cuda has neither np.floor nor np.ceil."""
    intrinsic: Any = import_module("numba.cuda.extending").intrinsic

    def typed(_context: Any, value: Any) -> Any:
        def code(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
            function = builder.module.declare_intrinsic(f"llvm.{operation}", [args[0].type])
            return builder.call(function, args)

        return value(value), code

    return intrinsic(typed)


def _out_of_line(function: Any) -> Any:
    """A call of a device function that says not to inline it, which numba-cuda has no option for."""
    intrinsic: Any = import_module("numba.cuda.extending").intrinsic
    kinds: Any = import_module("numba.cuda.types")

    def called(context: Any, given: tuple[Any, ...]) -> tuple[Any, Any]:
        signature: Any = kinds.Dispatcher(function).get_call_type(context, given, {})

        def code(target: Any, builder: Any, _signature: Any, values: Any) -> Any:
            compiled = function.overloads[tuple(signature.args)]
            target.active_code_library.add_linking_library(compiled.library)
            callee = compiled.fndesc.declare_function(builder.module)
            convention = compiled.fndesc.call_conv
            _, value = convention.call_function(builder, callee, signature.return_type, signature.args, values)
            for instruction in builder.block.instructions:
                if getattr(instruction, "callee", None) is callee:
                    instruction.attributes.add("noinline")
            return value

        return signature, code

    def one(context: Any, x: Any) -> tuple[Any, Any]:
        return called(context, (x,))

    def two(context: Any, x: Any, y: Any) -> tuple[Any, Any]:
        return called(context, (x, y))

    return intrinsic(one if function.py_func.__code__.co_argcount == 1 else two)


def _bit_cast(have: str, to: str) -> Any:
    """A number with the bits of another. numba-cuda's ``view`` of a scalar is compiled by a dispatcher of its own,
    which asks the driver."""
    intrinsic: Any = import_module("numba.cuda.extending").intrinsic
    types: Any = import_module("numba.core.types")

    def typed(_context: Any, _value: Any) -> Any:
        def code(target: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], target.get_value_type(signature.return_type))

        return getattr(types, to)(getattr(types, have)), code

    return intrinsic(typed)


def _multiply_add(dtype: str) -> Any:
    intrinsic: Any = import_module("numba.cuda.extending").intrinsic
    types: Any = import_module("numba.core.types")
    ir: Any = import_module("llvmlite.ir")
    if dtype == "float32":
        left, right, sums, given, letter, of = 4, 2, 4, types.int32, "r", "m16n8k8.row.col.f32.tf32.tf32.f32"
    else:
        left, right, sums, given, letter, of = 1, 1, 2, types.float64, "d", "m8n8k4.row.col.f64.f64.f64.f64"
    result = getattr(types, dtype)
    names = [f"${number}" for number in range(2 * sums + left + right)]
    cut = (0, sums, sums + left, sums + left + right, len(names))
    groups = ["{" + ", ".join(names[low:high]) + "}" for low, high in pairwise(cut)]
    text = f"mma.sync.aligned.{of} {', '.join(groups)};"
    kept = "f" if dtype == "float32" else "d"
    constraints = ",".join([f"={kept}"] * sums + [letter] * (left + right) + [kept] * sums)

    def code(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        operands = [target.get_value_type(kind) for kind in signature.args]
        held = ir.LiteralStructType([target.get_value_type(result)] * sums)
        assembly = ir.InlineAsm(ir.FunctionType(held, operands), text, constraints, side_effect=True)
        call = builder.call(assembly, list(args))
        call.attributes.add("convergent")
        values = [builder.extract_value(call, place) for place in range(sums)]
        return target.make_tuple(builder, signature.return_type, values)

    signature = types.UniTuple(result, sums)(*[given] * (left + right), *[result] * sums)
    # an intrinsic's parameters are found by their names
    parameters = ", ".join(f"x{number}" for number in range(left + right + sums))
    namespace: dict[str, Any] = {"found": (signature, code)}
    exec(f"def typed(context, {parameters}):\n    return found", namespace)
    return intrinsic(namespace["typed"])


def _atomic(operation: str) -> Any:
    """numba-cuda's own atomic operations take an array's place modulo its length, and give the value before."""
    intrinsic: Any = import_module("numba.cuda.extending").intrinsic
    types: Any = import_module("numba.core.types")
    arrays: Any = import_module("numba.cuda.np.arrayobj")
    utilities: Any = import_module("numba.cuda.cgutils")

    def typed(_context: Any, array: Any, place: Any, _value: Any) -> Any:
        unsigned = "u" if operation in ("max", "min") and not array.dtype.signed else ""

        def code(target: Any, builder: Any, _signature: Any, args: Any) -> Any:
            held = arrays.make_array(array)(target, builder, args[0])
            element = utilities.get_item_pointer(target, builder, array, held, [args[1]], wraparound=False)
            builder.atomic_rmw(unsigned + operation, element, args[2], "monotonic")
            return target.get_dummy_value()

        return types.none(array, place, array.dtype), code

    return intrinsic(typed)
