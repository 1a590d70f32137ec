"""What pixels depend on besides a photo's bytes: the programs that decode it."""

import PIL

from regraft.core.runtime import version_of
from regraft.data import decode


def decoder_identity() -> list[int | str | None]:
    """Return the versions of regraft's own decoding, of Pillow, and of the reader of HEIC files.

    They are part of the key of everything that is cached of photos: other versions may give other pixels.

    Returns:
        The versions in that order, the last one None where there is no reader of HEIC files.
    """
    return [decode.VERSION, PIL.__version__, version_of("pi-heif")]
