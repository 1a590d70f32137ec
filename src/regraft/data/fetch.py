"""Photos from the network, for those who are online: the tutorial's ants and bees."""

import http.client
import io
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from regraft.core.errors import DataError
from regraft.core.files import published, sha256_bytes
from regraft.core.progress import QUIET, Advance, Progress
from regraft.core.runtime import is_offline

HYMENOPTERA_URL = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"
HYMENOPTERA_SHA256 = "fbc41b31d544714d18dd1230b1e2b455e1557766e13e67f9f5a7a23af7c02209"
_BLOCK = 1 << 16


def fetch_hymenoptera(
    folder: Path, progress: Progress = QUIET, *, url: str = HYMENOPTERA_URL, sha256: str = HYMENOPTERA_SHA256
) -> Path:
    """Download and unpack the photos of PyTorch's transfer-learning tutorial, unless they are there.

    Args:
        folder: Where they are put; one that has a folder `train` is left as it is.
        progress: Shows how far it is.
        url: Of the zip archive.
        sha256: Of its content, hexadecimal.

    Returns:
        The folder.

    Raises:
        DataError: Downloads are forbidden by `REGRAFT_OFFLINE`, the download fails, its SHA-256 is another, or `folder`
            holds something else.
    """
    if (folder / "train").is_dir():
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is there, but has no train folder. Nothing was fetched. Choose another place.")
    if is_offline():
        raise DataError(f"{folder} is not there, and REGRAFT_OFFLINE forbids to fetch {url}. Put its content there.")
    data = download(url, sha256, progress)
    with published(folder) as partial:
        archive = zipfile.ZipFile(io.BytesIO(data))
        for member in archive.infolist():
            parts = Path(member.filename).parts[1:]  # without the archive's own top folder
            if parts and not member.is_dir() and ".." not in parts:
                target = partial.joinpath(*parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(member))
    return folder


def download(url: str, sha256: str, progress: Progress = QUIET) -> bytes:
    """Download a file and check its content.

    Args:
        url: Where it is.
        sha256: Of its content, hexadecimal.
        progress: Shows how far it is.

    Returns:
        The content.

    Raises:
        DataError: It cannot be fetched, or its SHA-256 is another.
    """
    try:
        with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310  # the caller's constant, never input
            total = int(response.headers.get("Content-Length") or 0)
            with progress.step(f"download {Path(url).name}", total=total, unit="bytes") as advance:
                data = b"".join(_blocks(response, advance))
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"Cannot fetch {url}: {error}. Check the connection, or download it by hand.") from error
    if sha256_bytes(data) != sha256:
        raise DataError(
            f"{url} is not what was expected: sha256 {sha256_bytes(data)}, expected {sha256}. Nothing was kept."
        )
    return data


def _blocks(response: IO[bytes], advance: Advance) -> Iterator[bytes]:
    while block := response.read(_BLOCK):
        advance(len(block))
        yield block
