"""The commands `regraft push` and `regraft pull`: bundles on the Hugging Face Hub, or a server with the same interface.

The package huggingface_hub exchanges the files, over plain HTTP and silently: without its progress bars, and without
what it and its other protocol, Xet, would report about each transfer. A bundle's model card is uploaded as it is:
`bundle.model_card` has written what a hub reads at its top.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from regraft.bundle.bundle import Bundle, load
from regraft.bundle.content import MOST_BYTES
from regraft.bundle.format import FILES, MANIFEST
from regraft.commands.hub_bounds import Allowance
from regraft.core.errors import BundleError, HubError, MissingExtra, OutputError, RegraftError
from regraft.core.files import published, remove
from regraft.core.progress import QUIET, Progress
from regraft.core.runtime import is_offline
from regraft.core.version import __version__

HUB = "https://huggingface.co"
PUSHED = (MANIFEST, *FILES)
TIMEOUT_S = 30.0
_LONGEST = 300  # characters of what a server says


@dataclass(frozen=True)
class _Repository:
    """One repository on one hub, at a revision: a branch, tag or commit; None for the main branch."""

    repo_id: str
    endpoint: str
    revision: str | None
    token: str | None = field(repr=False)

    def __str__(self) -> str:
        return f"{self.repo_id} at {self.endpoint}"

    @property
    def api(self) -> Any:
        """The Hub's library, bound to this hub and token."""
        return _library().HfApi(
            endpoint=self.endpoint, token=self.token or False, library_name="regraft", library_version=__version__
        )


def push(
    bundle: Bundle | str | Path,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    progress: Progress = QUIET,
) -> str:
    """Upload a bundle, every file verified, to a repository in one commit.

    Args:
        bundle: A bundle, or its folder.
        repo_id: The repository, OWNER/NAME; made where it is missing.
        private: Whether only its owner sees it; a repository that is there already must be so.
        revision: A branch, made where it is missing; None for the main branch.
        token: None for that in HF_TOKEN, or the one that `hf auth login` keeps.
        endpoint: Address of the hub; None for that in HF_ENDPOINT, or the Hugging Face Hub.
        progress: Where messages and progress bars go.

    Returns:
        The web address of what was uploaded.

    Raises:
        BundleError: It is no bundle, or damaged.
        HubError: regraft is offline, there is no token, or the hub cannot be reached or refuses.
        MissingExtra: huggingface_hub is not installed.
    """
    repository = _repository(repo_id, revision, token, endpoint)
    if not repository.token:
        raise HubError(f"{repository} cannot be pushed to without a token. {_login(repository)}")
    model = bundle if isinstance(bundle, Bundle) else load(bundle)
    files = {name: model.read(name) for name in PUSHED}
    with progress.step(f"push {repo_id}"), _explained(repository):
        _make(repository, private)
        add = _library().CommitOperationAdd
        repository.api.create_commit(
            repo_id,
            [add(name, data) for name, data in files.items()],
            commit_message=f"Model of regraft {__version__}",
            revision=revision,
        )
    address = f"{repository.endpoint}/{repo_id}"
    return f"{address}/tree/{revision}" if revision else address


def pull(
    repo_id: str,
    out: str | Path | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    progress: Progress = QUIET,
) -> Bundle:
    """Download a bundle from a repository: its files and nothing else, verified, or nothing at all.

    Args:
        repo_id: The repository, OWNER/NAME.
        out: A folder that is not there yet, or empty; None for ./NAME.
        revision: A branch, tag or commit; None for the main branch.
        token: As for `push`; a public repository needs none.
        endpoint: As for `push`.
        progress: Where messages and progress bars go.

    Returns:
        The bundle, in its new folder.

    Raises:
        BundleError: The repository holds no bundle, or a damaged one.
        OutputError: Something is in the folder already, or it cannot be written.
        HubError: regraft is offline, or the hub cannot be reached or refuses.
        MissingExtra: huggingface_hub is not installed.
    """
    repository = _repository(repo_id, revision, token, endpoint)
    folder = Path(repo_id.rpartition("/")[2] if out is None else out).expanduser()
    if not _is_free(folder):
        raise OutputError(f"{folder} is there already. Nothing was fetched. Remove it, or choose another with --out.")
    with published(folder) as partial:
        with _explained(repository) as allowance:
            _download(repository, partial, progress, allowance)
        bundle = _verified(partial, repository)
    return replace(bundle, folder=folder)


