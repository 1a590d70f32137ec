"""Batches are a function of seed, epoch and the photos' contents: not of workers, processes, memory or file names."""

import hashlib
import os
import random
import resource
import shutil
from collections import Counter
from dataclasses import replace
from itertools import chain
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import draw, draw_folder
from regraft.core.errors import DataError, OutputError
from regraft.core.progress import QUIET, Progress
from regraft.data.decode import decode
from regraft.data.scan import Dataset, list_photos
from regraft.data.transforms import Preprocessing, photo_to_input
from regraft.training import batches
from regraft.training.augmentation import augmentation
from regraft.training.batches import (
    Batch,
    DecodedPhotos,
    Loader,
    choose_workers,
    cut_into_batches,
    decode_for_training,
    decode_for_validation,
    epoch_order,
    evenly,
)
from regraft.training.distributed import ProcessGroup
from regraft.training.recipe import Recipe

SMALL = Preprocessing(32, 32, (40, 40), "bilinear", "center", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
quick = settings(deadline=None, database=None, max_examples=60)
few_workers = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with a single core


def content(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def data_set(hashes, num_classes=3):
    count = len(hashes)
    return Dataset(
        root=Path("photos"),
        paths=tuple(f"{i}.jpg" for i in range(count)),
        labels=np.arange(count, dtype=np.int64) % num_classes,
        classes=tuple("abcdefg"[:num_classes]),
        splits=("",) * count,
        hashes=tuple(hashes),
    )


def numbered(count):
    """Photos of a single pixel each, whose value is their number."""
    return DecodedPhotos(
        data_set([content(i) for i in range(count)]), [np.full((1, 1, 3), i, np.uint8) for i in range(count)]
    )


def noise(count, side=48):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (side, side + i, 3), np.uint8) for i in range(count)]
    return DecodedPhotos(data_set([hashlib.sha256(p.tobytes()).hexdigest() for p in pixels]), pixels)


def shuffled(photos, seed=1):
    """The same photos in another order of paths."""
    chosen = np.random.default_rng(seed).permutation(len(photos))
    return DecodedPhotos(photos.dataset.subset(chosen), [photos.pixels[i] for i in chosen])


def loader_of(photos, batch_size=4, seed=0, world=None, **options):
    options = {"change": augmentation(Recipe(augment="color"), SMALL), **options}
    return Loader(photos, batch_size, seed, world or ProcessGroup(), **options)


def pixels_by_content(loader, epoch=0):
    """{content: pixels as the network would get them}."""
    hashes = [loader.photos.dataset.hashes[i] for indices in loader.batches_of(epoch) for i in indices]
    pixels = [p.numpy().tobytes() for batch in loader.load(epoch) for p in batch.pixels]
    return dict(zip(hashes, pixels, strict=True))


def numbers(batch):
    """Which of the numbered photos are in a batch and count there."""
    return batch.pixels[batch.weights > 0, 0, 0, 0].tolist()


# order


@given(st.lists(st.integers(), unique=True, max_size=30), st.integers(0, 99), st.integers(0, 99), st.randoms())
@quick
def test_the_order_of_an_epoch_depends_on_contents_seed_and_epoch_alone(ids, seed, epoch, rng):
    hashes = [content(i) for i in ids]
    first = epoch_order(hashes, seed, epoch)
    assert sorted(first) == list(range(len(hashes)))
    mixed = rng.sample(hashes, len(hashes))
    assert [hashes[i] for i in first] == [mixed[i] for i in epoch_order(mixed, seed, epoch)]


