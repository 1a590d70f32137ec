"""The page of a sitting as people use it: labelling to the last photo by its keys, other tabs, and who is let in."""

import json
import os
import random
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from conftest import draw_folder
from faults.processes import mostly_long
from labelling.sitting_server import TAB, Annotator, in_thread, labelling
from page_checks import CONTRASTS, READABLE, STICKING_OUT

pytestmark = pytest.mark.processes
CLASSES = ("red", "green", "blue")
MOST_ACTIONS = {  # for a photo, by data set
    "hymenoptera": 0.15,
    "grocery_fruit5": 0.15,
    "pollen2": 0.2,
    "wbc4": 0.4,
    "signdigits10s": 0.55,
    "hemlock2": 0.55,
    "grocery_veg22": 0.55,
}
PAGE = Path(__file__).parents[2] / "src/regraft/labelling/page"
UNNAMED = """[...document.querySelectorAll("button, input, a, img, svg, meter, progress, dialog, [role=group]")]
    .filter(one => one.getClientRects().length && !one.textContent.trim() && !one.closest("[aria-label]"))
    .filter(one => !one.alt).map(one => one.outerHTML)"""


def heap_of(sorted_photos: Path, root: Path) -> dict[str, str]:
    """The photos of class folders in one heap, under names that say nothing. Returns the class of each by its name."""
    paths = sorted(path for path in sorted_photos.rglob("*") if path.is_file())
    random.Random(0).shuffle(paths)
    root.mkdir(parents=True)
    names = {path: f"{number:04}{path.suffix}" for number, path in enumerate(paths)}
    for path, name in names.items():
        shutil.copyfile(path, root / name)
    return {name: path.parent.name for path, name in names.items()}


@pytest.fixture(scope="module")
def heap(tmp_path_factory):
    """Drawn photos of three colours in one folder, and which colour each has."""
    folder = tmp_path_factory.mktemp("heap")
    truth = heap_of(draw_folder(folder / "sorted", CLASSES, 14), folder / "heap")
    return SimpleNamespace(folder=folder / "heap", truth=truth)


@pytest.fixture
def served(heap, tmp_path):
    with in_thread(heap.folder, tmp_path) as one:
        yield one


@pytest.fixture
def browse(chromium):
    """`browse(served, width=390, scheme="dark")`: the page in a browser that was let in. Nothing elsewhere is asked
    for, and the console says nothing but what `heard` holds."""
    contexts, visits = [], []

    def start(served, *, width=1280, scheme="light", heard=None, context=None):
        is_phone = width < 600
        if context is None:
            device = {"is_mobile": is_phone, "has_touch": is_phone, "viewport": {"width": width, "height": 844}}
            context = chromium.new_context(**device, color_scheme=scheme)
            contexts.append(context)
            name, _, value = served.cookie.partition("=")
            context.add_cookies([{"name": name, "value": value, "domain": "127.0.0.1", "path": "/"}])
        page, own = context.new_page(), f"127.0.0.1:{served.port}"
        page.set_default_timeout(40_000)  # of a machine that does other things too
        foreign, messages = [], []
        page.on(
            "request", lambda r: r.url.startswith("data:") or urlsplit(r.url).netloc == own or foreign.append(r.url)
        )
        page.on("console", lambda m: messages.append(m.text))
        page.on("pageerror", lambda e: messages.append(str(e)))
        page.on("dialog", lambda d: (messages.append(d.message), d.dismiss()))
        page.goto(f"http://{own}/")
        page.wait_for_selector("#screen[data-turn]", state="attached")
        visits.append((foreign, messages, heard))
        return page

    yield start
    for foreign, messages, heard in visits:
        assert foreign == []
        assert all(heard and heard in message for message in messages), messages
    for context in contexts:
        context.close()


def labels_of(served) -> dict[str, str]:
    return {name: card["label"] for name, card in served.cards().items() if card["label"]}


def shot(page, name: str) -> None:
    """A picture of the page, for people to look at."""
    if folder := os.environ.get("REGRAFT_SCREENSHOTS"):
        page.wait_for_timeout(300)
        page.screenshot(path=Path(folder) / f"{name}.png")


