"""Write the table of folders in ARCHITECTURE.md from the docstrings of the tree. A test holds that it is current."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/regraft"
PAGE = ROOT / "ARCHITECTURE.md"
BEGIN, END = "<!-- folders -->", "<!-- end of folders -->"
LAYERS = (
    "core",
    "data",
    "backbones",
    "models",
    "training",
    "bundle",
    "evaluation",
    "exporters",
    "reporting",
    "run_ownership",
    "run_dir",
    "run_location",
    "run",
    "serving",
    "labelling",
    "pipeline",
    "commands",
    "sklearn",
    "options",
    "cli",
)
"""Folders and single modules in the order in which they may import: each only from itself and those before it."""


def table() -> str:
    """Markdown: a row for each layer, with its modules and the first line of its docstring."""
    rows = [f"| {_name(layer)} | {', '.join(_modules(layer))} | {_summary(layer)} |" for layer in LAYERS]
    return "\n".join(["| folder | modules | what for |", "|---|---|---|", *rows])


def page() -> str:
    """ARCHITECTURE.md with its table as the tree is now."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


def _name(layer: str) -> str:
    return f"`{layer}/`" if (SOURCE / layer).is_dir() else f"`{layer}.py`"


def _modules(layer: str) -> list[str]:
    paths = sorted((SOURCE / layer).glob("*.py")) if (SOURCE / layer).is_dir() else []
    return [path.stem for path in paths if path.stem != "__init__"]


def _summary(layer: str) -> str:
    path = SOURCE / layer / "__init__.py" if (SOURCE / layer).is_dir() else SOURCE / f"{layer}.py"
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