def test_every_seed_and_epoch_has_an_order_of_its_own():
    hashes = [content(i) for i in range(50)]
    orders = [tuple(epoch_order(hashes, seed, epoch)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25
    assert tuple(range(50)) not in orders
    firsts = Counter(place for one in orders for place in one[:10])
    assert len(firsts) > 45, "each photo comes early in some epoch"


def test_every_epoch_and_seed_deals_the_photos_into_other_batches():
    dealt = [loader_of(numbered(9), seed=seed).batches_of(epoch) for seed in range(3) for epoch in range(3)]
    assert all(dealt.count(one) == 1 for one in dealt)


def test_photos_that_are_judged_stay_in_their_order():
    loader = loader_of(numbered(7), change=None)
    assert [numbers(batch) for batch in loader.load(5)] == [[0, 1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("count", "batch_size", "expected"),
    [
        (8, 4, [4, 4]),
        (9, 4, [4, 5]),
        (9, 2, [2, 2, 2, 3]),
        (10, 4, [4, 4, 2]),
        (3, 64, [3]),
        (2, 64, [2]),
        (1, 64, [1]),
        (65, 64, [65]),
        (1, 1, [1]),
        (4, 1, [1, 1, 2]),
    ],
)
def test_a_last_batch_of_one_photo_joins_the_one_before(count, batch_size, expected):
    batches_found = cut_into_batches(range(count), batch_size)
    assert [len(indices) for indices in batches_found] == expected
    assert list(chain(*batches_found)) == list(range(count))


@given(st.integers(1, 300), st.integers(1, 70))
@quick
def test_evenly_cuts_into_as_few_parts_as_can_be_of_nearly_one_size(count, size):
    parts = evenly(range(count), size)
    assert list(chain(*parts)) == list(range(count))
    sizes = [len(part) for part in parts]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert len(parts) == ceil(count / size)


@given(st.integers(1, 300), st.integers(1, 70))
@quick
def test_evenly_leaves_no_photo_alone_where_two_are_wanted(count, size):
    parts = evenly(range(count), size, least=2)
    assert list(chain(*parts)) == list(range(count))
    assert min(map(len, parts)) >= min(2, count)
    assert max(map(len, parts)) <= max(size, 3)


# shares of processes


@pytest.mark.parametrize("ghost_size", [0, 1, 2, 3, 16])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(("count", "batch_size"), [(1, 4), (2, 4), (3, 4), (5, 4), (7, 64), (17, 6), (24, 6)])
def test_every_photo_is_learned_from_exactly_once_an_epoch(count, batch_size, size, ghost_size):
    photos, weights = numbered(count), (1.0, 2.0, 0.5)
    change = torch.nn.Identity()
    loaders = [
        Loader(photos, batch_size, 3, ProcessGroup(rank, size), change, weights, ghost_size) for rank in range(size)
    ]
    planned = loaders[0].batches_of(2)
    assert sorted(chain(*planned)) == list(range(count))
    together = list(zip(*(loader.load(2) for loader in loaders), strict=True))
    assert len(together) == len(planned)
    for indices, shares in zip(planned, together, strict=True):
        assert sorted(number for share in shares for number in numbers(share)) == sorted(indices)
        expected = {i: weights[photos.dataset.labels[i]] for i in indices}
        for share in shares:
            assert sum(share.parts) == len(share.labels) == len(share.weights) == len(share.pixels) > 0
            assert share.total == pytest.approx(sum(expected.values()))
            counted = share.weights > 0
            assert share.weights[counted].tolist() == [expected[i] for i in numbers(share)]
            assert share.labels.tolist() == [photos.dataset.labels[i] for i in share.pixels[:, 0, 0, 0].tolist()]


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("count", [2, 3, 9, 10, 13, 17])
def test_ghost_batches_are_the_same_for_any_number_of_processes(count, size):
    def ghosts(world):
        loader = loader_of(numbered(count), 8, world=world, change=torch.nn.Identity(), ghost_size=3)
        return [
            [tuple(p[:, 0, 0, 0].tolist()) for p in torch.split(batch.pixels, batch.parts)]
            for batch in loader.load(0)
            if batch.weights.sum() > 0
        ]

    alone = list(chain(*ghosts(ProcessGroup())))
    shared = [part for rank in range(size) for step in ghosts(ProcessGroup(rank, size)) for part in step]
    assert sorted(shared) == sorted(alone)
    assert min(map(len, alone)) >= 2, "BatchNorm needs two"


def test_a_process_without_photos_gets_stand_ins_that_do_not_count():
    photos = numbered(4)
    for ghost_size, expected in ((0, 1), (4, 2)):
        batch_size = 4 if ghost_size else 2
        loader = loader_of(
            photos, batch_size, world=ProcessGroup(2, 3), change=torch.nn.Identity(), ghost_size=ghost_size
        )
        for batch in loader.load(0):
            assert batch.weights.tolist() == [0.0] * expected
            assert batch.total == batch_size


def test_microbatches_stay_within_their_parts():
    pixels = torch.arange(13).reshape(13, 1, 1, 1).to(torch.uint8)
    whole = Batch(pixels, torch.arange(13), torch.arange(13.0), 7.5, (6, 7))
    for size, expected in ((16, [6, 7]), (6, [6, 3, 4]), (3, [3, 3, 2, 2, 3]), (1, [1] * 13)):
        pieces = list(whole.split(size))
        assert [piece.parts for piece in pieces] == [(n,) for n in expected]
        for name in ("pixels", "labels", "weights"):
            assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(whole, name))
        assert {piece.total for piece in pieces} == {7.5}
    assert [piece.parts for piece in whole.split(1, least=2)] == [(2,), (2,), (2,), (2,), (2,), (3,)]


# augmentation


@pytest.mark.parametrize("augment", ["crop", "color", "trivial"])
def test_a_photo_is_changed_the_same_way_wherever_it_stands(augment):
    photos, change = noise(9), augmentation(Recipe(augment=augment), SMALL)
    expected = pixels_by_content(loader_of(photos, change=change), epoch=3)
    for photos_again, batch_size in ((photos, 4), (photos, 9), (shuffled(photos), 4)):
        torch.manual_seed(batch_size)
        random.seed(batch_size)
        np.random.seed(batch_size)
        assert pixels_by_content(loader_of(photos_again, batch_size, change=change), epoch=3) == expected


def test_every_photo_epoch_and_seed_is_changed_in_its_own_way():
    same = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    photos = DecodedPhotos(data_set([content(i) for i in range(6)]), [same] * 6)
    found = [
        one
        for seed in range(3)
        for epoch in range(3)
        for one in pixels_by_content(loader_of(photos, seed=seed), epoch).values()
    ]
    assert len(set(found)) == len(found) == 54


@few_workers
@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_number_of_workers_changes_no_pixel(num_workers):
    photos = noise(11)
    for epoch in range(2):
        alone = list(loader_of(photos, weights=(1.0, 2.0, 3.0)).load(epoch))
        helped = list(loader_of(photos, weights=(1.0, 2.0, 3.0), num_workers=num_workers).load(epoch))
        for one, other in zip(alone, helped, strict=True):
            assert torch.equal(one.pixels, other.pixels)
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(one.weights, other.weights)
            assert (one.total, one.parts) == (other.total, other.parts)


@few_workers
@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_goes_on_from_any_batch(num_workers):
    loader = loader_of(noise(11), num_workers=num_workers)
    whole = list(loader.load(1))
    for first in range(len(whole) + 1):
        rest = list(loader.load(1, first))
        assert len(rest) == len(whole) - first
        for one, other in zip(rest, whole[first:], strict=True):
            assert torch.equal(one.pixels, other.pixels)
            assert torch.equal(one.labels, other.labels)


def test_batches_are_bytes_of_the_networks_size():
    batch = next(loader_of(noise(4)).load(0))
    assert (batch.pixels.shape, batch.pixels.dtype) == ((4, 3, 32, 32), torch.uint8)
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
    assert (batch.labels.dtype, batch.weights.dtype) == (torch.int64, torch.float32)


def updated(recipe, pixels, count=150):
    """One photo, changed as in `count` epochs."""
    change = augmentation(recipe, SMALL)
    photos = DecodedPhotos(data_set([content(0)]), [pixels])
    return [next(loader_of(photos, change=change).load(epoch)).pixels[0].float() for epoch in range(count)]


@pytest.mark.parametrize("min_crop", [0.08, 0.35, 0.9])
def test_crops_show_at_least_the_share_asked_for(min_crop):
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8), (200, 200))
    found = updated(Recipe(min_crop=min_crop, flip=False, augment="crop"), np.stack([ramp, ramp.T, ramp], axis=2))
    shares = [float(np.prod([p[c].max() - p[c].min() for c in (0, 1)])) / 200**2 for p in found]
    assert min_crop - 0.1 <= min(shares) <= min_crop + 0.1
    assert max(shares) > 0.85


