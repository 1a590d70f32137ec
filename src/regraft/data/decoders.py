"""What pixels depend on besides a photo's bytes: the programs that decode it."""

import PIL

from regraft.core.runtime import version_of
from regraft.data import decode


def decoder_identity() -> list[int | str | None]:
    """Versions of regraft's own decoding, of Pillow, and of the reader of HEIC files, None where that is absent.

    Part of the key of everything that is kept of photos: other versions may give other pixels.
    """
    return [decode.VERSION, PIL.__version__, version_of("pi-heif")]
