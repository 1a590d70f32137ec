"""Names that want to be more than names: classes, files, folders and what a camera wrote. (Row X.)

Nothing that people open runs, fetches or draws what they say.
"""

import base64
import csv
import io
import json
import re
import time
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from commands.test_train import save_toy
from conftest import COLOURS, all_of, draw, tree_of
from faults.processes import IS_LONG
from page_checks import STICKING_OUT
from regraft.bundle.bundle import Prediction
from regraft.commands.compare import Comparison, compare
from regraft.commands.train import configure
from regraft.core.progress import Progress, printable
from regraft.reporting.plots import prediction_grid

PAYLOADS = {
    "script": "<script>alert(1)</script>",
    "script after script": "</script><script>alert(1)</script>",
    "script from elsewhere": "<SCRIPT SRC=//evil.example/x.js></SCRIPT>",
    "image": "<img src=x onerror=alert(1)>",
    "attribute": '" onmouseover="alert(1)" x="',
    "attribute in single quotes": "' onfocus='alert(1)' autofocus='",
    "svg": '"><svg onload=alert(1)>',
    "svg that moves": "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
    "frame": "<iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
    "body": "<body onload=alert(1)>",
    "details": "<details open ontoggle=alert(1)>",
    "link": "<a href='javascript:alert(1)'>x</a>",
    "address": "javascript:alert(1)",
    "refresh": "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "base": "<base href=//evil.example/>",
    "form": "<form action=//evil.example><button autofocus>x",
    "style": "</style><style>body{background:url(//evil.example/x)}</style>",
    "style of an element": "0;background:url(//evil.example/x)",
    "comment": "<!--",
    "comment that ends": "--><img src=x onerror=alert(1)>",
    "cdata": "]]><script>alert(1)</script>",
    "title": "</title><img src=x onerror=alert(1)>",
    "jinja": "{{7*7}}",
    "jinja statement": "{% for x in range(99999999) %}x{% endfor %}",
    "jinja class": "{{''.__class__.__mro__[1].__subclasses__()}}",
    "mako": "${7*7}",
    "erb": "<%= 7*7 %>",
    "format": "{0.__class__} {title} %s %n %(x)s",
    "entities": "&lt;script&gt;alert(1)&lt;/script&gt;",
    "numbers for letters": "&#60;img src=x onerror=alert(1)&#62;",
    "formula": "=cmd|' /C calc'!A0",
    "formula with plus": "+1+cmd|' /C calc'!A0",
    "formula with minus": "-2+3+cmd|' /C calc'!A0",
    "formula with at": "@SUM(1+1)*cmd|' /C calc'!A0",
    "formula after a tab": "\t=1+1",
    "formula after a separator": "x;=1+1;y",
    "formula after a quote": '","=1+1',
    "clear screen": "\x1b[2J\x1b[H",
    "window title": "\x1b]0;owned\x07",
    "terminal link": "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "bell": "\a\a\a",
    "control sequence of one byte": "\x9b31mred\x9b0m",
    "backspaces": "safe\b\b\b\bevil",
    "right to left": "\u202egpj.exe",
    "isolate": "\u2066evil\u2069",
    "nothing to see": "an\u200bt\u200d\ufeffs",
    "ten kilobytes": "A" * 10_000,
    "ten kilobytes of elements": "<b>" * 3400,
    "nul": "a\0b",
    "two lines": "two\nlines",
    "header": "a\r\nSet-Cookie: x=1",
    "line separator": "a\u2028b",
    "markdown": "`](http://evil.example) ![x](http://evil.example/x.png) [",
    "front matter": "\n---\nlicense: mine\n---\n",
    "rich": "[bold red]x[/bold red] [link=http://evil.example]y[/link]",
}
NUM_BATCHES = 3  # so that classes are few enough for a matrix
BATCHES = [list(PAYLOADS)[number::NUM_BATCHES] for number in range(NUM_BATCHES)]
NOT_UTF_8 = "\udce9t\udce9"
FORMULA = ("=", "+", "-", "@", "\t", "\r")
OUR_TAGS = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "header",
    "main",
    "section",
    "footer",
    "nav",
    "h1",
    "h2",
    "h3",
    "p",
    "a",
    "b",
    "i",
    "br",
    "wbr",
    "bdi",
    "span",
    "div",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "figure",
    "figcaption",
    "img",
    "details",
    "summary",
    "dl",
    "dt",
    "dd",
    "pre",
    "code",
    "svg",
    "line",
    "polyline",
    "circle",
    "input",
    "label",
    "text",
}