@pytest.mark.parametrize("flip", [True, False])
def test_half_of_the_photos_are_mirrored_where_that_is_asked_for(flip):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, 32:] = 255
    found = updated(Recipe(min_crop=0.9, flip=flip, augment="crop"), pixels)
    mirrored = sum(bool(p[:, :, :16].mean() > p[:, :, 16:].mean()) for p in found)
    assert 50 <= mirrored <= 100 if flip else mirrored == 0


@pytest.mark.parametrize(("augment", "changes"), [("crop", False), ("color", True), ("trivial", True)])
def test_colours_change_only_where_that_is_asked_for(augment, changes):
    found = updated(Recipe(augment=augment), np.full((48, 48, 3), (120, 60, 180), np.uint8), count=40)
    colours = {tuple(p.mean(dim=(1, 2)).round().int().tolist()) for p in found}
    assert len(colours) > 5 if changes else colours == {(120, 60, 180)}


# decoding


@pytest.fixture
def folder(tmp_path):
    """Photos of several formats and shapes."""
    draw_folder(tmp_path / "photos", ("red", "green"), 2)
    sizes = {"wide.jpg": (400, 60), "tall.png": (50, 333), "tiny.png": (7, 5), "large.jpg": (900, 700)}
    for seed, (name, size) in enumerate(sizes.items()):
        draw(tmp_path / "photos" / "red" / name, (200, 40, 40), 100 + seed, size)
    with Image.open(tmp_path / "photos" / "red" / "red_0.jpg") as image:
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(tmp_path / "photos" / "green" / "turned.jpg", exif=exif)
    return tmp_path / "photos"


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_photos_to_judge_are_what_the_bundle_will_get(folder, crop_mode, interpolation):
    preprocessing = replace(SMALL, crop_mode=crop_mode, interpolation=interpolation)
    photos = decode_for_validation(list_photos(folder), preprocessing, QUIET)
    loaded = torch.cat([batch.pixels for batch in loader_of(photos, change=None).load(0)])
    assert len(photos) == len(loaded) == 9
    for path, pixels, on_its_way in zip(photos.dataset.paths, photos.pixels, loaded, strict=True):
        expected = photo_to_input((folder / path).read_bytes(), preprocessing)
        assert np.array_equal(pixels, expected), path
        assert np.array_equal(on_its_way.permute(1, 2, 0).numpy(), expected), path


