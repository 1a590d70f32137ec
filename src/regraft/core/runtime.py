"""The machine and process that regraft runs in: cores, cache folder, versions, switches from the environment."""

import ctypes
import logging
import math
import os
import platform
import stat
import sys
import tempfile
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from regraft.core.errors import MissingExtra

TRAINING = ("torch", "torchvision", "timm")  # what gradient descent, and networks other than the default, stand on
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")  # how a thread waits, if the user has decided it
SPINS = "2000"  # turns of a waiting thread's loop before it gives its core to others; OpenMP's own default is 300,000
PACKAGES = ("regraft", "numpy", "pillow", "openvino", "scikit-learn", "onnx", "torch", "torchvision", "timm")


def num_cores() -> int:
    """Return the number of processor cores that this process may use: of its affinity, within its container's quota."""
    count = getattr(os, "process_cpu_count", lambda: len(own_cores()))  # also minds -X cpu_count and PYTHON_CPU_COUNT
    allowed = count() or 1
    quota = cpu_quota()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def own_cores() -> list[int]:
    """Return the numbers of the processor cores that this process's affinity allows; all where there is no affinity."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cpu_quota(mount: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return how many cores' worth of time control groups give this process, as a container's `--cpus` sets it.

    Args:
        mount: Where control groups are mounted, of version 1 or 2.
        membership: File that names the groups of this process.

    Returns:
        Cores, perhaps a fraction; None for no limit.
    """
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return None
    quotas = []
    for _, controllers, group in (line for line in lines if len(line) == 3):
        top = mount if not controllers else mount / "cpu"
        if not controllers or "cpu" in controllers.split(","):
            place = Path(group.lstrip("/"))
            quotas += [_quota_of(top / one) for one in (place, *place.parents)]  # a group is bound by those above it
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(group: Path) -> float | None:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((group / name).read_text() for name in names).split()
            return float(quota) / float(period) if float(quota) > 0 else None
        except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
            continue
    return None


def chosen_cache() -> Path:
    """Return the folder that `REGRAFT_CACHE` names, or the user's cache folder."""
    chosen = os.environ.get("REGRAFT_CACHE")
    return Path(chosen) if chosen else user_cache_path("regraft")


def cache_folder() -> Path:
    """Return the folder for exported networks and features: the chosen one, where nobody else may write to it.

    What is cached is believed: whoever may write there could put in other networks and features. So a cache in foreign
    hands is neither read nor written; a temporary folder stands for it, which lives as long as the process.
    """
    chosen = chosen_cache()
    return Path(temporary_folder().name) if foreign_hands(chosen) else chosen


def foreign_hands(folder: Path) -> str | None:
    """Return why a folder's content may come from other users of this machine; None where only its owner is trusted.

    The owner's group is trusted, and so is the administrator. An administrator may use a folder of somebody else's, but
    not where everybody could have put it, such as in /tmp.

    Args:
        folder: Perhaps not there yet.
    """
    if not hasattr(os, "geteuid"):
        return None
    try:
        status, around = folder.stat(), folder.resolve().parent.stat()
    except OSError:
        return None
    if status.st_mode & stat.S_IWOTH:
        return "everybody on this machine may write to it"
    is_others = status.st_uid not in (0, os.geteuid())
    if is_others and (os.geteuid() or around.st_mode & stat.S_IWOTH):
        return f"it belongs to another user (number {status.st_uid})"
    return None


@cache
def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder of this process alone."""
    return tempfile.TemporaryDirectory(prefix="regraft-")


def rank_and_world() -> tuple[int, int]:
    """Return the number of this process and how many work together, as torchrun sets them; (0, 1) for one alone."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def missing_for_training() -> list[str]:
    """Return the packages of the [train] extra that are not installed, without importing those that are."""
    return [name for name in TRAINING if not _can_be_found(name)]


def _can_be_found(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # a finder that refuses it, or a stand-in without a specification
        return False


def import_torch_module(module: str) -> Any:
    """Import a module of regraft that imports torch. All of them are imported here; everything else runs without torch.

    Args:
        module: Its name within regraft, such as "backbones.onnx_export".

    Raises:
        MissingExtra: torch, or another package that the module needs, is not installed.
    """
    let_threads_yield()
    try:
        return import_module(f"regraft.{module}")
    except ImportError as error:
        raise MissingExtra(error.name or "torch") from error


def let_threads_yield() -> bool:
    """Have torch's waiting threads give their core to others, in this process and those that it starts.

    torch's threads meet several hundred times in a training step, and those that are early wait in a loop. Where
    another program takes one of the cores, they burn what the last one would need: with one of two cores taken, a step
    falls to a third of its speed, and with this to more than half. OpenMP reads the environment once, when torch is
    loaded, so this has to come before. What the user has set is left alone.

    Returns:
        Whether it was set here, in time or by an earlier call.
    """
    if os.environ.get("GOMP_SPINCOUNT") != SPINS:
        if any(name in os.environ for name in WAITING):
            return False
        if "torch" in sys.modules:
            logging.getLogger("regraft").debug("torch was loaded before regraft: its waiting threads keep their cores")
            return False
        os.environ["GOMP_SPINCOUNT"] = SPINS
    return True


def keep_freed_memory() -> bool:
    """Tell the C library to keep what is freed for the next use.

    Training frees and asks for the same gigabyte at every step; handing it back to the system in between, as glibc
    does by default, cost half of the time (LOG.md).

    Returns:
        Whether the C library is glibc and took all of the settings.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False  # not glibc
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3
    values = ((m_mmap_threshold, 2**30), (m_trim_threshold, 2**30), (m_top_pad, 2**28))
    taken = [mallopt(option, value) for option, value in values]
    return all(taken)


def is_offline() -> bool:
    """Return whether `REGRAFT_OFFLINE` forbids every download."""
    return os.environ.get("REGRAFT_OFFLINE", "") not in ("", "0")


def is_full_precision() -> bool:
    """Return whether `REGRAFT_PRECISION=f32` asks for the same single precision on every processor."""
    return os.environ.get("REGRAFT_PRECISION", "") == "f32"


def version_of(package: str) -> str | None:
    """Return the installed version of a distribution, without importing it; None where it is absent."""
    try:
        return _version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def _version(package: str) -> str:
    """Return the installed version of a distribution, looked up once. Raises metadata.PackageNotFoundError."""
    return metadata.version(package)


def environment() -> dict[str, str]:
    """Return the versions of Python and packages, and the kind of machine, as recorded in every bundle."""
    versions = {name: version for name in PACKAGES if (version := version_of(name))}
    return {"python": platform.python_version(), "machine": platform.machine(), **versions}