def test_the_command_shows_a_page_on_which_a_heap_is_labelled_and_trained(browse, heap, tmp_path):
    with labelling(heap.folder, tmp_path / "run", "--sort", tmp_path / "sorted") as served:
        page = browse(served)
        person = Annotator(page, served, heap.truth)
        person.label_all()
        assert labels_of(served) == heap.truth
        person.open("progress")
        page.wait_for_selector(".finished")
        page.keyboard.press("t")
        page.wait_for_selector("a[href=report]", timeout=120_000)
        report = served.ask("GET", "/report")
        assert b"<h1" in report.body
        assert "script" not in report.headers["content-security-policy"]
        page.click("#sort")
        page.wait_for_selector("#said:has-text('42 photos sorted')", state="attached")
    found = {path.name: path.parent.name for path in (tmp_path / "sorted").rglob("*.jpg")}
    assert found == heap.truth


def test_the_wheel_brings_another_photo_under_the_mouse_and_marks_it(served, browse, heap):
    """A key would else label a photo that may not even be seen any more."""
    page = browse(served)
    person = Annotator(page, served, heap.truth)
    served.wait_until(served.is_all_read)
    person.name_group()
    page.set_viewport_size({"width": 520, "height": 420})
    page.reload()
    page.wait_for_selector(".card")
    page.hover(".card .photo")
    marked = page.get_attribute("[data-cursor]", "data-photo")
    page.mouse.wheel(0, 200)
    page.wait_for_selector(f".card[data-cursor]:not([data-photo='{marked}'])", state="attached")
    under = "document.querySelector('.card:hover').dataset.photo"
    page.wait_for_function(f"() => document.querySelector('[data-cursor]').dataset.photo === {under}")
    now = page.get_attribute("[data-cursor]", "data-photo")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(f".card[data-cursor]:not([data-photo='{now}'])", state="attached")


def test_a_heap_is_labelled_to_the_last_photo_by_keys_and_all_is_taken_back(served, browse, heap):
    page = browse(served)
    person = Annotator(page, served, heap.truth)
    person.label_all()
    assert labels_of(served) == heap.truth
    assert person.actions <= 0.35 * len(heap.truth)
    page.wait_for_selector(".finished, #on")
    version = served.status()["version"]
    for _ in range(person.actions):
        page.keyboard.press("u")
        page.wait_for_selector("#said:has-text('Taken back'), #said:has-text('nothing to undo')", state="attached")
        served.wait_until(lambda seen=version: served.status()["version"] > seen or not served.status()["num_labelled"])
        version = served.status()["version"]
        if not served.status()["num_labelled"]:
            break
    assert labels_of(served) == {}
    assert served.status()["classes"] == list(dict.fromkeys(served.status()["classes"]))


def test_one_photo_at_a_time_is_answered_set_aside_left_and_measured(served, browse, heap):
    page = browse(served)
    person = Annotator(page, served, heap.truth)
    while len(served.status()["classes"]) < len(CLASSES):
        page.wait_for_selector("#screen.groups .card")
        person.name_group()
    served.wait_until(served.is_solved)
    person.open("progress")
    before = served.status()
    assert before["accuracy"] is None
    page.keyboard.press("m")
    page.wait_for_selector("#screen.audit .large")
    assert not page.query_selector(".accept")  # no guess to agree to
    answered = []
    for _ in range(before["num_audit_left"]):
        if not page.query_selector("#screen.audit .large"):
            break
        name = page.get_attribute(".large", "alt")
        answered.append(name)
        page.keyboard.press(person.keys()[heap.truth[name]])
        served.wait_until(lambda name=name: name in labels_of(served))
        page.wait_for_selector(f".large:not([alt='{name}']), .empty")
    served.wait_until(lambda: served.status()["accuracy"] is not None)
    assert served.status()["accuracy"]["n"] == before["num_audit_left"]
    labels = labels_of(served)
    assert {name: labels[name] for name in answered} == {name: heap.truth[name] for name in answered}

    person.open("questions")
    page.wait_for_selector(".large")
    first = page.get_attribute(".large", "alt")
    page.keyboard.press("Backspace")
    page.wait_for_selector(f".large:not([alt='{first}'])")
    second = page.get_attribute(".large", "alt")
    page.keyboard.press("x")
    page.wait_for_selector(f".large:not([alt='{second}'])")
    served.wait_until(lambda: served.cards()[second]["is_set_aside"])
    assert served.cards()[first]["label"] is None
    assert not served.cards()[first]["is_set_aside"]
    page.keyboard.press("u")
    served.wait_until(lambda: not served.cards()[second]["is_set_aside"])
    page.wait_for_selector(f".large[alt='{second}']")


