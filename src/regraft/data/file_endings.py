"""The ending that a photo's name should have, from the first bytes of its file."""

STARTS = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG\r\n\x1a\n": ".png",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}


def ending_of(data: bytes) -> str:
    """Return the ending that goes with a file's first bytes; "" for a format that is not among the usual ones."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    if data[4:8] == b"ftyp":
        return ".avif" if data[8:12] in (b"avif", b"avis") else ".heic"
    return next((ending for start, ending in STARTS.items() if data.startswith(start)), "")
