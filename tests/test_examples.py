"""The examples run as they are printed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import draw_folder

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_the_loop_in_plain_pytorch_trains_and_saves(tmp_path):
    for part, seed in (("train", 0), ("val", 50)):
        draw_folder(tmp_path / "photos" / part, ("cat", "dog"), 4, seed)
    command = [sys.executable, EXAMPLES / "train_loop.py", tmp_path / "photos", "--mode", "scratch", "--epochs", "2"]
    command += ["--backbone", "resnet18", "--out", tmp_path / "model.pt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^epoch (\d):", done.stdout, re.MULTILINE) == ["1", "2"]
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    assert saved["classes"] == ["cat", "dog"]
    assert saved["state_dict"]["fc.weight"].shape == (2, 512)
