"""The orchard's paint: noise, colours and the textures of fruit, clutter and grounds.

A paint takes a generator, fresh for each call, and points: (3, N) of the unit sphere or (2, N) of a unit
disc or of the ground. It returns albedo (3, N), linear RGB in 0..1, float32; one colour is (3, 1).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

Array = NDArray[Any]
Paint = Callable[[Generator, Array], Array]
TURN = np.float32(2 * np.pi)

# sRGB hex codes; a peel has those of its two poles and the depth of its pores in per cent
DYES = """9c423e b85a44 3a5688 5a7ca0 58785a 7a8e64 8a9a50 c4a244 d0b878 6e4a38 8a6a4e 343434 b06a80 7a3440
    d8d0c0 e4e0d8 b0b8bc c8d0d4 cbb9a0"""
PEELS = """
    d8883a dc9644 5, d07c34 dc9644 5, 7f9a3c a4b054 4, b43c34 c05844 0, a83430 a83e34 2, bec454 c4cc64 9,
    a88a5a b89a6a 9, 8a6a42 b89a6a 12, 6a4a2e 7a5a3a 16, a03634 c0a858 3, 8f2c38 c0a858 3, 8aa44a b4b45c 2,
    d8c050 ccb84c 4, 4a3042 684258 3, e0d8c8 d4b898 0, c86454 a83e34 2, 3a5c34 547c46 3, 466a3a 547c46 3"""


@lru_cache(maxsize=2)
def _tile(fine: bool) -> Array:
    """A periodic (512, 512) tile of noise with zero mean and unit deviation: clouds or fine grain."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(512), np.fft.fftfreq(512)))
    band = np.exp(-(((frequency - 0.12) / 0.06) ** 2)) if fine else np.maximum(frequency, 1 / 256) ** -1.7
    tile = np.fft.ifft2(np.fft.fft2(default_rng(7).standard_normal((512, 512))) * band).real
    return np.asarray((tile - tile.mean()) / tile.std(), np.float32)


def noise(rng: Generator, u: Array, v: Array) -> Array:
    """Clouds at texel coordinates (N,) from a random origin on, bilinear."""
    tile, u, v = _tile(fine=False).ravel(), u + rng.uniform(0, 512), v + rng.uniform(0, 512)
    top, left = np.floor(u), np.floor(v)
    a, b, i, j = u - top, v - left, top.astype(np.int32), left.astype(np.int32)
    i0, i1, j0, j1 = (i & 511) << 9, ((i + 1) & 511) << 9, j & 511, (j + 1) & 511
    above, below = tile[i0 + j0], tile[i1 + j0]
    above += (tile[i0 + j1] - above) * b
    below += (tile[i1 + j1] - below) * b
    return above + (below - above) * a


def _grain(rng: Generator, u: Array, v: Array) -> Array:
    """Grain at texel coordinates (N,) from a random origin on; the nearest texel will do."""
    i, j = ((t + (4096 + rng.uniform(0, 512))).astype(np.int32) & 511 for t in (u, v))
    return _tile(fine=True).ravel()[i * 512 + j]


def step(start: float, stop: float, x: Array) -> Array:
    """A smooth step from 0 where x is `start` to 1 where it is `stop`."""
    t = np.clip((x - start) * (1 / (stop - start)), 0, 1)
    return t * t * (3 - 2 * t)


def mix(a: Array, b: Array, t: Array) -> Array:
    """Colours a and b blended by t (N,)."""
    return np.asarray(a + (b - a) * t)


def _toned(colour: Array, tone: Array) -> Array:
    """A colour made brighter or darker by a factor exp(tone), tone (N,)."""
    return np.asarray(colour * np.exp(tone))


def _pick(rng: Generator, codes: str) -> Array:
    """One of several hex codes as a colour (3, 1), with a little hue and brightness of its own."""
    srgb = np.frombuffer(bytes.fromhex(str(rng.choice(codes.split()))), np.uint8)[:, None] / 255
    return np.asarray(srgb**2.2 * rng.lognormal(0, 0.1) * rng.lognormal(0, 0.06, (3, 1)), np.float32)


