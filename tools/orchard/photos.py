"""The orchard: the demo data set of kiwi and watermelon photos, which this module draws itself.

Everything in a photo (fruit, slice, orange, plate, board, knife, leaf) is one primitive: an ellipsoid cut
by half-spaces, ray-cast by an orthographic camera that looks down on the ground. Light, ground, clutter,
places and sizes are drawn without a look at the label, so only the shape and texture of the fruit tell the
classes apart.

World units are pixels, z points up, the ground is z = 0. Arrays keep coordinates and colours (linear RGB, 0
to 1) on their first axis: points are (3, N), a colour is (3, 1). They are float32 unless a docstring differs.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image, ImageFilter

from orchard.paint import (
    Array,
    cloth,
    grass,
    kiwi_flesh,
    kiwi_skin,
    knife,
    leaf,
    melon_flesh,
    melon_skin,
    peel,
    plate,
    step,
    stone,
    wood,
)
from orchard.solids import (
    Cuts,
    Light,
    Solid,
    aim,
    apply,
    direction,
    draw,
    draw_light,
    extent,
    light_on,
    make_solid,
    shades,
)

CLASSES = ("kiwi", "watermelon")
SPLITS = ("train", "val")
SIZES = ((500, 375), (375, 500), (500, 333), (333, 500), (400, 300), (300, 400), (450, 300), (640, 480))

X, Y, Z = np.eye(3, dtype=np.float32)
BOX = 0.55  # a box is the unit sphere cut at +-BOX on each axis; its corners stay inside the sphere
Place = tuple[float, float, float]  # a ground point and the reach of what lies there
FRUITS = {  # odds of whole, half, slice, wedge and sector of a slice; length over width, paint, gloss, fuzz
    "kiwi": ((0.28, 0.36, 0.32, 0.04, 0), (1.12, 1.38), (kiwi_skin, kiwi_flesh), (0.08, 0.5), 0.02),
    "watermelon": ((0.26, 0.26, 0.2, 0.14, 0.14), (0.98, 1.45), (melon_skin, melon_flesh), (0.35, 0.3), 0),
}
SHEETS = (  # paint, half-sizes as parts of the photo's short side, gloss, whether a box; trays come first
    (plate, (0.42, 0.42, 0.02), 0.5, False),
    (wood, (0.33, 0.46, 0.015), 0.1, True),
    (cloth, (0.26, 0.36, 0.003), 0.05, True),
    (leaf, (0.07, 0.14, 0.006), 0.3, False),
    (knife, (0.022, 0.3, 0.012), 1.0, False),
)


def _cut(rng: Generator, form: str, eye: Array) -> tuple[Cuts, Array, Array]:
    """The cuts that make a form, and which of its own directions points where in the world."""
    facing = eye * rng.uniform(0.2, 1) + Z * rng.uniform(0, 1.2) + rng.normal(0, 0.25, 3)
    if form == "whole":
        tilt = rng.normal(0, 12) if rng.random() < 0.5 else rng.uniform(0, 90)
        return [], Z, direction(rng.uniform(0, 360), tilt)
    if form == "half":
        along = Z if rng.random() < 0.55 else X
        return [(*along, rng.uniform(-0.12, 0.12))], along, facing
    a, thick, at = np.radians(rng.uniform(28, 62)), rng.uniform(0.06, 0.17), rng.uniform(-0.35, 0.35)
    sector = [(-np.sin(a), np.cos(a), 0.0, 0.0), (-np.sin(a), -np.cos(a), 0.0, 0.0)]
    if form == "wedge":
        return sector, X, rng.normal(0, 0.3, 3) - Z - 0.2 * eye
    slab = [(0.0, 0.0, 1.0, at + thick), (0.0, 0.0, -1.0, thick - at)]
    lying = Z + rng.normal(0, 0.1, 3)
    return slab + sector * (form == "sector"), Z, lying if rng.random() < 0.6 else facing


def _fruit(rng: Generator, label: str, radius: float, eye: Array) -> Solid:
    """One piece of kiwi or watermelon at the origin."""
    odds, long, paint, gloss, fuzz = FRUITS[label]
    form = str(rng.choice(("whole", "half", "slice", "wedge", "sector"), p=odds))
    cuts, local, world = _cut(rng, form, eye)
    size = radius * {"wedge": 1.2, "sector": 1.6}.get(form, 1)
    axes = aim(size * np.array([1, 1, rng.uniform(*long)]), local, world, rng.uniform(0, 6.3))
    return make_solid(rng, axes, cuts, paint, gloss, fuzz=fuzz * size)


def _round(rng: Generator, radius: float) -> Solid:
    """An orange, lime, tomato, potato, plum, egg, ball or the like at the origin."""
    radii, up = radius * np.array([1, 1, rng.choice((0.95, 1, 1.25))]), rng.uniform(-20, 90)
    axes = aim(radii, Z, direction(rng.uniform(0, 360), up), 0)
    return make_solid(rng, axes, (), (peel, peel), (rng.choice((0.03, 0.3, 0.5)), 0))


def _sheet(rng: Generator, kind: int, s: float) -> Solid:
    """A flat thing at the origin, painted on its upper side; s is the photo's short side."""
    paint, sides, gloss, box = SHEETS[kind]
    cuts = [(*n, BOX) for n in (X, Y, Z, -X, -Y, -Z)] if box else [(0, 0, 1, 0.1)]
    radii = np.array(sides) * (s * rng.uniform(0.75, 1.25)) / (BOX if box else 1)
    axes = aim(radii, Z, Z + rng.normal(0, 0.01, 3), rng.uniform(0, 6.3))
    return make_solid(rng, axes, cuts, (paint, paint), (gloss, gloss), flat=True)


