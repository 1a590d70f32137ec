"""Heat maps are the summands of the answer, and lie where the object is."""

from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageDraw

import regraft
from faults.processes import long_form, mostly_long
from regraft.backbones.backbone import load_backbone
from regraft.backbones.derived import with_all_levels
from regraft.backbones.engine import Pooled
from regraft.backbones.features import extract
from regraft.bundle.bundle import load
from regraft.bundle.heatmap import CELLS, heat_map
from regraft.bundle.write import manifest_of, seal, write_model
from regraft.data.scan import scan
from regraft.data.splits import folds_of
from regraft.models.linear_head import solve

CLASSES = ("disc", "square")


def smooth(rng):
    """A photo of nothing."""
    coarse = Image.fromarray(rng.integers(90, 150, (4, 4, 3)).astype(np.uint8))
    return coarse.resize((256, 256), Image.Resampling.BICUBIC)


def planted(path, kind, seed):
    """A smooth grey photo with one bright object somewhere; returns its box."""
    rng = np.random.default_rng(seed)
    photo = smooth(rng)
    left, top = map(int, rng.integers(40, 150, 2))
    box = (left, top, left + 64, top + 64)
    draw = ImageDraw.Draw(photo)
    if kind == "disc":
        draw.ellipse(box, fill=(230, 40, 30))
        draw.ellipse((left + 20, top + 20, left + 44, top + 44), fill=(250, 220, 60))
    else:
        draw.rectangle(box, fill=(30, 60, 220))
        for step in range(0, 64, 12):
            draw.line((left + step, top, left + step, top + 64), fill=(240, 240, 255), width=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    photo.save(path)
    return box


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty photos with a planted object, twenty of each kind."""
    root = tmp_path_factory.mktemp("planted")
    for c, kind in enumerate(CLASSES):
        for i in range(20):
            planted(root / kind / f"{i}.png", kind, 1000 * c + i)
    return root


def is_inside(heat, box):
    """Whether the hottest cell touches the object. The middle 224 of the photo's 256 pixels are seen."""
    cell = 224 / len(heat)
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    left, top, right, bottom = np.subtract(box, 16)
    return column * cell < right and (column + 1) * cell > left and row * cell < bottom and (row + 1) * cell > top


def peaks(bundle, tmp_path, map_of, count=10):
    """On how many of as many new photos the peak of `map_of(image, label, seed)` lies on the object."""
    found = 0
    for seed in range(5000, 5000 + count):
        kind = CLASSES[seed % 2]
        box = planted(tmp_path / "new.png", kind, seed)
        found += is_inside(map_of(bundle.to_input(tmp_path / "new.png"), bundle.classes.index(kind), seed), box)
    return found


def solved(backbone, photos, folder):
    """A bundle of the colours, its head solved on the features of any backbone."""
    dataset, features = extract(backbone, scan(photos))
    head = solve(features, len(dataset.classes), folds_of(dataset, 5, 0))
    write_model(folder, backbone, head.weight, head.bias, dataset.classes)
    provenance = {"mode": "frozen", "images": {"found": 30, "used": 30, "quarantined": 0}, "data_sha256": "0" * 64}
    provenance |= {"split": {"given": False, "train": 24, "judged": 6}}
    seal(folder, manifest_of(backbone, dataset.classes, 1.0, {}, {**provenance, "config": {}}))
    return load(folder)


def check_sum(bundle, *paths):
    """Map and bias make up the logit of every class, as the graph gives it without rounding."""
    exact = load(bundle.folder, precision="f32")
    for image in map(bundle.to_input, paths):
        logits = exact.engine(image[np.newaxis])["logits"][0]
        for label in range(len(bundle.classes)):
            total = heat_map(bundle, image, label).sum() + bundle.head[1][label]
            assert total == pytest.approx(logits[label], rel=1e-3, abs=1e-3)


def test_the_map_and_the_bias_make_up_the_logit(default_bundle, photos):
    paths = sorted(photos.rglob("*.jpg"))[::7]
    assert heat_map(default_bundle, default_bundle.to_input(paths[0]), 0).shape == (7, 7)
    check_sum(default_bundle, *paths)


def test_so_it_does_for_a_head_on_all_levels(photos, tmp_path):
    wide = solved(with_all_levels(load_backbone()), photos, tmp_path)
    assert {part.kind for part in wide.pooled} == {"mean", "max"}
    assert len({part.shape for part in wide.pooled}) >= 5
    paths = sorted(photos.rglob("*.jpg"))[::7]
    assert heat_map(wide, wide.to_input(paths[0]), 0).shape == (7, 7)
    check_sum(wide, *paths)


@pytest.mark.parametrize(
    "name", mostly_long(["timm/test_resnet", "timm/test_efficientnet", "timm/test_nfnet"], "timm/test_nfnet")
)
def test_so_it_does_for_other_networks(photos, tmp_path, name):
    other = solved(load_backbone(name, "random"), photos, tmp_path)
    image = other.to_input(photos / "red" / "red_1.jpg")
    assert heat_map(other, image, 0).shape == other.pooled[0].shape[2:]
    check_sum(other, photos / "red" / "red_1.jpg")


def test_places_of_finer_maps_fall_into_cells_of_the_coarsest():
    """By hand: the mean of a 2 x 3 map, channels last, and the maximum of a 4 x 6 one."""
    coarse, fine = np.arange(6, dtype=np.float32).reshape(1, 2, 3, 1), np.zeros((1, 2, 4, 6), np.float32)
    fine[0, 0, 3, 0], fine[0, 1, 1, 5] = 10, 100
    parts = (Pooled("coarse", "mean", coarse.shape, True), Pooled("fine", "max", fine.shape, False))
    weight = np.array([[0, 0, 0], [6, 0.5, -1]], np.float32)
    known = SimpleNamespace(
        pooled=parts, map_engine=lambda images: {"coarse": coarse, "fine": fine}, head=(weight, np.zeros(2))
    )
    expected = [[0, 1, 2 - 100], [3 + 5, 4, 5]]
    assert heat_map(known, np.zeros((8, 12, 3), np.uint8), 1).tolist() == expected
    assert not heat_map(known, np.zeros((8, 12, 3), np.uint8), 0).any()


def test_it_is_gradient_times_activation(default_bundle, photos):
    network = timm.create_model(f"local-dir:{default_bundle.folder}", pretrained=True).eval()
    kept = {}
    network.global_pool.register_forward_pre_hook(lambda _, inputs: kept.update(map=inputs[0]))
    mean = torch.tensor(default_bundle.preprocessing.mean)
    std = torch.tensor(default_bundle.preprocessing.std)
    image = default_bundle.to_input(photos / "green" / "green_1.jpg")
    pixels = ((torch.from_numpy(image.copy()).float() / 255 - mean) / std).permute(2, 0, 1)[None]
    for label in range(3):
        logits = network(pixels)
        (gradient,) = torch.autograd.grad(logits[0, label], kept["map"])
        expected = (gradient * kept["map"]).sum(dim=1)[0].detach().numpy()
        np.testing.assert_allclose(heat_map(default_bundle, image, label), expected, atol=1e-3 * np.abs(expected).max())


def test_the_peak_lies_on_the_object(folder, tmp_path):
    bundle = regraft.train(folder, tmp_path / "run", mode="frozen", quiet=True, report=False)
    assert bundle.manifest["metrics"]["accuracy"]["value"] == 1
    assert peaks(bundle, tmp_path, lambda image, label, _: heat_map(bundle, image, label)) >= 9


def with_random_weights(name, folder, out):
    return regraft.train(folder, out, mode="frozen", backbone=name, weights="random", quiet=True, report=False)


@pytest.mark.slow
@long_form
def test_so_it_does_where_places_are_covered(folder, tmp_path):
    bundle = with_random_weights("timm/deit_tiny_distilled_patch16_224", folder, tmp_path / "run")
    assert bundle.pooled is None
    assert bundle.manifest["metrics"]["accuracy"]["value"] == 1
    assert peaks(bundle, tmp_path, lambda image, label, _: heat_map(bundle, image, label)) >= 9


@pytest.mark.slow
@long_form
@pytest.mark.parametrize(
    ("name", "is_last"),
    [
        pytest.param("resnet50", False, id="resnet50"),
        pytest.param("timm/swin_tiny_patch4_window7_224", True, id="swin"),
    ],
)
def test_what_an_object_changes_in_the_map_lies_on_the_object(folder, tmp_path, name, is_last):
    """Random weights tell one of two objects by the lack of the other, so the map's own peak may lie elsewhere."""
    bundle = with_random_weights(name, folder, tmp_path / "run")
    assert [part.is_last for part in bundle.pooled] == [is_last]

    def change(image, label, seed):
        without = bundle.to_input(smooth(np.random.default_rng(seed)))
        return np.abs(heat_map(bundle, image, label) - heat_map(bundle, without, label))

    assert peaks(bundle, tmp_path, change) == 10


@pytest.mark.parametrize("name", mostly_long(["timm/test_convnext", "timm/test_vit"], "timm/test_vit"))
def test_networks_that_do_not_end_in_pooling_are_covered_place_by_place(photos, tmp_path, name):
    bundle = solved(load_backbone(name, "random"), photos, tmp_path)
    assert bundle.pooled is None
    image = bundle.to_input(photos / "blue" / "blue_2.jpg")
    heat = heat_map(bundle, image, bundle.classes.index("blue"))
    assert (heat.shape, heat.dtype) == ((CELLS, CELLS), np.float32)
    assert np.isfinite(heat).all()
    assert heat.std() > 0


def test_covering_shows_what_the_class_loses():
    """Of a made-up network that looks at one place only, the cells about it are hot, and no other is."""

    def engine(images):
        seen = images[:, 40, 150, 0].astype(np.float32) / 64
        return {"logits": np.stack([seen, -seen], axis=1)}

    def probabilities(logits):
        exp = np.exp(logits)
        return exp / exp.sum(axis=1, keepdims=True)

    image = np.zeros((224, 224, 3), np.uint8)
    image[40, 150] = 255
    heat = heat_map(SimpleNamespace(pooled=None, map_engine=engine, probabilities=probabilities), image, 0)
    assert np.unravel_index(heat.argmax(), heat.shape) == (1, 4)
    assert np.array_equal(np.argwhere(heat > 0), [[i, j] for i in (0, 1, 2) for j in (3, 4, 5)])
    assert heat.min() == 0


def test_a_picture_glows_where_the_model_looks(bundle, photos):
    path = min(photos.rglob("*.jpg"))
    picture, label = regraft.heat_picture(bundle, path), bundle.predict(path).label
    assert picture.size == (bundle.preprocessing.width, bundle.preprocessing.height)
    assert picture.tobytes() == regraft.heat_picture(bundle, path, label).tobytes()
    other = next(name for name in bundle.classes if name != label)
    assert picture.tobytes() != regraft.heat_picture(bundle, path, other).tobytes()
    with pytest.raises(regraft.RegraftError, match=r"no class 'bleu'\. Did you mean 'blue'"):
        regraft.heat_picture(bundle, path, "bleu")
