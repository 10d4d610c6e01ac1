"""What the mathematical functions give on 4096 fixed operands, as digests: a machine or a compiler that gives another
bit gives another digest. The operands are made with integers and powers of two only, so that they are the same
everywhere. docs/strict.md defines the functions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from p2pcompute.execution._api import KernelSource
from p2pcompute.execution._language import MATH_CALLS, MATH_FUNCTIONS
from p2pcompute.execution._language_capture import source_digest

__all__ = ["COUNT", "DIGESTS", "FUNCTIONS", "SOURCE", "column_digests", "golden_operands"]

COUNT: Final = 4096
"""Rows of the test; a thread computes one."""

FUNCTIONS: Final = tuple(sorted(MATH_FUNCTIONS))
"""Columns of the output, in order."""

_EDGES: Final = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -2.0,
    3.0,
    1e-30,
    -1e-38,
    0.7071,
    1.5707963,
    88.5,
    1e10,
    3e38,
    np.inf,
    np.nan,
)


def _lines() -> str:
    text = "def golden(out, x, y):\n    i = cuda.grid(1)\n    a = x[i]\n    b = y[i]\n"
    for column, name in enumerate(FUNCTIONS):
        module = "np" if name in ("rint", "trunc") else "math"
        operands = "a, b" if MATH_CALLS.get(name, 1) == 2 else "a"
        text += f"    out[i, {column}] = {module}.{name}({operands})\n"
    return text


SOURCE: Final = KernelSource(text=_lines(), entry="golden", digest=source_digest("golden", _lines()))
"""A kernel over `golden_operands`: output ``(COUNT, len(FUNCTIONS))``, then the two operands."""


def _words(stream: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """SplitMix64 (Steele, Lea and Flood, 2014) from a seed of its own for each stream."""
    with np.errstate(over="ignore"):
        word = (np.arange(1, COUNT + 1, dtype=np.uint64) + np.uint64(stream << 32)) * np.uint64(0x9E3779B97F4A7C15)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def golden_operands(dtype: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Both operands, each ``(COUNT,)`` of `dtype`, float32 or float64.

    256 pairs of edge values, 1024 pairs of any bits, and the rest uniform in growing intervals around zero, up to
    1024.
    """
    columns = []
    for stream in range(2):
        word = _words(stream)
        uniform = (word >> np.uint64(11)).astype(np.int64).astype(np.float64) * 2.0**-52 - 1.0
        sizes = np.ldexp(1.0, (np.arange(COUNT) // 64 + 5 * stream) % 12 - 1)
        values = (uniform * sizes).astype(dtype)
        bits = word.astype(np.uint32).view(np.float32) if dtype == "float32" else word.view(np.float64)
        values[256:1280] = bits[256:1280]
        edges = np.array(_EDGES).astype(dtype)
        values[:256] = np.repeat(edges, 16) if stream else np.tile(edges, 16)
        columns.append(values)
    return columns[0], columns[1]


def column_digests(output: np.ndarray[Any, Any]) -> Mapping[str, str]:
    """For each function the SHA-256 of its column, in little-endian order, in hex."""
    order = output.dtype.newbyteorder("<")
    columns = (np.ascontiguousarray(output[:, column]).astype(order).tobytes() for column in range(len(FUNCTIONS)))
    return dict(zip(FUNCTIONS, (hashlib.sha256(column).hexdigest() for column in columns), strict=True))


DIGESTS: Final[Mapping[str, Mapping[str, str]]] = {
    "float32": {
        "acos": "97387b94bebc114a7385e8d39a39e23054e51ac926f3452e9d571cb605b68d3e",
        "asin": "c1713204977a954a3e964eebf02b8d8c272c9361ac4f8e99f9a278d6130a7290",
        "atan": "118a6501ef02cdab23854c89faa343909a7b496a9dc9183a547d647f3a1bae95",
        "atan2": "d4b6f0b22835a9003f0447c64826c1cb42a70a0039288bb75611ef9081b1f017",
        "cbrt": "e640ac32491f0294a546d10e91f8aed47e89974944327bffcc7b4c47305bf9e7",
        "copysign": "73646e814e07df2b830a1592e45cade8badb4892055672e607cc933f1394318a",
        "cos": "bc4fb59b59b1aaaa39de109864b5e71f645260b6bf7ecfc35e27cf53cc541eb1",
        "cosh": "0dbc7bfd3f8373448783e0ae75969e3ed41892f2235b4ac1613ffd09d214e5a2",
        "erf": "c9d0945c3dfdc9bc2c78b98578e385d5c068a821a183f90c008cc094d439dc29",
        "erfc": "87827e9767d3d1b8217610a20aa8077ebb9487863eaec0629435f32da462ac18",
        "exp": "5411853b33bcd09d6bce8420bf5c37ec775649e972078fe01e4aedaff99c0ecd",
        "exp2": "1db1000cf9cc00d8cf5ce09b201d5135df7ebefc9e91d2776d6c195986a17ba8",
        "expm1": "7b63f7e3eba498c2cf80f6f1c8191e197d4cec24d8cb86de8224b0bdb3d4011d",
        "fmod": "8889a480ac03a6d846359cb3d49f93e87fb4b262e9fdfea0c168d05bda9e004d",
        "hypot": "e12e754a3bf7b4702c33f4e35a0999404b82a07f47b014f77689a81ef3eb8ff6",
        "log": "fbfef5fd2274144bbdae5d215b6517f1d7eb8ea53d7a26986b12fa8d7e4f04a2",
        "log10": "11d8c0f1a9c36292bc64d54a8a061809adeea450ab56d10a84a90a0d8261f3d8",
        "log1p": "622508a6c2bfd81b1aaa45c678650260e1f3681e3c356892d21849d391861767",
        "log2": "145391e22ac3a63b49c9de11ec152478de2cda929a98c6e077e27b13543001c9",
        "pow": "891fc044b91ae6758cbce61569c11750c79b6e235b5849bbeeb85d1a34d8f054",
        "rint": "865c850b5095ff2dbaf05caf5255a7dfcf974c7b001bf02e7dc7d025bfa63ce3",
        "sin": "f225c51e114197113c71f44c195df5f5c12b3a159f3fabd99dbb97817afe390c",
        "sinh": "4f38bd3f5fbefad9a89168cbb853afb2bcd25beaed85ef26ee99a8fbbf78a106",
        "tan": "b3f545083e6b6cdc154f8e7c0b6223f9fbb448653593c43069f0b6d13e6c81b5",
        "tanh": "19168e48224a3673b7c679ff400c916a29c05f36acc27e82e3ae74803491f874",
        "trunc": "a1521cad306eb0f5792d32d221c5cf16e271afbdce677bc3b765ec1811bd728a",
    },
    "float64": {
        "acos": "b0cb524bbe9ac8221107e3d665a441ed44a25b4e5c31a6fa6cb8a6cf202245bd",
        "asin": "c95ce61bc4dd62715a1bbe16caae387f6b6d9b8986199aaaa08af543108deacf",
        "atan": "783d5f661a82a73bbf44b6d143452dedd38202800d4a6d2aff1cfd98cbe8b66c",
        "atan2": "83c43d65fab22399d73381db890e221e1e1d166a47b3eeb708e7870467d7b3df",
        "cbrt": "56c3cff3a57bb0c02b3c26c336c37d19141d4728b537b1b412fefac873f3545b",
        "copysign": "44c8119e07fd2d298dac024914ba63e57426c914a065922c0fa1a459aaf45c04",
        "cos": "d98308cff2c572713d599e4304b9a833036245c3b4467ff9d4267502798e7a7e",
        "cosh": "1f394458e97ecb250fa80f927b63353d081f11ee39fbf2a85f15d349dd754782",
        "erf": "e3e9f337200ebd6c3fd109a3da3e3ce7cdaefe2109409adbbd30ceac34832fb0",
        "erfc": "9305741c9fdfa27b703e1ca66f0823605d5688facb78dd9ecb87dcddcc6d0c50",
        "exp": "2da2de8e2aded227781a3968d145b5e8cf869c82501bbb7b645d4eaf28f7d980",
        "exp2": "6002af5c71e2115c3c1d9735e610d07b09f72da6a2393ff97a0442617dfea430",
        "expm1": "da642542ed6eb211b5f77179e7359ccd29730fb0ed2c730d5bc4462fc093bd3a",
        "fmod": "7b8cf3c3e4c20ea09110bd164a91c3f5ac2abe1bd5e3c00097dbfa214fa6d420",
        "hypot": "ba729009b24b6dbd8e7ee40d5e15c8fe09b64c2c367c1f0f70b3625e0cf19cb4",
        "log": "84b34828424d5de9f2a9e273726170882e6ddc3292a22f449fd212a67010538d",
        "log10": "145ab3fac62d383eaf68a9bab99525baf3156aeb0fc43061a720db2e26c573fb",
        "log1p": "80232da4f98f69fc88456311e496436bcd479c3a501b6bf461ba66b880ab6e1f",
        "log2": "9583f0778ae56c9a54eb05a7ab112244a0659db8bd2b059331cb96e006037f3f",
        "pow": "fca726a9338e0de76afa3a87240700b88b62046e32400fef1fbccaedfe68ee51",
        "rint": "a3b1cc20521bfe93ed755c40fccd6aad8102de16c626f73997e03d66b6dc84f3",
        "sin": "c05204ef2d2699c132daa5df8ed4aca2db038a95628cbd9dd284747484936e92",
        "sinh": "fedd68055c0deaaa64ea70029a3028b872f55d30aaaf6a0b30c381756c0b5a8e",
        "tan": "7a6175aee34e347da41386cd25c70d93baf397b1b9deaec08f126e66df5f63e5",
        "tanh": "d5c8909b9ad22ce0bfdfcd17f139ebe2eccab9a417623872066768006609e6fc",
        "trunc": "ee10a261405365cdc6bd523cd1fa746bfb492351fe6d395b332f17fd19816ada",
    },
}
"""By dtype, then by function."""
