"""Every photo's features are computed once, belong to its content, and come back intact or not at all."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from conftest import TESTS, draw, draw_folder
from regraft.backbones import features
from regraft.backbones.backbone import Backbone, load_backbone
from regraft.backbones.engine import engine_identity
from regraft.backbones.features import Features, extract, feature_rows, feature_store
from regraft.backbones.torch_engine import TorchEngine
from regraft.core.errors import DataError
from regraft.data import decoders
from regraft.data.feature_cache import FeatureCache
from regraft.data.scan import list_photos
from regraft.data.transforms import photo_to_input

SMALL = "timm/test_resnet"


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(SMALL, "random")


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Five photos each of two colours."""
    return draw_folder(tmp_path_factory.mktemp("features") / "colours", ("red", "green"), 5)


@pytest.fixture
def dataset(colours):
    return list_photos(colours)


@pytest.fixture
def no_engine(monkeypatch):
    def start(self):
        raise AssertionError("an engine was started")

    monkeypatch.setattr(Backbone, "engine", start)


@pytest.fixture
def num_computed(backbone, monkeypatch):
    """A list with an entry for each photo that runs through the engine."""
    engine, computed = backbone.engine(), []

    class Counting:
        batch_size = engine.batch_size

        def __call__(self, images):
            computed.extend([1] * len(images))
            return engine(images)

    monkeypatch.setattr(Backbone, "engine", lambda self: Counting())
    return computed


def one_by_one(backbone, dataset):
    """What the features must be, computed without the store."""
    engine = backbone.engine()
    inputs = [photo_to_input((dataset.root / path).read_bytes(), backbone.preprocessing) for path in dataset.paths]
    return np.concatenate([engine(image[np.newaxis])["features"] for image in inputs])


def shards(cache):
    return sorted((cache / "features").glob("*/*.safetensors"))


def test_rows_belong_to_the_photos_in_order(backbone, dataset, empty_cache):
    used, found = extract(backbone, dataset)
    assert used.paths == dataset.paths
    assert found.x.shape == (10, backbone.num_features)
    assert found.x.dtype == np.float32
    assert found.y.dtype == np.int64
    assert np.array_equal(found.y, dataset.labels)
    assert found.hashes == dataset.hashes
    assert np.array_equal(found.x, one_by_one(backbone, dataset))


def test_the_order_and_number_of_photos_do_not_matter(backbone, dataset, empty_cache):
    _, all_of_them = extract(backbone, dataset)
    some = dataset.subset([7, 2, 9, 0])
    empty_cache.rename(empty_cache.parent / "away")
    _, found = extract(backbone, some)
    assert np.array_equal(found.x, all_of_them.x[[7, 2, 9, 0]])


def test_the_second_time_nothing_is_computed(backbone, dataset, empty_cache, monkeypatch):
    _, first = extract(backbone, dataset)
    monkeypatch.setattr(Backbone, "engine", lambda self: pytest.fail("an engine was started"))
    _, again = extract(backbone, dataset)
    assert np.array_equal(first.x, again.x)


def test_only_new_photos_are_computed(backbone, dataset, empty_cache, num_computed):
    extract(backbone, dataset.subset([0, 1, 5]))
    assert len(num_computed) == 3
    extract(backbone, dataset)
    assert len(num_computed) == 10


def test_copies_are_computed_once_and_each_has_its_row(backbone, empty_cache, num_computed, tmp_path):
    root = draw_folder(tmp_path / "copies", ("red", "green"), 2)
    for i in range(3):
        (root / "green" / f"copy_{i}.jpg").write_bytes((root / "green" / "green_0.jpg").read_bytes())
    dataset = list_photos(root)
    _, found = extract(backbone, dataset)
    assert len(num_computed) == 4
    assert len(found.x) == 7
    assert len(np.unique(found.x, axis=0)) == 4


def test_a_renamed_photo_and_another_class_are_found_by_content(backbone, dataset, empty_cache, tmp_path, request):
    _, before = extract(backbone, dataset)
    for path, folder in zip(dataset.paths, ["a", "b"] * 5, strict=True):
        target = tmp_path / "moved" / folder / f"{path[-5]}_of_{path[0]}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((dataset.root / path).read_bytes())
    request.getfixturevalue("no_engine")
    moved, after = extract(backbone, list_photos(tmp_path / "moved"))
    assert moved.classes == ("a", "b")
    rows = dict(zip(before.hashes, before.x, strict=True))
    assert all(np.array_equal(x, rows[content]) for x, content in zip(after.x, after.hashes, strict=True))


