"""The demonstration's picture: a small path tracer in the kernel language, one thread a pixel.

Spheres of glass, metal and lacquer stand on a polished checker floor under an evening sky and one rectangular lamp.
Light is followed as in Kajiya, "The Rendering Equation" (1986); the lamp is sampled at every diffuse hit (next-event
estimation), its mirror image in glossy coats is added without randomness, and the first random choices of a pixel's
samples are stratified, with a random rotation (Cranley and Patterson 1976). Random numbers are Philox4x32-10, counted
by (pixel, sample, bounce), so that a pixel depends on nothing but its place and the arguments.

Approximations, each there to be quiet at 16 samples a pixel: Fresnel by Schlick (1994); light passes glass straight
and dimmed on its way from the lamp, which stands for the caustic; the lamp itself is dark to rays that come from a
diffuse hit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from p2pcompute import cuda, random
from p2pcompute.kernel import Kernel, device, kernel, out

from ._pathtracer_scene import Picture

__all__ = ["Scene", "render", "scene"]

F32: TypeAlias = Any  # float32 inside a kernel
Array: TypeAlias = Any

NEAR = 1e-3  # a hit closer than this is the surface that the ray started from
FAR = 1e30
HAZE = 1200.0  # square of the distance, in metres, at which half the floor has gone into the horizon
ORDINARY = 0.04  # reflection of glass and lacquer, head on
GLASS_INDEX = 1.5


@device
def unit(u: F32) -> F32:
    """A random word as a float in [0, 1)."""
    return np.float32(u >> 8) * 5.9604644775390625e-08


@device
def stratum(u: F32, cell: F32, cells: F32) -> F32:
    """`u` squeezed into one of `cells` equal parts of [0, 1)."""
    return (np.float32(cell) + u) / np.float32(cells)


@device
def schlick(r0: F32, cosine: F32) -> F32:
    m = 1.0 - cosine
    m2 = m * m
    return r0 + (1.0 - r0) * (m2 * m2 * m)


@device
def sky(rig: Array, dx: F32, dy: F32, dz: F32) -> F32:
    """Colour of the sky without clouds, with a glow low on the right where the sun has set."""
    h = 1.0 - max(dy, 0.0)
    k = h * h
    k = k * k
    k = k * k * (0.25 + 0.75 * k)
    glow = max(0.0, 0.5 * dx - 0.866 * dz)
    glow = glow * glow
    glow = glow * glow
    glow = glow * glow * k * k
    red = rig[11, 0] + (rig[10, 0] - rig[11, 0]) * k + 0.60 * glow
    green = rig[11, 1] + (rig[10, 1] - rig[11, 1]) * k + 0.24 * glow
    blue = rig[11, 2] + (rig[10, 2] - rig[11, 2]) * k + 0.04 * glow
    return red, green, blue


@device
def lattice(ix: int, iz: int, layer: int) -> F32:
    """A random number in [0, 1) for each whole point."""
    w0, _, _, _ = random.philox(ix, iz, layer, 2, 0, 0)
    return unit(w0)


@device
def clouds(dx: F32, dy: F32, dz: F32) -> F32:
    """How much cloud there is in a direction, 0 to 1: value noise in octaves on a plane overhead."""
    cover = 0.0
    if dy > 0.0:
        k = 2.6 / (dy + 0.035)
        px = dx * k + 512.0
        pz = dz * k * 1.6 + 512.0
        weight = 0.55
        for layer in range(4):
            fx = np.floor(px)
            fz = np.floor(pz)
            ix = int(fx)
            iz = int(fz)
            fx = px - fx
            fz = pz - fz
            fx = fx * fx * (3.0 - 2.0 * fx)
            fz = fz * fz * (3.0 - 2.0 * fz)
            for corner in range(4):  # a loop keeps one copy of Philox in the compiled code
                right = corner & 1
                above = corner >> 1
                share = weight * (fx if right == 1 else 1.0 - fx) * (fz if above == 1 else 1.0 - fz)
                cover = cover + share * lattice(ix + right, iz + above, layer)
            weight = weight * 0.5
            px = px * 2.03
            pz = pz * 2.03
        cover = min(1.0, max(0.0, (cover - 0.46) * 3.0))
        cover = cover * cover * (3.0 - 2.0 * cover) * (dy / (dy + 0.02))
    return cover


@device
def sphere_hit(spheres: Array, i: int, ox: F32, oy: F32, oz: F32, dx: F32, dy: F32, dz: F32) -> F32:
    """Distance to sphere `i` along a unit direction, FAR where there is none.

    The distance between centre and ray is taken from the vector itself, which keeps its bits at long range
    (Haines and others, Ray Tracing Gems, chapter 7).
    """
    px = spheres[i, 0] - ox
    py = spheres[i, 1] - oy
    pz = spheres[i, 2] - oz
    r = spheres[i, 3]
    b = px * dx + py * dy + pz * dz
    qx = px - b * dx
    qy = py - b * dy
    qz = pz - b * dz
    d = r * r - (qx * qx + qy * qy + qz * qz)
    t = FAR
    if d > 0.0:
        s = math.sqrt(d)
        t = b - s
        if t < NEAR:
            t = b + s
            if t < NEAR:
                t = FAR
    return t


@device
def nearest(spheres: Array, ox: F32, oy: F32, oz: F32, dx: F32, dy: F32, dz: F32) -> F32:
    """Distance and number of the first thing hit: a sphere, the floor (the number after the last), or -1."""
    best = FAR
    what = -1
    n = spheres.shape[0]
    for i in range(n):
        t = sphere_hit(spheres, i, ox, oy, oz, dx, dy, dz)
        if t < best:
            best = t
            what = i
    if dy < -1e-6:
        t = -oy / dy
        if t > NEAR and t < best:
            best = t
            what = n
    return best, what


@device
def lamp_hit(rig: Array, ox: F32, oy: F32, oz: F32, dx: F32, dy: F32, dz: F32) -> F32:
    """Distance to the lamp's shining side, FAR where the ray misses it."""
    t = FAR
    facing = dx * rig[7, 0] + dy * rig[7, 1] + dz * rig[7, 2]
    if facing < -1e-6:
        px = rig[4, 0] - ox
        py = rig[4, 1] - oy
        pz = rig[4, 2] - oz
        along = (px * rig[7, 0] + py * rig[7, 1] + pz * rig[7, 2]) / facing
        if along > NEAR:
            px = along * dx - px
            py = along * dy - py
            pz = along * dz - pz
            u = px * rig[5, 0] + py * rig[5, 1] + pz * rig[5, 2]
            v = px * rig[6, 0] + py * rig[6, 1] + pz * rig[6, 2]
            uu = rig[5, 0] * rig[5, 0] + rig[5, 1] * rig[5, 1] + rig[5, 2] * rig[5, 2]
            vv = rig[6, 0] * rig[6, 0] + rig[6, 1] * rig[6, 1] + rig[6, 2] * rig[6, 2]
            if u >= 0.0 and u <= uu and v >= 0.0 and v <= vv:
                t = along
    return t


