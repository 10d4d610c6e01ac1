"""The demonstration's picture once more, in plain NumPy: what any pixel must be, bit for bit.

All paths of the wanted pixels advance together, one bounce a turn, as arrays of float32. Nothing is shared with the
kernel but the scene, neither code nor compiler: NumPy rounds after each operation and never contracts a product and
a sum, which is what the kernel language's strict mode asks of every back end. Where operations are not associative
the order here is the one that the kernel's source spells out.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from ._pathtracer_scene import GLASS, MIRROR, Picture

__all__ = ["philox4x32", "reference_pixels", "reference_radiance"]

Array: TypeAlias = np.ndarray[Any, Any]

_F = np.float32
_NEAR = _F(1e-3)
_FAR = _F(1e30)
_TINY = _F(1e-6)
_BATCH = 1 << 15  # paths at a time, so that memory stays within some tens of MB


def reference_pixels(picture: Picture, ys: Array, xs: Array) -> Array:
    """The pixels at rows `ys` and columns `xs`, both of shape ``(n,)``: uint8 ``(n, 3)``, red, green, blue.

    Raises:
        ValueError: a place outside of the picture, or `ys` and `xs` of different shapes.
    """
    return _tone(reference_radiance(picture, ys, xs))


def reference_radiance(picture: Picture, ys: Array, xs: Array) -> Array:
    """What `reference_pixels` is made from: radiance, float32 ``(n, 3)``.

    Raises:
        ValueError: a place outside of the picture, or `ys` and `xs` of different shapes.
    """
    rows, columns = np.asarray(ys, np.int64), np.asarray(xs, np.int64)
    if rows.ndim != 1 or rows.shape != columns.shape:
        raise ValueError(f"ys and xs must be of one shape (n,), not {rows.shape} and {columns.shape}")
    known = (rows >= 0) & (rows < picture.height) & (columns >= 0) & (columns < picture.width)
    if not known.all():
        raise ValueError(f"a place outside of the picture of {picture.width} x {picture.height} pixels")
    result = np.empty((rows.size, 3), np.float32)
    step = max(1, _BATCH // picture.side**2)
    for first in range(0, rows.size, step):
        part = slice(first, first + step)
        result[part] = _Tracer(picture, rows[part], columns[part]).radiance()
    return result


def philox4x32(counter: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> tuple[Array, Array, Array, Array]:
    """Philox4x32-10 (Salmon and others, SC 2011) of arrays of counters: four uint32 arrays."""
    low = np.uint64(0xFFFFFFFF)
    words = [np.asarray(word, np.uint64) for word in counter]
    a, b, c, d = np.broadcast_arrays(*words)
    for turn in range(10):
        key0 = np.uint64((key[0] + turn * 0x9E3779B9) & 0xFFFFFFFF)
        key1 = np.uint64((key[1] + turn * 0xBB67AE85) & 0xFFFFFFFF)
        wide_a, wide_c = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b, c, d = (
            (wide_c >> np.uint64(32)) ^ b ^ key0,
            wide_c & low,
            (wide_a >> np.uint64(32)) ^ d ^ key1,
            wide_a & low,
        )
    return a.astype(np.uint32), b.astype(np.uint32), c.astype(np.uint32), d.astype(np.uint32)


def _dot(a: Any, b: Any) -> Array:
    product: Array = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
    return product


def _normalized(v: Array) -> Array:
    return v * (_F(1) / np.sqrt(_dot(v, v)))


def _unit(words: Array) -> Array:
    return (words >> np.uint32(8)).astype(_F) * _F(2**-24)


def _stratum(u: Array, cell: Array, cells: int) -> Array:
    return (cell.astype(_F) + u) / _F(cells)


def _schlick(r0: float, cosine: Array) -> Array:
    m = _F(1) - cosine
    square = m * m
    reflected: Array = _F(r0) + (_F(1) - _F(r0)) * (square * square * m)
    return reflected


def _hemisphere(u: Array, v: Array, normal: Array) -> Array:
    """Directions about normals of shape ``(3, n)``, as likely as their cosine."""
    a, b = _F(2) * u - _F(1), _F(2) * v - _F(1)
    steep = np.abs(b) >= np.abs(a)
    r, q = np.where(steep, b, a), np.where(steep, a, b)
    phi = np.divide(q, r, out=np.zeros_like(q), where=r != 0) * _F(0.7853981633974483)
    p2 = phi * phi
    sine = phi * (_F(1) - p2 * (_F(0.16666667) - p2 * (_F(0.008333334) - p2 * _F(0.00019841270))))
    cosine = _F(1) - p2 * (_F(0.5) - p2 * (_F(0.041666668) - p2 * (_F(0.0013888889) - p2 * _F(0.000024801587))))
    x, y = np.where(steep, r * sine, r * cosine), np.where(steep, r * cosine, r * sine)
    z = np.sqrt(np.maximum(_F(0), _F(1) - r * r))
    nx, ny, nz = normal
    g = np.where(nz >= 0, _F(1), _F(-1))
    m = _F(-1) / (g + nz)
    k = nx * ny * m
    way = np.stack(
        [
            x * (_F(1) + g * nx * nx * m) + y * k + z * nx,
            x * (g * k) + y * (g + ny * ny * m) + z * ny,
            z * nz - x * (g * nx) - y * ny,
        ]
    )
    return _normalized(way)


def _tone(total: Array) -> Array:
    curve = (total * (_F(2.51) * total + _F(0.03))) / (total * (_F(2.43) * total + _F(0.59)) + _F(0.14))
    shown = np.sqrt(np.clip(curve, _F(0), _F(1))) * _F(255) + _F(0.5)
    steps: Array = shown.astype(np.uint8)
    return steps


def _clouds(way: Array) -> Array:
    up = way[1] > 0
    x, y, z = (part[up] for part in way)
    spread = _F(2.6) / (y + _F(0.035))
    plane = np.stack([x * spread + _F(512), z * spread * _F(1.6) + _F(512)])
    found = np.zeros_like(y)
    weight = _F(0.55)
    for layer in range(4):
        corner = np.floor(plane)
        cell = corner.astype(np.int64)
        s = plane - corner
        s = s * s * (_F(3) - _F(2) * s)
        for above in (0, 1):
            for right in (0, 1):
                noise = _unit(philox4x32((cell[0] + right, cell[1] + above, layer, 2), (0, 0))[0])
                share = weight * (s[0] if right else _F(1) - s[0]) * (s[1] if above else _F(1) - s[1])
                found = found + share * noise
        weight = weight * _F(0.5)
        plane = plane * _F(2.03)
    found = np.clip((found - _F(0.46)) * _F(3), _F(0), _F(1))
    cover: Array = np.zeros_like(way[1])
    cover[up] = found * found * (_F(3) - _F(2) * found) * (y / (y + _F(0.02)))
    return cover


class _Tracer:
    """Paths of some pixels, `side` squared of them a pixel, side by side in every array's last axis."""

    def __init__(self, picture: Picture, rows: Array, columns: Array) -> None:
        self.picture = picture
        self.rig = picture.rig
        self.balls = picture.spheres
        self.cells = cells = picture.side**2
        self.wide = rows.size
        self.sample = np.repeat(np.arange(cells), rows.size)
        self.row, self.column = np.tile(rows, cells), np.tile(columns, cells)
        self.pixel = self.row * picture.width + self.column
        turns = [word.astype(np.int64) >> 8 for word in self.words(slice(None), 0, sample=0, stream=1)]
        self.cell_lamp = (turns[0] + self.sample) % cells
        self.cell_way = (turns[1] + self.sample * 7) % cells
        self.cell_choice = (turns[2] + self.sample * 11) % cells
        many = self.pixel.size
        self.through = np.ones((3, many), _F)
        self.got = np.zeros((3, many), _F)
        self.sees_lamp = np.ones(many, bool)
        self.chosen = np.zeros(many, bool)
        self.scattered = np.zeros(many, bool)

    def words(self, who: Any, bounce: int, sample: Any = None, stream: int = 0) -> tuple[Array, Array, Array, Array]:
        samples = self.sample[who] if sample is None else sample
        return philox4x32((self.pixel[who], samples, bounce, stream), (self.picture.seed, 0))

    def radiance(self) -> Array:
        self.start()
        who = np.arange(self.pixel.size)
        for bounce in range(self.picture.depth):
            if not who.size:
                break
            who = self.advance(who, bounce)
        total = np.zeros((3, self.wide), _F)
        for part in self.got.reshape(3, self.cells, self.wide).transpose(1, 0, 2):
            total = total + part
        total = total * (_F(1) / _F(self.cells))
        return total.T

    def start(self) -> None:
        side = self.picture.side
        words = self.words(slice(None), 0)
        across = self.column.astype(_F) + _stratum(_unit(words[0]), self.sample % side, side)
        down = self.row.astype(_F) + _stratum(_unit(words[1]), self.sample // side, side)
        across = across / _F(self.picture.width) * _F(2) - _F(1)
        down = _F(1) - down / _F(self.picture.height) * _F(2)
        eye, right, up, forward = self.rig[:4, :, None]
        self.place = np.repeat(eye, self.pixel.size, axis=1)
        self.way = _normalized(forward + across * right + down * up)

    def advance(self, who: Array, bounce: int) -> Array:
        """One segment of the paths `who`; returns those that go on."""
        place, way = self.place[:, who], self.way[:, who]
        far = self.spheres_ahead(place, way)
        ball = np.argmin(far, axis=0)
        t = far[ball, np.arange(who.size)]
        ball[t >= _FAR] = -1
        down = way[1] < -_TINY
        to_floor = np.full_like(t, _FAR)
        to_floor[down] = -place[1, down] / way[1, down]
        floor = (to_floor > _NEAR) & (to_floor < t)
        t = np.where(floor, to_floor, t)
        lit = self.sees_lamp[who] & (self.lamp_ahead(place, way) < t)
        self.add(who[lit], self.rig[8][:, None])
        missed = ~lit & ~floor & (ball < 0)
        self.add(who[missed], self.sky(way[:, missed], ~self.scattered[who[missed]]))
        on = ~lit & ~missed
        who, t, ball, floor, place, way = who[on], t[on], ball[on], floor[on], place[:, on], way[:, on]
        return self.surface(who, bounce, place + t * way, way, t, ball, floor)

    def add(self, who: Array, light: Array) -> None:
        self.got[:, who] = self.got[:, who] + self.through[:, who] * light

    def surface(self, who: Array, bounce: int, place: Array, way: Array, t: Array, ball: Array, floor: Array) -> Array:
        words = self.words(who, bounce + 1)
        place[1, floor] = 0
        far2 = t[floor] * t[floor]
        haze = far2 / (far2 + _F(1200))
        flat = way[:, floor].copy()
        flat[1] = 0
        on_floor = who[floor]
        colour = self.sky(flat, np.zeros(on_floor.size, bool))
        self.got[:, on_floor] = self.got[:, on_floor] + self.through[:, on_floor] * haze * colour
        self.through[:, on_floor] = self.through[:, on_floor] * (_F(1) - haze)
        tile = (np.floor(place[0]).astype(np.int64) + np.floor(place[2]).astype(np.int64)) & 1
        owner = self.balls[ball].T
        normal = _normalized((place - owner[:3]) * (_F(1) / owner[3]))
        normal[:, floor] = np.array([[0], [1], [0]], _F)
        tint = np.where(floor, self.rig[12 + tile].T, owner[4:7])
        material = np.where(floor, _F(0), owner[7])
        cosine = -_dot(way, normal)
        inside = cosine < 0
        normal = np.where(inside, -normal, normal)
        cosine = np.minimum(np.abs(cosine), _F(1))
        bounced = _normalized(way + _F(2) * cosine * normal)
        self.place[:, who] = place
        self.way[:, who] = bounced

        metal = material == MIRROR
        self.through[:, who[metal]] *= tint[:, metal] + (_F(1) - tint[:, metal]) * _schlick(0, cosine[metal])

        glass = material == GLASS
        ratio = np.where(inside, _F(1.5), _F(1) / _F(1.5))
        squared = _F(1) - ratio * ratio * (_F(1) - cosine * cosine)
        root = np.sqrt(np.maximum(squared, _F(0)))
        mirrored = _schlick(0.04, np.where(glass & inside, root, cosine))
        mirrored[glass & (squared <= 0)] = 1

        shiny = np.flatnonzero(~metal & ~inside & ~self.scattered[who])
        image = self.lamp_ahead(place[:, shiny], bounced[:, shiny])
        shiny, image = shiny[image < _FAR], image[image < _FAR]
        seen = mirrored[shiny] * self.passes(place[:, shiny], bounced[:, shiny], image)
        lamp = self.rig[8][:, None]
        self.got[:, who[shiny]] = self.got[:, who[shiny]] + self.through[:, who[shiny]] * seen * lamp

        choice = _unit(words[0])
        choice = np.where(self.chosen[who], choice, _stratum(choice, self.cell_choice[who], self.cells))
        self.chosen[who[~metal]] = True
        mirror_way = ~metal & (choice < mirrored)
        self.sees_lamp[who[mirror_way & ~inside]] = False

        entering = ~metal & ~mirror_way & glass
        bend = ratio * cosine - root
        self.way[:, who[entering]] = _normalized(ratio * way + bend * normal)[:, entering]
        self.through[:, who[~metal & ~mirror_way]] *= tint[:, ~metal & ~mirror_way]

        matt = ~metal & ~mirror_way & ~glass
        self.scatter(who[matt], place[:, matt], normal[:, matt], [word[matt] for word in words])
        return who

    def scatter(self, who: Array, place: Array, normal: Array, words: list[Array]) -> None:
        """A diffuse hit: light straight from the lamp, then a random way onward."""
        side, new = self.picture.side, ~self.scattered[who]
        cell = self.cell_lamp[who]
        u, v = _unit(words[1]), _unit(words[2])
        u = np.where(new, _stratum(u, cell % side, side), u)
        v = np.where(new, _stratum(v, cell // side, side), v)
        corner, edge_u, edge_v, shine = self.rig[4:8, :, None]
        ray = corner + u * edge_u + v * edge_v - place
        far2 = _dot(ray, ray)
        reach = np.sqrt(far2)
        ray = ray / reach
        facing, shining = _dot(ray, normal), -_dot(ray, shine)
        lit = (facing > 0) & (shining > 0)
        share = self.passes(place[:, lit], ray[:, lit], reach[lit]) * facing[lit] * shining[lit] / far2[lit]
        power = self.rig[9][:, None]
        self.got[:, who[lit]] = self.got[:, who[lit]] + self.through[:, who[lit]] * share * power
        cell = self.cell_way[who]
        u, v = _unit(words[3]), _unit(words[0] ^ (words[1] << np.uint32(16)))
        u = np.where(new, _stratum(u, cell % side, side), u)
        v = np.where(new, _stratum(v, cell // side, side), v)
        self.way[:, who] = _hemisphere(u, v, normal)
        self.scattered[who] = True
        self.sees_lamp[who] = False

    def spheres_ahead(self, place: Array, way: Array) -> Array:
        """Distance from every ray (second axis) to every sphere (first axis), _FAR where it is missed."""
        to = self.balls[:, :3].T[:, :, None] - place[:, None, :]
        along = _dot(to, way[:, None, :])
        off = to - along * way[:, None, :]
        radius = self.balls[:, 3][:, None]
        depth = radius * radius - _dot(off, off)
        half = np.sqrt(np.maximum(depth, _F(0)))
        first, second = along - half, along + half
        t = np.where(first < _NEAR, second, first)
        return np.where((depth > 0) & (t >= _NEAR), t, _FAR)

    def lamp_ahead(self, place: Array, way: Array) -> Array:
        """Distance to the lamp's shining side, _FAR where a ray misses it."""
        corner, edge_u, edge_v, shine = self.rig[4:8, :, None]
        facing = _dot(way, shine)
        front = facing < -_TINY
        to = corner - place
        along = np.divide(_dot(to, shine), facing, out=np.full_like(facing, -1), where=front)
        on = along * way - to
        u, v = _dot(on, edge_u), _dot(on, edge_v)
        hit = front & (along > _NEAR) & (u >= 0) & (u <= _dot(edge_u, edge_u)) & (v >= 0) & (v <= _dot(edge_v, edge_v))
        return np.where(hit, along, _FAR)

    def passes(self, place: Array, way: Array, reach: Array) -> Array:
        """The part of the lamp's light that comes through the spheres within `reach`."""
        hit = self.spheres_ahead(place, way) < reach
        left = np.ones_like(reach)
        for number, ball in enumerate(self.balls):
            in_way = hit[number]
            if ball[7] != GLASS:
                left[in_way] = 0
                continue
            to = ball[:3, None] - place[:, in_way]
            along = _dot(to, way[:, in_way])
            k = np.maximum(_F(0), _F(1) - (_dot(to, to) - along * along) / (ball[3] * ball[3]))
            left[in_way] = left[in_way] * (_F(0.12) + _F(1.25) * k * k * k)
        return left

    def sky(self, way: Array, cloudy: Array) -> Array:
        """Light from directions ``(3, n)``, with clouds where `cloudy`."""
        h = _F(1) - np.maximum(way[1], _F(0))
        k = h * h
        k = k * k
        k = k * k * (_F(0.25) + _F(0.75) * k)
        glow = np.maximum(_F(0), _F(0.5) * way[0] - _F(0.866) * way[2])
        for _ in range(2):
            glow = glow * glow
        glow = glow * glow * k * k
        horizon, zenith = self.rig[10:12, :, None]
        colour: Array = zenith + (horizon - zenith) * k + np.array([[0.60], [0.24], [0.04]], _F) * glow
        cover = _F(0.75) * _clouds(way[:, cloudy])
        colour[:, cloudy] = colour[:, cloudy] + (np.array([[1.05], [0.56], [0.40]], _F) - colour[:, cloudy]) * cover
        return colour