def _polar(q: Array) -> tuple[Array, Array]:
    """Radius and angle (N,) of points (2 or 3, N); 512 texels make a full turn, so noise around it closes."""
    return np.sqrt(q[0] ** 2 + q[1] ** 2), np.arctan2(q[1], q[0]) * (512 / TURN)


def _seeds(rng: Generator, q: Array, rings: Sequence[tuple[float, int]], keep: float) -> Array:
    """How far (0 to 1) points of a disc (2, N) are covered by rings (radius, count) of inward drops."""
    (r, turn), long, cover = _polar(q), 0.05, np.zeros_like(q[0])
    for radius, count in rings:
        cell = (turn / 512 + rng.random()) % 1 * count
        k = np.minimum(cell, count - 1).astype(np.int8)
        shift, out = (rng.normal(0, s, count).astype(np.float32)[k] for s in (0.14, 0.7 * long))
        across, along = (cell % 1 - 0.5 - shift) * (TURN * radius / count), (r - radius - out) / long
        drop = along**2 + (across / (0.48 * long * np.maximum(1 + 0.45 * along, 0.2))) ** 2
        cover = np.maximum(cover, step(1.35, 0.65, drop) * (rng.random(count) < keep)[k])
    return np.asarray(cover)


def kiwi_skin(rng: Generator, p: Array) -> Array:
    """Brown bark with short hair along the fruit, dark at both ends."""
    turn = _polar(p)[1]
    bark = 0.18 * _grain(rng, turn * 2, p[2] * 50) + 0.14 * noise(rng, turn, p[2] * 160)
    ends = 1 - 0.75 * step(0.975, 0.995, np.abs(p[2]))
    return _toned(_pick(rng, "7a5a34 86653a 6b4c2b 8c6e44 7d6238"), bark) * ends


def kiwi_flesh(rng: Generator, q: Array) -> Array:
    """Pale heart, bright rays, a ring of black seeds and a thin brown edge."""
    kind = rng.choice(4, p=(0.58, 0.14, 0.18, 0.1))  # green, dark, golden, red-hearted
    outer = _pick(rng, ("6f9432 7a9a38 62882e", "4f7a26 5a8430", "c8a83e c09c46", "86a044 90a650")[kind])
    inner = _pick(rng, ("90ae48 9ab654 88a842", "74983c 7ea244", "dabe5a d4b662", "a04044 a84c54")[kind])
    core, heart, count = _pick(rng, "eae8c4 e4e4b8 f0ecd2"), rng.uniform(0.17, 0.26), rng.integers(26, 40)
    (r, turn), mess = _polar(q), noise(rng, q[0] * 90, q[1] * 90)
    r = r + 0.01 * mess
    wave = noise(rng, turn, r * 12)
    rays = (0.5 + 0.5 * np.cos(turn * (TURN * float(count) / 512) + wave)) * step(0.16, 0.32, r)
    colour = mix(inner, outer, step(0.4, 0.72, r + 0.03 * wave))
    colour = mix(colour, core, 0.36 * rays * step(0.9, 0.5, r))
    colour *= 1 + 0.1 * mess - 0.2 * step(0.86, 0.97, r)
    colour = mix(colour, core, step(heart + 0.06, heart - 0.05, r + 0.012 * wave))
    seeds = _seeds(rng, q, ((0.36, 21), (0.45, 27), (0.53, 19)), 0.75)
    colour = mix(colour, _pick(rng, "1a140e"), 0.95 * seeds)
    unpeeled = rng.random() < 0.9
    return mix(colour, _pick(rng, "6b4c2b 7a5a34"), step(0.955, 0.98, r) * unpeeled)


