"""What was verified is what runs: whatever becomes of the folder, the process or the object afterwards."""

import io
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pytest

from conftest import rehash, rewrite_manifest
from regraft.bundle.bundle import load
from regraft.bundle.format import FILES, MANIFEST, seal_manifest
from regraft.bundle.heatmap import heat_map
from regraft.core.errors import BundleError
from regraft.core.files import json_bytes, write_atomic
from regraft.evaluation.evaluate import evaluate
from tiny_bundle import write_tiny

FORMS = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "joblib": lambda model: joblib.load(io.BytesIO(joblib_bytes(model))),
}


def joblib_bytes(model) -> bytes:
    stream = io.BytesIO()
    joblib.dump(model, stream)
    return stream.getvalue()


@pytest.fixture
def copy(bundle, tmp_path) -> Path:
    """A bundle of links to one; a test may put other files in their place."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in (*FILES, MANIFEST):
        (folder / name).symlink_to(bundle.folder / name)
    return folder


@pytest.fixture
def photo(photos) -> bytes:
    return (photos / "red" / "red_0.jpg").read_bytes()


def spoil(folder: Path) -> None:
    """Nothing in the folder is what it was."""
    for name in (*FILES, MANIFEST):
        write_atomic(folder / name, b"something else")


def test_a_model_answers_as_it_was_loaded_whatever_its_folder_holds_now(bundle, copy, photo):
    model = load(copy)
    spoil(copy)
    assert model.predict(photo) == bundle.predict(photo)
    image = model.to_input(photo)
    assert np.array_equal(heat_map(model, image, 2), heat_map(bundle, image, 2))
    assert np.array_equal(model.head[0], bundle.head[0])
    assert model.read("model.onnx") == bundle.read("model.onnx")
    assert json.loads(model.read(MANIFEST)) == bundle.manifest


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md"])
def test_a_file_that_is_not_kept_in_memory_is_given_only_as_it_was(copy, name):
    model = load(copy)
    assert model.read(name) == (copy / name).read_bytes()
    write_atomic(copy / name, b"something else")
    with pytest.raises(BundleError, match=rf"{name} was replaced since the model was loaded\. Load it again\."):
        model.read(name)
    (copy / name).unlink()
    with pytest.raises(BundleError, match=rf"{name} was removed or replaced since"):
        model.read(name)


def test_a_model_named_by_a_relative_path_is_found_from_another_folder(copy, photo, monkeypatch, tmp_path):
    monkeypatch.chdir(copy.parent)
    model = load("bundle")
    monkeypatch.chdir("/")
    assert model.folder == copy
    assert model.predict(photo).label == "red"
    assert model.read("README.md") == (copy / "README.md").read_bytes()


@pytest.mark.parametrize("form", FORMS)
def test_a_model_that_has_answered_is_sent_with_what_it_was_loaded_from(copy, photo, form):
    model = load(copy, max_error=0.2)
    expected = model.predict(photo)
    spoil(copy)
    sent = FORMS[form](model)
    assert sent.predict(photo) == expected
    assert (sent.sha256, sent.max_error, sent.folder) == (model.sha256, 0.2, model.folder)


def test_a_pickle_that_was_damaged_is_refused(copy):
    data = bytearray(pickle.dumps(load(copy)))
    graph = (copy / "model.onnx").read_bytes()
    data[data.find(graph) + len(graph) // 2] ^= 1
    with pytest.raises(BundleError, match=r"model\.onnx is damaged: expected sha256"):
        pickle.loads(bytes(data))


PROGRAM = """
import multiprocessing, sys, regraft
model = regraft.load(sys.argv[1], precision="f32")
first = model.predict(sys.argv[2])
def answer(path):
    return model.predict(path) == first
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(answer, [sys.argv[2]] * 4), model.predict(sys.argv[2]) == first)
import os
child = os.fork()
if not child:
    sys.exit(0 if answer(sys.argv[2]) else 1)  # with all that an interpreter does at its end
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_processes_forked_from_one_that_has_answered_answer_too(bundle, photos):
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, bundle.folder, photos / "red" / "red_0.jpg"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[True, True, True, True] True\n0\n", done.stderr


