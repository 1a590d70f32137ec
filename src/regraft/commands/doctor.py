"""The command `regraft doctor`: what this machine has for regraft, and what it lacks."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.backbones import catalog
from regraft.backbones.engine import has_bf16, has_gpu
from regraft.core.errors import BackboneError, MissingExtra
from regraft.core.runtime import (
    PACKAGES,
    TRAINING,
    chosen_cache,
    environment,
    foreign_hands,
    is_full_precision,
    is_offline,
    num_cores,
    version_of,
)

MEGA, GIGA = 2**20, 2**30
EXTRAS = {
    "train": (*TRAINING, "scikit-learn"),
    "sklearn": ("scikit-learn",),
    "export": ("onnxruntime",),
    "hub": ("huggingface_hub",),
    "parquet": ("pyarrow",),
}
TIGHT_BYTES, TIGHT_SHM_BYTES = 2 * GIGA, 64 * MEGA


@dataclass(frozen=True)
class Check:
    """One thing of this machine that was looked at.

    Attributes:
        name: What it is.
        value: What was found.
        problem: What is wrong with it and how to mend it; "" where nothing is.
    """

    name: str
    value: str
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return what `regraft doctor --json` prints of it."""
        return vars(self)


def check_machine() -> list[Check]:
    """Look at versions, extras, processor, memory, cache, and weights that need no download."""
    return [*_versions(), *_extras(), *_processor(), *_memory(), *_cache(), *_weights()]


def _versions() -> Iterator[Check]:
    versions = environment()
    yield Check("python", f"{versions['python']} on {versions['machine']}")
    for name in PACKAGES:
        if name in versions:
            yield Check(name, versions[name])


def _extras() -> Iterator[Check]:
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages if version_of(name.replace("_", "-")) is None]
        cure = f"; for that: pip install 'regraft[{extra}]'"
        yield Check(f"[{extra}]", f"not here: {', '.join(missing)}{cure}" if missing else "complete")


def _processor() -> Iterator[Check]:
    yield Check("cores", str(num_cores()))
    otherwise = (
        "switched off: REGRAFT_PRECISION is f32" if is_full_precision() else "not native: single precision is used"
    )
    yield Check("bfloat16", "native" if has_bf16() else otherwise)
    yield Check("GPU", "an NVIDIA one, and a torch made for it" if has_gpu() else "none that torch can use")


def _memory() -> Iterator[Check]:
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        tight = "fine-tuning may not fit; --mode frozen does" if total < 4 * GIGA else ""
        yield Check("memory", f"{total / GIGA:.1f} GB", tight)
    shared = Path("/dev/shm")  # noqa: S108  # looked at, not written to
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        tight = (
            "too little for workers: --workers 0, or a larger --shm-size in Docker" if free < TIGHT_SHM_BYTES else ""
        )
        yield Check(str(shared), f"{free / MEGA:.0f} MB free", tight)


def _cache() -> Iterator[Check]:
    place = chosen_cache()
    nearest = next(folder for folder in (place, *place.parents) if folder.is_dir())
    free = shutil.disk_usage(nearest).free
    problem = ""
    if not os.access(nearest, os.W_OK):
        problem = "cannot be written: everything is computed again each time; choose another with REGRAFT_CACHE"
    elif why := foreign_hands(place):
        problem = f"{why}, so it is not used; choose another with REGRAFT_CACHE"
    elif free < TIGHT_BYTES:
        problem = "the disk is nearly full"
    held = sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) if place.is_dir() else 0
    yield Check("cache", f"{place}: {held / MEGA:.0f} MB, {free / GIGA:.1f} GB free", problem)
    if is_offline():
        yield Check("network", "never used: REGRAFT_OFFLINE is set")


def _weights() -> Iterator[Check]:
    try:
        here = [entry.name for entry in catalog.catalog_entries() if entry.on_this_machine]
    except (MissingExtra, BackboneError):
        here = catalog.packaged_here()
    yield Check("weights here", ", ".join(here))