def melon_skin(rng: Generator, p: Array) -> Array:
    """Ragged dark stripes from pole to pole."""
    turn, stripes, width = _polar(p)[1], int(rng.integers(8, 14)), rng.uniform(-0.35, 0.35)
    sway, fray = noise(rng, turn, p[2] * 70), noise(rng, turn * 6, p[2] * 420)
    wave = np.cos(turn * (TURN * stripes / 512) + 0.5 * sway) + width + rng.uniform(0.2, 0.5) * fray
    veins = 0.3 * step(0.3, 0.0, np.abs(noise(rng, turn * 4, p[2] * 200)))
    dark = np.maximum(np.maximum(step(-0.25, 0.3, wave), veins), 0.7 * (rng.random() < 0.1))
    colour = mix(_pick(rng, "a3b56c b7c481 8fa85c c0c890"), _pick(rng, "24421f 2f4f25 1c3a1f 35552a"), dark)
    return mix(colour * (1 + 0.1 * fray), _pick(rng, "8a7a4a"), 0.8 * step(0.985, 0.997, np.abs(p[2])))


def melon_flesh(rng: Generator, q: Array) -> Array:
    """Red, pink, yellow or orange with drops of seeds, then white and green rind."""
    flesh = _pick(rng, "cc4440 d04c44 c43c40 d85e52 da7068 cc4440 deb444 dc9040")
    white, green = _pick(rng, "e9eccb f0efd8 dfe6bc"), _pick(rng, "3a5e2a 2a4a20 55753a")
    edge, mess = rng.uniform(0.8, 0.9), noise(rng, q[0] * 110, q[1] * 110)
    r = _polar(q)[0] + 0.008 * mess
    cracks = step(0.1, 0.0, np.abs(noise(rng, q[0] * 45, q[1] * 45))) * step(0.75, 0.3, r)
    sugar = 0.07 * mess + 0.07 * _grain(rng, q[0] * 300, q[1] * 300)
    colour = flesh * (1 + sugar + 0.16 * cracks - 0.12 * step(0.3, 0.7, r))
    colour = mix(colour, white, step(edge - 0.09, edge + 0.04, r))
    colour = mix(colour, (white + green) / 2, step(edge + 0.02, 0.965, r))
    colour = mix(colour, green, step(0.955, 0.98, r))
    seeds = _seeds(rng, q, ((0.4, 9), (0.54, 14), (0.67, 17)), rng.choice((0.02, 0.25, 0.6, 0.8)))
    return mix(colour, _pick(rng, "15100d 1c130e 3a2212"), 0.95 * seeds)


def wood(rng: Generator, q: Array) -> Array:
    """Boards of one tree."""
    across = q[0] / rng.uniform(0.14, 0.45)
    board = np.floor(across)
    along = q[1] * 40 + 37 * board
    bend = noise(rng, q[0] * 60 + 91 * board, along)
    figure = 0.1 * np.sin(q[0] * 60 + 5 * bend) + 0.09 * _grain(rng, q[0] * 900, along) + 0.1 * bend
    figure += rng.normal(0, 0.12, 64).astype(np.float32)[board.astype(np.int32) & 63]
    gap = 0.3 + 0.7 * step(0.49, 0.465, np.abs(across - board - 0.5))
    return _toned(_pick(rng, "a9794b 8a5f38 c49a6a 6a452a d0b080 7d6a58 94816c 4a3324"), figure) * gap


def cloth(rng: Generator, q: Array) -> Array:
    """Gingham, stripes or one colour."""
    warp, weft, all_over = ((0.5, 0.5, 0), (0.9, 0, 0), (0, 0, 1), (0, 0, 1))[rng.integers(4)]
    fold, n = noise(rng, q[0] * 60, q[1] * 60), TURN * rng.uniform(3, 14)
    x, y = q[0] + 0.01 * fold, q[1] + 0.01 * fold
    dyed = all_over + warp * step(-0.15, 0.15, np.sin(n * x)) + weft * step(-0.15, 0.15, np.sin(n * y))
    thread = 0.04 * (np.sin(x * 420) + np.sin(y * 420)) + 0.05 * _grain(rng, x * 500, y * 500)
    return _toned(mix(_pick(rng, "f2efe8 e8e2d4"), _pick(rng, DYES), dyed), thread + 0.15 * fold)


