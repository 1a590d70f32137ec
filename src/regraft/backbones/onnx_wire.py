"""The bytes of an ONNX file to dictionaries: the part of protobuf and of ONNX that a plain network needs, and no more.

Everything that is not listed here is refused: subgraphs, functions, weights in other files, sparse tensors, strings as
data. So nothing that another reader of the same bytes may find in them is overlooked. Needs no package.
"""

import struct
from typing import Any

MAX_VALUES = 2_000_000  # messages and single numbers in one file: what keeps reading it short
MAX_DEPTH = 8

INT, FLOAT, DOUBLE, TEXT, BYTES, PACKED_INT, PACKED_FLOAT, PACKED_DOUBLE = range(8)
ONE, MANY = False, True

Message = dict[str, Any]

# message: ((number, name, kind or name of a message, whether it may come more than once), ...)
_MESSAGES: dict[str, tuple[tuple[int, str, int | str, bool], ...]] = {
    "model": (
        (1, "ir_version", INT, ONE),
        (2, "producer_name", TEXT, ONE),
        (3, "producer_version", TEXT, ONE),
        (4, "domain", TEXT, ONE),
        (5, "model_version", INT, ONE),
        (6, "doc_string", TEXT, ONE),
        (7, "graph", "graph", ONE),
        (8, "opset_import", "opset", MANY),
        (14, "metadata_props", "entry", MANY),
    ),
    "opset": ((1, "domain", TEXT, ONE), (2, "version", INT, ONE)),
    "entry": ((1, "key", TEXT, ONE), (2, "value", TEXT, ONE)),
    "graph": (
        (1, "node", "node", MANY),
        (2, "name", TEXT, ONE),
        (5, "initializer", "tensor", MANY),
        (10, "doc_string", TEXT, ONE),
        (11, "input", "value", MANY),
        (12, "output", "value", MANY),
        (13, "value_info", "value", MANY),
        (16, "metadata_props", "entry", MANY),
    ),
    "node": (
        (1, "input", TEXT, MANY),
        (2, "output", TEXT, MANY),
        (3, "name", TEXT, ONE),
        (4, "op_type", TEXT, ONE),
        (5, "attribute", "attribute", MANY),
        (6, "doc_string", TEXT, ONE),
        (7, "domain", TEXT, ONE),
        (9, "metadata_props", "entry", MANY),
    ),
    "attribute": (
        (1, "name", TEXT, ONE),
        (2, "f", FLOAT, ONE),
        (3, "i", INT, ONE),
        (4, "s", BYTES, ONE),
        (5, "t", "tensor", ONE),
        (7, "floats", FLOAT, MANY),
        (7, "floats", PACKED_FLOAT, MANY),
        (8, "ints", INT, MANY),
        (8, "ints", PACKED_INT, MANY),
        (9, "strings", BYTES, MANY),
        (13, "doc_string", TEXT, ONE),
        (20, "type", INT, ONE),
    ),
    "tensor": (
        (1, "dims", INT, MANY),
        (1, "dims", PACKED_INT, MANY),
        (2, "data_type", INT, ONE),
        (4, "float_data", FLOAT, MANY),
        (4, "float_data", PACKED_FLOAT, MANY),
        (5, "int32_data", INT, MANY),
        (5, "int32_data", PACKED_INT, MANY),
        (7, "int64_data", INT, MANY),
        (7, "int64_data", PACKED_INT, MANY),
        (8, "name", TEXT, ONE),
        (9, "raw_data", BYTES, ONE),
        (10, "double_data", DOUBLE, MANY),
        (10, "double_data", PACKED_DOUBLE, MANY),
        (12, "doc_string", TEXT, ONE),
        (14, "data_location", INT, ONE),
        (16, "metadata_props", "entry", MANY),
    ),
    "value": (
        (1, "name", TEXT, ONE),
        (2, "type", "type", ONE),
        (3, "doc_string", TEXT, ONE),
        (4, "metadata_props", "entry", MANY),
    ),
    "type": ((1, "tensor_type", "tensor_type", ONE), (6, "denotation", TEXT, ONE)),
    "tensor_type": ((1, "elem_type", INT, ONE), (2, "shape", "shape", ONE)),
    "shape": ((1, "dim", "dim", MANY),),
    "dim": ((1, "dim_value", INT, ONE), (2, "dim_param", TEXT, ONE), (3, "denotation", TEXT, ONE)),
}


def _wire_type(kind: int | str) -> int:
    """Return how a field is written.

    0 is a number of seven-bit bytes, 1 and 5 are eight and four bytes, 2 is a length and so many bytes.
    """
    return {INT: 0, FLOAT: 5, DOUBLE: 1}.get(kind, 2) if isinstance(kind, int) else 2


