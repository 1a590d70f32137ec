"""The directories of a TIFF file: what pictures there are, and how much the tags ask for.

References:
    TIFF 6.0 (Adobe, 1992) and BigTIFF for the layout; the DNG specification for the tags of raw files.
"""

import struct
from dataclasses import dataclass

MAX_DIRECTORIES = 16  # that are looked into
MAX_TAGS = 1000  # of one directory; rich files have about 100
MAX_VALUES = 2**19  # of one tag, but for plain bytes: each becomes a Python object
PLAIN = (1, 2, 6, 7)  # types whose values stay bytes
SUBFILE, WIDTH, COMPRESSION, PHOTOMETRIC, MAKE, SUB_IFDS, DNG_VERSION = 254, 256, 259, 262, 271, 330, 50706
REDUCED = 1  # bit of SUBFILE: a smaller copy of another picture
MOSAIC = (32803, 34892)  # how the numbers behind a camera's colour filter are called
RAW_COMPRESSIONS = {34713: "NEF", 32770: "SRW", 32767: "ARW", 65535: "PEF", 65000: "DCR", 262: "KDC"}
MAKERS = {
    "nikon": "NEF",
    "canon": "CR2",
    "sony": "ARW",
    "pentax": "PEF",
    "ricoh": "DNG",
    "samsung": "SRW",
    "hasselblad": "3FR",
    "kodak": "DCR",
    "leaf": "MOS",
    "mamiya": "MEF",
    "epson": "ERF",
}


@dataclass(frozen=True)
class Tag:
    """One entry of a directory.

    Attributes:
        kind: The number of its type.
        count: Number of its values.
        first: Its first value, where that is a number that stands in the entry itself; else 0.
        text: The first bytes of what it points to, for a text.
    """

    kind: int
    count: int
    first: int
    text: bytes = b""


@dataclass(frozen=True)
class Directory:
    """The tags of one picture.

    Attributes:
        tags: Tags by number; of a number that comes twice, the first, as decoders take it.
        num_tags: How many tags the directory claims to have.
    """

    tags: dict[int, Tag]
    num_tags: int

    def first(self, number: int) -> int:
        """Return a tag's first value; 0 without the tag.

        Args:
            number: The tag's number.
        """
        return self.tags[number].first if number in self.tags else 0


def read_directories(data: bytes) -> list[Directory]:
    """Read the directories of a file.

    Args:
        data: The file's content.

    Returns:
        At most MAX_DIRECTORIES, in the order of the file, those within others last; [] for what is no TIFF.
    """
    form = _Form.of(data)
    if form is None:
        return []
    directories: list[Directory] = []
    seen: set[int] = set()
    waiting = [form.number(data, 8 if form.is_big else 4, form.is_big)]
    while waiting and len(directories) < MAX_DIRECTORIES:
        start = waiting.pop(0)
        if start in seen or not 0 < start < len(data):
            continue
        seen.add(start)
        directory, following = form.directory(data, start)
        directories.append(directory)
        waiting += [following, *form.inner(data, directory)]
    return directories


def raw_name(directories: list[Directory]) -> str:
    """Return the usual ending of the camera raw files that these directories are of.

    Args:
        directories: As `read_directories` gives them.

    Returns:
        The ending, such as "NEF"; "for example NEF or ARW" for a raw file of an unknown kind, "" for a usual TIFF.
    """
    first = directories[0] if directories else Directory({}, 0)
    if DNG_VERSION in first.tags:
        return "DNG"
    if not any(one.first(PHOTOMETRIC) in MOSAIC or one.first(COMPRESSION) in RAW_COMPRESSIONS for one in directories):
        return ""
    make = first.tags[MAKE].text.decode("latin-1").lower() if MAKE in first.tags else ""
    by_maker = (name for maker, name in MAKERS.items() if maker in make)
    by_compression = (RAW_COMPRESSIONS.get(one.first(COMPRESSION), "") for one in directories)
    return next(by_maker, "") or next(filter(None, by_compression), "") or "for example NEF or ARW"


def excess(directories: list[Directory]) -> str | None:
    """Return why the tags ask for too much work, or the first picture is not the photo; None where neither is so.

    Args:
        directories: As `read_directories` gives them.
    """
    for one in directories:
        if one.num_tags > MAX_TAGS:
            return f"{one.num_tags} tags in one directory of a TIFF; at most {MAX_TAGS} are read"
        if any(tag.count > MAX_VALUES and tag.kind not in PLAIN for tag in one.tags.values()):
            return f"a TIFF with a tag of more than {MAX_VALUES} values"
    first = directories[0] if directories else Directory({}, 0)
    if first.first(SUBFILE) & REDUCED and any(one.first(WIDTH) > first.first(WIDTH) for one in directories):
        return "a TIFF whose first picture is only a thumbnail of another; save that one alone"
    return None


@dataclass(frozen=True)
class _Form:
    """How numbers are written: `order` is "<" or ">", `is_big` says whether it is a BigTIFF."""

    order: str
    is_big: bool

    @classmethod
    def of(cls, data: bytes) -> "_Form | None":
        order = {b"II": "<", b"MM": ">"}.get(data[:2])
        if order is None or len(data) < 16:
            return None
        (version,) = struct.unpack_from(order + "H", data, 2)
        return cls(order, version == 43) if version in (42, 43) else None

    def number(self, data: bytes, start: int, is_long: bool) -> int:
        size = 8 if is_long else 4
        if start < 0 or start + size > len(data):
            return 0
        return int(struct.unpack_from(self.order + ("Q" if is_long else "I"), data, start)[0])

    def directory(self, data: bytes, start: int) -> tuple[Directory, int]:
        """Read a directory, and where the next one begins; of one with too many tags, the first alone."""
        layout = struct.Struct(self.order + ("HHQ8s" if self.is_big else "HHI4s"))
        head = struct.Struct(self.order + ("Q" if self.is_big else "H"))
        if start + head.size > len(data):
            return Directory({}, 0), 0
        (num_tags,) = head.unpack_from(data, start)
        start += head.size
        tags: dict[int, Tag] = {}
        for _ in range(min(num_tags, MAX_TAGS, (len(data) - start) // layout.size)):
            number, kind, count, value = layout.unpack_from(data, start)
            start += layout.size
            tags.setdefault(number, self._tag(data, kind, count, value))
        return Directory(tags, num_tags), self.number(data, start, self.is_big)

    def _tag(self, data: bytes, kind: int, count: int, value: bytes) -> Tag:
        width = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}.get(kind, "")
        is_number = width and struct.calcsize("=" + width) <= len(value)
        first = struct.unpack_from(self.order + width, value)[0] if is_number else 0
        place = self.number(value, 0, self.is_big)
        text = (value if count <= len(value) else data[place : place + min(count, 32)]) if kind == 2 else b""
        return Tag(kind, count, first, text)

    def inner(self, data: bytes, directory: Directory) -> list[int]:
        """List where the directories within one begin."""
        sub = directory.tags.get(SUB_IFDS, Tag(4, 0, 0))
        is_long = sub.kind in (16, 18)
        size = 8 if is_long else 4
        if sub.count * size <= (8 if self.is_big else 4):
            return [sub.first]
        return [self.number(data, sub.first + size * i, is_long) for i in range(min(sub.count, 8))]
