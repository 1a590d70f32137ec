"""Rows kept by content: nothing damaged gets through, and writers do not disturb each other."""

import errno
import mmap
import os

import numpy as np
import pytest

from regraft.core.files import sha256_bytes
from regraft.core.progress import QUIET
from regraft.data import feature_cache as stores
from regraft.data.feature_cache import CachedRows, FeatureCache


def shards(cache):
    return sorted((cache / "numbers").rglob("*.safetensors"))


def rows_of(seed, count=4):
    rng = np.random.default_rng(seed)
    return {sha256_bytes(rng.bytes(8)): rng.normal(size=6).astype(np.float32) for _ in range(count)}


def put(store, rows):
    with store.writer(QUIET) as write:
        for content, row in rows:
            write(content, row)


def same_rows(found, expected):
    return found.keys() == expected.keys() and all(np.array_equal(found[key], expected[key]) for key in expected)


def test_no_flipped_bit_in_a_shard_gets_through(empty_cache):
    store, rows = FeatureCache("numbers", "bits"), rows_of(0)
    put(store, rows.items())
    (shard,) = shards(empty_cache)
    data = shard.read_bytes()
    for position in range(len(data)):
        shard.write_bytes(data[:position] + bytes([data[position] ^ (1 << position % 8)]) + data[position + 1 :])
        found = store.read(rows)
        assert same_rows(found, {content: rows[content] for content in found}), position
        assert len(found) < len(rows), position


def test_no_truncated_shard_gets_through(empty_cache):
    store, rows = FeatureCache("numbers", "cut"), rows_of(0)
    put(store, rows.items())
    (shard,) = shards(empty_cache)
    data = shard.read_bytes()
    for length in range(len(data)):
        shard.write_bytes(data[:length])
        assert store.read(rows) == {}, length


def test_shards_of_several_writers_merge(empty_cache):
    store, writers = FeatureCache("numbers", "many"), [rows_of(seed) for seed in range(3)]
    for rows in writers:
        put(store, rows.items())
    everything = {content: row for rows in writers for content, row in rows.items()}
    assert len(shards(empty_cache)) == 3
    assert same_rows(store.read(everything), everything)
    assert same_rows(store.read(writers[1]), writers[1])


def test_two_writers_of_the_same_rows_write_one_file(empty_cache):
    store, rows = FeatureCache("numbers", "same"), rows_of(0)
    put(store, rows.items())
    put(store, rows.items())
    assert len(shards(empty_cache)) == 1


def test_nothing_is_written_where_nothing_is_new(empty_cache):
    put(FeatureCache("numbers", "none"), {}.items())
    assert shards(empty_cache) == []
    assert FeatureCache("numbers", "none").read(rows_of(0)) == {}


def test_rows_reach_the_disk_every_few_seconds(empty_cache, monkeypatch):
    monkeypatch.setattr(stores, "FLUSH_SECONDS", -1.0)
    put(FeatureCache("numbers", "often"), rows_of(0).items())
    assert len(shards(empty_cache)) == 4


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_rows_reach_the_disk_at_a_bad_end_too(empty_cache, error):
    def interrupted():
        yield from rows.items()
        raise error

    store, rows = FeatureCache("numbers", "bad end"), rows_of(0)
    with pytest.raises(error):
        put(store, interrupted())
    assert same_rows(store.read(rows), rows)


def test_a_table_knows_what_was_put_into_it_and_nothing_else():
    table = CachedRows(["a", "b", "a", "c"])
    assert (len(table), table.unknown()) == (0, {"a", "b", "c"})
    table.put(["c", "a"], np.array([[1.0, 2.0], [3.0, 4.0]], np.float32))
    assert dict(table.items()).keys() == {"a", "c"}
    assert table["a"].tolist() == [3, 4]
    assert table.get("b") is None
    assert "z" not in table
    assert table.table[table.places(["c", "a", "c"])].tolist() == [[1, 2], [3, 4], [1, 2]]


def test_a_large_table_lies_in_a_file_without_a_name(empty_cache, monkeypatch):
    monkeypatch.setattr(stores, "LARGE_BYTES", 0)
    empty_cache.mkdir()
    table = CachedRows(map(str, range(1000)))
    table.put(["7"], np.ones((1, 5), np.float32))
    assert isinstance(table.table.base, mmap.mmap)
    assert list(empty_cache.iterdir()) == []
    assert table["7"].tolist() == [1] * 5


@pytest.mark.parametrize("reason", ["no such folder", "no space"])
def test_without_room_on_disk_a_large_table_lies_in_memory(empty_cache, monkeypatch, reason):
    def full(*_):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(stores, "LARGE_BYTES", 0)
    if reason == "no space":
        empty_cache.mkdir()
        monkeypatch.setattr(os, "posix_fallocate", full)
    table = CachedRows(["a"])
    table.put(["a"], np.ones((1, 5), np.float32))
    assert table["a"].tolist() == [1] * 5


def test_what_is_missing_is_told_by_the_hashes_alone(empty_cache):
    store, rows = FeatureCache("numbers", "missing"), rows_of(0)
    assert store.missing(rows) == rows.keys()
    put(store, rows.items())
    assert store.missing([*rows, "new"]) == {"new"}
    (shard,) = shards(empty_cache)
    shard.write_bytes(b"")
    assert store.missing(rows) == rows.keys()