def test_two_tabs_do_not_overwrite_each_other(served, browse, heap):
    for name in CLASSES:
        served.ask("POST", "/api/classes", {"name": name})
    mine = browse(served, heard="409")
    shown = Annotator(mine, served, heap.truth).shown()
    first, second, *_ = map(int, shown)
    said = {"answers": [{"photo": first, "label": "blue"}], "version": served.status()["version"]}
    assert served.ask("POST", "/api/answers", said).status == 200
    mine.keyboard.press("1")  # for the whole group, as red
    mine.wait_for_selector("#alert:has-text('answered on another page')")
    mine.wait_for_selector(f".card.done[data-photo='{first}'] .caption:has-text('blue')")
    assert labels_of(served).keys() == {served.ask("GET", f"/api/cards?photos={first}").json["cards"][0]["name"]}
    turn = mine.get_attribute("#screen", "data-turn")
    mine.keyboard.press("1")
    mine.wait_for_selector(f"#screen:not([data-turn='{turn}'])", state="attached")
    labels = [card["label"] for card in served.ask("GET", f"/api/cards?photos={first},{second}").json["cards"]]
    assert labels == ["blue", "red"]
    assert not mine.is_visible("#alert")
    mine.keyboard.press("u")
    served.wait_until(lambda: len(labels_of(served)) == 1)
    served.ask("POST", "/api/undo")
    assert labels_of(served) == {}
    other = browse(served, context=mine.context)  # of the same browser: another tab, with nothing of its own to undo
    served.ask("POST", "/api/answers", {**said, "version": served.status()["version"]})
    other.keyboard.press("u")
    other.wait_for_selector("#said:has-text('nothing to undo')", state="attached")
    assert len(labels_of(served)) == 1


def test_what_goes_wrong_is_told_and_nothing_is_shown_as_saved(served, browse):
    served.ask("POST", "/api/classes", {"name": "red"})
    page = browse(served, heard="ERR_FAILED")
    page.route("**/api/answers", lambda route: route.abort())
    page.keyboard.press("1")
    page.wait_for_selector("#alert:has-text('was not saved')")
    assert page.query_selector(".card.done") is None
    page.unroute("**/api/answers")
    turn = page.get_attribute("#screen", "data-turn")
    page.keyboard.press("1")
    page.wait_for_selector(f"#screen:not([data-turn='{turn}'])", state="attached")
    assert not page.is_visible("#alert")
    assert len(labels_of(served)) > 0


def test_while_photos_are_read_the_page_says_how_many(served, browse, chromium):
    def reading(route):
        told = served.status()
        route.fulfill(json={**told, "num_photos": 1306, "num_featured": 412})

    page = browse(served)
    page.route("**/api/status", reading)
    page.wait_for_selector("#count:has-text('412 of 1,306 photos read')")


@pytest.mark.parametrize("width", mostly_long([1280, 390], 390))
def test_every_screen_fits_and_can_be_read_and_reached(served, browse, heap, width):
    photos = [card["photo"] for card in served.cards().values()]
    names = list(served.cards())
    for name in CLASSES:
        served.ask("POST", "/api/classes", {"name": name})
    said = [{"photo": p, "label": heap.truth[name]} for p, name in zip(photos[:20], names[:20], strict=True)]
    said[0]["label"] = next(name for name in CLASSES if name != said[0]["label"])
    version = served.status()["version"]
    assert served.ask("POST", "/api/answers", {"answers": said, "version": version}).status == 200
    served.wait_until(served.is_solved)
    for scheme in ("light", "dark"):
        page = browse(served, width=width, scheme=scheme)
        for screen in ("groups", "guesses", "questions", "doubts", "progress"):
            page.click(f"[data-screen={screen}]")
            page.wait_for_selector(f"#screen.{screen}")
            page.wait_for_selector("#screen :is(.card, .large, .progress, .empty)")
            shot(page, f"{screen}-{width}-{scheme}")
            assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
            assert page.evaluate(STICKING_OUT) == [], screen
            assert page.evaluate(UNNAMED) == [], screen
            weak = [(round(c, 1), one) for c, one in page.evaluate(CONTRASTS) if c < READABLE]
            assert [one for one in weak if "disabled" not in one[1] and 'class="look"' not in one[1]] == [], screen


