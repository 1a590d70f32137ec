"""Where files at addresses are listed and read: object stores through obstore, everything else through fsspec.

obstore is a client of S3, Google Cloud Storage and Azure that is written in Rust: an object costs it a tenth of the
processor's time that s3fs takes. Where it is not installed, fsspec reads stores too, by s3fs, gcsfs or adlfs.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from regraft.core.errors import DataError, MissingExtra

BLOCK = 8 << 20  # bytes of a file that are in memory at once
_AZURE = "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (AZURE_SKIP_SIGNATURE=true for what is public)"
_ACCESS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SKIP_SIGNATURE=true for a public bucket), AWS_REGION and, "
    "for another store than Amazon's, AWS_ENDPOINT_URL",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS (GOOGLE_SKIP_SIGNATURE=true for a public bucket)",
    "az": _AZURE,
    "abfs": _AZURE,
    "abfss": _AZURE,
}
_MARKS = (
    "ETag",
    "etag",
    "e_tag",
    "md5",
    "content_md5",
    "md5Hash",
    "blob_id",
    "LastModified",
    "last_modified",
    "mtime",
    "created",
)


class RemoteFile(NamedTuple):
    """A file at an address: its key there, its path in the copy, its size in bytes (-1 where not told) and its mark."""

    key: str
    path: str
    size: int
    mark: str


class RemoteTree(Protocol):
    """What lies at an address."""

    def files(self) -> Iterable[RemoteFile]:
        """List the files below the address, by path, or the one that the address itself is, whose path is empty."""

    def read(self, file: RemoteFile) -> Iterator[bytes | memoryview]:
        """Read a file, in blocks."""


def remote_tree(address: str) -> RemoteTree:
    """Return what lists and reads an address.

    Raises:
        DataError: Its store is set up by profiles that cannot be read here.
        MissingExtra: What reads such addresses is not installed.
    """
    if _scheme(address) in _ACCESS:
        with suppress(ImportError):
            return _ObjectStore(address)
    return _Filesystem(address)


def access_to(address: str) -> str:
    """Return how access to an object store is set up, as the end of a sentence; nothing for other places."""
    scheme = _scheme(address)
    return f"; access is set by {_ACCESS[scheme]}" if scheme in _ACCESS else ""


class _ObjectStore:
    """A bucket of S3, Google Cloud Storage or Azure."""

    def __init__(self, address: str) -> None:
        import obstore
        from obstore.store import from_url

        self._obstore = obstore
        bucket, _, self._key = address.partition("://")[2].partition("/")
        self._store: Any = from_url(f"{_scheme(address)}://{bucket}", **_options(_scheme(address)))

    def files(self) -> Iterator[RemoteFile]:
        if self._key and (one := self._head(self._key)):
            yield _remote_file(one, "path", "")
            return
        found: list[dict[str, Any]] = [
            dict(one) for batch in self._obstore.list(self._store, prefix=self._key or None) for one in batch
        ]
        for one in sorted(found, key=lambda one: str(one["path"])):
            if one["size"] or self._head(one["path"]):  # else the mark of a folder, `ants/`, which is listed as `ants`
                yield _remote_file(one, "path", str(one["path"]).removeprefix(self._key).lstrip("/"))

    def _head(self, key: str) -> Mapping[str, Any] | None:
        try:
            return dict(self._obstore.head(self._store, key))
        except FileNotFoundError:
            return None

    def read(self, file: RemoteFile) -> Iterator[bytes | memoryview]:
        for block in self._obstore.get(self._store, file.key).stream(BLOCK):
            yield memoryview(block)


class _Filesystem:
    """A place that fsspec reads."""

    def __init__(self, address: str) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise MissingExtra("fsspec", "storage") from error
        self._system, key = fsspec.core.url_to_fs(address)
        self._key = str(key)
        self._of_web = "http" in self._system.protocol

    def files(self) -> Iterator[RemoteFile]:
        key = f"{self._key.rstrip('/')}/" if self._is_page() else self._key
        if not key.endswith("/") and self._system.isfile(key):
            yield _remote_file(self._system.info(key), "name", "")
            return
        for found, facts in sorted(self._system.find(key, detail=True).items()):
            relative = str(found).removeprefix(key).lstrip("/").partition("?")[0]
            if relative:
                yield _remote_file(facts | {"name": str(found)}, "name", relative)

    def _is_page(self) -> bool:
        """Return whether the address is a page of the web that lists files: any address is a file there."""
        return self._of_web and "html" in str(self._system.info(self._key).get("mimetype", ""))

    def read(self, file: RemoteFile) -> Iterator[bytes | memoryview]:
        if 0 <= file.size <= BLOCK:
            yield self._system.cat_file(file.key)
            return
        block_size = 0 if self._of_web else BLOCK  # not all pages can be asked for a part
        with self._system.open(file.key, "rb", block_size=block_size) as opened:
            while block := opened.read(BLOCK):
                yield block


def _remote_file(facts: Mapping[str, Any], key: str, path: str) -> RemoteFile:
    size, mark = facts.get("size"), next((str(facts[m]) for m in _MARKS if facts.get(m)), "")
    return RemoteFile(str(facts[key]), path, int(size) if isinstance(size, int | float) else -1, mark)


def _scheme(address: str) -> str:
    scheme = address.partition("://")[0]
    return {"s3a": "s3", "gcs": "gs"}.get(scheme, scheme)


def _options(scheme: str) -> dict[str, Any]:
    """Return how obstore asks a store: plainly where the user's own address says so, and again where it fails."""
    plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    return {
        "client_options": {"timeout": "12h", "read_timeout": "30s", "allow_http": plain},
        "retry_config": {"max_retries": 2, "retry_timeout": timedelta(seconds=25)},
        "credential_provider": _profile() if scheme == "s3" else None,
    }


def _profile() -> Any:
    """Return what reads the credentials of a profile of `aws configure`; None where there is none. Raises DataError."""
    places = (os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), "~/.aws/config")
    set_up = "AWS_PROFILE" in os.environ or any(Path(place).expanduser().is_file() for place in places)
    if not set_up or "AWS_ACCESS_KEY_ID" in os.environ or "AWS_SKIP_SIGNATURE" in os.environ:
        return None
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise DataError(
            "S3 is set up by a profile of `aws configure`, which boto3 reads and which is not installed. "
            "Install it (pip install boto3), or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        ) from error
    return Boto3CredentialProvider()
