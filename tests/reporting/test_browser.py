"""Pages as a browser shows them: nothing sticks out, every photo is there, and everything can be read and reached."""

import itertools
import os
import re
from pathlib import Path

import numpy as np
import pytest

from commands.test_train import save_toy
from conftest import draw, draw_folder, text_of, tree_of
from faults.processes import IS_LONG, mostly_long
from page_checks import CONTRASTS, READABLE, STICKING_OUT
from regraft.commands.compare import compare
from regraft.commands.report import report, write_report
from regraft.commands.train import configure, train_run
from regraft.core.progress import Progress
from regraft.data.scan import list_photos
from regraft.evaluation.evaluate import evaluate_probabilities
from regraft.reporting import html_report

pytestmark = pytest.mark.slow

QUIET = Progress(quiet=True)
PAGES = ("hymenoptera", "full", "compare")

NUM_ELEMENTS = "document.querySelectorAll('*').length"


OVERLAPPING = """() => {
    const found = []
    for (const svg of document.querySelectorAll("svg")) {
        const texts = [...svg.querySelectorAll("text")].map(one => [one, one.getBoundingClientRect()])
        const frame = svg.getBoundingClientRect()
        for (const [one, a] of texts) {
            if (a.left < frame.left - 1 || a.right > frame.right + 1) found.push(["outside", one.textContent])
            for (const [other, b] of texts) {
                const beside = a.right <= b.left + 1 || b.right <= a.left + 1
                const apart = beside || a.bottom <= b.top + 3 || b.bottom <= a.top + 3
                if (one !== other && !apart) found.push([one.textContent, other.textContent])
            }
        }
    }
    return found
}"""

HEADINGS = """() => [...document.querySelectorAll("h1, h2, h3, .verdict, nav")]
    .map(one => one.getBoundingClientRect()).filter(box => box.height > 0).map(box => [box.top, box.bottom])"""

FOCUSED = """() => {
    const one = document.activeElement
    return [one.tagName, one.getAttribute("href") || one.textContent, parseFloat(getComputedStyle(one).outlineWidth)]
}"""