def test_photos_to_learn_from_are_whole_and_of_bounded_size(folder):
    photos = decode_for_training(list_photos(folder), SMALL, QUIET)
    for path, pixels in zip(photos.dataset.paths, photos.pixels, strict=True):
        original = decode((folder / path).read_bytes())
        width, height = original.size
        limit = 2 * 40
        assert min(pixels.shape[:2]) == min(limit, *original.size), path
        assert pixels.shape[1] / pixels.shape[0] == pytest.approx(width / height, rel=0.02), path
        if min(original.size) <= limit:
            assert np.array_equal(pixels, np.asarray(original)), path
        else:
            assert np.abs(pixels.mean(axis=(0, 1)) - np.asarray(original).mean(axis=(0, 1))).max() < 1


@few_workers
def test_photos_that_do_not_fit_into_memory_have_the_same_pixels(folder, empty_cache, monkeypatch, capsys):
    dataset = list_photos(folder)
    expected = decode_for_training(dataset, SMALL, QUIET)
    size = sum(p.nbytes for p in expected.pixels)
    monkeypatch.setattr(batches, "CHUNK_BYTES", 30_000)
    for free, num_in_memory in ((0, 0), (size / batches.MEMORY_SHARE / 2, None)):
        monkeypatch.setattr(batches, "_free_memory", lambda free=free: free)
        photos = decode_for_training(dataset, SMALL, Progress())
        mapped = [isinstance(p, np.memmap) for p in photos.pixels]
        assert any(mapped)
        assert all(mapped) if num_in_memory == 0 else not all(mapped)
        for one, other in zip(photos.pixels, expected.pixels, strict=True):
            assert np.array_equal(one, other)
        wanted = pixels_by_content(loader_of(expected))
        assert pixels_by_content(loader_of(photos)) == wanted
        assert pixels_by_content(loader_of(photos, num_workers=2)) == wanted
        assert f"outgrow the memory: 0 MB more in {empty_cache / 'photos'}" in capsys.readouterr().err
    assert os.listdir(empty_cache / "photos") == []


def test_photos_are_kept_in_memory_while_there_is_room(folder, capsys):
    photos = decode_for_training(list_photos(folder), SMALL, Progress())
    assert not any(isinstance(p, np.memmap) for p in photos.pixels)
    assert "outgrow" not in capsys.readouterr().err


