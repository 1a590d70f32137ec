"""The orchard's solids: ellipsoids cut by half-spaces, what light reaches them and how they are drawn.

World units are pixels, z points up, the ground is z = 0. Arrays keep coordinates and colours on their
first axis: points are (3, N), a colour is (3, 1). They are float32 unless a docstring differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image

from orchard.paint import Array, Paint, mix, noise, step

Paints = tuple[Paint, Paint]  # of skin and flesh
Gloss = tuple[float, float]  # of skin and flesh
Cuts = Sequence[tuple[float, ...]]  # (nx, ny, nz, limit) keeps n.p <= limit of the unit sphere


@dataclass(frozen=True)
class Solid:
    """An ellipsoid cut by half-spaces.

    `axes` (3, 3) takes the unit sphere to the world, `cuts` (K, 4) are as in Cuts, `skin` paints points of
    the sphere (3, N) and `flesh` points of a cut face's unit disc (2, N).
    """

    axes: Array
    cuts: Array
    skin: Paint
    flesh: Paint
    gloss: Gloss
    seed: int  # what each painting starts from
    centre: Array  # (3, 1)
    fuzz: float = 0  # width of a hairy outline
    flat: bool = False  # lies below everything else, which may cover it


def make_solid(rng: Generator, axes: Array, cuts: Cuts, paint: Paints, gloss: Gloss, **more: Any) -> Solid:
    """A solid at the origin."""
    planes, seed = np.array(cuts, np.float32).reshape(-1, 4), int(rng.integers(1 << 30))
    return Solid(axes, planes, *paint, gloss, seed, np.zeros((3, 1), np.float32), **more)


def direction(azimuth: float, elevation: float) -> Array:
    """The unit vector (3,) at these angles in degrees; elevation 90 is straight up."""
    a, e = np.radians(azimuth), np.radians(elevation)
    return np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)], np.float32)


def _frame(n: Array) -> Array:
    """A rotation (3, 3) whose last column points along n."""
    x, y, z = n / np.linalg.norm(n)
    s = np.copysign(1, z)
    a = -1 / (s + z)
    rows = (1 + s * x * x * a, x * y * a, x), (s * x * y * a, s + y * y * a, y), (-s * x, -y, z)
    return np.array(rows, np.float32)


def aim(radii: Array, local: Array, world: Array, roll: float) -> Array:
    """Axes (3, 3) of an ellipsoid turned so that its own direction `local` points along `world`."""
    spin = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    return np.asarray(_frame(world) @ spin @ _frame(local).T * radii, np.float32)


def apply(matrix: Array, points: Array) -> Array:
    """The product of a matrix (..., K) and points (K, N), without the threads that BLAS would start."""
    return np.asarray(np.einsum("...k,kn->...n", matrix, points))


@lru_cache(maxsize=1)
def _ball() -> Array:
    """Points (3, 1400) spread through the unit ball, denser near its surface."""
    i = np.arange(1400) + 0.5
    z, turn = 1 - i / 700, i * 2.399963
    shell = np.stack([np.sqrt(1 - z * z) * np.cos(turn), np.sqrt(1 - z * z) * np.sin(turn), z])
    return np.asarray(shell * np.sqrt(1 - i.astype(int) % 7 / 7), np.float32)


def extent(solid: Solid) -> Array:
    """Points (3, N) that fill the solid, to measure it by."""
    ball = _ball().copy()
    for cut in [*solid.cuts, *solid.cuts]:  # push what is cut away back onto the plane
        ball -= np.maximum(apply(cut[:3], ball) - cut[3], 0) * cut[:3, None]
    return apply(solid.axes, np.compress((ball * ball).sum(0) < 1.001, ball, axis=1)) + solid.centre


def _span(solid: Solid, points: Array, rays: Array) -> tuple[Array, Array, Array]:
    """Where lines from points (3, N) along rays (3, R) enter and leave the solid, in ray lengths, and a field
    that is positive where they meet its ellipsoid; each (R, N)."""
    inverse = np.linalg.inv(solid.axes)
    o, d = apply(inverse, points - solid.centre), inverse @ rays
    a, b = (d * d).sum(0)[:, None], apply(d.T, o)
    meets = b * b - a * ((o * o).sum(0) - 1)
    root = np.sqrt(np.maximum(meets, 0))
    enter, leave = (-b - root) / a, (root - b) / a
    for cut in solid.cuts:
        slope = (cut[:3] @ d)[:, None] + np.float32(1e-7)
        t = (cut[3] - apply(cut[:3], o)) / slope
        leave = np.where(slope > 0, np.minimum(leave, t), leave)
        enter = np.where(slope > 0, enter, np.maximum(enter, t))
    return enter, leave, meets


@dataclass(frozen=True)
class Light:
    """A sun or lamp and the sky: rays (3, R) to places on each, and their colours (3, 1)."""

    main: Array  # (3,), to the sun's middle
    sun: Array
    sun_colour: Array
    sky: Array
    sky_colour: Array
    dapple: float  # shade thrown by leaves above, 0 to 1
    bounce: Array  # (3, 1), what the ground sends up


def draw_light(rng: Generator) -> Light:
    """A light at random: direction, softness, colour and share of sky."""
    main, share = direction(rng.uniform(0, 360), rng.uniform(28, 72)), rng.uniform(0.25, 0.75)
    turn, spread = np.arange(5) * 1.257, rng.uniform(0.03, 0.3) * (0.4 + share)
    sun = main[:, None] + _frame(main)[:, :2] @ np.stack([np.cos(turn), np.sin(turn)]) * spread
    sky = np.stack([direction(137.5 * i, 15 + 10 * i) for i in range(7)], axis=1)
    tint = np.exp2(rng.normal(0, 0.16) * np.array([[1.0], [0], [-1.3]])).astype(np.float32)
    blue = np.array([[0.95], [1], [1.1]], np.float32) * tint**-0.4
    sun = np.asarray(sun / np.linalg.norm(sun, axis=0), np.float32)
    dapple = rng.uniform(0.3, 0.85) * (rng.random() < 0.2)
    return Light(main, sun, (1.25 - share) * 1.5 * tint, sky, share * blue, dapple, 0 * tint)


def _light_past(solids: Sequence[Solid], points: Array, rays: Array) -> Array:
    """The share (N,) of light from along rays (3, R) that reaches points (3, N) past the solids. It fades on
    its way through them, which makes for soft edges."""
    thick = np.zeros((rays.shape[1], points.shape[1]), np.float32)
    for solid in solids:
        enter, leave, _ = _span(solid, points, rays)
        way = np.maximum(leave - np.maximum(enter, 0), 0)
        thick += way / (np.linalg.norm(solid.axes, axis=0).min() * 0.25 + 0.5)
    return np.asarray(np.exp(-thick).mean(0))


def shades(other: Solid, solid: Solid) -> bool:
    """Whether another solid is near enough to throw a shadow on this one."""
    reach = 1.3 * (np.linalg.norm(solid.axes) + np.linalg.norm(other.axes))
    return other is not solid and not other.flat and bool(np.linalg.norm(other.centre - solid.centre) < reach)


def light_on(points: Array, solids: Sequence[Solid], light: Light) -> Array:
    """Shares (2, h, w) of sun and sky that reach points (3, h, w) past solids, from every fourth pixel."""
    few, (h, w) = points[:, 2::4, 2::4], points.shape[1:]
    if not solids and not light.dapple:
        return np.ones((2, h, w), np.float32)
    flat = few.reshape(3, -1)
    shares = np.stack([_light_past(solids, flat, rays) for rays in (light.sun, light.sky)])
    if light.dapple:
        u, v = apply(0.2 * _frame(light.main).T[:2], flat)
        shares[0] *= 1 - light.dapple * step(-0.3, 0.5, noise(default_rng(0), u, v))
    images = (Image.fromarray(a.reshape(few.shape[1:])) for a in shares)
    return np.stack([np.asarray(image.resize((w, h), Image.Resampling.BILINEAR)) for image in images])


def _distance(values: Array) -> Array:
    """Signed distance in pixels, more or less, to the zero line of a field (h, w)."""
    down, right = np.gradient(values)
    return np.asarray(values / (np.sqrt(down**2 + right**2) + 1e-6))


def _surface(solid: Solid, points: Array) -> tuple[Array, Array, Array]:
    """Albedo (3, N), unit normal (3, N) and whether it is flesh (N,) at points (3, N) of the surface."""
    inverse = np.linalg.inv(solid.axes)
    p = apply(inverse, points - solid.centre)
    gap, face = 1 - (p * p).sum(0), np.zeros(p.shape[1], np.int8)
    for k, cut in enumerate(solid.cuts, start=1):
        here = cut[3] - apply(cut[:3], p)
        face[here < gap], gap = k, np.minimum(gap, here)
    albedo, normal = np.empty_like(p), np.empty_like(p)
    for k in np.unique(face):
        on = np.flatnonzero(face == k)
        paint, q = solid.skin, np.take(p, on, axis=1)
        normal[:, on] = apply(inverse.T, q)
        if k:
            n, limit = solid.cuts[k - 1, :3], solid.cuts[k - 1, 3]
            paint, q = solid.flesh, apply(_frame(n).T[:2] / np.sqrt(1 - limit**2), q)
            normal[:, on] = (n @ inverse)[:, None]
        albedo[:, on] = paint(default_rng(solid.seed), q)
    return albedo, normal / np.sqrt((normal * normal).sum(0) + 1e-12), face > 0


def _shade(solid: Solid, points: Array, light: Light, shares: Array, rise: Array, eye: Array) -> Array:
    """Light (3, N) from points of a solid to the eye; they get shares (2, N) of sun and sky, and `rise` (N,)
    of what the ground sends up."""
    albedo, normal, flesh = _surface(solid, points)
    (sun, sky), up, graze = shares, normal[2], 1 - np.clip(apply(eye, normal), 0, 1)
    if solid.fuzz:  # hair catches light at grazing angles
        albedo *= np.where(flesh, 1, 1 + 0.9 * graze**2 * graze)
    key = sun * np.clip(0.92 * apply(light.main, normal) + 0.08, 0, 1)
    diffuse = key * light.sun_colour + sky * (0.55 + 0.45 * up) * light.sky_colour
    diffuse += (0.5 - 0.5 * up) * rise * light.bounce
    broad = np.clip(apply(_frame(light.main + eye)[:, 2], normal), 0, 1) ** 8
    shine = sun * (0.5 * broad**6 + 0.06 * broad) * light.sun_colour + 0.3 * sky * graze**4 * light.sky_colour
    gloss = np.array(solid.gloss, np.float32)[flesh.astype(np.int8)]
    return np.asarray(albedo * diffuse + gloss * shine)


def draw(image: Array, ground: Array, solid: Solid, near: list[Solid], light: Light, eye: Array) -> None:
    """Draw one solid over the image (3, H, W) of the ground behind it, in the shade of others near it."""
    (h, w), (x, y, z) = image.shape[1:], extent(solid)
    column, row = x + w / 2, h / 2 - y * eye[2] + z * eye[1]
    rows, columns = (slice(max(int(t.min()) - 4, 0), max(int(t.max()) + 5, 0)) for t in (row, column))
    image, ground = image[:, rows, columns], ground[:, rows, columns]
    if min(image.shape) < 3:
        return
    spans = _span(solid, ground.reshape(3, -1), eye[:, None])
    enter, leave, meets = (a.reshape(image.shape[1:]) for a in spans)
    cover = np.clip(_distance(meets) / (1 + solid.fuzz) + 0.5, 0, 1)
    if solid.cuts.size:
        cover = np.minimum(cover, np.clip(_distance(leave - enter) + 0.5, 0, 1))
    on, points = cover > 0.01, ground + leave * eye[:, None, None]
    maps = (points, light_on(points, near, light))
    points, shares = (np.compress(on.ravel(), a.reshape(-1, on.size), axis=1) for a in maps)
    rise = 0.25 + 0.75 * np.clip((points[2] - z.min()) / (np.ptp(z) + 1) * 1.6, 0, 1)  # dark below
    colour = _shade(solid, points, light, shares, rise, eye)
    for canvas, paint in zip(image, colour, strict=True):
        canvas[on] = mix(canvas[on], paint, cover[on])
