"""What a user's type checker sees: every public name has its types, under mypy --strict."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import regraft

ROOT = Path(__file__).parents[1]
USER = """
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import regraft


class Printer:
    def start(self, out: Path, config: dict[str, Any]) -> None: ...
    def row(self, row: dict[str, Any]) -> None: ...
    def finish(self, summary: dict[str, Any]) -> None: ...


bundle = regraft.train("photos", out="runs/pets", mode="full", epochs=2, trackers=[Printer()])
assert_type(bundle, regraft.Bundle)
answer = bundle.predict("cat.jpg")
assert_type(answer.label, str)
assert_type(answer.probability, float)
assert_type(answer.probabilities, dict[str, float])
assert_type(answer.novelty, float | None)
assert_type(regraft.load(Path("runs/pets"), max_error=0.05), regraft.Bundle)
evaluation = regraft.evaluate(bundle, "new_photos")
assert_type(evaluation.accuracy.low, float)
assert_type(regraft.report(bundle).path, Path)
assert_type(regraft.export(bundle, "pets.onnx"), regraft.Exported)
for one in regraft.predict(bundle, ["new_photos"]):
    if one.prediction is None:
        print(one.error)
    else:
        assert_type(one.prediction, regraft.Prediction)
dataset = regraft.scan("photos")
assert_type(dataset.classes, tuple[str, ...])
dataset, features = regraft.extract(regraft.load_backbone(), dataset)
assert_type(features, regraft.Features)
head = regraft.solve(features, len(dataset.classes), np.arange(len(dataset)) % 5)
assert_type(head, regraft.Head)
assert_type(regraft.split(dataset), regraft.Splits)
assert_type(regraft.find_issues("photos"), regraft.ScanResult)
assert_type(regraft.unpack_orchard("orchard"), Path)
model = regraft.ImageClassifier(all_levels=True).fit(["a.jpg", Path("b.jpg")], [0, 1])
assert_type(model, regraft.ImageClassifier)
try:
    model.predict_proba(["c.jpg"]).sum()
except regraft.RegraftError as error:
    print(error)
"""
WRONG = "import regraft\nregraft.load(3)\nregraft.train('photos').predict('a.jpg').labl\n"


FOREIGN = "[mypy-torch.*,PIL.*,click.*,rich.*,uvicorn.*,starlette.*,jinja2.*]\nfollow_imports = skip\n"


def checked(folder, *scripts):
    """What mypy has to say of each; what no public name has in its types is not read, torch alone takes seconds."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["overrides"]
    skipped = [f"[mypy-{','.join(one['module'])}]\nfollow_imports = skip\n" for one in settings]
    (folder / "mypy.ini").write_text("\n".join(["[mypy]\n", FOREIGN, *skipped]))
    env = {**os.environ, "MYPYPATH": "src"}
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", folder / "mypy.ini"]
    command += ["--cache-dir", folder / "cache", *scripts]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=env, cwd=ROOT, check=False)
    lines = [line.partition(": error: ") for line in done.stdout.splitlines() if ": error: " in line]
    return [[said for place, _, said in lines if script.name in place] for script in scripts]


@pytest.mark.slow
def test_a_users_program_is_typed_throughout(tmp_path):
    assert Path(regraft.__file__).with_name("py.typed").is_file()
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "wrong.py").write_text(WRONG)
    of_user, mistakes = checked(tmp_path, tmp_path / "user.py", tmp_path / "wrong.py")
    assert of_user == []
    assert [mistake.split("  ")[1] for mistake in mistakes] == ["[arg-type]", "[attr-defined]"]
