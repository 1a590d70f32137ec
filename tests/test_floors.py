"""The lowest versions that pyproject.toml allows are none that are known to do harm.

`python deploy/floors.py` (part of `make torture`) installs them and tries the core with them.
"""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
HARMFUL = {
    "filelock": {"3.13.0": "empties the file that a lock's link leads to", "3.20.2": "follows a link made meanwhile"},
    "pillow": {"11.3.0": "takes 5 GB for a TIFF of 1.7 MB", "12.3.0": "the same, and overflows in a JPEG"},
    "h11": {"0.14.0": "takes odd chunks, which smuggle requests (CVE-2025-43859)"},
    "jinja2": {"3.1.5": "its sandbox has a hole (CVE-2025-27516)"},
    "python-multipart": {"0.0.17": "is slow on what stands around a form (CVE-2024-53981)"},
    "torch": {"2.5.1": "weights_only=True runs code (CVE-2025-32434)", "2.9.1": "weights_only=True was broken again"},
}


def requirements() -> dict[str, list[Requirement]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    every = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    found: dict[str, list[Requirement]] = {}
    for one in map(Requirement, every):
        found.setdefault(one.name.lower().replace("_", "-"), []).append(one)
    return found


@pytest.mark.parametrize(("name", "version"), [(name, one) for name, known in HARMFUL.items() for one in known])
def test_versions_that_do_harm_are_excluded_wherever_a_package_is_named(name, version):
    named = requirements()[name]
    assert named
    for one in named:
        assert version not in one.specifier, f"{one} allows {version}, which {HARMFUL[name][version]}"


def test_every_requirement_has_a_floor_that_can_be_installed():
    """What `deploy/floors.py` reads: one floor each, and nothing else."""
    for every in requirements().values():
        for one in every:
            assert re.fullmatch(r">=[\d.]+", str(one.specifier)), one
    constraints = (ROOT / "constraints.txt").read_text()
    for name, every in requirements().items():
        pinned = re.search(rf"^{re.escape(name)}==(\S+)$", constraints, re.M | re.I)
        assert pinned is None or pinned[1].partition("+")[0] in every[0].specifier, name