@device
def passes(spheres: Array, ox: F32, oy: F32, oz: F32, dx: F32, dy: F32, dz: F32, reach: F32) -> F32:
    """The part of light that comes through along a ray of length `reach`: glass dims it, all else stops it."""
    left = 1.0
    for i in range(spheres.shape[0]):
        t = sphere_hit(spheres, i, ox, oy, oz, dx, dy, dz)
        if t < reach:
            if spheres[i, 7] != 2.0:
                return 0.0
            px = spheres[i, 0] - ox
            py = spheres[i, 1] - oy
            pz = spheres[i, 2] - oz
            b = px * dx + py * dy + pz * dz
            r = spheres[i, 3]
            k = max(0.0, 1.0 - (px * px + py * py + pz * pz - b * b) / (r * r))
            left = left * (0.12 + 1.25 * k * k * k)
    return left


@device
def hemisphere(u: F32, v: F32, nx: F32, ny: F32, nz: F32) -> F32:
    """A direction about the normal, as likely as its cosine.

    Square to disk by Shirley and Chiu (1997), its angle within 45 degrees, where short polynomials are sine and
    cosine; disk to hemisphere by Malley; frame by Duff and others (JCGT 2017).
    """
    a = 2.0 * u - 1.0
    b = 2.0 * v - 1.0
    steep = math.fabs(b) >= math.fabs(a)
    r = b if steep else a
    q = a if steep else b
    phi = 0.0
    if r != 0.0:
        phi = 0.7853981633974483 * (q / r)
    p2 = phi * phi
    s = phi * (1.0 - p2 * (0.16666667 - p2 * (0.008333334 - p2 * 0.00019841270)))
    c = 1.0 - p2 * (0.5 - p2 * (0.041666668 - p2 * (0.0013888889 - p2 * 0.000024801587)))
    x = r * s if steep else r * c
    y = r * c if steep else r * s
    z = math.sqrt(max(0.0, 1.0 - r * r))
    g = 1.0 if nz >= 0.0 else -1.0
    m = -1.0 / (g + nz)
    k = nx * ny * m
    dx = x * (1.0 + g * nx * nx * m) + y * k + z * nx
    dy = x * (g * k) + y * (g + ny * ny * m) + z * ny
    dz = z * nz - x * (g * nx) - y * ny
    return normalized(dx, dy, dz)