def stone(rng: Generator, q: Array) -> Array:
    """Marble, slate or granite."""
    veins, specks = ((0.6, 0.03), (0.1, 0.18), (0.3, 0.08))[rng.integers(3)]
    base = _pick(rng, "e8e6e2 d8d4cc 9a9a9c 55585c 2c2e32 b8a898 6a7a6a c0b0a8")
    warp, grit = noise(rng, q[0] * 60, q[1] * 60), _grain(rng, q[0] * 420, q[1] * 420)
    line = step(0.12, 0, np.abs(noise(rng, q[0] * 50 + 8 * warp, q[1] * 50))) * step(-0.6, 1.2, warp)
    return _toned(mix(base, _pick(rng, "8a8a90 c8c8c8 a89880"), veins * line), 0.07 * warp + specks * grit)


def grass(rng: Generator, q: Array) -> Array:
    """Blades in three directions."""
    patch, blades = noise(rng, q[0] * 90, q[1] * 90), np.full_like(q[0], -9)
    for lean in rng.uniform(-0.7, 0.7, 3).astype(np.float32):
        u, v = q[0] + lean * q[1], q[1] - lean * q[0]
        blades = np.maximum(blades, _grain(rng, u * 560 + 4 * patch, v * 70))
    dark, light = _pick(rng, "34481f 3d5628 4a4a24"), _pick(rng, "86a050 94b060 b4ac64 7c9848")
    return _toned(mix(dark, light, step(-0.9, 2.6, blades + 0.4 * patch)), 0.12 * patch)


def plate(rng: Generator, q: Array) -> Array:
    """Glaze with a well and, at times, a coloured band."""
    r, well, glaze = _polar(q)[0], rng.uniform(0.6, 0.72), "f4f4f0 e8ecf0 f0e8d8 e4dccc a8b8c0 6a7a8a 8a9e70"
    band = step(0.87, 0.89, r) * step(0.95, 0.93, r) * (rng.random() < 0.4)
    slope = step(well - 0.05, well, r) * step(well + 0.06, well, r) * (1 + 0.6 * q[1] / (r + 0.01))
    colour = mix(_pick(rng, glaze), _pick(rng, DYES), 0.8 * band)
    return _toned(colour, -0.35 * slope - 0.3 * step(0.97, 1.0, r))


def leaf(rng: Generator, q: Array) -> Array:
    """A midrib with side veins."""
    vein = np.abs((q[1] * rng.uniform(5, 9) + 2.2 * np.abs(q[0])) % 1 - 0.5)
    rib = np.maximum(step(0.06, 0.02, np.abs(q[0])), 0.35 * step(0.25, 0.0, vein))
    blade = mix(_pick(rng, "3f6a2a 55803a 6a9040 7a5a30 2f5a2a"), _pick(rng, "9ab070 b0b880"), rib)
    return _toned(blade, 0.1 * noise(rng, q[0] * 80, q[1] * 80))


def knife(rng: Generator, q: Array) -> Array:
    """A steel blade and a grip."""
    steel = _pick(rng, "b4b8bc") * (1 + 0.1 * step(0.0, 0.1, q[0]))
    return mix(steel, _pick(rng, "20201f 5a3a22 8a5a34 8a2c2c"), step(0.1, 0.12, q[1]))


def peel(rng: Generator, p: Array) -> Array:
    """The skin of a round fruit or ball that is neither kiwi nor watermelon."""
    base, other, pores = str(rng.choice(PEELS.split(","))).split()
    blotch = noise(rng, p[0] * 70 + p[2] * 30, p[1] * 70 + p[2] * 40)
    bumps = 0.06 * blotch + int(pores) / 100 * _grain(rng, p[0] * 220, (p[1] + p[2]) * 200)
    colour = mix(_pick(rng, base), _pick(rng, other), step(-0.9, 1.0, 0.6 * p[2] + 0.35 * blotch))
    stalk = step(0.972, 0.988, p[2] + 0.008 * blotch)
    return _toned(mix(colour, _pick(rng, "4a4a24 5a4428"), stalk), bumps)
