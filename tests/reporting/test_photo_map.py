"""The map of a report has every photo once, where it belongs, and says what the model says of it."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from conftest import all_of, draw_folder, text_of, tree_of
from regraft.bundle.bundle import load
from regraft.commands.report import write_report
from regraft.core.progress import QUIET
from regraft.data.scan import list_photos
from regraft.evaluation.evaluate import evaluate_probabilities, in_order_of
from regraft.reporting import photo_map as module
from regraft.reporting.photo_map import TILE, photo_map
from tiny_bundle import CLASSES, write_tiny


@pytest.fixture
def judged(tmp_path, empty_cache):
    bundle = load(write_tiny(tmp_path / "run" / "bundle"))
    dataset = in_order_of(bundle, list_photos(draw_folder(tmp_path / "photos", CLASSES, 5)))
    p = np.full((15, 3), 0.1)
    p[np.arange(15), (dataset.labels + (np.arange(15) % 5 == 0)) % 3] = 0.8  # one of five is wrong
    return bundle, evaluate_probabilities(dataset, p, "val")


def test_every_photo_is_on_it_with_what_is_said_of_it(judged, tmp_path):
    bundle, evaluation = judged
    page = write_report(bundle, evaluation, {}, tmp_path / "report.html", QUIET).path.read_text()
    section = next(one for one in tree_of(page).iter("section") if one.get("id") == "map")
    spots = all_of(section, "span", "spot")
    assert len(spots) == 15
    for i, spot in enumerate(spots):
        label = evaluation.dataset.classes[evaluation.dataset.labels[i]]
        said = CLASSES[evaluation.probabilities[i].argmax()]
        words = text_of(spot)
        assert words.startswith(f"{said} {100 * evaluation.probabilities[i].max():.0f} %")
        assert ("wrong" in spot.get("class").split()) == (label != said) == (f"labelled {label}" in words)
        assert words.replace(" ", "").endswith(evaluation.dataset.paths[i].replace(" ", ""))
    assert f"wrong {(~evaluation.correct).sum()}" in text_of(section)
    (sprite,) = re.findall(r"background-image: url\(data:image/jpeg;base64,([A-Za-z0-9+/=]+)\)", page)
    whole = Image.open(io.BytesIO(base64.b64decode(sprite)))
    assert whole.size == (4 * TILE, 4 * TILE)
    for i, spot in enumerate(spots):  # what the browser cuts out of the picture of all is the photo
        u, v = map(float, re.search(r"background-position:([0-9.]+)% ([0-9.]+)%", spot.get("style")).groups())
        x, y = round(u / 100 * 3) * TILE, round(v / 100 * 3) * TILE
        seen = np.asarray(whole.crop((x, y, x + TILE, y + TILE))).mean(axis=(0, 1))
        photo = Image.open(evaluation.dataset.root / evaluation.dataset.paths[i]).convert("RGB")
        assert np.abs(seen - np.asarray(photo).mean(axis=(0, 1))).max() < 12  # the middle of a noisy photo, as JPEG


def test_of_many_photos_the_wrong_ones_are_shown_first(judged, monkeypatch):
    bundle, evaluation = judged
    monkeypatch.setattr(module, "NUM_PHOTOS", 9)
    p = np.eye(3)[evaluation.dataset.labels]
    p[[2, 11]] = p[[2, 11]][:, ::-1]
    p[7] = p[7][[1, 0, 2]]
    found = photo_map(bundle, replace(evaluation, probabilities=p))
    wrong = int((p.argmax(axis=1) != evaluation.dataset.labels).sum())
    assert wrong == 3
    assert [len(found["spots"]), found["num_wrong"], found["num_left"]] == [9, 3, 6]


def test_a_few_photos_make_no_map(judged):
    bundle, evaluation = judged
    few = evaluate_probabilities(evaluation.dataset.subset(range(5)), evaluation.probabilities[:5], "val")
    assert photo_map(bundle, few) is None


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_every_photo_can_be_looked_at_and_classes_stand_out(judged, tmp_path, opened, width):
    bundle, evaluation = judged
    path = write_report(bundle, evaluation, {}, tmp_path / "report.html", QUIET).path
    seen = opened(path, width=width)
    outside = seen.page.evaluate("""() => [...document.querySelectorAll(".spot")].filter(spot => {
        spot.focus()
        const peek = spot.querySelector(".peek"), box = peek.getBoundingClientRect()
        return getComputedStyle(peek).display != "block" || box.width < 100 || box.left < 0
            || box.right > document.documentElement.clientWidth
    }).length""")
    assert outside == 0
    seen.page.locator("label[for=map-wrong]").click()
    seen.page.evaluate("document.activeElement.blur()")
    seen.page.wait_for_timeout(300)  # the photos fade
    faded = seen.page.evaluate("""() => [...document.querySelectorAll(".spot")].map(
        spot => [spot.classList.contains("wrong"), Number(getComputedStyle(spot).opacity) < 0.5])""")
    assert {is_wrong != is_faded for is_wrong, is_faded in faded} == {True}
    assert len({is_wrong for is_wrong, _ in faded}) == 2
    assert (seen.requests, seen.messages, seen.dialogs) == ([], [], [])
