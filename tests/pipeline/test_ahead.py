"""Photos of an address: features are computed while others arrive, and are those that the folder gives."""

import threading

import fsspec
import numpy as np
import pytest

from regraft.backbones import features
from regraft.backbones.features import extract, num_new
from regraft.data import remote
from regraft.data.remote import fetched
from regraft.data.scan import list_photos
from regraft.pipeline.ahead import features_ahead
from tiny_backbone import draw_photos, tiny_backbone


@pytest.fixture
def place(tmp_path, empty_cache):
    """A folder of photos with a damaged one and an archive, and the same in memory."""
    folder = draw_photos(tmp_path / "photos", {"ash": 20, "birch": 20})
    (folder / "ash" / "none.png").write_bytes(b"no photo")
    (folder / "ash" / "more.zip").write_bytes(b"PK\3\4")
    system = fsspec.filesystem("memory")
    for path in sorted(folder.rglob("*.*")):
        system.pipe_file(f"/ahead/{path.relative_to(folder)}", path.read_bytes())
    yield folder
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def test_what_has_arrived_is_computed_while_the_rest_is_on_its_way(place, tmp_path, monkeypatch):
    backbone = tiny_backbone(tmp_path / "tiny")
    computed, compute, fetch = threading.Semaphore(0), features.look_up_or_compute, remote._fetch

    def counting(store, dataset, *others):
        done = compute(store, dataset, *others)
        for _ in range(len(dataset)):
            computed.release()
        return done

    def waiting(system, folder, given_up, one):
        if one.path.endswith("birch_9.png"):  # arrives when others have been computed
            assert computed.acquire(timeout=60)
        return fetch(system, folder, given_up, one)

    monkeypatch.setattr(features, "look_up_or_compute", counting)
    monkeypatch.setattr(remote, "_fetch", waiting)
    with features_ahead(backbone) as arrived:
        copy = fetched("memory://ahead", on_file=arrived)
    assert num_new(backbone, list_photos(copy)) < 40
    _, found = extract(backbone, list_photos("memory://ahead"))
    _, of_folder = extract(tiny_backbone(tmp_path / "again", seed=0), list_photos(place))
    np.testing.assert_array_equal(found.x, of_folder.x)


def test_what_fails_ahead_is_left_to_the_extraction(place, tmp_path, monkeypatch):
    backbone = tiny_backbone(tmp_path / "tiny")
    with monkeypatch.context() as patch:
        patch.setattr("regraft.pipeline.ahead.unlabelled", lambda _: (_ for _ in ()).throw(OSError("full")))
        with features_ahead(backbone) as arrived:
            fetched("memory://ahead", on_file=arrived)
    dataset, found = extract(backbone, list_photos("memory://ahead"))
    assert len(dataset) == len(found.x) == 40