def repaint(path, seed):
    """Another photo of the same name, size and time."""
    stat = path.stat()
    draw(path, (10, 10, 10), seed)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)


def test_an_edited_photo_is_never_served_stale(backbone, empty_cache, tmp_path):
    for name in ("red", "green"):
        for i in range(2):
            draw(tmp_path / "data" / name / f"{i}.bmp", (200, 40, 40), i)
    _, before = extract(backbone, list_photos(tmp_path / "data"))
    repaint(tmp_path / "data" / "red" / "1.bmp", 5)
    dataset = list_photos(tmp_path / "data")
    _, after = extract(backbone, dataset)
    assert np.array_equal(after.x, one_by_one(backbone, dataset))
    changed = (before.x != after.x).any(axis=1)
    assert changed.tolist() == [path == "red/1.bmp" for path in dataset.paths]


def test_a_photo_that_changed_since_the_scan_is_an_error(backbone, empty_cache, tmp_path):
    dataset = list_photos(draw_folder(tmp_path / "data", ("red", "green"), 3))
    draw(tmp_path / "data" / "red" / "red_1.jpg", (10, 10, 10), 77)
    with pytest.raises(DataError, match=r"red_1\.jpg changed while it was being used"):
        extract(backbone, dataset)


BROKEN = ("green/green_1.jpg", "red/red_2.jpg")


