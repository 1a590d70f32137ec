"""Some tensors of a safetensors file, while all of it is hashed: read once, and never whole in memory."""

import math
from typing import Annotated, Any, BinaryIO

import msgspec
import numpy as np
from msgspec import Meta, Struct

MAX_HEADER_BYTES = 32 * 2**20
BLOCK_BYTES = 2**20
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
Size = Annotated[int, Meta(ge=0, le=2**48)]


class TensorError(ValueError):
    """A safetensors file is damaged, or lacks what is wanted of it."""


class TensorEntry(Struct, forbid_unknown_fields=True):
    """One tensor of the header.

    Attributes:
        dtype: In the format's words, such as "F32".
        shape: Of the tensor.
        data_offsets: Begin and end behind the header, in bytes.
    """

    dtype: str
    shape: Annotated[list[Size], Meta(max_length=16)]
    data_offsets: tuple[Size, Size]

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor's numbers."""
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)


def read_tensors(file: BinaryIO, size: int, wanted: tuple[str, ...], digest: Any) -> list[np.ndarray]:
    """Read float32 tensors by name.

    Args:
        file: Open at its start; read to its end.
        size: Of the file, in bytes.
        wanted: Names of tensors.
        digest: A hash of `hashlib`, fed with every byte of the file.

    Returns:
        The tensors in the order wanted.

    Raises:
        TensorError: The file is damaged, or has none of that name and type.
    """
    entries, start = _header(file, size, digest)
    for name in wanted:
        if name not in entries:
            raise TensorError(f"there is no tensor {name[:80]!r}")
        if entries[name].dtype != "F32":
            raise TensorError(f"{name[:80]!r} is of type {entries[name].dtype}, expected F32")
    buffers = {name: bytearray(entries[name].num_bytes) for name in wanted}
    position = 0
    while block := file.read(BLOCK_BYTES):
        digest.update(block)
        for name, into in buffers.items():
            _copy(block, position, into, entries[name].data_offsets[0])
        position += len(block)
    if position != size - start:
        raise TensorError(f"it ends after {start + position} of {size} bytes")
    return [np.frombuffer(bytes(buffers[name]), "<f4").reshape(entries[name].shape) for name in wanted]


def _copy(block: bytes, position: int, into: bytearray, begin: int) -> None:
    """Copy what a block that lies at `position` holds of a tensor that begins at `begin`."""
    first, last = max(begin, position), min(begin + len(into), position + len(block))
    if first < last:
        into[first - begin : last - begin] = memoryview(block)[first - position : last - position]


def _header(file: BinaryIO, size: int, digest: Any) -> tuple[dict[str, TensorEntry], int]:
    """Read the tensors by name, and where their numbers begin; raise TensorError for a damaged header."""
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise TensorError("its header's length is not possible")
    text = file.read(length)
    digest.update(prefix + text)
    try:
        raw = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        entries = {name: msgspec.json.decode(value, type=TensorEntry) for name, value in raw.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise TensorError("its header cannot be read") from error
    _check_layout(entries, size - 8 - length)
    return entries, 8 + length


def _check_layout(entries: dict[str, TensorEntry], size: int) -> None:
    """Raise TensorError unless the tensors fill the file one after the other, without gap or overlap."""
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, end = entry.data_offsets
        if entry.dtype not in ITEM_BYTES:
            raise TensorError(f"{name[:80]!r} is of unknown type {entry.dtype[:20]!r}")
        if begin != position or end - begin != entry.num_bytes:
            raise TensorError(f"{name[:80]!r} of shape {str(entry.shape)[:60]} does not fit its {end - begin} bytes")
        position = end
    if position != size:
        raise TensorError(f"its tensors take {position} bytes, and there are {size}")
