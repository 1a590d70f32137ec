"""An exported model says what the bundle says, from file bytes on, or is not there."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import regraft
from commands.test_train import save_toy
from conftest import draw_folder
from faults.processes import IS_LONG, mostly_long, record
from regraft.backbones.backbone import load_backbone
from regraft.bundle.bundle import Bundle, load
from regraft.bundle.write import manifest_of, seal, write_model
from regraft.commands import export as export_command
from regraft.core.errors import DataError, ExportError, MissingExtra, OutputError
from regraft.exporters.output_files import ExportedFiles
from regraft.exporters.proof import running
from regraft.exporters.standalone_script import script

BACKBONES = (
    "timm/vit_tiny_patch16_224",
    "timm/test_resnet",
    "resnet18",
    "mobilenet_v3_small",
    "timm/convnext_atto",
    "densenet121",
    "regnet_y_400mf",
    "shufflenet_v2_x0_5",
    "swin_t",
    "timm/efficientnet_b0",
    "timm/deit_tiny_distilled_patch16_224",
    "timm/mobilevit_xxs",
)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Photos of every kind that a file can hold."""
    folder = tmp_path_factory.mktemp("odd")
    rng = np.random.default_rng(0)
    small = (255 * rng.random((30, 40, 3))).astype(np.uint8)
    photo = Image.fromarray(small).resize((400, 300), Image.Resampling.BICUBIC)
    photo.save(folder / "plain.jpg")
    exif = Image.Exif()
    for turn in (3, 6, 8):
        exif[274] = turn
        photo.save(folder / f"turned{turn}.jpg", exif=exif)
    photo.resize((2600, 1900)).save(folder / "large.jpg")
    photo.convert("RGBA").save(folder / "clear.png")
    holed = photo.convert("RGBA")
    holed.putalpha(Image.fromarray((255 * rng.random((300, 400))).astype(np.uint8)))
    holed.save(folder / "holed.png")
    photo.convert("P").save(folder / "palette.gif")
    photo.convert("L").save(folder / "grey.png")
    Image.fromarray((65535 * rng.random((200, 260))).astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(rng.normal(size=(90, 70)).astype(np.float32)).save(folder / "float.tiff")
    photo.resize((30, 900)).save(folder / "tall.png")
    photo.resize((9, 7)).save(folder / "tiny.webp")
    return folder


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory) -> Bundle:
    """A run of a small network with its photos."""
    folder = tmp_path_factory.mktemp("exported")
    toy = save_toy(folder / "toy", interpolation="bicubic")
    regraft.train(photos, folder / "run", mode="frozen", quiet=True, report=False, **toy)
    return load(folder / "run")


@pytest.mark.parametrize(("kind", "suffixes"), [("onnx", {".onnx", ".py"}), ("openvino", {".xml", ".bin", ".py"})])
def test_it_is_proven_on_the_photos_kept_for_judging(run, tmp_path, kind, suffixes):
    found = regraft.export(run, tmp_path / "model", format=kind)
    assert (found.num_photos, found.num_agree, found.num_ties) == (6, 6, 0)
    assert found.max_difference < 1e-5
    assert {path.suffix for path in tmp_path.iterdir()} == suffixes == {path.suffix for path in found.files}
    assert re.fullmatch(r"6 photos, 6 agree, largest difference \de-\d\d", str(found))