def test_names_are_shown_and_never_run(browse, tmp_path, heap):
    hostile = ["<img src=x onerror=alert(1)>.jpg", "{{7*7}}${7*7}.jpg", '"onload="alert(1).jpg', "‮gpj.exe.jpg"]
    folder = tmp_path / "<b>heap"
    folder.mkdir()
    photos = sorted(heap.folder.iterdir())
    for name, photo in zip([*hostile, *(f"{i}.jpg" for i in range(12))], photos, strict=False):
        shutil.copyfile(photo, folder / name)
    with in_thread(folder, tmp_path, "{{7*7}}", "o'nload=alert(1)") as served:
        page = browse(served)
        page.wait_for_selector(".card")
        page.keyboard.press("z")
        page.wait_for_selector("#zoom[open] .file")
        page.keyboard.press("Escape")
        assert page.text_content("#folder") == "<b>heap"
        assert {"{{7*7}}", "o'nload=alert(1)"} == set(Annotator(page, served, {}).keys())


def test_the_page_holds_no_script_no_style_and_no_address_of_elsewhere():
    index = (PAGE / "index.html").read_text()
    assert re.findall(r"<(?:script|style)[^>]*>(?!</script>)", index) == []
    assert re.findall(r"\s(?:on\w+|style)=", index) == []
    for path in PAGE.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"(^|\s)//.*", "", text, flags=re.MULTILINE), path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|eval\(|document\.write", text), path


def test_only_a_browser_that_was_let_in_is_answered(served):
    photo = "/photo/0?size=thumb"
    assert served.ask("GET", photo).headers["content-type"] == "image/jpeg"
    used, newest = served.addresses[0], served.addresses[-1]
    assert used != newest  # another one for the next browser
    for path in ("/api/status", "/api/page?kind=groups", "/api/cards?photos=0", photo, "/report", "/nothing"):
        for cookie in (None, f"{served.cookie}x", served.cookie.replace("label", "other"), "=;", 'a="'):
            assert served.ask("GET", path, Cookie=cookie).status == 401, (path, cookie)
    for path in ("/api/answers", "/api/undo", "/api/classes", "/api/train", "/api/sort"):
        assert served.ask("POST", path, {}, Cookie=None).status == 401
    for query in (urlsplit(used).query, "token=", "token=%FF", "", f"token={'a' * 22}"):
        reply = served.ask("GET", f"/enter?{query}", Cookie=None)
        assert (reply.status, reply.headers["set-cookie"]) == (303, None)
    assert served.ask("HEAD", f"/enter?{urlsplit(newest).query}", Cookie=None).status == 405  # uses nothing up
    reply = served.ask("GET", f"/enter?{urlsplit(newest).query}", Cookie=None)
    assert (reply.status, reply.headers["location"]) == (303, "/")
    assert re.fullmatch(
        rf"regraft-label-{served.port}=[\w-]{{22}}; HttpOnly; SameSite=Strict; Path=/", reply.headers["set-cookie"]
    )


def test_no_other_page_and_no_other_name_is_answered(served):
    own = f"127.0.0.1:{served.port}"
    said = {"name": "ant"}
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site", "Origin": "http://127.0.0.1:1"},
        {"Origin": f"http://127.0.0.1:{served.port + 1}"},
    ):
        assert served.ask("POST", "/api/classes", said, **headers).status == 403, headers
    for host in ("evil.example", f"evil.example:{served.port}", "", "127.0.0.1.evil.example"):
        for path in ("/", "/api/status", "/photo/0", f"/enter?{urlsplit(served.addresses[-1]).query}"):
            assert served.ask("GET", path, Host=host).status == 400, (host, path)
    assert served.ask("POST", "/api/classes", said, Content_Type="text/plain").status == 415
    assert served.status()["classes"] == []
    for headers in ({"Origin": f"http://{own}"}, {"Sec_Fetch_Site": "same-origin"}, {}):
        assert served.ask(
            "POST", "/api/classes", {"name": f"ant {len(headers)}{[*headers]}"[:8]}, **headers
        ).status in (
            200,
            400,  # there is one of that name
        )
    assert served.status()["classes"] != []
    reply = served.ask("GET", "/")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert (reply.headers["cache-control"], reply.headers["x-content-type-options"]) == ("no-store", "nosniff")
    assert served.ask("GET", "/photo/0").headers["cross-origin-resource-policy"] == "same-origin"