@device
def normalized(x: F32, y: F32, z: F32) -> F32:
    k = 1.0 / math.sqrt(x * x + y * y + z * z)
    return x * k, y * k, z * k


@device
def tone(x: F32) -> F32:
    """Filmic curve (Narkowicz 2016), then a square root for the display: 0 to 255, to be cut to a whole number."""
    y = (x * (2.51 * x + 0.03)) / (x * (2.43 * x + 0.59) + 0.14)
    return math.sqrt(min(1.0, max(0.0, y))) * 255.0 + 0.5


@kernel
def render(image: Array, spheres: Array, rig: Array, side: int, depth: int, seed: int, linear: int) -> None:
    x, y = cuda.grid(2)
    height = image.shape[0]
    width = image.shape[1]
    if x >= width or y >= height:
        return
    pixel = y * width + x
    cells = side * side
    # Rotations of this pixel's strata, so that they don't move in step with the jitter: lamp, direction, choice.
    w0, w1, w2, w3 = random.philox(pixel, 0, 0, 1, seed, 0)
    turn_lamp = int(w0 >> 8)
    turn_way = int(w1 >> 8)
    turn_choice = int(w2 >> 8)
    sum_r = 0.0
    sum_g = 0.0
    sum_b = 0.0
    for sample in range(cells):
        w0, w1, w2, w3 = random.philox(pixel, sample, 0, 0, seed, 0)
        # A ray through a random point of this sample's cell of the pixel.
        px = (np.float32(x) + stratum(unit(w0), sample % side, side)) / np.float32(width) * 2.0 - 1.0
        py = 1.0 - (np.float32(y) + stratum(unit(w1), sample // side, side)) / np.float32(height) * 2.0
        ox = rig[0, 0]
        oy = rig[0, 1]
        oz = rig[0, 2]
        dx, dy, dz = normalized(
            rig[3, 0] + px * rig[1, 0] + py * rig[2, 0],
            rig[3, 1] + px * rig[1, 1] + py * rig[2, 1],
            rig[3, 2] + px * rig[1, 2] + py * rig[2, 2],
        )
        cell_lamp = (turn_lamp + sample) % cells
        cell_way = (turn_way + sample * 7) % cells
        cell_choice = (turn_choice + sample * 11) % cells
        thr_r = 1.0
        thr_g = 1.0
        thr_b = 1.0
        got_r = 0.0
        got_g = 0.0
        got_b = 0.0
        sees_lamp = True  # the next segment counts the lamp if it meets it
        first_choice = True
        first_diffuse = True
        for bounce in range(depth):
            t, what = nearest(spheres, ox, oy, oz, dx, dy, dz)
            if sees_lamp and lamp_hit(rig, ox, oy, oz, dx, dy, dz) < t:
                got_r = got_r + thr_r * rig[8, 0]
                got_g = got_g + thr_g * rig[8, 1]
                got_b = got_b + thr_b * rig[8, 2]
                break
            if what < 0:
                red, green, blue = sky(rig, dx, dy, dz)
                if first_diffuse:
                    k = 0.75 * clouds(dx, dy, dz)
                    red = red + (1.05 - red) * k
                    green = green + (0.56 - green) * k
                    blue = blue + (0.40 - blue) * k
                got_r = got_r + thr_r * red
                got_g = got_g + thr_g * green
                got_b = got_b + thr_b * blue
                break
            ox = ox + t * dx
            oy = oy + t * dy
            oz = oz + t * dz
            w0, w1, w2, w3 = random.philox(pixel, sample, bounce + 1, 0, seed, 0)
            material = 0.0
            if what == spheres.shape[0]:
                nx = 0.0
                ny = 1.0
                nz = 0.0
                oy = 0.0
                haze = t * t / (t * t + HAZE)
                red, green, blue = sky(rig, dx, 0.0, dz)
                got_r = got_r + thr_r * haze * red
                got_g = got_g + thr_g * haze * green
                got_b = got_b + thr_b * haze * blue
                haze = 1.0 - haze
                thr_r = thr_r * haze
                thr_g = thr_g * haze
                thr_b = thr_b * haze
                tile = 12 + ((math.floor(ox) + math.floor(oz)) & 1)
                red = rig[tile, 0]
                green = rig[tile, 1]
                blue = rig[tile, 2]
            else:
                k = 1.0 / spheres[what, 3]
                nx = (ox - spheres[what, 0]) * k
                ny = (oy - spheres[what, 1]) * k
                nz = (oz - spheres[what, 2]) * k
                nx, ny, nz = normalized(nx, ny, nz)
                red = spheres[what, 4]
                green = spheres[what, 5]
                blue = spheres[what, 6]
                material = spheres[what, 7]
            cosine = -(dx * nx + dy * ny + dz * nz)
            inside = cosine < 0.0
            if inside:
                nx = -nx
                ny = -ny
                nz = -nz
                cosine = -cosine
            cosine = min(cosine, 1.0)
            rx = dx + 2.0 * cosine * nx
            ry = dy + 2.0 * cosine * ny
            rz = dz + 2.0 * cosine * nz
            if material == 1.0:
                k = schlick(0.0, cosine)
                thr_r = thr_r * (red + (1.0 - red) * k)
                thr_g = thr_g * (green + (1.0 - green) * k)
                thr_b = thr_b * (blue + (1.0 - blue) * k)
                dx, dy, dz = normalized(rx, ry, rz)
                continue
            # Glass and lacquer: some light is mirrored at the surface, the rest goes in.
            ratio = GLASS_INDEX if inside else 1.0 / GLASS_INDEX
            squared = 1.0 - ratio * ratio * (1.0 - cosine * cosine)
            mirrored = 1.0
            if material == 0.0:
                mirrored = schlick(ORDINARY, cosine)
            elif squared > 0.0:
                root = math.sqrt(squared)
                mirrored = schlick(ORDINARY, root if inside else cosine)
            if first_diffuse and not inside:
                # The lamp's image in the surface is small and bright: add it whole, not by chance.
                hx, hy, hz = normalized(rx, ry, rz)
                t = lamp_hit(rig, ox, oy, oz, hx, hy, hz)
                if t < FAR:
                    k = mirrored * passes(spheres, ox, oy, oz, hx, hy, hz, t)
                    got_r = got_r + thr_r * k * rig[8, 0]
                    got_g = got_g + thr_g * k * rig[8, 1]
                    got_b = got_b + thr_b * k * rig[8, 2]
            choice = unit(w0)
            if first_choice:
                choice = stratum(choice, cell_choice, cells)
                first_choice = False
            if choice < mirrored:
                sees_lamp = sees_lamp and inside
                dx, dy, dz = normalized(rx, ry, rz)
                continue
            if material == 2.0:
                k = ratio * cosine - math.sqrt(max(squared, 0.0))
                thr_r = thr_r * red
                thr_g = thr_g * green
                thr_b = thr_b * blue
                dx, dy, dz = normalized(ratio * dx + k * nx, ratio * dy + k * ny, ratio * dz + k * nz)
                continue
            thr_r = thr_r * red
            thr_g = thr_g * green
            thr_b = thr_b * blue
            # Light straight from a random point of the lamp.
            u = unit(w1)
            v = unit(w2)
            if first_diffuse:
                u = stratum(u, cell_lamp % side, side)
                v = stratum(v, cell_lamp // side, side)
            lx = rig[4, 0] + u * rig[5, 0] + v * rig[6, 0] - ox
            ly = rig[4, 1] + u * rig[5, 1] + v * rig[6, 1] - oy
            lz = rig[4, 2] + u * rig[5, 2] + v * rig[6, 2] - oz
            far2 = lx * lx + ly * ly + lz * lz
            reach = math.sqrt(far2)
            lx = lx / reach
            ly = ly / reach
            lz = lz / reach
            facing = lx * nx + ly * ny + lz * nz
            shining = -(lx * rig[7, 0] + ly * rig[7, 1] + lz * rig[7, 2])
            if facing > 0.0 and shining > 0.0:
                k = passes(spheres, ox, oy, oz, lx, ly, lz, reach) * facing * shining / far2
                got_r = got_r + thr_r * k * rig[9, 0]
                got_g = got_g + thr_g * k * rig[9, 1]
                got_b = got_b + thr_b * k * rig[9, 2]
            # Onward in a random direction, for light that comes from everything else.
            u = unit(w3)
            v = unit(np.uint32(w0 ^ (w1 << 16)))
            if first_diffuse:
                u = stratum(u, cell_way % side, side)
                v = stratum(v, cell_way // side, side)
                first_diffuse = False
            dx, dy, dz = hemisphere(u, v, nx, ny, nz)
            sees_lamp = False
        sum_r = sum_r + got_r
        sum_g = sum_g + got_g
        sum_b = sum_b + got_b
    share: F32 = 1.0 / np.float32(cells)
    sum_r = sum_r * share
    sum_g = sum_g * share
    sum_b = sum_b * share
    image[y, x, 0] = sum_r if linear else tone(sum_r)
    image[y, x, 1] = sum_g if linear else tone(sum_g)
    image[y, x, 2] = sum_b if linear else tone(sum_b)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What to hand to `p2pcompute.run`: ``run(scene.kernel, *scene.args)``, which gives ``(height, width, 3)``."""

    kernel: Kernel
    args: tuple[Any, ...]
    picture: Picture


def scene(picture: Picture | None = None, *, linear: bool = False) -> Scene:
    """The kernel and its arguments for a picture; left out, 1280 x 720 with 16 samples a pixel.

    The output is uint8 for a display, or, `linear`, the float32 radiance that it is made from, which shows
    differences that rounding to 256 steps would hide.
    """
    made = picture if picture is not None else Picture()
    image = out((made.height, made.width, 3), np.float32 if linear else np.uint8)
    args = (image, made.spheres, made.rig, made.side, made.depth, made.seed, int(linear))
    return Scene(kernel=render, args=args, picture=made)
