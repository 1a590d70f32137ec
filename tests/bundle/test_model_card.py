"""The card says what was measured, is read by a model hub, and does nothing for a name from outside."""

import copy

import pytest
import yaml
from markdown_it import MarkdownIt

from regraft.bundle.model_card import card

HOSTILE = (
    "---\nlicense: mit\n---",
    "\n---\n",
    "<script>alert(1)</script>",
    "</code><img src=x onerror=alert(1)>",
    "``<b>``",
    "`",
    "[x](javascript:alert(1))",
    "![x](https://example.org/seen.png)",
    "!!python/object/apply:os.system ['true']",
    "a: b # c",
    "*alias &anchor %TAG",
    "\"]}'",
    "\x00\x1b[2J\x85\u2028",
    "\u202egnp.exe",
    "\udc80",
    "\U0001f34e",
    "null",
    "café",
)


@pytest.fixture
def manifest(default_bundle):
    """A manifest that a test may change."""
    return copy.deepcopy(default_bundle.manifest)


def parts(text):
    """Front matter and text of a card."""
    begin, head, body = text.split("---\n", 2)
    assert begin == ""
    return yaml.safe_load(head), body


def test_the_front_matter_says_what_it_is_and_how_good(manifest):
    accuracy = manifest["metrics"]["accuracy"]
    head, body = parts(card(manifest))
    assert (head["license"], head["library_name"]) == ("apache-2.0", "timm")
    assert head["pipeline_tag"] == "image-classification"
    (row,) = head["model-index"]
    (result,) = row["results"]
    assert result["task"] == {"type": "image-classification"}
    assert result["dataset"]["split"] == accuracy["split"]
    (metric,) = result["metrics"]
    assert (metric["type"], metric["value"]) == ("accuracy", pytest.approx(accuracy["value"], abs=1e-4))
    assert metric["args"] == {
        "n": accuracy["n"],
        "low": pytest.approx(accuracy["low"], abs=1e-4),
        "high": pytest.approx(accuracy["high"], abs=1e-4),
    }
    assert body.startswith("\n# Image classifier\n")


def test_the_card_of_a_bundle_is_this_one(bundle):
    assert (bundle.folder / "README.md").read_text() == card(bundle.manifest)


def test_a_model_that_was_not_measured_claims_nothing(manifest):
    manifest["metrics"] = {}
    head, body = parts(card(manifest))
    assert "model-index" not in head
    assert "Not measured." in body


@pytest.mark.parametrize(
    ("name", "levels", "library"),
    [("timm/resnet18", False, "timm"), ("timm/resnet18", True, "regraft"), ("torchvision/resnet18", False, "regraft")],
)
def test_timm_is_named_where_timm_can_load_it(manifest, name, levels, library):
    manifest["backbone"] |= {"name": name, "levels": levels}
    assert parts(card(manifest))[0]["library_name"] == library


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("mit", {"license": "mit"}),
        ("not stated", {"license": "unknown"}),
        ("none", {"license": "unknown"}),
        ("dinov3-license", {"license": "other", "license_name": "dinov3-license"}),
        ("Mine: <b>\n---\nx", {"license": "other", "license_name": "mine-b-x"}),
        ("!", {"license": "other", "license_name": "other"}),
    ],
)
def test_a_licence_is_one_that_the_hub_knows_or_another_with_its_name(manifest, licence, expected):
    manifest["backbone"]["licence"] = licence
    head, _ = parts(card(manifest))
    assert {key: value for key, value in head.items() if key.startswith("license")} == expected


@pytest.mark.parametrize("share", [0.0, 1.0, 1e-5, 0.1 + 0.2, 1 / 3])
def test_shares_stay_numbers(manifest, share):
    manifest["metrics"]["accuracy"] |= {"value": share, "low": share, "high": share}
    (metric,) = parts(card(manifest))[0]["model-index"][0]["results"][0]["metrics"]
    assert {type(metric["value"]), *map(type, metric["args"].values())} <= {int, float}


def tokens(text):
    return [child for token in MarkdownIt("commonmark").parse(text) for child in (token, *(token.children or ()))]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_from_outside_changes_nothing_but_its_own_place(manifest, name):
    plain_head, plain_body = parts(card(manifest))
    manifest["classes"] = [name, f"{name} and more", "a"]
    manifest["backbone"]["origin"] = f"file {name}, sha256 0123"
    head, body = parts(card(manifest))
    card(manifest).encode()
    assert head == plain_head
    assert [token.type for token in tokens(body)] == [token.type for token in tokens(plain_body)]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_of_a_backbone_stays_a_name(manifest, name):
    plain_head, _ = parts(card(manifest))
    manifest["backbone"]["name"] = f"timm/{name}"
    head, body = parts(card(manifest))
    assert head.keys() == plain_head.keys()
    assert isinstance(head["model-index"][0]["name"], str)
    assert not {token.type for token in tokens(body)} & {"html_inline", "html_block", "link_open", "image"}
