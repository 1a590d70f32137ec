"""Weights files of a few kilobytes that ask for gigabytes or minutes: refused before anything is unpacked."""

import io
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from faults.processes import record
from regraft.backbones import weights
from regraft.backbones.weights import read_weights
from regraft.core.errors import WeightsError

NUM_BYTES = 2**26  # of each packed tensor; the attack itself takes as many as it likes


class Storage:
    """Of so many bytes, by its name in the archive."""

    def __init__(self, name: str) -> None:
        self.name = name


class Tensor:
    """All numbers of a storage."""

    def __init__(self, name: str) -> None:
        self.storage = Storage(name)

    def __reduce__(self):
        rebuild = torch._utils._rebuild_tensor_v2
        return rebuild, (self.storage, 0, (NUM_BYTES // 4,), (1,), False, OrderedDict())


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return (
            ("storage", torch.FloatStorage, value.name, "cpu", NUM_BYTES // 4) if isinstance(value, Storage) else None
        )


def description(count: int) -> bytes:
    """The pickle of a state dict of so many tensors."""
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({f"t{i}": Tensor(str(i)) for i in range(count)})
    return buffer.getvalue()


def archive(pickled: bytes, members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for name, data in {"data.pkl": pickled, "version": b"3\n", "byteorder": b"little", **members}.items():
            file.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def packed() -> bytes:
    """Tensors of zeros, deflated: a thousandth of what they unpack to."""
    return archive(description(1), {"data/0": bytes(NUM_BYTES)})


def entries_of_one(count: int = 64) -> bytes:
    """Many entries of the directory name the same packed zeros."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = squeeze.compress(bytes(NUM_BYTES)) + squeeze.flush()
    whole = archive(description(count), {})
    end = whole.rindex(b"PK\5\6")
    start = struct.unpack_from("<I", whole, end + 16)[0]
    sizes = struct.pack("<HHIII", 0, 0x21, zlib.crc32(bytes(NUM_BYTES)), len(zeros), NUM_BYTES)
    blob = b"PK\3\4" + struct.pack("<HHH", 20, 0, 8) + sizes + struct.pack("<HH", 14, 0) + b"archive/data/0" + zeros
    names = [f"archive/data/{i}".encode() for i in range(count)]
    directory = whole[start:end] + b"".join(
        b"PK\1\2" + struct.pack("<HHHH", 20, 20, 0, 8) + sizes
        + struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, start) + name
        for name in names
    )  # fmt: skip
    total = 3 + count
    tail = struct.pack("<HHHHIIH", 0, 0, total, total, len(directory), start + len(blob), 0)
    return whole[:start] + blob + directory + b"PK\5\6" + tail


def bytes_of_nothing(num_bytes: int = 2**33) -> bytes:
    """A pickle that calls bytearray with a number, which is allowed by `weights_only`."""
    return b"\x80\x02c__builtin__\nbytearray\n\x8a\x08" + struct.pack("<q", num_bytes) + b"\x85R."


def many_tensors(count: int = 400_000) -> bytes:
    rows = (b'"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(count))
    text = b"{" + b",".join(rows) + b"}"
    return struct.pack("<Q", len(text)) + text


FILES = {
    "packed.pth": (packed, "would unpack to"),
    "one for many.pth": (entries_of_one, "would unpack to 4294"),
    "packed.pt": (lambda: archive(bytes(2**26), {}), "would unpack to"),
    "bytearray in an archive.pth": (lambda: archive(bytes_of_nothing(), {}), "asks for a bytearray"),
    "bare bytearray.pth": (bytes_of_nothing, "asks for a bytearray"),
    "nested.pth": (lambda: archive(packed(), {"data.pkl.zip": packed()}), "refused|not an intact"),
    "entries.safetensors": (many_tensors, "its header would have .* bytes, expected at most"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_asks_for_more_than_it_brings_is_refused_unread(tmp_path, monkeypatch, name):
    """Nothing reads it: neither torch nor safetensors is asked."""
    make, expected = FILES[name]
    path = Path(tmp_path / name)
    path.write_bytes(make())
    if not name.startswith("nested"):
        monkeypatch.setattr(torch, "load", None)
        monkeypatch.setattr(weights, "load_file", None)
    with pytest.raises(WeightsError, match=expected) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


def test_one_entry_of_many_would_be_read_elsewhere(tmp_path, monkeypatch):
    """The archive is one that torch reads: without the check its tensors are there."""
    (tmp_path / "weights.pth").write_bytes(entries_of_one(2))
    monkeypatch.setattr(weights, "_excess", lambda *_, **__: None)
    assert [value.numel() for value in read_weights(tmp_path / "weights.pth").values()] == [NUM_BYTES // 4] * 2


def test_a_small_packed_archive_is_read(tmp_path):
    """Somebody's archive may be packed, while it does not grow much."""
    torch.save({"w": torch.arange(4.0)}, tmp_path / "stored.pth")
    with zipfile.ZipFile(tmp_path / "stored.pth") as stored, zipfile.ZipFile(
        tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED
    ) as file:  # fmt: skip
        for name in stored.namelist():
            file.writestr(name, stored.read(name))
    assert read_weights(tmp_path / "packed.pth")["w"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_the_figures_are_recorded(record_property):
    record(record_property, "S3", files=len(FILES), read=0)