def screenshot_folder(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("REGRAFT_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return save_toy(tmp_path_factory.mktemp("toy") / "weights")


@pytest.fixture(scope="module")
def full(doubtful_photos, toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "full"
    config = configure(mode="full", epochs=2, learning_rate=0.0, head_start="solved", **toy)
    return train_run(doubtful_photos, out, config, QUIET)


@pytest.fixture(scope="module")
def compared(doubtful_photos, toy, tmp_path_factory):
    config = configure(epochs=2, learning_rate=0.0, head_learning_rate=0.0, head_start="random", **toy)
    return compare(doubtful_photos, tmp_path_factory.mktemp("runs") / "compared", config=config, progress=QUIET)


@pytest.fixture(scope="module")
def ants_and_bees(tmp_path_factory):
    """A report of real photos; skipped without them."""
    folder = os.environ.get("REGRAFT_DATA")
    if not folder:
        pytest.skip("REGRAFT_DATA is not set")
    out = tmp_path_factory.mktemp("runs") / "hymenoptera"
    return train_run(Path(folder).absolute() / "hymenoptera", out, configure(mode="frozen"), QUIET)


@pytest.fixture(params=mostly_long(PAGES, "full", "compare"))
def file(request):
    """A page on disk. Tests must not change it."""
    if request.param == "compare":
        return request.getfixturevalue("compared").page
    return request.getfixturevalue("ants_and_bees" if request.param == "hymenoptera" else "full").out / "report.html"


SEEN_IN = list(itertools.product([1280, 390], ["light", "dark"]))


@pytest.mark.parametrize(("width", "scheme"), mostly_long(SEEN_IN, (1280, "light"), (390, "dark")))
def test_a_page_fits_and_is_little_to_load(file, opened, tmp_path, record_property, width, scheme):
    seen = opened(file, width=width, scheme=scheme)
    name = f"{file.parent.name}-{file.stem}-{width}-{scheme}.png"
    seen.page.screenshot(path=screenshot_folder(tmp_path) / name, full_page=True)
    assert seen.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert seen.page.evaluate(STICKING_OUT) == []
    assert (seen.requests, seen.messages, seen.dialogs) == ([], [], [])
    assert seen.page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
    record_property("bytes", file.stat().st_size)
    record_property("elements", seen.page.evaluate(NUM_ELEMENTS))
    assert seen.page.evaluate(NUM_ELEMENTS) <= 5_000
    assert file.stat().st_size <= 5_000_000


@pytest.mark.parametrize("width", mostly_long([1280, 390], 390))
def test_headings_and_what_follows_do_not_lie_on_each_other(file, opened, width):
    boxes = sorted(opened(file, width=width).page.evaluate(HEADINGS))
    assert len(boxes) > 3
    assert all(above[1] <= below[0] + 1 for above, below in itertools.pairwise(boxes))


@pytest.mark.parametrize("width", [1280, 390])
def test_texts_of_a_chart_do_not_lie_on_each_other(file, opened, width):
    assert opened(file, width=width).page.evaluate(OVERLAPPING) == []


def test_every_picture_has_pixels_and_says_what_it_is(file, opened):
    page = opened(file).page
    pictures = page.evaluate("[...document.images].map(one => [one.alt.trim(), one.naturalWidth, one.naturalHeight])")
    assert len(pictures) > 3
    assert all(alt and width > 0 and height > 0 for alt, width, height in pictures)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(file, opened, scheme):
    page = opened(file, scheme=scheme).page
    for summary in page.query_selector_all("summary"):
        summary.click()
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 50
    assert [what for ratio, what in contrasts if ratio < READABLE] == []


def test_a_cell_opens_its_photos_and_only_those(full, opened):
    page = opened(full.out / "report.html").page
    visible = "[...document.querySelectorAll('.cell')].filter(one => one.offsetHeight > 0).map(one => one.id)"
    assert page.evaluate(visible) == []
    cells = page.query_selector_all(".confusion a")
    assert len(cells) == np.count_nonzero(full.evaluation.confusion) > 3
    for cell in cells:
        wanted = cell.get_attribute("href").removeprefix("#")
        cell.click()
        assert page.evaluate(visible) == [wanted]
        shown = page.locator(f"#{wanted} img:visible").count()
        _, i, j = wanted.split("-")
        assert shown == full.evaluation.confusion[int(i), int(j)] == int(cell.inner_text())
        assert page.locator(f"#{wanted}").evaluate("one => one.getBoundingClientRect().top < innerHeight")
    page.click(".cell:target .back")
    assert page.evaluate(visible) == []


def test_tab_reaches_every_link_and_shows_where_it_is(file, opened):
    page = opened(file).page
    wanted = page.evaluate(
        "[...document.querySelectorAll('a, summary')].filter(one => one.offsetParent).map(one => "
        "[one.tagName, one.getAttribute('href') || one.textContent])"
    )
    assert len(wanted) >= 3
    reached = []
    for _ in range(len(wanted) + 10):
        page.keyboard.press("Tab")
        tag, where, outline = page.evaluate(FOCUSED)
        if tag in ("A", "SUMMARY"):
            reached.append([tag, where])
            assert outline >= 2
    assert [one for one in wanted if one not in reached] == []


def test_enter_on_a_cell_opens_its_photos(full, opened):
    page = opened(full.out / "report.html").page
    page.focus(".confusion a")
    page.keyboard.press("Enter")
    assert page.locator(".cell:visible").count() == 1


def test_links_of_a_comparison_lead_to_the_reports(compared, opened):
    page = opened(compared.page).page
    for name, run in compared.runs.items():
        page.click(f"tr:has-text('{name}') >> a")
        assert page.url == (run.out / "report.html").absolute().as_uri()
        assert page.locator("h1").inner_text().startswith("Image classifier: ")
        page.go_back()


def test_a_notebook_shows_the_page_and_its_cells_open(full, opened, tmp_path):
    html = report(full.bundle, out=tmp_path / "report.html")._repr_html_()
    (tmp_path / "notebook.html").write_text(f"<!doctype html><title>notebook</title><p>cell</p>{html}", "utf-8")
    seen = opened(tmp_path / "notebook.html")
    frame = seen.page.frame_locator("iframe")
    assert frame.locator("h1").inner_text().startswith("Image classifier: ")
    frame.locator(".confusion a").first.click()
    seen.page.wait_for_timeout(200)
    assert frame.locator("h1").inner_text().startswith("Image classifier: ")
    assert frame.locator(".cell:visible").count() == 1
    assert seen.messages == []


def test_printed_it_is_dark_on_white(full, opened, tmp_path):
    page = opened(full.out / "report.html", scheme="dark").page
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert page.locator("nav").is_hidden()
    contrasts = page.evaluate(CONTRASTS)
    assert [what for ratio, what in contrasts if ratio < READABLE] == []
    assert page.pdf(path=tmp_path / "report.pdf").startswith(b"%PDF")


@pytest.fixture(scope="module")
def hundred(toy, tmp_path_factory):
    """A bundle of 100 classes, and how it would be judged on 5,000 photos (or fewer) if it mostly guessed."""
    root = tmp_path_factory.mktemp("hundred")
    names = tuple(f"class {number:03}" for number in range(100))
    draw_folder(root / "few", names, 3)
    bundle = train_run(root / "few", root / "run", configure(mode="frozen", report=False, **toy), QUIET).bundle
    for c, name in enumerate(names):
        for i in range(50 if IS_LONG or c == 7 else 10):
            draw(root / "photos" / name / f"{i}.jpg", (c * 2, 255 - c * 2, i * 5), 100 * c + i, (48, 40))
    dataset = list_photos(root / "photos")
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(100, 0.05), len(dataset))
    sure = rng.random(len(dataset)) < 0.5
    p[sure] = 0.3 * p[sure] + 0.7 * np.eye(100)[dataset.labels[sure]]
    taken = np.flatnonzero(dataset.labels == 7)[:40]
    p[taken] = 0.2 * p[taken] + 0.8 * np.eye(100)[9]
    return bundle, evaluate_probabilities(dataset, p, "val"), root / "report.html"


def test_a_hundred_classes_are_a_report_that_can_be_opened(hundred, monkeypatch, record_property):
    bundle, evaluation, file = hundred
    assert len(evaluation.dataset) == (5000 if IS_LONG else 1040)
    read, thumb = [], html_report.thumb
    monkeypatch.setattr(html_report, "thumb", lambda data, size: read.append(size) or thumb(data, size))
    write_report(bundle, evaluation, {}, file, QUIET)
    record_property("bytes", file.stat().st_size)
    record_property("read", len(read))
    assert 0 < len(read) <= file.read_text(encoding="utf-8").count("<img "), "photos are read that are not shown"
    assert file.stat().st_size <= 8_000_000
    root = tree_of(file.read_text(encoding="utf-8"))
    assert not [one for one in root.iter("table") if one.get("class") == "confusion"]
    assert sum(len(row) for row in root.iter("tr")) < 2000
    (part,) = [one for one in root.iter() if one.get("id") == "confusion"]
    rows = [[text_of(cell) for cell in row] for row in part.find(".//tbody")]
    assert rows[0][:2] == ["class 007", "class 009"]
    counts = [int(row[2]) for row in rows]
    assert counts[0] >= 40
    assert counts == sorted(counts, reverse=True)
    wrong = evaluation.confusion - np.diag(np.diag(evaluation.confusion))
    assert counts == sorted(wrong[wrong > 0].tolist(), reverse=True)[: len(counts)]
    assert re.search(r"Most frequent mistake: class 007 taken for class 009, \d+ times\.", text_of(root))
    ids = {one.get("id") for one in root.iter()}
    assert {one.get("href").removeprefix("#") for one in root.iter("a")} <= ids


@pytest.mark.parametrize("width", mostly_long([1280, 390], 390))
def test_a_hundred_classes_fit_and_are_little_to_load(hundred, opened, tmp_path, width):
    bundle, evaluation, file = hundred
    if not file.exists():
        write_report(bundle, evaluation, {}, file, QUIET)
    seen = opened(file, width=width)
    seen.page.screenshot(path=screenshot_folder(tmp_path) / f"hundred-{width}.png", full_page=True)
    assert seen.page.evaluate(STICKING_OUT) == []
    assert (seen.requests, seen.messages) == ([], [])
    assert seen.page.evaluate(NUM_ELEMENTS) <= 20_000
    assert seen.page.locator(".cell:visible").count() == 0
    seen.page.locator("#confusion td a").first.click()
    assert seen.page.locator(".cell:visible").count() == 1