def answer_of(model, photo):
    return model.predict(photo)


def test_a_process_that_was_spawned_gets_the_model_as_an_argument(copy, photo):
    model = load(copy)
    expected = model.predict(photo)
    spoil(copy)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(answer_of, (model, photo)) == expected


def test_another_model_than_the_one_asked_for_is_refused(copy):
    first = load(copy)
    assert load(copy, expected_sha256=first.sha256).sha256 == first.sha256
    rewrite_manifest(copy, temperature=2.0)
    with pytest.raises(BundleError, match=r"was replaced by another model: expected sha256 .*Load it again"):
        load(copy, expected_sha256=first.sha256)


def test_the_identity_of_a_model_is_its_content_not_its_layout(bundle, copy):
    text = json.dumps(dict(reversed(bundle.manifest.items())))
    write_atomic(copy / MANIFEST, text.encode())
    assert load(copy).sha256 == bundle.sha256
    rewrite_manifest(copy, temperature=2.0)
    assert load(copy).sha256 != bundle.sha256


def test_names_of_classes_that_were_exchanged_are_noticed(copy):
    manifest = json.loads((copy / MANIFEST).read_text())
    swapped = {**manifest, "classes": ["red", "green", "blue"]}
    write_atomic(copy / MANIFEST, json_bytes(swapped))
    with pytest.raises(BundleError, match=r"its metrics\.per_class is not that of its classes"):
        load(copy)
    write_atomic(copy / MANIFEST, json_bytes({**swapped, "metrics": {}}))
    with pytest.raises(BundleError, match="its seal does not match"):
        load(copy)
    write_atomic(copy / MANIFEST, json_bytes(seal_manifest({**swapped, "metrics": {}})))
    with pytest.raises(BundleError, match="its graph and its manifest name different classes"):
        load(copy)


def test_a_bundle_of_the_first_format_has_no_seal_and_loads(bundle, copy, photo):
    manifest = {name: value for name, value in bundle.manifest.items() if name != "seal"}
    write_atomic(copy / MANIFEST, json_bytes({**manifest, "format": 1}))
    assert load(copy).predict(photo) == bundle.predict(photo)
    write_atomic(copy / MANIFEST, json_bytes(manifest))
    with pytest.raises(BundleError, match="its seal does not match"):
        load(copy)


@pytest.mark.parametrize("layout", ["files", "folder", "volume"])
def test_a_bundle_of_links_to_files_is_verified_by_what_they_lead_to(copy, tmp_path, photo, layout):
    """As in the Hugging Face cache, where each file links to a blob; as one link; as Kubernetes mounts a volume."""
    place = tmp_path / "links"
    if layout == "folder":
        place.symlink_to(copy)
    else:
        place.mkdir()
        target = place / "..data" if layout == "volume" else copy
        if layout == "volume":
            target.symlink_to(copy)
        for name in (*FILES, MANIFEST):
            (place / name).symlink_to(target / name)
    assert load(place).predict(photo).label == "red"
    write_atomic(copy / "README.md", b"something else")
    with pytest.raises(BundleError, match=r"README\.md is damaged"):
        load(place)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_link_to_what_is_no_file_is_refused_and_not_waited_for(copy, tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path / "pipe", "/dev/zero", tmp_path, tmp_path / "none", copy / name):
        (copy / name).unlink()
        (copy / name).symlink_to(target)
        with pytest.raises(BundleError, match=f"{name} is missing, or not a plain file|There is no bundle"):
            load(copy)


def test_a_file_that_is_no_part_of_a_bundle_is_refused_and_hidden_ones_are_let_be(copy):
    for name in (".gitattributes", ".DS_Store", "Thumbs.db", ".cache"):
        (copy / name).touch()
    load(copy)
    (copy / "model.bin").write_bytes(b"weights of another format")
    with pytest.raises(BundleError, match=r"holds 'model\.bin', which is no part of a bundle.*Move it elsewhere"):
        load(copy)