def file_name(payload: str, room: int = 200) -> str:
    """As much of a payload as a file system takes."""
    text = payload.replace("/", "|").replace("\0", "0")
    return text.encode("utf-8", "surrogateescape")[:room].decode("utf-8", "surrogateescape").strip(" ")


def as_label(payload: str) -> str:
    """Labels are compared in one form of Unicode."""
    return unicodedata.normalize("NFC", payload)


def photo_with_comment(path: Path, colour: tuple[int, int, int], seed: int, comment: str) -> None:
    """A photo whose camera has something to say."""
    draw(path, colour, seed, (48, 40))
    exif, text = Image.Exif(), comment.replace("\0", "")
    exif[0x010E] = exif[0x0110] = text.encode("utf-8", "replace").decode()
    with Image.open(path) as photo:
        photo.load()
    photo.save(path, exif=exif, comment=text.encode("utf-8", "replace"))


@dataclass(frozen=True)
class Hostile:
    """A data set of payloads and what was made of it. labels: its classes.  photos: the list that names them."""

    labels: tuple[str, ...]
    photos: Path
    compared: Comparison

    @property
    def pages(self) -> list[Path]:
        """All pages that people may open."""
        return [self.compared.page, *(run.out / "report.html" for run in self.compared.runs.values())]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return save_toy(tmp_path_factory.mktemp("toy") / "weights")