def _clutter(rng: Generator, s: float) -> Solid:
    if rng.random() < 0.58:
        return _round(rng, s * rng.uniform(0.075, 0.23))
    return _sheet(rng, rng.choice((2, 3, 4), p=(0.3, 0.45, 0.25)), s)


def _rest(solid: Solid, x: float, y: float, height: float) -> Solid:
    """The solid moved to stand at z = height around the ground point (x, y)."""
    low, high = (f(extent(solid), axis=1) for f in (np.min, np.max))
    shift = np.array([x, y, height]) - [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]]
    return replace(solid, centre=solid.centre + shift[:, None].astype(np.float32))


def _place(rng: Generator, room: Array, reach: float, taken: list[Place], near: list[Place]) -> Place | None:
    """A place for a thing of that reach, clear of those taken and beside one of `near` where there are any;
    None if a few tries find none."""
    for _ in range(12):
        x, y = rng.uniform(-0.6, 0.6, 2) * room
        if near:
            a, b, r = near[int(rng.integers(len(near)))]
            gap, turn = (r + reach) * rng.uniform(0.86, 1.2), rng.uniform(0, 6.3)
            x, y = np.clip((a + gap * np.cos(turn), b + gap * np.sin(turn)), -0.5 * room, 0.5 * room)
        if all(np.hypot(x - a, y - b) > 0.86 * (reach + r) for a, b, r in taken):
            return float(x), float(y), reach
    return None


def _arrange(rng: Generator, label: str, room: Array, eye: Array) -> Iterator[Solid]:
    """The solids on `room` = (width, depth) of ground: fruit about its middle, clutter anywhere."""
    s, height, taken = float(min(room[0], room[1] * eye[2])), 0.0, list[Place]()
    count = int(rng.choice((1, 2, 3, 4), p=(0.4, 0.3, 0.18, 0.12)))
    clutter = int(rng.choice(5, p=(0.15, 0.25, 0.3, 0.2, 0.1)))
    radius, (x, y) = s * rng.uniform(0.24, 0.42) * count**-0.3, rng.uniform(-0.15, 0.15, 2) * room
    if rng.random() < 0.5:
        yield (tray := _rest(_sheet(rng, rng.choice(3, p=(0.48, 0.32, 0.2)), s), x, y, 0))
        height = float(extent(tray)[2].max())
    things = [_fruit(rng, label, radius * rng.lognormal(0, 0.1), eye) for _ in range(count)]
    for i, thing in enumerate(things + [_clutter(rng, s) for _ in range(clutter)]):
        reach = float(np.ptp(extent(thing)[:2], axis=1).max()) / 2
        beside = (taken or [(x, y, -reach)]) if i < count else []
        place = _place(rng, room, reach, [] if thing.flat else taken, beside)
        if place:
            taken += [] if thing.flat else [place]
            yield _rest(thing, place[0], place[1], height if i < count else 0)


def _draw_ground(rng: Generator, ground: Array, solids: Sequence[Solid], light: Light) -> tuple[Array, Light]:
    """The image (3, h, w) of ground points, lit past all solids, and the light with what they send up."""
    paint = (wood, cloth, stone, grass)[rng.choice(4, p=(0.28, 0.34, 0.24, 0.14))]
    turn, zoom = rng.normal(0, 0.5) + 1.571 * rng.integers(2), min(ground.shape[1:]) * rng.uniform(0.8, 1.5)
    spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) / zoom
    albedo = paint(rng, apply(spin.astype(np.float32), ground[:2].reshape(2, -1))).reshape(ground.shape)
    (sun, sky), sunny = light_on(ground, solids, light), light.sun_colour * light.main[2]
    image = albedo * (sunny[..., None] * sun + light.sky_colour[..., None] * sky)
    return image, replace(light, bounce=0.8 * albedo.mean((1, 2))[:, None] * (sunny + light.sky_colour))