def test_no_room_on_disk_is_an_error_with_its_cure(folder, empty_cache, monkeypatch):
    monkeypatch.setattr(batches, "_free_memory", lambda: 0)
    dataset = list_photos(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(OutputError, match=f"{empty_cache / 'photos'}: .*REGRAFT_CACHE"):
            decode_for_training(dataset, SMALL, QUIET)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("decode_photos", [decode_for_training, decode_for_validation])
@pytest.mark.parametrize("harm", ["vanished", "other photo", "no photo", "emptied", "a folder"])
def test_a_photo_that_is_no_longer_what_was_scanned_is_an_error_that_names_it(folder, decode_photos, harm):
    dataset = list_photos(folder)
    victim, other = folder / "green" / "green_1.jpg", folder / "red" / "red_0.jpg"
    victim.unlink()
    if harm == "other photo":
        shutil.copy(other, victim)
    elif harm == "a folder":
        victim.mkdir()
    elif harm != "vanished":
        victim.write_bytes(b"" if harm == "emptied" else b"GIF89a")
    with pytest.raises(DataError, match=f"^{victim} .*Run the command again"):
        decode_photos(dataset, SMALL, QUIET)


def test_photos_that_change_places_are_not_mistaken_for_each_other(folder):
    dataset = list_photos(folder)
    one, other = folder / "green" / "green_0.jpg", folder / "red" / "red_0.jpg"
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    with pytest.raises(DataError, match="changed while it was being used"):
        decode_for_training(dataset, SMALL, QUIET)


# workers


class Shm:
    """A stand-in for /dev/shm with so many free bytes; None where there is no such folder."""

    def __init__(self, monkeypatch, free):
        monkeypatch.setattr(batches.os.path, "isdir", lambda path: free is not None)
        monkeypatch.setattr(batches.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, free))


BATCH = (32, 224, 224, 3)  # 4.6 MB


@pytest.mark.parametrize(
    ("wanted", "free", "expected"),
    [
        (4, 64 * 2**20, 3),
        (2, 64 * 2**20, 2),
        (8, 2**30, 8),
        (4, 4 * 32 * 224 * 224 * 3, 1),
        (4, 4 * 32 * 224 * 224 * 3 - 1, 0),
        (4, 0, 0),
        (4, None, 4),
        (0, 0, 0),
        (-1, 2**30, 0),
    ],
)
def test_workers_are_as_many_as_dev_shm_has_room_for(monkeypatch, wanted, free, expected):
    Shm(monkeypatch, free)
    assert choose_workers(wanted, BATCH, ProcessGroup(), QUIET) == expected


def test_fewer_workers_than_wanted_are_told_with_the_reason(monkeypatch, capsys):
    Shm(monkeypatch, 64 * 2**20)
    choose_workers(4, BATCH, ProcessGroup(), Progress())
    said = capsys.readouterr().err
    assert said == "workers: 3 of 4 wanted (/dev/shm has 64 MB free, each needs 18 MB)\n"


def test_a_gpu_gets_the_cores_that_are_left(monkeypatch):
    Shm(monkeypatch, 2**40)
    for cores, expected in ((1, 0), (2, 1), (6, 5), (64, 8)):
        monkeypatch.setattr(batches, "num_cores", lambda cores=cores: cores)
        assert choose_workers(-1, BATCH, ProcessGroup(device="cuda:0"), QUIET) == expected


@pytest.mark.parametrize("fit", ["pad", "squash"])
@pytest.mark.parametrize("size", [(128, 64), (64, 128), (70, 70)])
def test_a_random_crop_of_everything_is_what_the_bundle_will_get(tmp_path, fit, size):
    """Augmentation begins from the photo as it is padded or squashed into the input."""
    preprocessing = replace(SMALL, mean=(0.2, 0.5, 0.8)).fitted(fit)
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8))
    smooth.resize(size, Image.Resampling.BICUBIC).save(tmp_path / "long.png")
    data = (tmp_path / "long.png").read_bytes()
    change = augmentation(Recipe(min_crop=1.0, flip=False, augment="crop"), preprocessing)
    torch.manual_seed(0)
    found = change(torch.from_numpy(np.array(decode(data))).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    expected = photo_to_input(data, preprocessing)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 3  # of 255: resampled in another order, by another library


def test_a_random_crop_of_part_stays_within_the_photo_and_its_padding(tmp_path):
    """With parts of many kinds, every place of a long photo is seen, and what is beside it is the mean colour."""
    preprocessing = replace(SMALL, mean=(0.2, 0.5, 0.8)).fitted("pad")
    photo = torch.full((3, 24, 96), 255, dtype=torch.uint8)
    change = augmentation(Recipe(min_crop=0.1, flip=False, augment="crop"), preprocessing)
    torch.manual_seed(0)
    seen = torch.stack([change(photo) for _ in range(40)]).permute(0, 2, 3, 1).reshape(-1, 3)
    padding, white = (seen == torch.tensor(preprocessing.fill)).all(1), (seen == 255).all(1)
    assert 0.1 < white.float().mean() < 0.9
    assert (padding | white).float().mean() > 0.85  # the rest is where they meet