@pytest.fixture(
    scope="module",
    params=[pytest.param(number, marks=[pytest.mark.slow] if number else []) for number in range(NUM_BATCHES)],
    ids=lambda number: f"batch{number}",
)
def hostile(request, toy, tmp_path_factory):
    """Payloads as classes, files, folders and comments, trained on, the first of them in two modes. Tests must not
    change its folders."""
    names = BATCHES[request.param]
    root = tmp_path_factory.mktemp("hostile") / f"data {file_name(PAYLOADS[names[0]])}"
    rows, colours = [], list(COLOURS.values())
    for c, name in enumerate(names):
        payload = PAYLOADS[name]
        for i in range(4):
            path = f"f{c} {file_name(payload, 90)}/{i} {file_name(payload)}.jpg"
            photo_with_comment(root / path, colours[c % 4], 100 * c + i, payload)
            rows.append({"path": path, "label": payload, "split": "train" if i < 2 else "val"})
        rows.append({"path": f"{file_name(payload)}.jpg", "label": payload, "split": "train"})
    (root / "photos.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = configure(epochs=1, seed=1, **toy)
    out = root.parent / f"out {file_name(PAYLOADS[names[1]])}"
    progress = Progress(quiet=True)
    modes = ("frozen", "scratch") if IS_LONG or request.param == 0 else ("frozen",)
    compared = compare(root / "photos.jsonl", out, modes=modes, config=config, progress=progress)
    return Hostile(tuple(as_label(PAYLOADS[name]) for name in names), root / "photos.jsonl", compared)


@pytest.fixture(scope="module")
def hostile_folder(tmp_path_factory):
    """Payloads as class folders, each with photos that are its own and a file that is none."""
    root = tmp_path_factory.mktemp("hostile") / f"data {file_name(PAYLOADS['clear screen'])}"
    for c, payload in enumerate(PAYLOADS.values()):
        name = file_name(payload)
        for i in range(3):
            photo_with_comment(root / name / f"{i} {name}.jpg", list(COLOURS.values())[c % 4], 100 * c + i, payload)
        (root / name / f"bad {name}.jpg").write_text("<html>")
    return root


def test_there_are_enough_payloads():
    assert len(PAYLOADS) >= 40
    assert len(set(map(as_label, PAYLOADS.values()))) == len(PAYLOADS)
    assert max(map(len, BATCHES)) <= 20


def test_classes_are_the_payloads_themselves(hostile):
    for run in hostile.compared.runs.values():
        assert set(run.summary["classes"]) == set(hostile.labels)
        assert set(json.loads((run.out / "bundle" / "regraft.json").read_text())["classes"]) == set(hostile.labels)


PART = r"(left|top|border-style|background-position|--s):[-a-z0-9.% ]+"
MAP_STYLE = f"{PART}(;{PART})*"


def test_pages_have_no_elements_but_their_own(hostile):
    for file in hostile.pages:
        root = tree_of(file.read_text(encoding="utf-8"))
        assert {one.tag for one in root.iter()} <= OUR_TAGS
        assert not [name for one in root.iter() for name in one.attrib if name.startswith("on")]
        assert {one.get("src").partition(";")[0] for one in root.iter("img")} <= {"data:image/jpeg", "data:image/png"}
        hrefs = [one.get("href") for one in root.iter("a")]
        assert all(href.startswith("#") or re.fullmatch("[a-z]+/report.html", href) for href in hrefs)
        styles = [one.get("style") for one in root.iter() if one.get("style")]
        assert all(
            re.fullmatch(r"((left:[0-9.]+%;)?width:[0-9.]+%|background:rgba\(var\(--shade\),[0-9.]+\))", one)
            or re.fullmatch(MAP_STYLE, one)
            for one in styles
        )
        assert len(list(root.iter("style"))) == len(list(root.iter("title"))) == len(list(root.iter("h1"))) == 1


def test_pages_show_every_name_as_it_is_written(hostile):
    for run in hostile.compared.runs.values():
        root = tree_of((run.out / "report.html").read_text(encoding="utf-8"))
        names = {"".join(one.itertext()) for one in all_of(root, "td", "name")}
        assert {printable(label) for label in hostile.labels} <= names
        paths = {"".join(one.itertext()) for one in all_of(root, "span", "path")}
        listed = [json.loads(line)["path"] for line in hostile.photos.read_text().splitlines()]
        assert {printable(path) for path in listed} >= paths > set()


def test_pages_have_no_character_that_nobody_sees(hostile):
    for file in hostile.pages:
        page = file.read_text(encoding="utf-8")
        assert {c for c in page if not c.isprintable()} == {"\n"}
        assert file.stat().st_size < 5_000_000


def test_pages_say_nothing_of_what_a_camera_wrote(hostile):
    for file in hostile.pages:
        for one in tree_of(file.read_text(encoding="utf-8")).iter("img"):
            data = base64.b64decode(one.get("src").partition(",")[2])
            with Image.open(io.BytesIO(data)) as picture:
                assert not picture.getexif()
                assert "comment" not in picture.info


def test_the_card_shows_names_as_code(hostile):
    for run in hostile.compared.runs.values():
        text = (run.out / "bundle" / "README.md").read_text(encoding="utf-8")
        assert {c for c in text if not c.isprintable()} == {"\n"}
        matter, body = re.fullmatch(r"(?:(---\n.*?\n---)\n)?(.*)", text, re.DOTALL).groups()
        assert "evil" not in (matter or "")
        prose = re.sub(r"`[^`\n]*`", "", re.sub(r"^ {4}.*$|^```.*?^```$", "", body, flags=re.DOTALL | re.MULTILINE))
        for word in ("evil", "alert", "7*7", "<script", "onerror", "javascript:", "calc"):
            assert word not in prose
        assert re.search(r"<[a-zA-Z/!]", prose) is None


def cells_of(data: bytes, separator: str = ","):
    return list(csv.reader(io.StringIO(data.decode(), newline=""), delimiter=separator))


def formulas_in(data: bytes, separator: str = ","):
    return [cell for row in cells_of(data, separator) for cell in row if cell.startswith(FORMULA)]


def test_a_spreadsheet_takes_no_name_for_a_formula(hostile):
    for run in hostile.compared.runs.values():
        data = (run.out / "quarantine.csv").read_bytes()
        header, *rows = cells_of(data)
        assert header == ["path", "reason"]
        assert len(rows) == len(hostile.labels)
        assert {len(row) for row in rows} == {2}
        assert formulas_in(data) == []


def test_tables_of_a_scan_hold_no_formula(hostile_folder, regraft_main, tmp_path):
    fixed, out = tmp_path / "fixed", tmp_path / "findings"
    done = regraft_main("scan", hostile_folder, "--fast", "--out", out, "--fix", fixed, "--drop", "all")
    assert done.returncode == 0, done.stderr
    for file in (out / "quarantine.csv", tmp_path / "fixed.left-out.csv"):
        data = file.read_bytes()
        assert len(cells_of(data)) > len(PAYLOADS)
        assert formulas_in(data) == formulas_in(data, ";") == []


def is_plain(text):
    """Nothing that a terminal would take for an order, or that reverses or hides other text."""
    return all(c.isprintable() or c == "\n" for c in text)


def test_nothing_that_is_printed_drives_the_terminal(hostile, regraft_main):
    run = hostile.compared.runs["frozen"]
    photos = [run.evaluation.dataset.root / path for path in run.evaluation.dataset.paths]
    commands = [
        ("predict", run.out, *photos, hostile.photos),
        ("evaluate", run.out, hostile.photos),
        ("report", run.out),
        ("scan", hostile.photos, "--fast"),
    ]
    for command in commands:
        done = regraft_main(*command)
        assert "Traceback" not in done.stderr
        assert done.returncode == (command[0] == "predict"), done.stderr
        assert done.stdout
        assert is_plain(done.stdout), command[0]
        assert is_plain(done.stderr), command[0]


def test_training_says_no_name_as_it_is(hostile_folder, toy, regraft_main, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--backbone", toy["backbone"], "--weights", toy["weights"], "--mode", "frozen"]
    done = regraft_main("train", hostile_folder, *options)
    assert done.returncode == 0, done.stderr
    assert "left out: " in done.stderr
    assert is_plain(done.stderr)
    assert is_plain(done.stdout), [line for line in done.stdout.splitlines() if not is_plain(line)]


def test_a_long_name_is_drawn_at_once(photos):
    path, name = photos / "red" / "red_0.jpg", "A" * 3000
    began = time.process_time()
    prediction_grid([(path, name, Prediction(name, 0.5, {}))])
    assert time.process_time() - began < 1.0


def test_a_class_whose_name_is_not_utf_8_is_refused_in_plain_text(toy, regraft_main, tmp_path):
    for name, colour in ((NOT_UTF_8, "red"), ("blue", "blue")):
        draw(tmp_path / "photos" / name / "0.jpg", COLOURS[colour], 0, (48, 40))
    options = ["--backbone", toy["backbone"], "--weights", toy["weights"], "--mode", "frozen", "--quiet"]
    done = regraft_main("train", tmp_path / "photos", *options, "--out", tmp_path / "run")
    assert done.returncode == 1
    assert "a class whose name is not UTF-8: '\\udce9t\\udce9'" in done.stderr
    assert "as 'été' if that is Latin-1" in done.stderr
    assert is_plain(done.stderr)
    assert not (tmp_path / "run" / "bundle").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "BUNDLE", "FOLDER"),
        ("predict", "BUNDLE", "BAD"),
        ("predict", "BUNDLE", "\x1b[2J"),
        ("report", "BUNDLE", "FOLDER"),
        ("report", "\x1b[2J"),
        ("report", "BUNDLE", "--out", "none\x1b[2J/x.html"),
        ("scan", "\x1b[2J\u202e"),
        ("train", "FOLDER", "--mode", "\x1b[2J"),
        ("train", "FOLDER", "--time", "\x1b[2J"),
        ("train", "FOLDER", "--drop", "\x1b[2J"),
        ("train", "FOLDER", "\x1b[2J"),
    ],
    ids=lambda words: ascii(" ".join(words)),
)
def test_errors_say_no_name_as_it_is(bundle, hostile_folder, regraft_main, command):
    bad = next(hostile_folder.glob("*/bad*"))
    places = {"BUNDLE": bundle.folder, "FOLDER": hostile_folder, "BAD": bad}
    done = regraft_main(*(places.get(word, word) for word in command))
    assert done.returncode in (1, 2)
    assert done.stderr.strip()
    assert is_plain(done.stdout + done.stderr)


