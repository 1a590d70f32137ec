"""Features of photos as a file are those of the network, and what looks alike is found."""

import json
import shutil

import numpy as np
import pytest

import regraft
from conftest import COLOURS, all_of, draw, text_of, tree_of
from regraft.bundle.bundle import load
from regraft.commands.embed import embed, similar
from tiny_bundle import write_tiny


@pytest.fixture
def tiny(tmp_path, empty_cache):
    return load(write_tiny(tmp_path / "bundle"))


@pytest.fixture
def heap(tmp_path):
    """Four photos each of three colours, one of them twice, and a file that is no photo."""
    for i in range(12):
        draw(tmp_path / "heap" / f"{list(COLOURS)[i % 3]}-{i}.png", list(COLOURS.values())[i % 3], i)
    shutil.copy(tmp_path / "heap" / "red-0.png", tmp_path / "heap" / "=again.png")
    (tmp_path / "heap" / "broken.png").write_bytes(b"no photo")
    return tmp_path / "heap"


def test_every_file_has_the_features_of_the_network(tiny, heap, tmp_path, regraft_main):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    paths = list(regraft.embed([heap], bundle=tiny).paths)
    wanted = np.concatenate([tiny.engine(tiny.to_input(path)[np.newaxis])["features"] for path in paths])
    assert len(paths) == 13
    for name in ("f.npy", "f.csv", "f.parquet"):
        done = regraft_main("embed", heap, "-o", tmp_path / name, "--bundle", tiny.folder, "--json")
        said = json.loads(done.stdout)
        assert done.returncode == 1
        assert (said["photos"], said["features"]) == wanted.shape
        assert [one["path"] for one in said["failed"]] == [str(heap / "broken.png")]
    assert np.array_equal(np.load(tmp_path / "f.npy"), wanted)
    assert list(pandas.read_csv(tmp_path / "f.paths.csv")["path"]) == paths
    table = pandas.read_csv(tmp_path / "f.csv", dtype={f"f{i}": np.float32 for i in range(4)})
    assert list(table["path"]) == paths
    assert np.array_equal(table[[f"f{i}" for i in range(4)]].to_numpy(), wanted)
    frame = pandas.read_parquet(tmp_path / "f.parquet")
    assert list(frame["path"]) == paths
    assert np.array_equal(np.stack(frame["features"]), wanted)


def test_what_looks_alike_is_found_and_the_photo_itself_is_not(tiny, heap, tmp_path, regraft_main):
    photo = heap / "red-0.png"
    done = regraft_main("similar", photo, heap, "--top", "4", "--bundle", tiny.folder, "--json",
                        "--html", tmp_path / "s.html")  # fmt: skip
    found = json.loads(done.stdout)
    assert found[0] == {"path": str(heap / "=again.png"), "similarity": pytest.approx(1.0, abs=1e-12), "is_same": True}
    x = {path: tiny.engine(tiny.to_input(path)[np.newaxis])["features"][0] for path in heap.glob("*-*.png")}
    own = x.pop(photo)
    cosines = {str(path): float(own @ one / np.linalg.norm(own) / np.linalg.norm(one)) for path, one in x.items()}
    best = sorted(cosines, key=cosines.__getitem__)[::-1][:3]
    assert [one["path"] for one in found[1:]] == best
    # float32 sums of four products, three times
    assert [one["similarity"] for one in found[1:]] == pytest.approx([cosines[path] for path in best], abs=1e-6)
    cards = all_of(tree_of((tmp_path / "s.html").read_text()), "div", "card")
    assert len(cards) == 5
    assert "the same file again" in text_of(cards[1])
    assert len(all_of(tree_of((tmp_path / "s.html").read_text()), "img")) == 5


def test_length_of_features_does_not_matter_and_nothing_is_compared_with_nothing():
    x = np.array([[1, 1], [300, 301], [0, 0], [-1, -1], [1, 0]], np.float32)
    made = regraft.Embeddings(tuple("abcde"), ("0",) * 5, x, "drawn")
    found = similar(regraft.Embeddings(("q",), ("1",), x[:1], "drawn"), made, 9)
    assert [one.path for one in found] == ["a", "b", "e", "c", "d"]
    assert [round(one.similarity, 3) for one in found] == [1, 1, 0.707, 0, -1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["embed", "heap", "-o", "f.txt"], "Expected .npy, .parquet or .csv"),
        (["embed", "nothing", "-o", "f.npy"], "There is no photo or folder nothing"),
        (["embed", "heap/broken.png", "-o", "f.npy"], "There is no readable photo in heap/broken.png, such as"),
        (["embed", "heap", "-o", "mine.csv"], "is there already"),
        (["similar", "heap/broken.png", "heap"], "There is no readable photo"),
        (["similar", "heap", "heap"], "photos are named whose like is to be found. Expected one, such as heap/"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_written(tiny, heap, monkeypatch, regraft_main, arguments, said):
    monkeypatch.chdir(heap.parent)
    (heap.parent / "mine.csv").write_text("mine")
    before = sorted(heap.parent.iterdir())
    done = regraft_main(*arguments, "--bundle", tiny.folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert {path.name for path in heap.parent.iterdir()} - {path.name for path in before} <= {"cache"}
    assert (heap.parent / "mine.csv").read_text() == "mine"


def test_the_default_backbone_needs_no_model(heap):
    found = embed([heap / "red-0.png"])
    assert found.x.shape == (1, 1280)
    assert found.network == "tf_efficientnet_lite0"