def test_a_bundle_that_is_replaced_while_it_is_read_is_read_again(bundle, copy, photo, monkeypatch):
    import regraft.bundle.content as content

    other, read, calls = copy.with_name("other"), content._graph, []
    shutil.copytree(copy, other, symlinks=True)
    rewrite_manifest(other, temperature=3.0)
    write_atomic(other / "README.md", b"Another card.")
    rehash(other, "README.md")

    def replaced(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            copy.rename(copy.with_name("old"))
            other.rename(copy)
        return read(*arguments)

    monkeypatch.setattr(content, "_graph", replaced)
    model = load(copy)
    assert len(calls) == 2
    assert model.manifest["temperature"] == 3.0
    assert model.read("README.md") == b"Another card."


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: {"classes": [*m["classes"], "teal"], "metrics": {}}, "4 classes and 3 logits"),
        (lambda m: {"classes": m["classes"][:2], "metrics": {}}, "2 classes and 3 logits"),
        (lambda m: {"backbone": {**m["backbone"], "num_features": 1000}}, "has 12 features, its manifest says 1000"),
        (lambda m: {"preprocessing": {**m["preprocessing"], "height": 320}}, r"takes images of \(16, 16\)"),
        (lambda m: {"heads": {"none": []}}, "has no head 'none'"),
        (lambda m: {"heads": {"conv_stem": []}}, "has no head 'conv_stem'"),
        (lambda m: {"heads": {}}, "its heads is wrong"),
        (lambda m: {"backbone": {**m["backbone"], "licence": None}}, "its backbone.licence is wrong"),
        (lambda m: {"backbone": None}, "its backbone is wrong: missing"),
        (lambda m: {"provenance": {**m["provenance"], "mode": "magic"}}, "its provenance.mode is wrong"),
        (lambda m: {"provenance": {**m["provenance"], "images": {"used": -1}}}, "its provenance.images"),
        (lambda m: {"provenance": {**m["provenance"], "history": {}}}, "its provenance.history is wrong"),
        (lambda m: {"metrics": {"accuracy": {"value": 2}}}, "its metrics.accuracy"),
        (lambda m: {"metrics": {**m["metrics"], "confusion": [[1]]}}, "its metrics.confusion is not that of 3"),
        (lambda m: {"sha256": {**m["sha256"], "README.md": "0"}}, "its sha256"),
        (lambda m: {"temperature": 10**400}, "its temperature"),
        (lambda m: {"precision": "f16"}, "its precision"),
    ],
)
def test_a_manifest_that_says_something_else_than_the_files_is_refused(bundle, copy, change, problem):
    rewrite_manifest(copy, **change(bundle.manifest))
    with pytest.raises(BundleError, match=problem):
        load(copy)


def test_a_head_of_other_numbers_than_the_graph_has_is_refused(bundle, copy):
    (head,) = bundle.manifest["heads"]
    data = bytearray((copy / "model.safetensors").read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    begin = 8 + int.from_bytes(data[:8], "little") + header[f"{head}.weight"]["data_offsets"][0]
    data[begin : begin + 4] = np.float32(1.0).tobytes()
    write_atomic(copy / "model.safetensors", bytes(data))
    rehash(copy, "model.safetensors")
    with pytest.raises(BundleError, match="its graph and its weights have different heads"):
        load(copy)


@pytest.mark.parametrize("names", [("location", "dislocation"), ("external_data", "model.bin", "data_location")])
def test_a_class_may_bear_any_name(tmp_path, names):
    model = load(write_tiny(tmp_path / "bundle", names))
    assert model.classes == names
    assert set(model.predict(np.zeros((9, 9, 3), np.uint8)).probabilities) == set(names)


def test_evaluation_uses_the_head_that_was_loaded(bundle, copy, photos):
    model = replace(load(copy), folder=Path("/nowhere"))
    spoil(copy)
    assert evaluate(model, photos).accuracy == evaluate(bundle, photos).accuracy