def controls_of(text):
    """Also what ends a line for some readers."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Zl", "Zp")} - {"\n"}


def test_json_gives_names_back_whole_and_without_control_characters(hostile, regraft_main):
    run = hostile.compared.runs["frozen"]
    paths = [str(run.evaluation.dataset.root / path) for path in run.evaluation.dataset.paths]
    done = regraft_main("predict", run.out, *paths, "--json")
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.rstrip("\n").split("\n")]
    assert [one["path"] for one in answers] == paths
    assert {one["label"] for one in answers} <= set(hostile.labels)
    assert all(set(one["probabilities"]) == set(hostile.labels) for one in answers)
    assert controls_of(done.stdout) == set()


@pytest.mark.parametrize("command", ["evaluate", "scan"])
def test_json_of_a_folder_has_no_control_characters(hostile, regraft_main, command):
    run = hostile.compared.runs["frozen"]
    before = [run.out] if command == "evaluate" else []
    done = regraft_main(command, *before, hostile.photos, "--json", *(["--fast"] if command == "scan" else []))
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["classes"]) == set(hostile.labels)
    assert controls_of(done.stdout) == set()


ELEMENTS = """() => [...document.querySelectorAll("*")].map(one => [
    one.tagName.toLowerCase(), [...one.attributes].map(a => a.name), one.getAttribute("href") || one.src || ""
])"""


@pytest.mark.slow
def test_a_browser_runs_fetches_and_reports_nothing(hostile, opened):
    for file in hostile.pages:
        seen = opened(file)
        for summary in seen.page.query_selector_all("summary"):
            summary.click()
        for cell in seen.page.query_selector_all(".confusion a")[: 20 if IS_LONG else 4]:
            cell.hover()
            cell.click()
        seen.page.wait_for_timeout(200)
        found = seen.page.evaluate(ELEMENTS)
        assert {tag for tag, _, _ in found} <= OUR_TAGS
        assert not [name for _, names, _ in found for name in names if name.startswith("on")]
        assert not [address for _, _, address in found if address.lower().startswith(("http", "javascript", "//"))]
        assert (seen.dialogs, seen.requests, seen.messages) == ([], [], [])
        assert seen.page.url.partition("#")[0] == file.absolute().as_uri()
        assert len(seen.page.context.pages) == 1


@pytest.mark.slow
def test_a_browser_shows_each_name_on_its_own_line_and_within_the_page(hostile, opened):
    for file in hostile.pages:
        page = opened(file, width=390).page
        assert page.evaluate(STICKING_OUT) == []
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        shown = page.locator("td.name").all_inner_texts()
        report = file.name == "report.html"
        assert not report or {printable(text) for text in hostile.labels} <= set(shown)
