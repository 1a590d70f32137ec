"""Other features of the same network: tried, chosen without the photos that are judged on, and delivered."""

import json
import shutil

import pytest
import timm
import torch
from safetensors.torch import save_file

import regraft
from conftest import draw_folder
from regraft.commands.train import train_run
from regraft.core.config import TrainConfig
from regraft.core.progress import Progress


@pytest.fixture(scope="module")
def blind_at_the_end(tmp_path_factory):
    """Settings for a network whose last features are the same for every photo, while its levels see."""
    torch.manual_seed(0)
    network = timm.create_model("test_resnet")
    for layer in (network.layer4[-1].bn2, network.layer4[-1].downsample[-1]):
        torch.nn.init.zeros_(layer.weight)
    file = tmp_path_factory.mktemp("blind") / "blind.safetensors"
    save_file(network.state_dict(), file)
    return {"backbone": "timm/test_resnet", "weights": str(file), "report": False}


@pytest.fixture
def photos(tmp_path):
    return draw_folder(tmp_path / "photos", ("red", "green", "blue"), 10)


def test_levels_are_chosen_where_the_end_is_blind(photos, tmp_path, blind_at_the_end, capsys):
    plain = train_run(photos, tmp_path / "a", TrainConfig(mode="frozen", **blind_at_the_end), Progress())
    assert plain.summary["accuracy"]["value"] < 0.7
    assert "searched" not in plain.bundle.manifest["provenance"]
    run = train_run(photos, tmp_path / "b", TrainConfig(mode="frozen", search=True, **blind_at_the_end), Progress())
    assert run.summary["accuracy"]["value"] == 1
    assert "all levels" in run.summary["decision"]
    told = capsys.readouterr().err
    assert told.count("usable now") == 1
    searched = run.bundle.manifest["provenance"]["searched"]
    inputs = list(dict.fromkeys(row["way"].partition(", all levels")[0].partition(", roots")[0] for row in searched))
    assert inputs[:2] == ["160 px", "224 px"]
    assert inputs[2:] in [[f"{size} px, {fit}" for fit in ("padded", "squashed")] for size in (160, 224)]
    kinds = ("", ", roots", ", all levels")
    assert [row["way"] for row in searched] == [name + kind for name in inputs for kind in kinds]
    best = min(searched, key=lambda row: row["log_loss"])
    assert run.summary["decision"].startswith(f"features of {best['way']}")


def test_the_bundle_of_levels_is_like_any_other(photos, tmp_path, blind_at_the_end):
    settings = {**blind_at_the_end, "mode": "frozen", "search": True, "quiet": True}
    bundle = regraft.train(photos, tmp_path / "run", **settings)
    for path in sorted(photos.rglob("*.jpg"))[::5]:
        assert bundle.predict(path).label == path.parent.name
    assert regraft.evaluate(bundle, photos).accuracy.value == 1
    config = json.loads((bundle.folder / "config.json").read_text())
    assert "architecture" not in config, "timm must not take it for a network of its own"
    assert "levels" in (bundle.folder / "README.md").read_text()


def test_photos_to_judge_on_have_no_part_in_the_choice(photos, tmp_path, blind_at_the_end):
    """With their labels turned round, the same features are chosen."""
    turned = {"red": "green", "green": "blue", "blue": "red"}
    runs = []
    for name in ("right", "wrong"):
        for path in sorted(photos.rglob("*.jpg")):
            label, is_judged = path.parent.name, path.stem.endswith(("8", "9"))
            label = turned[label] if is_judged and name == "wrong" else label
            place = tmp_path / name / ("val" if is_judged else "train") / label
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
        config = TrainConfig(mode="frozen", search=True, **blind_at_the_end)
        runs.append(train_run(tmp_path / name, tmp_path / f"run {name}", config, Progress(quiet=True)))
    right, wrong = (run.summary for run in runs)
    assert right["accuracy"]["value"] > wrong["accuracy"]["value"]
    assert right["decision"] == wrong["decision"]
    assert "all levels" in right["decision"]


def test_what_takes_too_long_is_not_tried(photos, tmp_path, blind_at_the_end, empty_cache, monkeypatch, capsys):
    monkeypatch.setattr("regraft.pipeline.linear_probe.SEARCH_S", 0.0)
    config = TrainConfig(mode="frozen", search=True, **blind_at_the_end)
    run = train_run(photos, tmp_path / "run", config, Progress())
    assert "not tried, it would take too long" in capsys.readouterr().err
    assert run.summary["decision"] == ""


def test_a_network_without_levels_keeps_its_features(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("regraft.pipeline.linear_probe.SEARCH_S", 1e6)  # however busy the machine is
    monkeypatch.setattr("regraft.models.feature_search.larger", lambda *_: None)  # or torch refuses it for 12 s
    for name, other in (("red", "green"), ("green", "blue"), ("blue", "red")):  # so that there is room
        for i in range(5):
            (photos / name / f"{name}_{i}.jpg").rename(photos / other / f"{name}_{i}.jpg")
    config = TrainConfig(mode="frozen", search=True, backbone="timm/test_vit", weights="random", report=False)
    run = train_run(photos, tmp_path / "run", config, Progress())
    assert "  160 px: log loss" in capsys.readouterr().err
    every = [f"160 px{fit}{kind}" for fit in ("", ", padded", ", squashed") for kind in ("", ", roots")]
    assert [row["way"] for row in run.bundle.manifest["provenance"].get("searched", [])] in ([], every)
    assert run.bundle.manifest["backbone"]["num_features"] == 64
