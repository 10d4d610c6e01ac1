"""The demonstration's picture through the CPU back end against the NumPy reference, and the reference's own parts."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.execution._cpu import CpuBackend
from p2pcompute_testnet import _pathtracer_reference
from p2pcompute_testnet._pathtracer import scene
from p2pcompute_testnet._pathtracer_reference import philox4x32, reference_pixels, reference_radiance
from p2pcompute_testnet._pathtracer_scene import GLASS, MIRROR, Picture, rig, spheres

SMALL = Picture(width=64, height=36, side=2)


@pytest.fixture(scope="module")
def backend():
    return CpuBackend()


def render(backend, picture, *, linear=False):
    """The whole picture through `run_blocks` in uneven chunks, put together by thread order."""
    made = scene(picture, linear=linear)
    binding = made.kernel.bind(*made.args)
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    across, down, _ = binding.launch.grid
    wide, high, _ = binding.launch.block
    parts = []
    first = 0
    while first < binding.launch.blocks:
        blocks = min(5, binding.launch.blocks - first)
        rows = np.zeros((blocks * wide * high, 3), made.args[0].dtype)
        compiled.run_blocks(first, blocks, binding.values, [rows])
        parts.append(rows)
        first += blocks
    whole = np.concatenate(parts).reshape(down, across, high, wide, 3).transpose(0, 2, 1, 3, 4)
    return whole.reshape(down * high, across * wide, 3)[: picture.height, : picture.width]


def places(picture):
    return np.divmod(np.arange(picture.width * picture.height), picture.width)


def test_every_pixel_is_the_references(backend):
    image = render(backend, SMALL)
    assert image.dtype == np.uint8
    assert image.std() > 20  # a picture, and no blank one
    np.testing.assert_array_equal(image.reshape(-1, 3), reference_pixels(SMALL, *places(SMALL)))


@pytest.mark.parametrize(
    "picture",
    [
        SMALL,
        Picture(width=50, height=33, side=4, depth=3, seed=2**32 - 1),
        Picture(width=17, height=16, side=3, seed=7),
    ],
)
def test_radiance_is_the_references_to_the_last_bit(backend, picture):
    """Rounding to 256 steps hides most differences in the last place; the float32 radiance shows them."""
    radiance = render(backend, picture, linear=True)
    expected = reference_radiance(picture, *places(picture))
    assert radiance.dtype == expected.dtype == np.float32
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(radiance.reshape(-1, 3).view(np.uint32), expected.view(np.uint32))


def test_a_sum_in_another_order_is_seen_in_the_radiance_and_hidden_by_the_display(monkeypatch):
    """Why the test above compares radiance: (a + b) + c against a + (b + c), at every dot product."""
    expected, shown = reference_radiance(SMALL, *places(SMALL)), reference_pixels(SMALL, *places(SMALL))
    monkeypatch.setattr(_pathtracer_reference, "_dot", lambda a, b: a[0] * b[0] + (a[1] * b[1] + a[2] * b[2]))
    assert (reference_radiance(SMALL, *places(SMALL)) != expected).any(axis=1).mean() > 0.3
    assert (reference_pixels(SMALL, *places(SMALL)) != shown).any(axis=1).mean() < 0.01


def test_another_place_in_the_launch_gives_the_same_pixel(backend):
    """What a check of a sample does: single threads, by id, in any order."""
    made = scene(SMALL)
    binding = made.kernel.bind(*made.args)
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    block, lane = np.array([7, 0, 5, 2, 7]), np.array([3, 255, 17, 129, 3])
    rows = np.zeros((block.size, 3), np.uint8)
    compiled.run_threads(block * 256 + lane, binding.values, [rows])
    ys, xs = block // 4 * 16 + lane // 16, block % 4 * 16 + lane % 16
    np.testing.assert_array_equal(rows, reference_pixels(SMALL, ys, xs))


def test_arguments_reach_the_picture():
    """Seed, depth, samples and spheres change what is seen: none is ignored on both sides."""
    plain = reference_radiance(SMALL, *places(SMALL))
    gone = spheres()[1:]
    for other in (
        Picture(width=64, height=36, side=2, seed=2),
        Picture(width=64, height=36, side=2, depth=2),
        Picture(width=64, height=36, side=3),
        Picture(width=64, height=36, side=2, spheres=gone),
    ):
        assert (reference_radiance(other, *places(other)) != plain).any()


def test_scene_shows_what_it_should():
    """Glass, mirrors, and a shadow that lies on the floor and is soft: lit, half lit and dark spots across its edge."""
    materials = spheres()[:, 7]
    assert {GLASS, MIRROR, 0} == set(materials.astype(int))
    dark = Picture(width=160, height=90)
    unseen = np.array([[0, 1, 500, 1, 0, 0, 0, 0]], np.float32)  # far behind the camera
    bare = Picture(width=160, height=90, spheres=unseen)
    share = (reference_radiance(dark, *places(dark)) / reference_radiance(bare, *places(bare)))[:, 0].reshape(90, 160)
    floor = share[72:84, 70:90]  # about the shadow of the small white sphere
    assert floor.min() < 0.5
    assert floor.max() > 0.9
    assert ((floor > 0.55) & (floor < 0.85)).any()


def test_the_same_pixel_by_itself_and_among_others():
    ys, xs = places(SMALL)
    whole = reference_pixels(SMALL, ys, xs)
    picked = [1999, 3, 700]
    np.testing.assert_array_equal(reference_pixels(SMALL, ys[picked], xs[picked]), whole[picked])
    assert reference_pixels(SMALL, ys[:0], xs[:0]).shape == (0, 3)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    """The vectors that come with Random123 (kat_vectors, philox4x32 10)."""
    assert tuple(int(word) for word in philox4x32(counter, key)) == expected


@given(st.tuples(*[st.integers(0, 2**32 - 1)] * 4), st.tuples(*[st.integers(0, 2**32 - 1)] * 2))
def test_philox_is_the_languages(counter, key):
    from p2pcompute.random import philox

    assert tuple(int(word) for word in philox4x32(counter, key)) == philox(*counter, *key)


def test_reference_needs_neither_numba_nor_the_kernel():
    code = (
        "import sys, numpy as np\n"
        "from p2pcompute_testnet._pathtracer_reference import reference_pixels\n"
        "from p2pcompute_testnet._pathtracer_scene import Picture\n"
        "reference_pixels(Picture(width=4, height=4), np.array([1]), np.array([2]))\n"
        "print(sorted(n for n in sys.modules if n.split('.')[0] in ('numba', 'llvmlite') or n.endswith('_pathtracer')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"width": 0}, "pixels"),
        ({"height": 20_000}, "pixels"),
        ({"side": 0}, "side"),
        ({"depth": 65}, "depth"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"spheres": np.zeros((3, 7), np.float32)}, "spheres"),
        ({"spheres": np.zeros((3, 8))}, "spheres"),
        ({"spheres": np.zeros((0, 8), np.float32)}, "spheres"),
    ],
)
def test_impossible_pictures_are_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        Picture(**arguments)


@pytest.mark.parametrize(
    ("ys", "xs"), [([36], [0]), ([0], [64]), ([-1], [0]), ([0], [-1]), ([0, 1], [0]), ([[0]], [[0]])]
)
def test_places_outside_are_refused(ys, xs):
    with pytest.raises(ValueError, match=r"outside|shape"):
        reference_pixels(SMALL, np.array(ys), np.array(xs))


def test_rig_is_square_and_of_one_scale():
    made = rig(1280, 720)
    right, up, forward = made[1:4].astype(float)
    assert abs(right @ up) < 1e-6
    assert abs(right @ forward) < 1e-6
    assert np.isclose(np.linalg.norm(right) / np.linalg.norm(up), 1280 / 720)
    edge_u, edge_v, shine = made[5:8].astype(float)
    assert abs(edge_u @ edge_v) < 1e-5
    np.testing.assert_allclose(np.cross(edge_u, edge_v) / 9, -shine, atol=1e-5)