def _develop(rng: Generator, image: Array) -> Array:
    """What a camera makes of linear light (3, h, w): exposure, tone, blur and noise; (h, w, 3) uint8."""
    _, h, w = image.shape
    gain, grey = (0.28 / (image.mean() + 0.02)) ** 0.6 * 2 ** rng.normal(0, 0.3), rng.uniform(0.1, 0.4)
    x = np.linspace(0, 8, 1 << 14)
    film = np.clip(x * (2.51 * x + 0.03) / (x * (2.43 * x + 0.59) + 0.14), 0, 1) ** (1 / 2.2) * 255 + 0.5
    vignette = 1 - rng.uniform(0, 0.09) * (np.linspace(-1, 1, h)[:, None] ** 2 + np.linspace(-1, 1, w) ** 2)
    fade = gain * 2048 * (np.eye(3) * (1 - grey) + grey / 3)
    exposed = apply(fade.astype(np.float32), image.reshape(3, -1)) * vignette.ravel().astype(np.float32)
    values = np.take(film.astype(np.uint8), np.clip(exposed, 0, 16383).astype(np.int16)).reshape(3, h, w)
    photo = np.asarray(_blur(rng, Image.fromarray(np.ascontiguousarray(values.transpose(1, 2, 0)))))
    noise = rng.integers(0, 256, photo.shape, np.uint8) * np.float32(min(rng.lognormal(0.5, 0.7), 8) / 74)
    return np.asarray(np.clip(photo + (noise - noise.mean() + 0.5), 0, 255), np.uint8)


def _blur(rng: Generator, photo: Image.Image) -> Image.Image:
    """Missed focus, a shaken camera or, most often, a shallow depth of field over the photo's height."""
    (w, h), fate, unit = photo.size, rng.random(), min(photo.size) / 375
    radius = rng.uniform(0.5, 1.2 if fate < 0.14 else 2.2) * unit
    soft = photo.reduce(2).filter(ImageFilter.GaussianBlur(radius))
    soft = soft.resize((w, h), Image.Resampling.BICUBIC)
    sharp = photo.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 0.6)))
    if fate < 0.14:
        return soft
    if fate < 0.24:
        turn, t = rng.uniform(0, np.pi), np.linspace(-2.4, 2.4, 9)
        row, column = np.clip(np.round([2 + t * np.sin(turn), 2 + t * np.cos(turn)]), 0, 4).astype(int)
        return sharp.filter(ImageFilter.Kernel((5, 5), np.bincount(row * 5 + column, minlength=25).tolist()))
    far = step(0.25, 0.62, np.abs(np.linspace(0, 1, h) - rng.uniform(0.5, 0.7))) * 255
    return Image.composite(soft, sharp, Image.fromarray(np.repeat(far[:, None].astype(np.uint8), w, axis=1)))


def draw_photo(label: str, seed: int | Sequence[int], size: tuple[int, int]) -> Array:
    """A photo (height, width, 3) uint8 of what `label` (of CLASSES) names; a pure function of its arguments.

    `seed` is anything that numpy.random.SeedSequence takes, `size` is (width, height) in pixels.
    """
    rng, (w, h) = default_rng(seed), size
    eye = direction(-90, rng.choice((rng.uniform(32, 60), rng.uniform(60, 88))))
    light = draw_light(rng)
    solids = list(_arrange(rng, label, np.array([w, h / eye[2]]), eye))
    x, y = np.meshgrid(np.arange(w) + 0.5 - w / 2, (h / 2 - 0.5 - np.arange(h)) / eye[2])
    ground = np.stack([x, y, 0 * x]).astype(np.float32)
    image, light = _draw_ground(rng, ground, solids, light)
    for solid in sorted(solids, key=lambda s: (not s.flat, not s.flat and -s.centre[1, 0])):  # far ones first
        near = [other for other in solids if shades(other, solid)]
        draw(image, ground, solid, near, light, eye)
    return _develop(rng, image)


def _write_photo(root: Path, seed: int, split: str, label: str, index: int) -> None:
    """Draw one file; its bytes depend on the arguments alone."""
    source = (seed, SPLITS.index(split), CLASSES.index(label), index)
    rng = default_rng((*source, 1))
    photo = draw_photo(label, (*source, 0), SIZES[rng.integers(len(SIZES))])
    path = root / split / label / f"{label}_{index:03d}.jpg"
    hidden = path.with_name(f".{path.name}")
    Image.fromarray(photo).save(hidden, "JPEG", quality=int(rng.integers(40, 96)))
    os.replace(hidden, path)


def draw_orchard(
    root: str | Path,
    *,
    seed: int = 0,
    train_per_class: int = 120,
    val_per_class: int = 40,
    on_photo: Callable[[], None] | None = None,
) -> Path:
    """Write root/{train,val}/{kiwi,watermelon}/*.jpg, call on_photo after each file and return root.

    A file depends on the (non-negative) seed, its split, class and index, not on how many others are drawn.
    """
    root, jobs = Path(root), []
    for (split, count), label in product(zip(SPLITS, (train_per_class, val_per_class), strict=True), CLASSES):
        (root / split / label).mkdir(parents=True, exist_ok=True)
        jobs += [(root, seed, split, label, index) for index in range(count)]
    with ThreadPoolExecutor(2) as pool:  # numpy and Pillow let go of the interpreter for most of the work
        try:
            for _ in pool.map(lambda job: _write_photo(*job), jobs):
                if on_photo:
                    on_photo()
        finally:
            pool.shutdown(cancel_futures=True)  # after an interruption, leave the rest undrawn
    return root
