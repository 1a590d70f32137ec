"""Pictures as functions: each takes data and returns a Pillow image."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from regraft.bundle.bundle import Bundle, Prediction
from regraft.bundle.heatmap import heat_map
from regraft.core.errors import DataError, nearest
from regraft.core.ownership import write_output
from regraft.core.progress import printable
from regraft.data.decode import decode
from regraft.data.inputs import Photo
from regraft.data.scan import Dataset
from regraft.data.sources import read_bytes

TILE = 220  # pixels
COLUMNS = 6
GAP = 14
CAPTION = 26
SEAM = 6  # pixels between filters
LONGEST = 400  # letters of a line that are measured at all
INK, PAPER, MUTED = "#1c1f23", "#ffffff", "#6b7280"
CORRECT, WRONG = "#1a7f4b", "#c2342b"
GLOW = (  # red, green and blue of a heat of 0..255: from violet through orange to yellow
    lambda level: min(255, 70 + 2 * level),
    lambda level: max(0, min(255, 2 * level - 200)),
    lambda level: max(0, 140 - 2 * level),
)
GLOWING = 0.6  # of the hottest place's colour, how much is heat


@dataclass(frozen=True)
class Tile:
    """A photo with a caption below it, and an optional bar above the caption.

    Attributes:
        photo: Cut to a square when it is drawn.
        caption: The line below it.
        colour: Of caption and bar.
        bar: Length of the bar, 0..1; None for no bar.
        detail: At the right of the caption.
        note: A line below the caption.
    """

    photo: Image.Image
    caption: str
    colour: str = INK
    bar: float | None = None
    detail: str = ""
    note: str = ""


def dataset_grid(dataset: Dataset, *, per_class: int = 6, max_classes: int = 12) -> Image.Image:
    """Show a row of example photos for each class. Every place holds a photo: classes with few photos have short rows.

    Args:
        dataset: The photos.
        per_class: Photos in a row at most.
        max_classes: Rows at most; the title says where there are more classes.
    """
    rows = []
    for label, name in list(enumerate(dataset.classes))[:max_classes]:
        members = [i for i in range(len(dataset)) if dataset.labels[i] == label]
        step = max(1, len(members) // per_class)
        photos = [decode(dataset.read(i), at_least=TILE) for i in members[::step][:per_class]]
        rows.append((f"{name}  ({len(members)} photos)", [Tile(photo, "") for photo in photos]))
    hidden = len(dataset.classes) - max_classes
    title = f"{len(dataset)} photos of {len(dataset.classes)} classes"
    return _stack(title + (f", the first {max_classes} shown" if hidden > 0 else ""), rows)


def prediction_grid(predictions: Sequence[tuple[Path, str, Prediction]], *, columns: int = 6) -> Image.Image:
    """Show photos with label and probability: green where the model agrees with the given label, red where not.

    Args:
        predictions: Path, true label and prediction of each photo.
        columns: Photos in a row.
    """
    tiles = []
    for path, label, prediction in predictions:
        is_correct = prediction.label == label
        tiles.append(
            Tile(
                decode(read_bytes(path), at_least=TILE),
                f"{prediction.label}  {100 * prediction.probability:.1f} %",
                CORRECT if is_correct else WRONG,
                prediction.probability,
                "" if is_correct else f"is {label}",
            )
        )
    num_right = sum(label == prediction.label for _, label, prediction in predictions)
    rows = [("", tiles[start : start + columns]) for start in range(0, len(tiles), columns)]
    return _stack(f"{num_right} of {len(tiles)} photos it has not seen are named right", rows)


def photo_grid(
    photos: Sequence[Image.Image], captions: Sequence[str] = (), *, title: str = "", columns: int = COLUMNS
) -> Image.Image:
    """Show photos side by side, each cut to a square.

    Args:
        photos: In the order in which they are shown.
        captions: A line below each photo, or none at all.
        title: Above them.
        columns: Photos in a row.
    """
    named = zip(photos, captions or [""] * len(photos), strict=True)
    tiles = [Tile(photo.convert("RGB"), caption) for photo, caption in named]
    return _stack(title, [("", tiles[start : start + columns]) for start in range(0, len(tiles), columns)])


def contact_sheet(dataset: Dataset, title: str, findings: Sequence[tuple[Sequence[int], str]]) -> Image.Image:
    """Show photos and what was found about them: those that belong together in a row, single ones side by side.

    Args:
        dataset: The photos.
        title: Above them.
        findings: Indices of photos, and a sentence.
    """

    def tile(index: int, note: str = "") -> Tile:
        name = Path(dataset.paths[index]).name if note else dataset.paths[index]
        return Tile(decode(dataset.read(index), at_least=TILE), name, note=note)

    if all(len(photos) == 1 for photos, _ in findings):
        tiles = [tile(photos[0], text) for photos, text in findings]
        return _stack(title, [("", tiles[start : start + COLUMNS]) for start in range(0, len(tiles), COLUMNS)])
    rows = []
    for photos, text in findings:
        more = f", {len(photos) - COLUMNS} more" if len(photos) > COLUMNS else ""
        rows.append((text + more, [tile(i) for i in photos[:COLUMNS]]))
    return _stack(title, rows)


def heat_picture(bundle: Bundle, photo: Photo, label: str | None = None) -> Image.Image:
    """Show a photo, as the network sees it, glowing where the model looks.

    Args:
        bundle: The model.
        photo: As `Bundle.predict` takes it.
        label: The class that places speak for; None for the one that is predicted.

    Raises:
        DataError: The photo cannot be read, or the model does not know the class.
    """
    image = bundle.to_input(photo)
    chosen = bundle.predict(photo).label if label is None else label
    if chosen not in bundle.classes:
        raise DataError(f"The model knows no class {chosen!r}.{nearest(chosen, bundle.classes)}")
    return heat_overlay(image, heat_map(bundle, image, bundle.classes.index(chosen)))


def heat_overlay(image: np.ndarray, heat: np.ndarray) -> Image.Image:
    """Grey a photo where its heat is low or below 0, and let it glow where its heat is highest.

    Args:
        image: `(H, W, 3)` uint8.
        heat: `(h, w)`, as `heat_map` gives it.
    """
    photo = Image.fromarray(image)
    warm = np.maximum(heat, 0) / max(float(heat.max()), 1e-12)
    mask = Image.fromarray((255 * warm).astype(np.uint8)).resize(photo.size, Image.Resampling.BICUBIC)
    glow = Image.merge("RGB", [mask.point(channel) for channel in GLOW])
    share = mask.point(lambda level: round(GLOWING * level))
    return Image.composite(glow, ImageOps.grayscale(photo).convert("RGB"), share)


def filter_grid(weight: np.ndarray, *, tile: int = 36) -> Image.Image:
    """Show the filters of a first layer as colours, each stretched to full contrast, with nothing between them.

    Args:
        weight: `(K, 3, h, w)`.
        tile: Pixels of a filter's side at most, by whole factors; filters larger than that keep their size.
    """
    low, high = (end(axis=(1, 2, 3), keepdims=True) for end in (weight.min, weight.max))
    pixels = (255 * (weight - low) / np.maximum(high - low, 1e-12)).astype(np.uint8).transpose(0, 2, 3, 1)
    factor = max(1, tile // pixels.shape[1])
    columns, side = min(len(pixels), 16), factor * pixels.shape[1]
    step = side + SEAM
    picture = Image.new("RGBA", (columns * step - SEAM, -(-len(pixels) // columns) * step - SEAM))
    for number, one in enumerate(pixels):
        shown = Image.fromarray(one).resize((side, side), Image.Resampling.NEAREST)
        picture.paste(shown, (number % columns * step, number // columns * step))
    return picture


def save_picture(picture: Image.Image, path: Path) -> Path:
    """Write a PNG, whole or not at all, and return its path.

    Raises:
        OutputError: It cannot be written, or something else is there, which stays.
    """
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    write_output(path, buffer.getvalue())
    return path


def _stack(title: str, rows: Sequence[tuple[str, Sequence[Tile]]]) -> Image.Image:
    """Draw rows of tiles below a title; a row may have a heading of its own."""
    columns = max(len(tiles) for _, tiles in rows)
    with_captions = any(tile.caption for _, tiles in rows for tile in tiles)
    with_notes = any(tile.note for _, tiles in rows for tile in tiles)
    height = TILE + GAP + (CAPTION + 10 if with_captions else 0) + (CAPTION - 6 if with_notes else 0)
    heights = [height + (CAPTION if heading else 0) for heading, _ in rows]
    y = GAP + (GAP + CAPTION if title else 0)
    picture = Image.new("RGB", (columns * (TILE + GAP) + GAP, y + sum(heights)), PAPER)
    draw = ImageDraw.Draw(picture)
    _text(draw, (GAP, GAP), title, 20, INK, picture.width - 2 * GAP)
    for (heading, tiles), row_height in zip(rows, heights, strict=True):
        top = y
        if heading:
            _text(draw, (GAP, top), heading, 16, MUTED, picture.width - 2 * GAP)
            top += CAPTION
        for column, tile in enumerate(tiles):
            _draw_tile(picture, draw, tile, GAP + column * (TILE + GAP), top)
        y += row_height
    return picture


def _draw_tile(picture: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, x: int, y: int) -> None:
    picture.paste(ImageOps.fit(tile.photo, (TILE, TILE), Image.Resampling.LANCZOS), (x, y))
    if tile.bar is not None:
        draw.rectangle((x, y + TILE, x + TILE - 1, y + TILE + 5), fill="#e5e7eb")
        draw.rectangle((x, y + TILE, x + round(tile.bar * (TILE - 1)), y + TILE + 5), fill=tile.colour)
    if tile.caption:
        _text(draw, (x, y + TILE + 9), tile.caption, 16, tile.colour, TILE)
    if tile.detail:
        width = draw.textlength(tile.detail, font=ImageFont.load_default(14))
        _text(draw, (x + TILE - width, y + TILE + 11), tile.detail, 14, MUTED, TILE)
    if tile.note:
        _text(draw, (x, y + TILE + 9 + CAPTION - 6), tile.note, 14, MUTED, TILE)


def _text(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, colour: str, width: float) -> None:
    """Write one line, shortened with an ellipsis where it does not fit."""
    font, text = ImageFont.load_default(size), printable(text[:LONGEST])
    while len(text) > 1 and draw.textlength(text, font=font) > width:
        text = text[:-2].rstrip() + "…"
    draw.text(at, text, font=font, fill=colour)
