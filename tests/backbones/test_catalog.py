"""A name means one network: torchvision's where it has one, else timm's; what is unknown is answered with a cure."""

import importlib.util
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from regraft.backbones import catalog
from regraft.backbones.catalog import DEFAULT, PACKAGED, SHORTLIST, Reference, catalog_entries, resolve
from regraft.core.errors import BackboneError, MissingExtra

CACHES = (catalog._timm_names, catalog._timm_pretrained, catalog._torchvision_names, catalog._torchvision_weights)


@pytest.fixture
def fresh_caches():
    """No list of names from before the test, none from it afterwards."""
    for cached in CACHES:
        cached.cache_clear()
    yield
    for cached in CACHES:
        cached.cache_clear()


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("resnet18", Reference("torchvision", "resnet18")),
        ("torchvision/resnet18", Reference("torchvision", "resnet18")),
        ("timm/resnet18", Reference("timm", "resnet18")),
        ("mobilenetv3_small_050", Reference("timm", "mobilenetv3_small_050")),
        (DEFAULT, Reference("timm", DEFAULT)),
        (f"timm/{DEFAULT}", Reference("timm", DEFAULT)),
        ("timm/resnet18.a1_in1k", Reference("timm", "resnet18", "a1_in1k")),
        ("vit_tiny_patch16_224.augreg_in21k", Reference("timm", "vit_tiny_patch16_224", "augreg_in21k")),
        ("resnet50.IMAGENET1K_V2", Reference("torchvision", "resnet50", "IMAGENET1K_V2")),
    ],
)
def test_a_name_means_one_network(name, reference):
    assert resolve(name) == reference
    assert resolve(str(reference)) == reference


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", "Unknown backbone 'resnet81'. Did you mean .*'resnet18'"),
        ("timm/mobilnetv3_small_050", "Did you mean 'mobilenetv3_small_050'"),
        ("torchvision/resnet14", "Did you mean .*'resnet18'"),
        ("zzzzzz", "List them with: regraft backbones"),
        ("", "Unknown backbone ''"),
        ("torchvision/mobilenetv3_small_050", "Unknown backbone"),
        (
            "keras/resnet50",
            "Unknown library 'keras' in backbone 'keras/resnet50'. Expected timm/NAME or torchvision/NAME",
        ),
        ("a/b/resnet18", "Unknown library 'a/b'"),
        ("resnet50.a1_in1k", "resnet50 of torchvision has no weights 'a1_in1k'. .*IMAGENET1K_V1, IMAGENET1K_V2"),
        ("timm/resnet18.a9_in1k", r"resnet18 of timm has no weights 'a9_in1k'. .*resnet18\.a1_in1k"),
    ],
)
def test_an_unknown_name_is_answered_with_what_there_is(name, message):
    with pytest.raises(BackboneError, match=message):
        resolve(name)


def test_torchvision_names_are_networks_for_classification():
    assert not {"fcos_resnet50_fpn", "raft_small", "fcn_resnet50"} & set(catalog._torchvision_names())


@pytest.mark.usefixtures("fresh_caches")
def test_without_timm_the_cure_is_named_and_torchvision_still_works(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert resolve("resnet18").library == "torchvision"
    with pytest.raises(MissingExtra, match=r"'timm', which is not installed.*pip install 'regraft\[train\]'"):
        resolve("mobilenetv3_small_050")


@pytest.mark.usefixtures("fresh_caches")
def test_without_torchvision_the_cure_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingExtra, match=r"'torchvision', which is not installed"):
        resolve("resnet18")


def test_entries_tell_the_truth_about_torchvision():
    (row,) = catalog_entries("torchvision/resnet18")
    assert (row.name, row.num_params, row.input_size, row.licence) == ("resnet18", 11_689_512, 224, "bsd-3-clause")


def test_entries_tell_the_truth_about_timm():
    import timm

    (row,) = catalog_entries("timm/mobilenetv3_small_050")
    network = timm.create_model("mobilenetv3_small_050")
    assert row.num_params == sum(parameter.numel() for parameter in network.parameters())
    assert (row.name, row.input_size, row.licence) == ("timm/mobilenetv3_small_050", 224, "apache-2.0")


def test_weights_under_a_licence_of_their_own_say_so():
    (row,) = catalog_entries("torchvision/regnet_y_128gf")
    assert "SWAG" in row.licence


def test_a_pattern_finds_both_libraries_and_every_row_can_be_used():
    names = [row.name for row in catalog_entries("resnet18")]
    assert {"resnet18", "timm/resnet18"} <= set(names)
    assert all("resnet18" in str(resolve(name)) for name in names)


def test_nothing_matches_nothing():
    assert list(catalog_entries("no such network")) == []


def test_the_default_is_on_this_machine():
    rows = {row.name: row for row in catalog_entries(DEFAULT)}
    assert rows[DEFAULT].on_this_machine
    assert rows[DEFAULT].licence == "apache-2.0"


def test_the_short_list_begins_with_the_default_and_names_what_exists():
    assert SHORTLIST[0] == DEFAULT
    assert len({resolve(name) for name in SHORTLIST}) == len(SHORTLIST)


def test_torchvision_weights_are_looked_for_where_torchvision_puts_them(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    (row,) = catalog_entries("torchvision/resnet18")
    assert not row.on_this_machine
    file = tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir()
    file.touch()
    (row,) = catalog_entries("torchvision/resnet18")
    assert row.on_this_machine


def test_timm_weights_are_looked_for_in_the_hub_and_at_their_old_address(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, file: None)
    config = {"hf_hub_id": "timm/x", "url": "https://example.org/x-1234.pth"}
    assert catalog.timm_file(config) is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "x-1234.pth").touch()
    assert catalog.timm_file(config) == tmp_path / "checkpoints" / "x-1234.pth"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, file: f"/hub/{repository}/{file}")
    assert str(catalog.timm_file(config)) == "/hub/timm/x/model.safetensors"
    assert catalog.timm_file({}) is None


def test_packaged_weights_are_found_without_importing_the_package():
    packaged = PACKAGED[DEFAULT]
    sys.modules.pop(packaged.module, None)
    path = packaged.path()
    assert path is not None
    assert path.name == "efficientnet-lite0-57934424.pth"
    assert packaged.module not in sys.modules


def test_a_package_that_is_absent_or_incomplete_gives_no_path(tmp_path, monkeypatch):
    assert replace(PACKAGED[DEFAULT], module="no_such_package").path() is None
    here = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: here)
    assert PACKAGED[DEFAULT].path() is None


def test_num_known_counts_both_libraries():
    assert catalog.num_known() == len(catalog._timm_names()) + len(catalog._torchvision_names())
    assert catalog.num_known() > 1000
