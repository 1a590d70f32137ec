"""Bundles that someone has made to do harm, every hash in them right. (Rows M3 and M4.)"""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import set_external_data

from conftest import rehash
from faults.processes import IS_LONG, record
from regraft.bundle.bundle import load
from regraft.bundle.format import seal_manifest
from regraft.core.errors import BundleError

pytestmark = [pytest.mark.slow] if IS_LONG else []
LIMIT = 10_000  # characters of an error


@pytest.fixture
def copy(bundle, tmp_path) -> Path:
    """A bundle that a test may change."""
    return Path(shutil.copytree(bundle.folder, tmp_path / "bundle"))


def manifests(whole: dict[str, Any]) -> dict[str, str]:
    """Texts of regraft.json by what is wrong with them."""
    paths = ("../secret", "/etc/passwd", "~/secret", "a/../../secret", "\\\\host\\share", "C:\\x", "\0", "x" * 5000)
    names = ("<img src=x onerror=alert(1)>", "</script>", "\x1b[2J", "\u202e", "a\nb", "=1+1", "{{7*7}}", "")
    odd = (None, True, -1, 1e308, [], {}, "x", [[]], {"": ""})
    found: dict[str, Any] = {}
    for number, path in enumerate(paths):
        found[f"a file {number}"] = {"sha256": {**whole["sha256"], path: "0" * 64}}
        found[f"a file instead {number}"] = {"sha256": {path: whole["sha256"]["model.onnx"]}}
        found[f"a head {number}"] = {"heads": {path: []}}
        found[f"a backbone {number}"] = {"backbone": {**whole["backbone"], "name": path, "origin": path}}
    for number, name in enumerate(names):
        found[f"a class {number}"] = {"classes": [name, "green", "red"]}
    found |= {f"classes {number}": {"classes": value} for number, value in enumerate(odd)}
    found |= {f"format {number}": {"format": value} for number, value in enumerate((*odd, 0, 2, 1.5, "1"))}
    found |= {f"temperature {value}": {"temperature": value} for value in (0, -1, 1e300, "nan", None, [])}
    found["too many classes"] = {"classes": [str(number) for number in range(100_000)]}
    found["one class too few"] = {"classes": whole["classes"][:2]}
    found["a class twice"] = {"classes": ["red", "red", "blue"]}
    texts = {name: json.dumps(seal_manifest({**whole, **values})) for name, values in found.items()}
    deep = "[" * 100_000 + "]" * 100_000
    texts |= {
        "deep": deep,
        "deep inside": json.dumps(whole)[:-1] + f', "more": {deep}}}',
        "nothing": "",
        "null": "null",
    }
    not_a_number = seal_manifest({**whole, "temperature": float("nan")})
    texts |= {"not a number": json.dumps(not_a_number), "cut": json.dumps(whole)[:-5]}
    return texts


def refusal(action: Callable[[], Any]) -> str:
    """The one line by which a bundle is refused; "" where it is not."""
    try:
        action()
    except BundleError as error:
        return str(error)
    return ""


def is_one_line(text: str) -> bool:
    return 0 < len(text) < LIMIT and "\n" not in text


def test_a_manifest_made_to_do_harm_is_refused_or_does_none(bundle, copy, record_property):
    texts, refused = manifests(bundle.manifest), {}

    def use() -> None:
        found = load(copy)
        answer = found.to_prediction(np.array([3.0, 1.0, 0.0], np.float32))
        assert answer.label == found.classes[0]
        assert len(found.head[0]) == len(answer.probabilities) == 3

    for name, text in texts.items():
        (copy / "regraft.json").write_text(text)
        refused[name] = refusal(use)
    said = {name: text for name, text in refused.items() if text}
    assert {name: text for name, text in said.items() if not is_one_line(text)} == {}
    assert len(texts) >= 60
    assert len(said) >= 30
    figures = {"refused": len(said), "harmless": len(texts) - len(said)}
    record(record_property, "M3", passed=len(texts), failed=0, **figures)


def places(folder: Path) -> list[str]:
    """Where a graph may say that its weights are: beside it, elsewhere, and elsewhere in disguise."""
    secret = folder.parent / "secret.bin"
    secret.write_bytes(bytes(2**20))
    shutil.copy(secret, folder / "inside.bin")
    os.link(secret, folder / "hard.bin")
    (folder / "link.bin").symlink_to(secret)
    (folder / "door").symlink_to(folder.parent)
    outside = ("../secret.bin", "./../secret.bin", "door/secret.bin", "link.bin", "hard.bin")
    absolute = (str(secret), "/etc/passwd", "/dev/zero", "/proc/self/environ", f"file://{secret}", "//etc/passwd")
    return [*outside, "inside.bin", "README.md", *absolute, "", "..", "~/secret.bin", "a/../../secret.bin"]


def test_a_graph_that_would_read_other_files_is_refused(copy, record_property):
    whole, count = onnx.load(copy / "model.onnx"), 0
    for place in places(copy):
        for number in (0, -1):
            model = onnx.ModelProto()
            model.CopyFrom(whole)
            tensor = model.graph.initializer[number]
            tensor.raw_data = tensor.raw_data or bytes(4)
            set_external_data(tensor, place, offset=0, length=4)
            tensor.ClearField("raw_data")
            write(copy, model.SerializeToString())
            with pytest.raises(BundleError, match="keeps weights in another file"):
                load(copy)
            count += 1
    assert count >= 30
    record(record_property, "M4", passed=count, failed=0)


def write(folder: Path, graph: bytes) -> None:
    """A graph, and a manifest that vouches for it."""
    (folder / "model.onnx").write_bytes(graph)
    rehash(folder, "model.onnx")


def damaged(whole: bytes) -> list[bytes]:
    """Graphs that are cut off, have bytes changed in their first kilobytes, or are something else."""
    found, count = [b"", b"\0", b"PK\x03\x04", b"<html>", bytes(1000)], 40 if IS_LONG else 8
    found += [whole[: len(whole) * number // count] for number in range(1, count)]
    for seed in range(count):
        chance, changed = random.Random(seed), bytearray(whole)
        for _ in range(8):
            changed[chance.randrange(min(4000, len(whole)))] = chance.randrange(256)
        found.append(bytes(changed))
    return found


def test_a_damaged_graph_is_refused_in_one_line(copy, photos, record_property):
    graphs, said = damaged((copy / "model.onnx").read_bytes()), []
    for graph in graphs:
        write(copy, graph)
        said.append(refusal(lambda: load(copy).predict(photos / "red" / "red_0.jpg")))
    refused = [text for text in said if text]
    assert all(map(is_one_line, refused))
    assert len(refused) > len(graphs) / 2
    record(record_property, "M4-damaged", passed=len(graphs), failed=0, refused=len(refused))
