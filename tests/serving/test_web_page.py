"""The page as people use it, in a browser without a window: by mouse, by keyboard, on a phone, with odd files."""

import base64
import csv
import io
import itertools
import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from conftest import serving
from faults.processes import mostly_long
from page_checks import CONTRASTS, READABLE, STICKING_OUT

pytestmark = pytest.mark.slow
TOKEN = "geheim"
PHOTO = "image/jpeg"
HOSTILE = [
    "<img src=x onerror=alert(1)>.jpg",
    "</p><script>alert(1)</script>.jpg",
    "{{7*7}}${7*7}.jpg",
    '"onload="alert(1).jpg',
    "=HYPERLINK(1).jpg",
    "\u202egpj.exe",
    "\x1b[2Jü🐝.jpg",
    "very-" * 40 + "long.jpg",
]


@dataclass
class Visit:
    """A page that is open. foreign: addresses elsewhere that it asked for.  messages: of the console, and of errors."""

    page: Any
    foreign: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def choose(self, *files: tuple[str, bytes]) -> None:
        self.page.set_input_files("#files", [{"name": n, "mimeType": PHOTO, "buffer": data} for n, data in files])

    def until(self, condition: str) -> None:
        """Asked again and again from outside: the page's policy allows no code of ours inside."""
        deadline = time.monotonic() + 60
        while not self.page.evaluate(condition):
            assert time.monotonic() < deadline, self.text("body")
            self.page.wait_for_timeout(20)

    def wait_for(self, count: int) -> None:
        """Until so many photos are answered, and all pictures drawn."""
        self.until(f"find('status').textContent === '{count} done'")
        self.until("[...document.images].every(one => one.complete)")

    def text(self, selector: str) -> list[str]:
        return [one.text_content() for one in self.page.query_selector_all(selector)]

    def cards(self) -> dict[str, dict[str, Any]]:
        """What is said of each photo, by its name."""
        found = self.page.evaluate("""() => [...document.querySelectorAll(".answer")].map(card => ({
            name: card.querySelector(".name").textContent,
            said: card.querySelector("h3").textContent,
            bars: [...card.querySelectorAll(".bar")].map(bar => [...bar.children].map(c => c.value ?? c.textContent)),
            pictures: [...card.querySelectorAll("img")].map(img => [img.alt, img.complete && img.naturalWidth > 0]),
            notes: [...card.querySelectorAll(".note")].map(note => note.textContent),
        }))""")
        return {card["name"]: card for card in found}


@pytest.fixture(scope="module")
def server(bundle):
    with serving(bundle.folder) as served:
        yield served


@pytest.fixture
def visit(chromium, server):
    """`visit(width=390, scheme="dark")`; at its end nothing was asked for elsewhere, and no complaint but `heard`."""
    contexts, visits = [], []

    def start(served=server, *, width=1280, scheme="light", fragment="", heard=None, routes=None) -> Visit:
        is_phone = width < 600
        device = {"is_mobile": is_phone, "has_touch": is_phone, "viewport": {"width": width, "height": 900}}
        contexts.append(chromium.new_context(**device, color_scheme=scheme))
        one = Visit(contexts[-1].new_page())
        own = f"127.0.0.1:{served.port}"
        one.page.on("request", lambda r: is_own(r.url, own) or one.foreign.append(r.url))
        one.page.on("console", lambda m: one.messages.append(m.text))
        one.page.on("pageerror", lambda e: one.messages.append(str(e)))
        one.page.on("dialog", lambda d: (one.dialogs.append(d.message), one.page and d.dismiss()))
        for address, answer in (routes or {}).items():
            one.page.route(address, answer)
        one.page.goto(f"http://{own}/{fragment}")
        one.until("find('facts').children.length > 0 || find('status').textContent !== ''")
        visits.append((one, heard))
        return one

    yield start
    for one, heard in visits:
        assert one.foreign == one.dialogs == []
        assert all(heard and heard in message for message in one.messages), one.messages
    for context in contexts:
        context.close()


def is_own(url: str, own: str) -> bool:
    return url.startswith(("data:", f"blob:http://{own}/")) or urlsplit(url).netloc == own


@pytest.fixture
def three(photos) -> dict[str, bytes]:
    return {f"{name}.jpg": (photos / name / f"{name}_3.jpg").read_bytes() for name in ("red", "green", "blue")}


