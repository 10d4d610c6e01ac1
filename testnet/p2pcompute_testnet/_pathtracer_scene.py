"""What the demonstration's picture shows, as plain arrays: the kernel and its NumPy reference both read them here.

Lengths are in metres, y points up, the floor is y = 0. Colours are linear red, green, blue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

__all__ = ["DIFFUSE", "GLASS", "MIRROR", "Picture", "rig", "spheres"]

Array: TypeAlias = np.ndarray[Any, Any]
Vector: TypeAlias = tuple[float, float, float]

DIFFUSE, MIRROR, GLASS = 0, 1, 2

# Centre x, z, radius, then colour, then material. Every sphere rests on the floor.
_SPHERES: tuple[tuple[float, float, float, Vector, int], ...] = (
    (0.10, 0.70, 1.00, (0.97, 0.99, 0.98), GLASS),
    (-2.25, -0.90, 1.15, (0.92, 0.93, 0.95), MIRROR),
    (2.35, -0.70, 0.95, (0.80, 0.13, 0.09), DIFFUSE),
    (0.55, -4.20, 1.40, (0.08, 0.20, 0.62), DIFFUSE),
    (-4.75, -2.80, 0.95, (0.05, 0.42, 0.38), DIFFUSE),
    (4.90, -3.10, 1.10, (0.86, 0.55, 0.07), DIFFUSE),
    (-1.20, 2.05, 0.38, (0.90, 0.50, 0.06), DIFFUSE),
    (1.45, 2.25, 0.32, (0.36, 0.12, 0.62), DIFFUSE),
    (-0.25, 2.75, 0.22, (0.85, 0.85, 0.82), DIFFUSE),
    (2.65, 1.25, 0.45, (0.98, 0.74, 0.36), MIRROR),
    (-2.75, 1.45, 0.34, (0.12, 0.55, 0.16), DIFFUSE),
    (3.75, 0.15, 0.55, (0.90, 0.97, 0.99), GLASS),
)

_EYE, _LOOK_AT, _FIELD_OF_VIEW_DEGREES = (0.0, 2.4, 8.2), (0.1, 0.95, 0.0), 34.0
_LAMP_CENTRE, _LAMP_TARGET, _LAMP_SIZE = (-8.4, 6.2, 1.8), (0.0, 0.4, 0.2), (3.0, 3.0)
_LAMP_RADIANCE = (76.0, 64.0, 47.0)
_HORIZON, _ZENITH = (0.86, 0.44, 0.20), (0.035, 0.10, 0.29)
_TILE_LIGHT, _TILE_DARK = (0.56, 0.52, 0.47), (0.17, 0.18, 0.20)


def spheres() -> Array:
    """Float32 ``(n, 8)``: centre x, y, z, radius, red, green, blue, material (0 diffuse, 1 mirror, 2 glass)."""
    rows = [(x, radius, z, radius, *colour, material) for x, z, radius, colour, material in _SPHERES]
    return np.array(rows, np.float32)


def rig(width: int, height: int) -> Array:
    """Float32 ``(14, 3)``: camera, lamp, sky and floor.

    Rows: 0 eye; 1 and 2 half the picture to the right and up at distance 1; 3 forward; 4 lamp corner; 5 and 6 its
    edges; 7 the side that shines; 8 its radiance; 9 radiance times area over pi; 10 horizon; 11 zenith; 12 and 13
    the floor's tiles.
    """
    forward = _unit(_minus(_LOOK_AT, _EYE))
    right = _unit(_cross(forward, (0.0, 1.0, 0.0)))
    up = _cross(right, forward)
    half = math.tan(math.radians(_FIELD_OF_VIEW_DEGREES) / 2)
    shine = _unit(_minus(_LAMP_TARGET, _LAMP_CENTRE))
    side = _unit(_cross(shine, (0.0, 1.0, 0.0)))
    edge_u = _times(side, _LAMP_SIZE[0])
    edge_v = _times(_cross(side, shine), _LAMP_SIZE[1])
    corner = _minus(_minus(_LAMP_CENTRE, _times(edge_u, 0.5)), _times(edge_v, 0.5))
    power = _times(_LAMP_RADIANCE, _LAMP_SIZE[0] * _LAMP_SIZE[1] / math.pi)
    rows = [
        _EYE,
        _times(right, half * width / height),
        _times(up, half),
        forward,
        corner,
        edge_u,
        edge_v,
        shine,
        _LAMP_RADIANCE,
        power,
        _HORIZON,
        _ZENITH,
        _TILE_LIGHT,
        _TILE_DARK,
    ]
    return np.array(rows, np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture to make: `side` squared samples a pixel, paths of up to `depth` segments, any `seed` below 2**32."""

    width: int = 1280
    height: int = 720
    side: int = 4
    depth: int = 8
    seed: int = 1
    spheres: Array = field(default_factory=spheres, repr=False)

    def __post_init__(self) -> None:
        if not (1 <= self.width <= 16_384 and 1 <= self.height <= 16_384):
            raise ValueError(f"{self.width} x {self.height} pixels: each side must be 1 to 16384")
        if not (1 <= self.side <= 16 and 1 <= self.depth <= 64):
            raise ValueError(f"side {self.side} must be 1 to 16 and depth {self.depth} 1 to 64")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed {self.seed} must be 0 to 2**32 - 1")
        shape = self.spheres.shape
        if self.spheres.dtype != np.float32 or len(shape) != 2 or shape[0] < 1 or shape[1] != 8:
            raise ValueError(f"spheres must be float32 (n, 8), not {self.spheres.dtype} {shape}")

    @property
    def rig(self) -> Array:
        """Camera, lamp, sky and floor, see `rig`."""
        return rig(self.width, self.height)


def _minus(a: Vector, b: Vector) -> Vector:
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def _times(a: Vector, k: float) -> Vector:
    return a[0] * k, a[1] * k, a[2] * k


def _cross(a: Vector, b: Vector) -> Vector:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _unit(a: Vector) -> Vector:
    return _times(a, 1 / math.sqrt(a[0] * a[0] + a[1] * a[1] + a[2] * a[2]))