_PACKED = {PACKED_INT, PACKED_FLOAT, PACKED_DOUBLE}
_EXTERNAL_DATA = ("tensor", 13)
_FIELDS = {
    message: {number << 3 | _wire_type(kind): (name, kind, many) for number, name, kind, many in fields}
    for message, fields in _MESSAGES.items()
}


class WireError(ValueError):
    """Raised for bytes that are no ONNX file, or that hold what a plain network has no need of."""


def read_model(data: bytes) -> Message:
    """Read an ONNX model.

    Args:
        data: The whole file.

    Returns:
        Fields by the names that ONNX gives them; repeated ones as lists. `raw_data` and attributes' strings stay views
        of `data`.

    Raises:
        WireError: The bytes are damaged, or hold something that is not allowed.
    """
    return _Reader(data).message(0, len(data), "model", 0)


class _Reader:
    """One pass over a file; `left` is how many values it may still hold."""

    def __init__(self, data: bytes) -> None:
        self.data, self.view, self.left = data, memoryview(data), MAX_VALUES

    def message(self, position: int, end: int, kind: str, depth: int) -> Message:
        """Read the message that lies between two positions. Raises WireError."""
        if depth > MAX_DEPTH:
            raise WireError("it is nested too deep")
        fields, message_fields = _FIELDS[kind], {}
        while position < end:
            tag, position = self.varint(position, end)
            field = fields.get(tag)
            if field is None:
                raise WireError(_unknown(kind, tag))
            name, what, many = field
            if not many and name in message_fields:
                raise WireError(f"it gives {kind}.{name} twice")
            value, position = self.value(position, end, what, depth)
            if not many:
                message_fields[name] = value
            elif what in _PACKED:
                message_fields.setdefault(name, []).extend(value)
            else:
                message_fields.setdefault(name, []).append(value)
        return message_fields

    def value(self, position: int, end: int, what: int | str, depth: int) -> tuple[Any, int]:
        """Read what lies at a position; return it and the position behind it. Raises WireError."""
        self.count(1)
        if what == INT:
            value, position = self.varint(position, end)
            return _signed(value), position
        if what in (FLOAT, DOUBLE):
            width, code = (4, "<f") if what == FLOAT else (8, "<d")
            return struct.unpack_from(code, self.data, self.behind(position, width, end) - width)[0], position + width
        length, position = self.varint(position, end)
        behind = self.behind(position, length, end)
        if isinstance(what, str):
            return self.message(position, behind, what, depth + 1), behind
        if what == TEXT:
            return _text(self.data[position:behind]), behind
        return (self.view[position:behind] if what == BYTES else self.packed(position, behind, what)), behind

    def packed(self, position: int, end: int, what: int) -> list[Any]:
        """Read numbers one after the other. Raises WireError."""
        if what != PACKED_INT:
            width, code = (4, "f") if what == PACKED_FLOAT else (8, "d")
            count, rest = divmod(end - position, width)
            if rest:
                raise WireError("a list of numbers is cut off")
            self.count(count)
            return list(struct.unpack_from(f"<{count}{code}", self.data, position))
        numbers = []
        while position < end:
            self.count(1)
            value, position = self.varint(position, end)
            numbers.append(_signed(value))
        return numbers

    def count(self, number: int) -> None:
        """Count so many more values. Raises WireError for too many."""
        self.left -= number
        if self.left < 0:
            raise WireError(f"it holds more than {MAX_VALUES} values")

    @staticmethod
    def behind(position: int, length: int, end: int) -> int:
        """Return the position behind so many bytes. Raises WireError where there are fewer."""
        if length > end - position:
            raise WireError("it is cut off")
        return position + length

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """Read a number of at most ten bytes, seven bits each, lowest first; return it and the position behind it.

        Raises WireError where it is cut off or has more than 64 bits.
        """
        value = shift = 0
        while position < end and shift < 70:
            byte = self.data[position]
            position += 1
            value |= (byte & 127) << shift
            if byte < 128:
                if value >> 64:
                    raise WireError("a number has more than 64 bits")
                return value, position
            shift += 7
        raise WireError("it is cut off")


def _unknown(kind: str, tag: int) -> str:
    number = tag >> 3
    if (kind, number) == _EXTERNAL_DATA:
        return "it keeps weights in another file"
    return f"it holds field {number} of {kind}, which no plain network has"


def _text(part: bytes) -> str:
    try:
        return part.decode()
    except UnicodeDecodeError as error:
        raise WireError("a name is no UTF-8") from error


def _signed(value: int) -> int:
    return value - 2**64 if value >> 63 else value