@pytest.mark.slow
def test_a_program_of_torch(run, odd, tmp_path):
    found = regraft.export(run, tmp_path / "model.pt2", format="torch", photos=odd)
    assert found.num_photos == found.num_agree == len(list(odd.iterdir()))
    assert [path.name for path in found.files] == ["model.pt2", "model.safetensors", "model.py"]
    assert found.files[1].read_bytes() == (run.folder / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", mostly_long(["onnx", "openvino"], "onnx"))
def test_in_eight_bits_it_is_smaller_and_within_its_tolerance(default_bundle, tmp_path, kind):
    run = default_bundle
    whole = regraft.export(run, tmp_path / "whole", format=kind)
    found = regraft.export(run, tmp_path / "small", format=kind, int8=True)
    assert found.num_agree + found.num_ties >= 0.98 * found.num_photos == 0.98 * whole.num_photos
    assert 1e-6 < found.mean_difference <= 0.02
    assert found.size_bytes < 0.5 * whole.size_bytes
    assert (whole.precision, whole.speedup, found.precision) == ("f32", None, "int8")
    assert re.fullmatch(r"6 photos, 6 agree, largest .*, on average .*; int8, \d\.\d times as fast as f32", str(found))
    if kind == "onnx":
        model = onnx.load(tmp_path / "small.onnx")
        assert {one.key: one.value for one in model.metadata_props}["precision"] == "int8"
        eight = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
        convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
        of_one = [any(a.name == "group" and a.i > 1 for a in node.attribute) for node in convolutions]
        in_eight = [node.input[1] in eight for node in convolutions]
        assert in_eight == [number > 0 and not alone for number, alone in enumerate(of_one)]


def test_in_eight_bits_it_is_judged_too(run, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(export_command, "INT8", export_command.ExportTolerance(1.0, 1.0, 1e-9))
    some = tmp_path / "some"
    draw_folder(some, ("red", "green"), 2)
    with pytest.raises(
        ExportError, match=r"int8 onnx .* of 2 labels agree.*at most 1e-09.*without --int8\."
    ) as refused:
        regraft.export(run, tmp_path / "model", photos=some, int8=True)
    assert "2 of 2 labels agree" in str(refused.value)
    with pytest.raises(ExportError, match="Choose onnx or openvino"):
        regraft.export(run, tmp_path / "model", format="torch", int8=True)
    with pytest.raises(DataError, match="Name more with --photos"):
        regraft.export(run, tmp_path / "model", photos=some / "red" / "red_0.jpg", int8=True)
    assert list(tmp_path.iterdir()) == [some]


def test_photos_of_every_kind_are_read_alike(run, odd, tmp_path):
    found = regraft.export(run, tmp_path / "model.onnx", photos=odd)
    assert found.num_photos == found.num_agree == len(list(odd.iterdir()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", mostly_long(["onnx", "openvino", "torch"], "onnx"))
def test_the_program_beside_the_model_answers_by_itself(run, photos, tmp_path, kind):
    regraft.export(run, tmp_path / "pets", format=kind)
    path = photos / "red" / "red_0.jpg"
    done = subprocess.run(
        [sys.executable, tmp_path / "pets.py", path], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{path}  red  {100 * run.predict(path).probability:.1f} %\n"


def test_the_file_says_what_it_is(run, tmp_path):
    regraft.export(run, tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    told = {one.key: one.value for one in model.metadata_props}
    assert json.loads(told["classes"]) == list(run.classes)
    assert json.loads(told["preprocessing"])["height"] == run.preprocessing.height == 64
    assert model.graph.output[0].name == "probabilities"


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_model_that_answers_otherwise_is_not_written(run, tmp_path, monkeypatch, kind):
    hotter = {**run.manifest, "temperature": 1.7}
    write = export_command._write

    def wrong(bundle, *arguments):
        write(replace(bundle, content=replace(bundle.content, manifest=hotter)), *arguments)

    monkeypatch.setattr(export_command, "_write", wrong)
    with pytest.raises(ExportError, match="6 of 6 labels agree, probabilities differ by up to"):
        regraft.export(run, tmp_path / "model", format=kind)
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_reads_photos_otherwise_is_not_written(run, tmp_path, monkeypatch):
    monkeypatch.setattr(export_command, "script", lambda *a: script(*a).replace("BICUBIC", "BILINEAR"))
    with pytest.raises(ExportError, match=r"reads .*\.jpg otherwise than the bundle"):
        regraft.export(run, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_without_photos_it_says_how_to_name_some(bundle, tmp_path):
    lone = tmp_path / "lone"
    lone.mkdir()
    for file in bundle.folder.iterdir():
        (lone / file.name).write_bytes(file.read_bytes())
    with pytest.raises(DataError, match="--photos DIR"):
        regraft.export(load(lone), tmp_path / "m.onnx")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="has no photos"):
        regraft.export(load(lone), tmp_path / "m.onnx", photos=tmp_path / "none")


def changes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("name", ["app.onnx", "app.py"])
def test_a_file_of_the_users_stays_and_is_named(run, tmp_path, name):
    (tmp_path / name).write_text('print("my own work")')
    before = changes(tmp_path)
    with pytest.raises(OutputError, match=f"^{tmp_path / name} is there already"):
        regraft.export(run, tmp_path / "app.onnx")
    assert changes(tmp_path) == before


def test_an_export_is_replaced_by_the_next_and_by_no_other_once_it_was_changed(run, tmp_path):
    for out in ("pets.onnx", "pets"):
        assert [path.name for path in regraft.export(run, tmp_path / out).files] == ["pets.onnx", "pets.py"]
    program = tmp_path / "pets.py"
    program.write_text("# mine\n" + program.read_text())
    with pytest.raises(OutputError, match=f"^{tmp_path / 'pets.onnx'} is there already"):
        regraft.export(run, tmp_path / "pets")
    assert program.read_text().startswith("# mine")


@pytest.mark.parametrize(
    ("out", "model"),
    [("pets-1.1", "pets-1.1.onnx"), ("pets-1.2.onnx", "pets-1.2.onnx"), ("a.b/pets.PY", "a.b/pets.onnx")],
)
def test_a_dot_in_a_name_is_part_of_it(out, model):
    assert ExportedFiles(Path(out), "onnx").files == (Path(model), Path(model).with_suffix(".py"))


def test_a_name_of_another_format_is_refused():
    with pytest.raises(ExportError, match=r"--format openvino, and --format is onnx\. Name it pets\.xml\.onnx"):
        ExportedFiles(Path("pets.xml"), "onnx")
    with pytest.raises(ExportError, match="names no file"):
        ExportedFiles(Path(), "onnx")


def exported(folder: Path, kind: str, content: bytes) -> ExportedFiles:
    """A model's files, as an export puts them there."""
    place, drafts = ExportedFiles(folder / "pets", kind), folder / "drafts"
    drafts.mkdir(exist_ok=True)
    place.check()
    for path in place.files[:-1]:
        (drafts / path.name).write_bytes(content)
    program = place.program_of("import this\n", drafts)
    place.files[-1].write_bytes(program)
    for path in place.files[:-1]:
        path.write_bytes(content)
    return place


def test_several_formats_live_beside_each_other(tmp_path):
    for content in (b"1", b"2"):
        for kind in ("onnx", "openvino", "torch"):
            exported(tmp_path, kind, content)
    for kind in ("onnx", "openvino", "torch"):
        ExportedFiles(tmp_path / "pets", kind).check()


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_what_is_no_plain_file_stays(tmp_path, kind):
    (path,) = exported(tmp_path, "onnx", b"1").files[:1]
    (tmp_path / "moved").write_bytes(path.read_bytes())
    path.unlink()
    path.mkdir() if kind == "folder" else path.symlink_to("moved")
    with pytest.raises(OutputError, match=str(path)):
        ExportedFiles(tmp_path / "pets", "onnx").check()


def test_a_kill_between_program_and_model_leaves_files_that_are_known(tmp_path):
    place = exported(tmp_path, "onnx", b"1")
    (tmp_path / "drafts" / "pets.onnx").write_bytes(b"2")
    place.files[-1].write_bytes(place.program_of("import that\n", tmp_path / "drafts"))
    place.check()


WRONG = {  # a program with one of the faults that programs have had
    "turned twice": ("    image.load()  # some files", "    # some files"),
    "a damaged EXIF block": ("except Exception:  # a damaged", "except KeyError:  # a damaged"),
    "HEIC": ("    pi_heif.register_heif_opener()", "    pi_heif = None"),
    "black for what is clear": ('"white"', '"black"'),
    "16 bits": ('startswith(("I", "F"))', 'startswith(("F",))'),
    "mirrored": ("2: 0, 3: 3", "3: 3"),
    "a package of regraft's": ("import numpy as np", "import regraft\nimport numpy as np"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_program_that_reads_some_kind_of_photo_otherwise_is_refused(run, tmp_path, fault):
    text, (right, wrong) = script("onnx", run.preprocessing, run.classes), WRONG[fault]
    assert right in text
    (tmp_path / "model.py").write_text(text.replace(right, wrong))
    with (
        pytest.raises((ExportError, MissingExtra), match=r"exported program (cannot|reads)|regraft"),
        running(tmp_path / "model.py", "onnxruntime") as program,
    ):
        export_command._prove_reading(run, program, tmp_path)


def test_every_kind_of_photo_is_read_alike(run, tmp_path):
    (tmp_path / "model.py").write_text(script("onnx", run.preprocessing, run.classes))
    with running(tmp_path / "model.py", "onnxruntime") as program:
        export_command._prove_reading(run, program, tmp_path)
    kinds = {path.suffix for path in (tmp_path / "samples").iterdir()}
    assert kinds >= {".jpg", ".png", ".tif", ".webp", ".bmp", ".gif", ".ppm", ".ico", ".heic"}


@pytest.mark.parametrize(
    ("end", "said"), [("raise SystemExit('no')", "ended with 1 .*: no"), ("1 / 0", "ZeroDivision")]
)
def test_a_program_that_ends_is_an_error_with_its_last_words(tmp_path, end, said):
    (tmp_path / "model.py").write_text(end)
    with pytest.raises(ExportError, match=said), running(tmp_path / "model.py", "onnxruntime"):
        pass


def test_openvino_calls_nobody_while_a_program_proves_itself(tmp_path):
    program = (
        "import openvino, sys\n"
        "assert sys.modules.get('openvino_telemetry') is None\n"
        "assert 'stub' in openvino.tools.ovc.telemetry_utils.tm.Telemetry.__module__, 'not the stub'\n"
    )
    (tmp_path / "model.py").write_text(program)
    with running(tmp_path / "model.py", "openvino"):
        pass


def test_names_of_classes_cannot_run_in_the_program():
    preprocessing = load_backbone().preprocessing
    hostile = ('"]; import os; os.abort(); ["', "<WIDTH>", "'''", "\\", "a\nb", "\u202e")
    text = script("onnx", preprocessing, hostile)
    space: dict = {}
    line = next(line for line in text.splitlines() if line.startswith("CLASSES"))
    exec(line, space)
    assert tuple(space["CLASSES"]) == hostile
    compile(text, "program", "exec")
    assert text.isascii()


def random_bundle(name: str, folder: Path) -> Bundle:
    """A backbone with random weights and a random head of five classes."""
    backbone = load_backbone(name, "random")
    rng = np.random.default_rng(1)
    weight = rng.normal(0, 1 / backbone.num_features**0.5, (5, backbone.num_features)).astype(np.float32)
    folder.mkdir()
    classes = tuple("abcde")
    write_model(folder, backbone, weight, np.zeros(5, np.float32), classes)
    images = {"found": 1, "used": 1, "quarantined": 0}
    provenance = {"mode": "frozen", "images": images, "data_sha256": "0" * 64, "config": {}}
    provenance |= {"split": {"given": False, "train": 24, "judged": 6}}
    seal(folder, manifest_of(backbone, classes, 1.3, {}, provenance))
    return load(folder, precision="f32")


@pytest.mark.slow
@pytest.mark.timeout(3600 if IS_LONG else 300)
@pytest.mark.parametrize("name", mostly_long(BACKBONES, "timm/test_resnet"))
def test_twelve_backbones_from_file_bytes(name, odd, tmp_path, record_property):
    bundle = random_bundle(name, tmp_path / "bundle")
    more = draw_folder(tmp_path / "photos", ("a", "b"), 100 if IS_LONG else 4)
    shutil.copytree(odd, more / "odd")
    found = regraft.export(bundle, tmp_path / "model", photos=more)
    num_photos = len([path for path in more.rglob("*") if path.is_file()])
    assert found.num_agree + found.num_ties == found.num_photos == num_photos
    assert found.max_difference <= 1e-4
    largest = found.max_difference
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    inputs = np.stack([bundle.to_input(path) for path in sorted(more.glob("?/*.jpg"))])
    expected = bundle.probabilities(bundle.engine(inputs)["logits"])
    for size in (1, 3, 8):
        batches = [inputs[start : start + size] for start in range(0, len(inputs), size)]
        said = np.concatenate([session.run(["probabilities"], {"images": batch})[0] for batch in batches])
        np.testing.assert_allclose(said, expected, atol=1e-4)
        largest = max(largest, float(np.abs(said - expected).max()))
    record(record_property, f"M5-{name.replace('/', '-')}", photos=num_photos, batches=[1, 3, 8], largest=largest)


def test_the_command_prints_its_proof(run, regraft_main, tmp_path):
    done = regraft_main("export", run.folder, "--out", tmp_path / "m.onnx", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["num_photos"], told["num_agree"]) == (6, 6)
    assert [Path(path).name for path in told["files"]] == ["m.onnx", "m.py"]
