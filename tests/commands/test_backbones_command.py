"""Networks on this machine, tried on photos: all are, in every way that they have, and the best comes first."""

import json

import pytest
from click.testing import CliRunner

from conftest import draw_folder
from faults.processes import IS_LONG
from regraft.backbones import catalog
from regraft.backbones.backbone import cached_backbones, load_backbone
from regraft.cli import cli
from regraft.commands.backbones import rank
from regraft.core.config import TrainConfig
from regraft.core.errors import DataError
from regraft.core.progress import QUIET, Progress


@pytest.fixture
def photos(tmp_path):
    return draw_folder(tmp_path / "photos", ("red", "green", "blue"), 3)


@pytest.fixture
def saved(tmp_path):
    """A weights file of a small network."""
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "saved.safetensors")
    return tmp_path / "saved.safetensors"


@pytest.fixture
def no_packages(monkeypatch):
    monkeypatch.setattr("regraft.commands.backbones.packaged_here", list)


@pytest.mark.usefixtures("empty_cache", "no_packages")
def test_what_the_cache_holds_is_ranked_random_weights_are_not(photos, saved):
    load_backbone("timm/test_vit", "random")
    load_backbone("timm/test_resnet", saved)
    load_backbone("timm/test_resnet", saved, size=192)
    assert [backbone.name for backbone in cached_backbones()] == ["timm/test_resnet"]
    rows = rank(photos, TrainConfig(), QUIET)
    assert [
        (row.backbone, row.trial.feature_config.name)
        for row in sorted(rows, key=lambda row: row.trial.feature_config.name)
    ] == [
        ("timm/test_resnet", "160 px"),
        ("timm/test_resnet", "160 px, all levels"),
        ("timm/test_resnet", "160 px, roots"),
    ]
    losses = [row.trial.score.log_loss for row in rows]
    assert losses == sorted(losses)
    assert all(row.accuracy.n == 9 and row.photos_per_s > 0 for row in rows)


@pytest.mark.usefixtures("empty_cache", "no_packages")
def test_nothing_traced_gives_an_empty_table(photos):
    result = CliRunner().invoke(cli, ["backbones", "--rank", str(photos), "--json"])
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])


@pytest.mark.slow
@pytest.mark.usefixtures("empty_cache")
def test_networks_of_packages_are_tried_at_two_sizes_with_and_without_levels(photos, capsys, monkeypatch):
    names = catalog.packaged_here()
    assert catalog.DEFAULT in names
    if not IS_LONG:
        names = [catalog.DEFAULT]
        monkeypatch.setattr("regraft.commands.backbones.packaged_here", lambda: names)
    rows = rank(photos, TrainConfig(), Progress())
    assert len(rows) == 6 * len(names)
    assert {row.backbone for row in rows} == set(names)
    told = capsys.readouterr().err
    assert all(f"  {row.backbone}, {row.trial.feature_config.name}: log loss" in told for row in rows)
    assert {"backbone", "features", "log_loss", "accuracy", "photos_per_s"} == rows[0].to_json().keys()


def test_one_photo_of_each_class_cannot_be_ranked(tmp_path):
    with pytest.raises(DataError, match="one photo of each class"):
        rank(draw_folder(tmp_path / "photos", ("red", "green"), 1), TrainConfig(), QUIET)


def test_the_table_shows_whole_names(photos, saved, empty_cache, no_packages):
    load_backbone("timm/test_resnet", saved)
    result = CliRunner().invoke(cli, ["backbones", "--rank", str(photos)])
    assert result.exit_code == 0
    assert "timm/test_resnet   160 px, all levels" in result.stdout
    assert "a little worse" in result.stdout