def broken(root):
    """The photos of a folder, two of them cut off in the middle."""
    for path in BROKEN:
        data = (root / path).read_bytes()
        (root / path).write_bytes(data[: len(data) // 3])
    return list_photos(root)


@pytest.fixture
def torch_on_cpu(monkeypatch):
    """The engine of machines with a GPU, here on the processor."""
    monkeypatch.setattr(Backbone, "engine", lambda self: TorchEngine(self.info, self.trunk, "cpu"))
    monkeypatch.setattr(Backbone, "engine_identity", "torch cpu")


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_a_corrupt_photo_goes_to_the_quarantine_and_shifts_nothing(backbone, empty_cache, tmp_path, engine, request):
    dataset = broken(draw_folder(tmp_path / "data", ("red", "green"), 4))
    good = dataset.subset(i for i, path in enumerate(dataset.paths) if path not in BROKEN)
    if engine == "torch":
        request.getfixturevalue("torch_on_cpu")
    used, found = extract(backbone, dataset)
    assert [q.path for q in used.quarantine] == list(BROKEN)
    assert all("damaged" in q.reason for q in used.quarantine)
    assert used.paths == good.paths
    assert np.array_equal(found.y, good.labels)
    assert np.abs(found.x - one_by_one(backbone, good)).max() <= 1e-3 * found.x.std()


def test_copies_of_a_corrupt_photo_all_go_to_the_quarantine(backbone, empty_cache, tmp_path):
    root = draw_folder(tmp_path / "data", ("red", "green"), 2)
    for name in ("red", "green"):
        (root / name / "bad.jpg").write_bytes(b"<html>")
    used, _ = extract(backbone, list_photos(root))
    assert [q.path for q in used.quarantine] == ["green/bad.jpg", "red/bad.jpg"]


def test_a_class_without_a_readable_photo_is_left_out(backbone, empty_cache, tmp_path):
    root = draw_folder(tmp_path / "data", ("blue", "green", "red"), 2)
    for path in (root / "green").iterdir():
        path.write_bytes(path.name.encode())
    used, found = extract(backbone, list_photos(root))
    assert used.classes == ("blue", "red")
    assert found.y.tolist() == [0, 0, 1, 1]


def test_a_part_without_photos_of_a_class_keeps_the_numbers_of_the_others(backbone, empty_cache, tmp_path):
    """Also a part of a single class."""
    dataset = list_photos(draw_folder(tmp_path / "data", ("blue", "green", "red"), 2))
    for wanted in ((0, 2), (1, 2), (2,)):
        part = dataset.subset(i for i, label in enumerate(dataset.labels) if label in wanted)
        used, found = extract(backbone, part)
        assert (used.classes, found.y.tolist()) == (dataset.classes, part.labels.tolist())


def test_photos_of_which_none_can_be_read_are_an_error(backbone, empty_cache, tmp_path):
    root = draw_folder(tmp_path / "data", ("red", "green"), 2)
    for path in root.glob("*/*.jpg"):
        path.write_bytes(path.name.encode())
    with pytest.raises(DataError, match="no readable photos"):
        extract(backbone, list_photos(root))


def test_torch_and_openvino_agree(backbone, dataset, empty_cache, request):
    _, expected = extract(backbone, dataset)
    request.getfixturevalue("torch_on_cpu")
    _, found = extract(backbone, dataset)
    assert not np.array_equal(found.x, expected.x), "the torch engine did not run"
    assert np.abs(found.x - expected.x).max() <= 1e-3 * expected.x.std()


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_any_batch_size_gives_each_photo_its_row(dataset, empty_cache, backbone, batch_size, monkeypatch):
    monkeypatch.setattr("regraft.backbones.features.FEWEST", 1)
    monkeypatch.setattr("regraft.backbones.features.num_cores", lambda: 1)
    sizes = []

    class Means:
        """Features that say which photo they come from."""

        def __call__(self, images):
            sizes.append(len(images))
            return {"features": images.reshape(len(images), -1, 3).mean(axis=1).astype(np.float32)}

    Means.batch_size = batch_size
    store = FeatureCache("features", "batches")
    rows, failures = feature_rows(store, dataset, backbone.preprocessing, Means)
    assert failures == {}
    assert max(sizes) == min(batch_size, len(dataset))
    for path, content in zip(dataset.paths, dataset.hashes, strict=True):
        image = photo_to_input((dataset.root / path).read_bytes(), backbone.preprocessing)
        assert np.allclose(rows[content], image.reshape(-1, 3).mean(axis=0), rtol=1e-5)


def test_rows_of_some_photos_are_found_without_copying_the_table(dataset, backbone):
    dataset, everything = extract(backbone, dataset)
    some = dataset.subset([7, 2, 7])
    own = everything.of(some)
    assert own.table is everything.table
    assert np.array_equal(own.x, everything.x[[7, 2, 7]])
    assert np.array_equal(own.of(some.subset([1])).x, everything.x[[2]])
    assert own.y.tolist() == some.labels.tolist()


DAMAGE = {
    "truncated": lambda data: data[: len(data) // 2],
    "a flipped bit in the features": lambda data: data[:-500] + bytes([data[-500] ^ 1]) + data[-499:],
    "a flipped bit in the header": lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:],
    "garbage": lambda data: os.urandom(len(data)),
    "zeros": lambda data: bytes(len(data)),
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_on_disk_is_computed_again(backbone, dataset, empty_cache, num_computed, damage):
    _, before = extract(backbone, dataset)
    (shard,) = shards(empty_cache)
    shard.write_bytes(DAMAGE[damage](shard.read_bytes()))
    num_computed.clear()
    _, after = extract(backbone, dataset)
    assert np.array_equal(before.x, after.x)
    assert 1 <= len(num_computed) <= 10
    num_computed.clear()
    _, again = extract(backbone, dataset)
    assert np.array_equal(before.x, again.x)
    assert num_computed == []


def test_photos_computed_before_an_engine_fails_are_kept(backbone, dataset, empty_cache, monkeypatch):
    engine, calls = backbone.engine(), []

    def failing(images):
        calls.append(1)
        if len(calls) > 6:
            raise RuntimeError("the engine broke")
        return engine(images)

    failing.batch_size = 1
    monkeypatch.setattr(features, "map_photos", lambda run, count, advance: map(run, range(count)))
    monkeypatch.setattr(Backbone, "engine", lambda self: failing)
    with pytest.raises(RuntimeError, match="the engine broke"):
        extract(backbone, dataset)
    store = feature_store(backbone.graph_sha256, backbone.preprocessing, backbone.engine_identity)
    assert len(store.read(dataset.hashes)) == 6


def test_a_cache_that_cannot_be_written_costs_only_the_next_run(backbone, dataset, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("regraft.core.files.temporary_folder", lambda: type("T", (), {"name": tmp_path / "temporary"}))
    _, found = extract(backbone, dataset)
    assert np.array_equal(found.x, one_by_one(backbone, dataset))


def test_the_key_stands_for_everything_that_features_depend_on(backbone, monkeypatch):
    p = backbone.preprocessing
    keys = [
        feature_store("a" * 64, p, engine_identity("f32")).key,
        feature_store("b" * 64, p, engine_identity("f32")).key,
        feature_store("a" * 64, p, engine_identity("bf16")).key,
        feature_store("a" * 64, p, "torch 2.10 cuda").key,
        *(
            feature_store("a" * 64, replace(p, **change), engine_identity("f32")).key
            for change in (
                {"height": 8},
                {"width": 8},
                {"resize": (8, 8)},
                {"interpolation": "box"},
                {"crop_mode": "squash"},
                {"mean": (0.1, 0.5, 0.5)},
                {"std": (0.1, 0.5, 0.5)},
            )
        ),
    ]
    changes = [(decoders.decode, "VERSION", 99), (decoders.PIL, "__version__", "99"), (decoders, "version_of", str)]
    for module, name, value in changes:  # the last one: of the reader of HEIC files
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            keys.append(feature_store("a" * 64, p, engine_identity("f32")).key)
    assert len(set(keys)) == len(keys) == 14
    assert feature_store("a" * 64, p, engine_identity("f32")).key == keys[0]


def test_features_of_another_set_are_found_by_content(backbone, dataset, empty_cache):
    _, everything = extract(backbone, dataset)
    some = dataset.subset([8, 3, 3, 0])
    part = everything.of(some)
    assert np.array_equal(part.x, everything.x[[8, 3, 3, 0]])
    assert np.array_equal(part.y, some.labels)
    assert part.hashes == some.hashes
    with pytest.raises(KeyError):
        Features(everything.x[:2], everything.y[:2], everything.hashes[:2]).of(some)


EXTRACT = """
import sys, time, numpy
from regraft.backbones import features
from regraft.backbones.backbone import load_backbone
from regraft.data import feature_cache as store
from regraft.data import decoders
from regraft.data.scan import list_photos
backbone = load_backbone({backbone!r}, "random")
{slowly}
_, found = features.extract(backbone, list_photos({folder!r}))
numpy.save(sys.argv[1], found.x)
"""
SLOWLY = """
store.FLUSH_SECONDS = -1.0
decoded = features._decoded
features._decoded = lambda *a: (time.sleep(0.2), decoded(*a))[1]
"""


def start(folder, out, slowly=""):
    code = EXTRACT.format(backbone=SMALL, folder=str(folder), slowly=slowly)
    env = {**os.environ, "PYTHONPATH": str(TESTS / "blocked"), "REGRAFT_TEST_FORBID": "torch"}
    return subprocess.Popen([sys.executable, "-W", "error", "-c", code, str(out)], env=env)


@pytest.fixture
def own_cache(backbone, tmp_path, monkeypatch):
    """A cache with the traced backbone and no features."""
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "graphs").symlink_to(backbone.folder.parent)
    return tmp_path / "cache"


@pytest.mark.slow
def test_processes_at_once_give_identical_features(backbone, dataset, own_cache, tmp_path):
    running = [start(dataset.root, tmp_path / f"{i}.npy") for i in range(4)]
    assert [process.wait(timeout=120) for process in running] == [0] * 4
    expected = one_by_one(backbone, dataset)
    for i in range(4):
        assert np.array_equal(np.load(tmp_path / f"{i}.npy"), expected)
    assert extract(backbone, dataset)[1].x.tobytes() == expected.tobytes()


def test_a_killed_extraction_goes_on_where_it_was(backbone, dataset, own_cache, tmp_path, num_computed):
    process = start(dataset.root, tmp_path / "never.npy", SLOWLY)
    deadline = time.monotonic() + 60
    while len(shards(own_cache)) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = len(shards(own_cache))
    assert 3 <= kept < 10
    _, found = extract(backbone, dataset)
    assert len(num_computed) == 10 - kept
    assert np.array_equal(found.x, one_by_one(backbone, dataset))
