"""Where we run: cores, cache folder, versions, switches from the environment."""

import os
import platform
from importlib import metadata
from pathlib import Path

from platformdirs import user_cache_path

PACKAGES = ("regraft", "numpy", "pillow", "openvino", "scikit-learn", "onnx", "torch", "torchvision", "timm")


def num_cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_folder() -> Path:
    """Folder for graphs and features: `REGRAFT_CACHE`, or the user's cache folder."""
    chosen = os.environ.get("REGRAFT_CACHE")
    return Path(chosen) if chosen else user_cache_path("regraft")


def is_offline() -> bool:
    """Whether `REGRAFT_OFFLINE` forbids every download."""
    return os.environ.get("REGRAFT_OFFLINE", "") not in ("", "0")


def version_of(package: str) -> str | None:
    """Installed version of a distribution, without importing it; None where it is absent."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def environment() -> dict[str, str]:
    """Versions and machine, as recorded in every bundle."""
    versions = {name: version for name in PACKAGES if (version := version_of(name))}
    return {"python": platform.python_version(), "machine": platform.machine(), **versions}