def _library() -> Any:
    """Import huggingface_hub, when it is needed. Raises MissingExtra."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
        import huggingface_hub.utils.logging  # when it is imported, it resets what `_silenced` sets
    except ImportError as error:
        raise MissingExtra("huggingface_hub", "hub") from error
    return huggingface_hub


def _repository(repo_id: str, revision: str | None, token: str | None, endpoint: str | None) -> _Repository:
    """Check what was asked for before anything is sent, and find the token to send. Raises HubError."""
    repository = _Repository(repo_id, (endpoint or os.environ.get("HF_ENDPOINT") or HUB).rstrip("/"), revision, token)
    if is_offline():
        raise HubError(f"REGRAFT_OFFLINE forbids to ask for {repository}. Unset it to go online.")
    if not _is_name(repo_id):
        raise HubError(
            f"{repo_id!r} is no name of a repository. Expected OWNER/NAME, both of letters, digits, '_', and single "
            "'-' and '.' between them, at most 96 each."
        )
    if token is None:
        with _explained(repository):
            repository = replace(repository, token=_kept_token())
    if repository.token and not re.fullmatch(r"[!-~]+", repository.token):  # an error of the header would show it
        raise HubError(f"The token for {repository} has characters that no token has. Copy it again.")
    return repository


def _is_name(repo_id: str) -> bool:
    try:
        _library().utils.validate_repo_id(repo_id)
    except ValueError:
        return False
    return "/" in repo_id and repo_id.isascii()


def _kept_token() -> str | None:
    """Return the token of this machine, if it may be used: HF_TOKEN, or the one that was logged in with."""
    library = _library()
    return None if library.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else library.get_token()


def _is_free(folder: Path) -> bool:
    """Return whether nothing is there, or an empty folder."""
    try:
        return not any(folder.iterdir())
    except FileNotFoundError:
        return not folder.is_symlink()
    except OSError:
        return False


def _make(repository: _Repository, private: bool) -> None:
    """Make the repository and its branch where missing. Raises HubError for one that is not as private as wanted."""
    api, repo_id = repository.api, repository.repo_id
    api.create_repo(repo_id, private=private, exist_ok=True)
    if bool(api.model_info(repo_id, timeout=TIMEOUT_S).private) != private:
        actual, wanted = ("public", "private") if private else ("private", "public")
        raise HubError(
            f"{repository} is there already and {actual}, expected {wanted}. Nothing was uploaded. "
            f"{'Give --public' if private else 'Leave out --public'}, or change it at "
            f"{repository.endpoint}/{repo_id}/settings."
        )
    if repository.revision:
        api.create_branch(repo_id, branch=repository.revision, exist_ok=True)


def _download(repository: _Repository, folder: Path, progress: Progress, allowance: Allowance) -> None:
    """Download a bundle's files, all of one commit, into a folder. Raises BundleError and HubError."""
    api, repo_id = repository.api, repository.repo_id
    info = api.model_info(repo_id, revision=repository.revision, timeout=TIMEOUT_S, files_metadata=True)
    sizes = {file.rfilename: file.size for file in info.siblings or ()}
    if missing := [name for name in PUSHED if name not in sizes]:
        raise BundleError(
            f"{repository} is no bundle: it has no {' and no '.join(missing)}. Nothing was kept. "
            "Expected what `regraft push` uploads."
        )
    if not re.fullmatch(r"[0-9a-f]{40,64}", str(info.sha)):
        raise HubError(f"{repository} is at {str(info.sha)[:80]!r}, expected the hash of a commit. Check the address.")
    expected = {name: _size(repository, name, sizes[name]) for name in PUSHED}
    with progress.step(f"pull {repo_id}", total=sum(expected.values()), unit="bytes") as advance:
        for name, size in expected.items():
            allowance.of_file(size)
            api.hf_hub_download(repo_id, name, revision=info.sha, local_dir=folder)
            advance(size)
    remove(folder / ".cache")  # what the library keeps for itself