def shot(visit: Visit, name: str, tmp_path: Path) -> None:
    """A picture of the whole page, for people to look at."""
    folder = Path(os.environ.get("REGRAFT_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    visit.page.screenshot(path=folder / f"{name}.png", full_page=True)


def percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"


def assert_right(visit: Visit, bundle, three: dict[str, bytes]) -> None:
    """Each photo has its label, bars and, beside itself, where the model looks."""
    cards = visit.cards()
    assert cards.keys() == three.keys()
    for name, data in three.items():
        card, expected = cards[name], bundle.predict(data)
        assert card["said"] == expected.label == name.removesuffix(".jpg")
        assert [bar[0] for bar in card["bars"]] == sorted(bundle.classes, key=lambda c: -expected.probabilities[c])
        for label, share, text in card["bars"]:
            assert share == pytest.approx(expected.probabilities[label], abs=1e-3)
            assert text == percent(share)
        assert card["pictures"] == [[name, True], [f"Where it looks for {expected.label}", True]]


def in_a_transfer(files: dict[str, bytes]) -> str:
    """JavaScript that makes a DataTransfer of files."""
    encoded = json.dumps([[name, base64.b64encode(data).decode()] for name, data in files.items()])
    return f"""const transfer = new DataTransfer();
        for (const [name, data] of {encoded}) {{
            const bytes = Uint8Array.from(atob(data), one => one.charCodeAt(0));
            transfer.items.add(new File([bytes], name, {{type: "image/jpeg"}}));
        }}"""


def test_photos_that_are_chosen_are_labelled(visit, bundle, three):
    page = visit()
    assert page.text("#title") == ["Which is it: blue, green, red?"]
    assert re.fullmatch(r"Right on .*% of 6 val photos \(95 % interval .*% to .*%\)\.", page.text("#about")[0])
    page.choose(*three.items())
    page.wait_for(3)
    assert_right(page, bundle, three)
    assert page.page.is_visible("#list")
    answers = {name: bundle.predict(data) for name, data in three.items()}
    notes = {name: "looks new" * one.looks_new for name, one in answers.items()}
    assert page.text("#rows tr") == [
        f"{name}{one.label}{notes[name]}{percent(one.probability)}" for name, one in answers.items()
    ]
    page.choose(("again.jpg", three["red.jpg"]))
    page.wait_for(4)
    assert page.text(".answer .name") == ["again.jpg", *three]
    assert page.text("#rows td:first-child") == [*three, "again.jpg"]


def test_photos_that_are_dropped_are_labelled(visit, bundle, three):
    page = visit()
    fire = "for (const kind of %s) document.body.dispatchEvent(new DragEvent(kind, {dataTransfer: transfer, %s}));"
    more = "bubbles: true, cancelable: true"
    page.page.evaluate(f"() => {{ {in_a_transfer(three)} {fire % (['dragenter', 'dragover'], more)} }}")
    assert page.page.query_selector("#drop.over")
    page.page.evaluate(f"() => {{ {in_a_transfer(three)} {fire % (['drop'], more)} }}")
    assert not page.page.query_selector("#drop.over")
    page.wait_for(3)
    assert_right(page, bundle, three)


def test_a_photo_that_is_pasted_is_labelled(visit, bundle, three):
    page = visit()
    one = {"green.jpg": three["green.jpg"]}
    paste = "dispatchEvent(new ClipboardEvent('paste', {clipboardData: transfer}))"
    page.page.evaluate(f"() => {{ {in_a_transfer(one)} {paste} }}")
    page.wait_for(1)
    assert_right(page, bundle, one)
    assert not page.page.is_visible("#list")


def test_text_that_is_dropped_or_pasted_does_nothing(visit):
    page = visit()
    page.page.evaluate("""() => {
        const transfer = new DataTransfer(); transfer.setData("text/plain", "http://example.com/cat.jpg");
        document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
        dispatchEvent(new ClipboardEvent("paste", {clipboardData: transfer}));
    }""")
    assert page.cards() == {}
    assert page.text("#status") == [""]


def test_heat_maps_can_be_left_out(visit, three):
    page = visit()
    page.page.uncheck("#heat")
    page.choose(("red.jpg", three["red.jpg"]))
    page.wait_for(1)
    assert page.cards()["red.jpg"]["pictures"] == [["red.jpg", True]]


def test_a_file_that_is_no_photo_is_told_kindly(visit, three):
    page = visit(heard="400 (Bad Request)")
    page.choose(
        ("bad.jpg", b"no photo"), ("cut.jpg", three["red.jpg"][:400]), ("good.jpg", three["red.jpg"]), ("no", b"")
    )
    page.wait_for(4)
    cards = page.cards()
    assert {name: card["said"] for name, card in cards.items()} == {
        **dict.fromkeys(("bad.jpg", "cut.jpg", "no"), "Cannot be read"),
        "good.jpg": "red",
    }
    assert cards["bad.jpg"]["notes"] == ["not an image of a known format"]
    assert cards["bad.jpg"]["pictures"] == []
    assert cards["cut.jpg"]["notes"][0].startswith("damaged: ")
    assert cards["no"]["notes"] == ["the body is empty: expected an image file"]


def test_a_file_that_is_too_large_is_told_kindly(visit, tmp_path):
    (tmp_path / "huge.jpg").write_bytes(bytes(40 * 2**20))
    page = visit(heard="413")
    page.page.set_input_files("#files", tmp_path / "huge.jpg")
    page.wait_for(1)
    assert page.cards()["huge.jpg"]["notes"] == ["more than 32 MB; send fewer or smaller photos"]


def test_a_busy_server_is_asked_again(visit, bundle, three):
    refused = []

    def refuse_twice(route):
        if len(refused) < 2:
            refused.append(route.request.url)
            route.fulfill(status=503, headers={"Retry-After": "1"}, json={"error": "too many photos are waiting"})
        else:
            route.continue_()

    page = visit(heard="503", routes={"**/v1/predict**": refuse_twice})
    page.choose(*three.items())
    page.wait_for(3)
    assert_right(page, bundle, three)
    assert len(refused) == 2


def test_a_server_that_has_gone_is_told_of(visit, three):
    page = visit(heard="ERR_FAILED", routes={"**/v1/predict**": lambda route: route.abort()})
    page.choose(("red.jpg", three["red.jpg"]))
    page.wait_for(1)
    assert page.cards()["red.jpg"]["notes"] == ["the server did not answer"]


def test_many_photos_are_sent_a_few_at_a_time(visit, photos):
    under_way, most, page = set(), [0], visit()

    def began(request):
        if "predict" in request.url:
            under_way.add(request)
            most.append(len(under_way))

    page.page.on("request", began)
    page.page.on("requestfinished", lambda request: under_way.discard(request))
    files = sorted(photos.rglob("*.jpg"))
    page.choose(*((path.name, path.read_bytes()) for path in files))
    page.wait_for(len(files))
    assert {name: card["said"] for name, card in page.cards().items()} == {p.name: p.parent.name for p in files}
    assert 1 < max(most) <= 4
    page.page.click("#clear")
    assert page.cards() == {}
    assert page.text("#rows tr") == []
    assert not page.page.is_visible("#list")


def test_a_table_is_downloaded_without_formulas(visit, bundle, three):
    page = visit(heard="400")
    starts = ("=", "+", "-", "@", "\t", "'", '"', ",", "\u202e")
    files = [(f'{start}cmd|"x",y.jpg', three["red.jpg"]) for start in starts] + [
        ("=bad", b"x"),
        ("blue.jpg", three["blue.jpg"]),
    ]
    page.choose(*files)
    page.wait_for(len(files))
    with page.page.expect_download() as download:
        page.page.click("#csv")
    assert download.value.suggested_filename == "answers.csv"
    text = Path(download.value.path()).read_bytes().decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(rows) == len(files) == text.count("\r\n")
    shown = {row["photo"].removeprefix("'") if row["photo"][1:2] in "=+-@\t" else row["photo"]: row for row in rows}
    assert shown.keys() == {name for name, _ in files}
    for row in rows:
        assert not [cell for cell in row.values() if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert (shown["=bad"]["label"], shown["=bad"]["error"]) == ("", "not an image of a known format")
    answer, expected = shown["blue.jpg"], bundle.predict(three["blue.jpg"])
    assert (answer["label"], answer["unsure"], answer["error"]) == ("blue", "false", "")
    assert answer["looks_new"] == str(expected.looks_new).lower()
    assert float(answer["probability"]) == pytest.approx(expected.probability, abs=1e-3)


def test_names_are_shown_and_never_run(visit, three):
    page = visit()
    page.choose(*((name, three["red.jpg"]) for name in HOSTILE))
    page.wait_for(len(HOSTILE))
    assert page.cards().keys() == set(HOSTILE)
    assert sorted(page.text("#rows td:first-child")) == sorted(HOSTILE)
    assert [page.page.get_attribute(f"#results article:nth-child({n}) img", "alt") for n in range(1, 9)] == HOSTILE
    assert len(page.page.query_selector_all("script")) == 1
    assert len(page.page.query_selector_all("#results img")) == 2 * len(HOSTILE)


def test_classes_of_a_hostile_model_are_shown_and_never_run(visit, server, three, tmp_path):
    model = server.ask("GET", "/v1/model").json
    names = ["<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "x" * 300]
    model |= {"classes": names, "backbone": names[0], "licence": names[1], "mode": names[2]}
    model["per_class"] = [{**row, "class": name} for row, name in zip(model["per_class"], names, strict=True)]
    shares = dict.fromkeys(names, 1 / 3)
    row = {"name": "", "label": names[0], "probability": 1 / 3, "probabilities": shares, "labels": names}
    row |= {"looks_new": True, "unsure": True}
    routes = {
        "**/v1/model": lambda route: route.fulfill(json=model),
        "**/v1/predict**": lambda route: route.fulfill(json={"predictions": [row]}),
    }
    page = visit(routes=routes, width=390)
    page.choose(("red.jpg", three["red.jpg"]))
    page.wait_for(1)
    page.page.click("summary")
    assert page.text("#title") == [f"Which is it: {', '.join(names)}?"]
    card = page.cards()["red.jpg"]
    assert card["said"] == f"unsure: perhaps {names[0]}"
    assert [bar[0] for bar in card["bars"]] == names
    assert card["notes"] == [
        "Looks like nothing it has learned from: do not rely on this.",
        f"One of: {', '.join(names)}",
    ]
    assert page.text("#classes td:first-child") == names
    assert len(page.page.query_selector_all("img")) == 1
    assert page.page.evaluate(STICKING_OUT) == page.page.evaluate(CUT) == []
    shot(page, "hostile-classes", tmp_path)


def test_all_can_be_done_by_keyboard(visit, three):
    page = visit()
    page.page.on("filechooser", lambda _: None)  # the browser hands them over from here on

    def focused() -> str:
        return page.page.evaluate("document.activeElement.id || document.activeElement.tagName")

    def outlined() -> bool:
        return page.page.evaluate("""() => {
            const one = document.activeElement;
            return [one, one.closest("label")].some(e => e && getComputedStyle(e).outlineStyle !== "none");
        }""")

    def tab() -> str:
        page.page.keyboard.press("Tab")
        assert outlined()
        return focused()

    assert tab() == "files"
    with page.page.expect_file_chooser() as chooser:
        page.page.keyboard.press("Space")
    assert chooser.value.is_multiple()
    chooser.value.set_files([{"name": name, "mimeType": PHOTO, "buffer": data} for name, data in three.items()])
    page.wait_for(3)
    assert [tab() for _ in range(4)] == ["heat", "csv", "clear", "SUMMARY"]
    page.page.keyboard.press("Enter")
    assert page.page.is_visible("#facts")
    for _ in range(3):
        page.page.keyboard.press("Shift+Tab")
    assert focused() == "heat"
    page.page.keyboard.press("Space")
    assert not page.page.is_checked("#heat")
    page.page.keyboard.press("Tab")
    with page.page.expect_download():
        page.page.keyboard.press("Enter")
    page.page.keyboard.press("Tab")
    page.page.keyboard.press("Enter")
    assert page.cards() == {}


def test_only_a_phone_is_asked_to_take_a_photo(visit, bundle, three):
    phone, desk = visit(width=390), visit()
    for page, is_phone in ((phone, True), (desk, False)):
        assert page.page.locator(".camera").is_visible() is is_phone
        assert page.page.locator(".hint").is_visible() is not is_phone
    assert phone.page.get_attribute("#camera", "capture") == "environment"
    phone.page.set_input_files("#camera", {"name": "green.jpg", "mimeType": PHOTO, "buffer": three["green.jpg"]})
    phone.wait_for(1)
    assert_right(phone, bundle, {"green.jpg": three["green.jpg"]})


def test_what_is_cleared_does_not_come_back(visit, photos):
    page, files = visit(), sorted(photos.rglob("*.jpg"))
    page.choose(*((path.name, path.read_bytes()) for path in files))
    page.page.click("#clear")
    assert page.text("#status") == [""]
    page.choose(("blue.jpg", files[0].read_bytes()))
    page.wait_for(1)
    page.page.wait_for_timeout(300)
    assert list(page.cards()) == ["blue.jpg"]
    assert page.text("#rows td:first-child") == ["blue.jpg"]


def test_what_happens_is_announced_and_everything_has_a_name(visit, three):
    page = visit(heard="400")
    page.choose(*three.items(), ("bad.jpg", b"x"))
    page.wait_for(4)
    assert page.page.get_attribute("#status", "aria-live") == "polite"
    unnamed = page.page.evaluate("""() => [...document.querySelectorAll("input, button, img, progress, a, section")]
        .filter(one => one.checkVisibility() && !(one.getAttribute("aria-label") || one.alt || one.textContent.trim()
            || one.closest("label")?.textContent.trim())).map(one => one.outerHTML)""")
    assert unnamed == []
    assert page.page.evaluate("document.documentElement.lang") == "en"
    levels = [int(one.evaluate("one => one.tagName[1]")) for one in page.page.query_selector_all("h1, h2, h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1


CUT = """() => [...document.querySelectorAll("main *")].filter(one => {
    const style = getComputedStyle(one)
    return style.overflowX === "hidden" && style.textOverflow !== "ellipsis" && one.scrollWidth > one.clientWidth
}).map(one => one.outerHTML.slice(0, 120))"""
BROKEN = """() => [...document.querySelectorAll("th, td, .bar span")].filter(one => {
    const text = document.createRange(); text.selectNodeContents(one)
    return one.textContent.length < 14 && new Set([...text.getClientRects()].map(r => Math.round(r.top))).size > 1
}).map(one => one.outerHTML)"""


SEEN_IN = list(itertools.product([1280, 390], ["light", "dark"]))


@pytest.mark.parametrize(("width", "scheme"), mostly_long(SEEN_IN, (1280, "light"), (390, "dark")))
def test_nothing_sticks_out_and_all_can_be_read(visit, three, tmp_path, width, scheme):
    page = visit(width=width, scheme=scheme, heard="400")
    shot(page, f"empty-{width}-{scheme}", tmp_path)
    files = [
        *three.items(),
        ("bad.jpg", b"x"),
        (HOSTILE[-1], three["red.jpg"]),
        ("x" * 200 + ".jpg", three["blue.jpg"]),
    ]
    page.choose(*files)
    page.wait_for(len(files))
    page.page.click("summary")
    assert page.page.evaluate(STICKING_OUT) == []
    assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.page.evaluate(CUT) == page.page.evaluate(BROKEN) == []
    contrasts = page.page.evaluate(CONTRASTS)
    assert len(contrasts) > 50
    assert [one for one in contrasts if one[0] < READABLE] == []
    shot(page, f"answers-{width}-{scheme}", tmp_path)


@pytest.fixture(scope="module")
def guarded(bundle):
    """A server that wants a token."""
    with serving(bundle.folder, "--workers", 1, REGRAFT_TOKEN=TOKEN) as served:
        yield served


@pytest.mark.parametrize("fragment", ["", "#token=wrong", "#token="])
def test_a_page_without_the_token_says_how_to_give_it(visit, guarded, three, tmp_path, fragment):
    page = visit(guarded, fragment=fragment, heard="401")
    assert page.text("#status") == ["This server wants a token: open the page as /#token=TOKEN"]
    shot(page, "no-token", tmp_path)
    page.choose(("red.jpg", three["red.jpg"]))
    page.wait_for(1)
    assert page.cards()["red.jpg"]["notes"] == ["expected Authorization: Bearer TOKEN"]


def test_a_token_that_is_added_to_the_address_is_used(visit, guarded):
    page = visit(guarded, heard="401")
    page.page.evaluate(f"() => {{ location.hash = 'token={TOKEN}' }}")
    page.page.wait_for_selector("#facts dt", state="attached", timeout=30_000)
    assert page.text("#title") == ["Which is it: blue, green, red?"]


def test_a_page_with_the_token_works_and_keeps_it_to_itself(visit, bundle, guarded, three):
    page = visit(guarded, fragment=f"#token={TOKEN}")
    asked = []
    page.page.on("request", lambda request: asked.append(request.url))
    page.choose(*three.items())
    page.wait_for(3)
    assert_right(page, bundle, three)
    assert len(asked) >= 3
    assert not [url for url in asked if TOKEN in url]
    assert TOKEN not in guarded.said.read_text()