def test_requests_that_are_none_of_the_pages_are_refused_and_open_nothing(served, heap):
    number = len(heap.truth)
    for path in (f"/photo/{number}", "/photo/-1", "/photo/..%2f..%2fetc%2fpasswd", "/photo/0?size=../x", "/photo/1e3"):
        assert served.ask("GET", path).status == 404, path
    for path in ("/../sitting.py", "/page/index.html", "/%2e%2e/app.py", "/main.js/", "/api"):
        assert served.ask("GET", path).status == 404, path
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert served.ask(method, "/api/answers").status == 405, method
    assert served.ask("GET", "/api/answers").status == 405
    assert served.ask("POST", "/api/status", {}).status == 405
    for query in (
        "kind=all",
        "kind=groups&size=0",
        "kind=groups&size=97",
        "kind=groups&size=x",
        "kind=groups&without=a",
    ):
        assert served.ask("GET", f"/api/page?{query}").status == 400, query
    assert served.ask("GET", "/api/page?kind=guesses&class=none").status == 400
    for body in (
        b"{",
        b"[]",
        {},
        {"answers": [], "version": "1"},
        {"answers": [{"photo": 0, "label": 3}], "version": 0},
        {"answers": [{"photo": 0, "label": "none"}], "version": 0},
        {"answers": [{"photo": number, "label": None}], "version": 0},
        {"answers": [{"photo": -1, "label": None}], "version": 0},
        {"answers": [], "version": 0, "person": "you"},
    ):
        reply = served.ask("POST", "/api/answers", body)
        assert reply.status == 400, body
        assert reply.json["error"]
    assert served.ask("POST", "/api/answers", b"[" * 2_000_000).status == 413
    assert served.ask("POST", "/api/undo", {}, X_Tab="../../x").status == 400
    assert served.ask("POST", "/api/sort", {}).status == 400  # no folder was named
    assert served.ask("GET", "/report").status == 404
    assert served.status()["num_labelled"] == 0
    assert json.loads(served.ask("POST", "/api/undo", {}, X_Tab=TAB).body)["cards"] == []


def test_a_photo_that_has_gone_is_told_on_its_place(browse, tmp_path, heap):
    folder = shutil.copytree(heap.folder, tmp_path / "heap")
    with in_thread(folder, tmp_path) as served:
        shutil.rmtree(folder)
        reply = served.ask("GET", "/photo/0?size=screen")
        assert (reply.status, reply.json["error"]) == (422, "this photo cannot be shown: the file does not exist")
        page = browse(served, heard="422")
        page.wait_for_selector("#screen.groups .card img.broken[alt*='does not exist']")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", mostly_long(MOST_ACTIONS, "hemlock2"))
def test_real_photos_are_labelled_to_the_last_by_keys(real_photos, browse, tmp_path, record_property, name):
    truth = heap_of(real_photos / name, tmp_path / "heap")
    with labelling(tmp_path / "heap", tmp_path / "run") as served:
        served.wait_until(served.is_all_read, timeout=500)
        person = Annotator(browse(served), served, truth)
        person.label_all()
        labels = labels_of(served)
        wrong = {one for one in labels if labels[one] != truth[one]}
        num_photos = served.status()["num_photos"]
    record_property("actions", person.actions)
    print(f"{name}: {person.actions} actions for {num_photos} photos, {person.actions / num_photos:.3f} each")
    assert wrong == set()
    assert len(labels) == num_photos
    assert person.actions <= MOST_ACTIONS[name] * num_photos