def _size(repository: _Repository, name: str, size: Any) -> int:
    """Return a file's size in bytes, or the most that it may have where a hub tells none. Raises BundleError."""
    most = MOST_BYTES[name]
    if size is None:
        return most
    if not isinstance(size, int) or not 0 <= size <= most:
        raise BundleError(
            f"{repository} says that {name} has {str(size)[:40]} bytes, expected at most {most}. Nothing was fetched."
        )
    return size


def _verified(folder: Path, repository: _Repository) -> Bundle:
    """Load and verify what was downloaded. Raises BundleError that names the repository."""
    try:
        return load(folder)
    except BundleError as error:
        text = str(error).replace(str(folder), repository.repo_id)
        raise BundleError(f"What {repository.endpoint} gave is no whole bundle; nothing was kept. {text}") from error


@contextmanager
def _explained(repository: _Repository) -> Iterator[Allowance]:
    """Silence the library in the block, bound what it is sent, and turn whatever it raises into a HubError."""
    allowance = Allowance(repository.endpoint)
    try:
        with _silenced(_library()), allowance.over(_library().utils.get_session()):
            yield allowance
    except RegraftError:
        raise
    except Exception as error:  # the library raises a family of its own for every kind of failure
        text = " ".join(_reason(error, repository).split())
        raise HubError(text.replace(repository.token, "***") if repository.token else text) from error


@contextmanager
def _silenced(library: Any) -> Iterator[None]:
    """Switch off the library's bars, warnings of retries, telemetry, and Xet, which has telemetry of its own."""
    constants, utils, logger = library.constants, library.utils, logging.getLogger("huggingface_hub")
    before = constants.HF_HUB_DISABLE_TELEMETRY, constants.HF_HUB_DISABLE_XET, logger.level
    had_bars = not utils.are_progress_bars_disabled()
    constants.HF_HUB_DISABLE_TELEMETRY = constants.HF_HUB_DISABLE_XET = True
    logger.setLevel(logging.CRITICAL)
    if had_bars:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY, constants.HF_HUB_DISABLE_XET, level = before
        logger.setLevel(level)
        if had_bars:
            utils.enable_progress_bars()


def _reason(error: BaseException, repository: _Repository) -> str:
    """Say what went wrong and its cure, from an error of the library and the errors behind it."""
    errors, causes = _library().errors, list(_causes(error))
    for cause in causes:
        if isinstance(cause, errors.HfHubHTTPError):
            return _refusal(cause, repository)
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return f"HF_HUB_OFFLINE forbids to ask for {repository}. Unset it to go online."
    if isinstance(causes[-1], (TypeError, LookupError, AttributeError, RecursionError)):
        return (
            f"{repository.endpoint} does not answer as a hub does. Expected the Hugging Face Hub, or a server like it."
        )
    reason = re.sub(r"^\[Errno -?\d+\] ", "", str(causes[-1]) or type(causes[-1]).__name__)[:_LONGEST].rstrip(". ")
    return f"Cannot exchange files with {repository}: {reason}. Check connection and disk, and try again."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _refusal(error: Any, repository: _Repository) -> str:
    """Say what a hub has answered instead of what was asked for, and the cure, from an HfHubHTTPError."""
    errors, status = _library().errors, error.response.status_code
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no revision {repository.revision!r}. Expected a branch, a tag or a commit of it."
    if status == 404 or isinstance(error, errors.RepositoryNotFoundError):
        seen = "its token may not see it" if repository.token else "it is private and there was no token"
        return f"There is no {repository}, or {seen}. Check the name. {_login(repository)}"
    if status == 401:
        what = "refuses the token" if repository.token else "asks for a token"
        return f"{repository.endpoint} {what} for {repository.repo_id}. {_login(repository)}"
    message = (error.server_message or error.response.reason_phrase or "no reason given")[:_LONGEST].rstrip(". ")
    if status == 403:
        return f"{repository.endpoint} does not allow that for {repository.repo_id}: {message}. {_login(repository)}"
    cure = "Try again later." if status == 429 or status >= 500 else "Mend what it says, and try again."
    return f"{repository.endpoint} refuses what was asked for {repository.repo_id}: {status}, {message}. {cure}"


def _login(repository: _Repository) -> str:
    return (
        "Expected a token in HF_TOKEN or from `hf auth login` that may read, and for a push write, this repository: "
        f"{repository.endpoint}/settings/tokens."
    )
