"""Pages: one file, every text escaped twice over, pictures inside it and small."""

import base64
import io

import numpy as np
import pytest
from jinja2 import UndefinedError
from markupsafe import Markup
from PIL import Image

from conftest import all_of, text_of, tree_of
from regraft.core.errors import OutputError
from regraft.reporting.page import jpeg, png, render, write_page

PAYLOADS = [
    "{{7*7}}",
    "{% include 'style.css' %}",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "&lt;",
]
CONTROLS = {
    "\x1b[2J": r"\x1b[2J",
    "a\x07b": r"a\x07b",
    "a\x00b": r"a\x00b",
    "a\nb": r"a\nb",
    "\x9b31m": r"\x9b31m",
    "\u202egpj.exe": r"\u202egpj.exe",
    "\u2066x\u2069": r"\u2066x\u2069",
    "a\u200bb": r"a\u200bb",
    "\udcff": r"\udcff",
}


def compared(**changes):
    """The smallest page of a comparison."""
    row = {"name": "frozen", "value": 0.9, "low": 0.8, "high": 0.95, "macro_f1": 0.9, "log_loss": 0.3, "seconds": 1.0}
    context = {"title": "t", "headline": "h", "bars": Markup("<svg></svg>"), "n": 5, "rows": [row | {"report": ""}]}
    return render("compare.html", **{**context, "pairs": (), "charts": [], "photos": [], "photos_left": 0, **changes})


def photo(**changes):
    one = {"path": "a/b.jpg", "label": "a", "thumb": "data:image/png;base64,", "answers": []}
    return {**one, **changes}


def elements(root):
    """Names of all elements but of places where a path may be broken."""
    return [one.tag for one in root.iter() if one.tag != "wbr"]


def picture_of(uri):
    head, _, data = uri.partition(";base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    return head, picture


def noise(width, height, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_texts_stand_on_the_page_as_they_are(payload):
    page = compared(title=payload, headline=payload, photos=[photo(path=payload, label=payload)])
    root = tree_of(page)
    assert text_of(root.find("head/title")) == payload
    assert text_of(all_of(root, "h1")[0]) == payload
    assert [one.get("alt") for one in root.iter("img")] == [f"{payload}, photo {payload}"]
    assert text_of(all_of(root, "span", "path")[0]) == payload
    assert elements(tree_of(compared(photos=[photo()]))) == elements(root)


@pytest.mark.parametrize(("text", "shown"), CONTROLS.items(), ids=map(ascii, CONTROLS))
def test_characters_that_nobody_sees_are_shown(text, shown):
    page = compared(title=text, photos=[photo(path=text)])
    assert text not in page
    root = tree_of(page)
    assert text_of(root.find("head/title")) == shown
    assert [one.get("alt") for one in root.iter("img")] == [f"a, photo {shown}"]


def test_charts_are_not_escaped():
    assert len(list(tree_of(compared(bars=Markup("<svg><text>&lt;</text></svg>"))).iter("svg"))) == 1


def test_a_page_allows_no_script_and_asks_nothing_of_the_network():
    root = tree_of(compared())
    (policy,) = [one.get("content") for one in root.iter("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    assert policy.split("; ") == ["default-src 'none'", "style-src 'unsafe-inline'", "img-src data:"]
    assert not list(root.iter("script")) + list(root.iter("link"))
    assert root.find("body/footer") is not None


def test_what_a_template_needs_and_does_not_get_is_an_error():
    with pytest.raises(UndefinedError):
        render("compare.html", title="t")


@pytest.mark.parametrize(
    ("size", "shown"),
    [((4000, 3000), (112, 84)), ((300, 3000), (11, 112)), ((60, 40), (60, 40)), ((5000, 1), (112, 1))],
)
def test_pictures_are_as_small_as_wanted_and_never_larger(size, shown):
    head, picture = picture_of(jpeg(noise(*size), 112))
    assert (head, picture.format, picture.size) == ("data:image/jpeg", "JPEG", shown)


def test_pictures_are_few_kilobytes_and_the_original_stays():
    original = noise(1000, 800)
    assert len(jpeg(original, 112)) < 12_000
    assert len(jpeg(original, 240)) < 50_000
    assert original.size == (1000, 800)


def test_drawings_keep_every_pixel():
    original = noise(40, 30)
    head, picture = picture_of(png(original))
    assert (head, picture.format) == ("data:image/png", "PNG")
    assert np.array_equal(np.asarray(picture), np.asarray(original))


def test_what_a_camera_wrote_beside_the_photo_does_not_get_out(tmp_path):
    exif = Image.Exif()
    exif[0x010E], exif[0x0110] = "<script>alert(1)</script>", "Secret Camera"
    noise(50, 40).save(tmp_path / "x.jpg", exif=exif, comment=b"secret comment")
    with Image.open(tmp_path / "x.jpg") as taken:
        uri = jpeg(taken, 112)
    data = base64.b64decode(uri.partition(",")[2])
    assert b"ecret" not in data
    assert b"script" not in data
    assert not picture_of(uri)[1].getexif()


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    path = write_page(tmp_path / "x.html", "<p>é</p>")
    assert path.read_text(encoding="utf-8").partition("\n")[0] == "<p>é</p>"
    write_page(path, "<p>ü</p>")
    with pytest.raises(OutputError, match="Cannot write"):
        write_page(tmp_path / "none" / "x.html", "new")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="is a directory"):
        write_page(tmp_path / "folder", "new")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["folder", "x.html"]
