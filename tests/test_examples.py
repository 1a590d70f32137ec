"""The examples run as they are printed, and the notebooks are what their one source says."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from torch import nn

from conftest import draw, draw_folder
from faults.processes import IS_LONG

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import notebooks  # noqa: E402
import train_loop  # noqa: E402

LANGUAGES = list(notebooks.EDITIONS)
CHINESE = re.compile("[⺀-鿿]")
MAX_BYTES = 1_500_000


@pytest.mark.slow
def test_the_loop_in_plain_pytorch_trains_and_saves(tmp_path, monkeypatch, capsys):
    for part, seed in (("train", 0), ("val", 50)):
        draw_folder(tmp_path / "photos" / part, ("cat", "dog"), 4, seed)
    command = [EXAMPLES / "train_loop.py", tmp_path / "photos", "--mode", "scratch", "--epochs", "2"]
    command += ["--backbone", "resnet18", "--out", tmp_path / "model.pt"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in command])
    runpy.run_path(sys.argv[0], run_name="__main__")  # in this process, which has torch
    assert re.findall(r"^epoch (\d):", capsys.readouterr().out, re.MULTILINE) == ["1", "2"]
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    assert saved["classes"] == ["cat", "dog"]
    assert saved["state_dict"]["fc.weight"].shape == (2, 512)


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 9))


def test_the_parts_of_the_loop_do_what_they_say(tmp_path):
    """A checkpoint of DataParallel is read, a new head is put on, it alone learns where the rest is frozen."""
    saved, model = small_network(), small_network()
    with torch.no_grad():
        saved[2].weight.add_(1)
    torch.save({"state_dict": nn.DataParallel(saved).state_dict()}, tmp_path / "best.pth.tar")
    train_loop.read_checkpoint(model, tmp_path / "best.pth.tar")
    assert torch.equal(model[2].weight, saved[2].weight)
    for part, seed in (("train", 0), ("val", 50)):
        draw_folder(tmp_path / "photos" / part, ("cat", "dog"), 4, seed)
    train, val = train_loop.load(tmp_path / "photos", size=32)
    train_loop.freeze(model)
    train_loop.put_new_head(model, 2)
    before = model[4].weight.clone()
    train_loop.learn(model, train, val, epochs=1)
    assert torch.equal(model[2].weight, saved[2].weight)
    assert not torch.equal(model[4].weight, before)
    with torch.no_grad():
        model[4].bias.copy_(torch.tensor([-50.0, 50.0]))
    label, probability = train_loop.predict(model, draw(tmp_path / "x.jpg", (9, 9, 9), 0), ["cat", "dog"], size=32)
    assert label == "dog"
    assert 0.9 < probability <= 1


def committed(language):
    return nbformat.read(EXAMPLES / notebooks.EDITIONS[language], as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(notebook):
    """What each cell of code shows, without what differs from one run to the next."""
    return [[sorted(one.get("data", [one.get("name")])) for one in cell.outputs] for cell in code_of(notebook)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_notebook_is_in_step_with_its_source(language):
    stands, made = committed(language), notebooks.edition(language)
    nbformat.validate(stands)
    cure = "run `make docs`"
    assert [(c.cell_type, c.id, c.source) for c in stands.cells] == [
        (c.cell_type, c.id, c.source) for c in made.cells
    ], cure
    assert [cell.execution_count for cell in code_of(stands)] == list(range(1, len(code_of(stands)) + 1)), cure


def test_both_languages_have_one_code_and_the_same_sections():
    english, chinese = map(committed, LANGUAGES)
    assert [cell.source for cell in code_of(english)] == [cell.source for cell in code_of(chinese)]
    assert [cell.outputs for cell in code_of(english)] == [cell.outputs for cell in code_of(chinese)]
    levels = [
        [re.findall(r"^#+ (?:\d+\.)?", cell.source, re.MULTILINE) for cell in n.cells] for n in (english, chinese)
    ]
    assert levels[0] == levels[1]
    assert len([one for cell in levels[0] for one in cell if one.startswith("## ")]) == 13
    for cell, other in zip(english.cells, chinese.cells, strict=True):
        if cell.cell_type == "markdown":
            assert not CHINESE.search(cell.source)
            assert CHINESE.search(other.source)


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_a_notebook_shows_is_whole_small_and_of_no_machine(language):
    file = EXAMPLES / notebooks.EDITIONS[language]
    assert file.stat().st_size < MAX_BYTES
    outputs = [output for cell in code_of(committed(language)) for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"execute_result", "display_data", "stream"}  # no error
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}
    shown = {kind for output in outputs for kind in output.get("data", [])}
    assert {"image/jpeg", "image/png", "image/svg+xml", "text/html"} <= shown
    text = json.dumps(outputs, ensure_ascii=False)
    assert not re.findall(r"(?<![\w.])/(?:tmp|home|root|work|usr|opt|Users|var)/[\w.]+", text)


def test_every_function_of_the_loop_is_shown_as_it_stands():
    source, shown = (EXAMPLES / "train_loop.py").read_text(), []
    for cell in committed("en").cells:
        if cell.source.startswith(notebooks.PLAIN["en"].partition(" {}")[0]):
            code = re.search(r"```python\n(.*)```", cell.source, re.DOTALL)[1]
            assert code in source
            shown += re.findall(r"^def (\w+)", code, re.MULTILINE)
    assert set(shown) == set(re.findall(r"^def (\w+)", source, re.MULTILINE)) - {"main"}


def test_lines_of_chinese_are_joined_without_spaces_and_lists_stay_lists():
    joined = notebooks.JOINED.sub
    assert joined("", "一张\n照片，\n两张\n（或更多）。\n**全部**") == "一张照片，两张（或更多）。**全部**"
    assert joined("", "用\nregraft\n训练") == "用\nregraft\n训练"
    kept = "如下：\n\n1. 一；\n2. 二。\n- 三；\n- 四：\n\n```\nx\n```\n"
    assert joined("", kept) == kept
    assert joined("", "- 一。\n  二\n  三；\n  - 四") == "- 一。二三；\n  - 四"


SHORT = {  # the same cells on fewer photos, for fewer epochs
    "EPOCHS = 3": "EPOCHS = 1",
    "train_per_class=30, val_per_class=16": "train_per_class=8, val_per_class=8",
    'mode="full", epochs=EPOCHS, ': 'mode="full", epochs=EPOCHS, report=False, ',
    'mode="scratch", epochs=EPOCHS, ': 'mode="scratch", epochs=EPOCHS, report=False, backbone="timm/test_resnet", ',
    'mode="frozen", quiet': 'mode="frozen", report=False, quiet',
    "time_s=60, ": "time_s=1, report=False, ",
    "size=96": "size=48",
}


def shortened(folder):
    """The source of the notebooks, to be run in seconds."""
    text = notebooks.SOURCE.read_text()
    for whole, short in SHORT.items():
        assert text.count(whole) == 1
        text = text.replace(whole, short)
    (folder / "short.py").write_text(text)
    return folder / "short.py"


@pytest.mark.slow
@pytest.mark.early
@pytest.mark.timeout(900)
def test_the_notebook_runs_offline_and_shows_what_is_committed(tmp_path):
    before = sorted(EXAMPLES.iterdir())
    source = notebooks.SOURCE if IS_LONG else shortened(tmp_path)
    command = [sys.executable, EXAMPLES / "notebooks.py", "--out", tmp_path, "--source", source]
    env = {**os.environ, "IPYTHONDIR": str(tmp_path / "ipython")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert [path for path in sorted(EXAMPLES.iterdir()) if path.name != "__pycache__"] == [
        path for path in before if path.name != "__pycache__"
    ]
    for language, name in notebooks.EDITIONS.items():
        assert kinds(nbformat.read(tmp_path / name, as_version=4)) == kinds(committed(language))
