"""Make both notebooks from their one source, transfer_learning.py: run its code once, put each language's prose around.

    python examples/notebooks.py [--out FOLDER] [--source FILE]

Runs offline, in a folder that is thrown away, on the photos that come with regraft.
"""

import argparse
import ast
import hashlib
import os
import re
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

HERE = Path(__file__).parent
LOOP = HERE / "train_loop.py"
SOURCE = HERE / "transfer_learning.py"
EDITIONS = {"en": "transfer_learning.ipynb", "zh": "transfer_learning.zh.ipynb"}
PLAIN = {"en": "In plain PyTorch, from {}:", "zh": "等价的原生 PyTorch 代码，出自 {}："}
TIMEOUT_S = 900  # of a cell
STOP, WIDE, OPENING = "[，。：；？！、）》”]", "[⺀-鿿]", "[（《“]"
JOINED = re.compile(  # ends of lines that are no spaces: Chinese has none between its words, nor behind its stops
    rf"(?<={STOP})\n *+(?!\n|\d+\. |- |#|```)|(?<={WIDE})\n *+(?={WIDE}|{OPENING})"
)
KEPT = ("text/plain", "text/html", "image/svg+xml", "image/png", "image/jpeg")


def main() -> None:
    """Run once, write both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the notebooks")
    parser.add_argument("--source", type=Path, default=SOURCE, help="what they are made from")
    given = parser.parse_args()
    ran = run(edition("en", given.source))
    for language, name in EDITIONS.items():
        nbformat.write(with_outputs(edition(language, given.source), ran), given.out / name)
        print(given.out / name)


def edition(language: str, source_file: Path = SOURCE) -> NotebookNode:
    """The notebook in one language, not yet run."""
    source = jupytext.read(source_file)
    wanted = [cell for cell in source.cells if cell.metadata.get("lang", language) == language]
    cells = [_cell(cell, language) for cell in wanted if cell.cell_type != "raw"]
    metadata = {"kernelspec": dict(source.metadata["kernelspec"]), "language_info": {"name": "python"}}
    return nbformat.v4.new_notebook(cells=cells[1:], metadata=metadata)  # the first one is about the source itself


def run(notebook: NotebookNode) -> NotebookNode:
    """The notebook with what its cells show."""
    with tempfile.TemporaryDirectory(prefix="regraft-notebook-") as folder:
        env = {**os.environ, "PYTHONPATH": _path(), "REGRAFT_OFFLINE": "1"}
        env["PYTHONWARNINGS"] = "ignore:IProgress not found"  # bars that a page does not show
        env.pop("REGRAFT_DATA", None)
        place = {"metadata": {"path": folder}}
        local = Config(KernelManager={"transport": "ipc", "ip": f"{folder}/.kernel"})  # what is said stays in here
        options = {"timeout": TIMEOUT_S, "startup_timeout": TIMEOUT_S, "record_timing": False}
        NotebookClient(notebook, resources=place, config=local, **options).execute(env=env)
        for cell in _code(notebook):
            cell.outputs = [_lighter(output, folder) for output in _whole_streams(cell.outputs)]
    return notebook


def with_outputs(notebook: NotebookNode, ran: NotebookNode) -> NotebookNode:
    """A notebook of the same code with what another has shown."""
    for cell, done in zip(_code(notebook), _code(ran), strict=True):
        cell.outputs, cell.execution_count = done.outputs, done.execution_count
    return notebook


def _cell(cell: NotebookNode, language: str) -> NotebookNode:
    """A cell as the notebook has it; names that stay the same as long as its text does keep differences readable."""
    text = cell.source
    if names := cell.metadata.get("shows"):
        text = _plain(names.split(), language)
    elif cell.cell_type == "markdown":
        text = JOINED.sub("", text)
    make = nbformat.v4.new_markdown_cell if cell.cell_type == "markdown" else nbformat.v4.new_code_cell
    return make(text, id=hashlib.sha256(text.encode()).hexdigest()[:8])


def _plain(names: list[str], language: str) -> str:
    """Functions of train_loop.py, as they stand there."""
    text = LOOP.read_text()  # not imported: that would take torch
    known = {one.name: ast.get_source_segment(text, one) for one in ast.parse(text).body if hasattr(one, "name")}
    code = "\n\n\n".join(known[name] for name in names)
    return f"{PLAIN[language].format('[`train_loop.py`](train_loop.py)')}\n\n```python\n{code}\n```"


def _code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _path() -> str:
    """Where the kernel finds train_loop."""
    return os.pathsep.join(filter(None, (str(HERE.absolute()), os.environ.get("PYTHONPATH"))))


def _whole_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """What was printed in one piece, however it was sent."""
    whole: list[NotebookNode] = []
    for output in outputs:
        if whole and output.get("name") and output.get("name") == whole[-1].get("name"):
            whole[-1].text += output.text
        else:
            whole.append(output)
    return whole


def _lighter(output: NotebookNode, folder: str) -> NotebookNode:
    """An output with paths from the folder it ran in, and of two pictures of the same the smaller file."""
    if "data" in output:
        data = {kind: _relative(text, folder) for kind, text in output.data.items() if kind in KEPT}
        pictures = sorted(data.keys() & {"image/png", "image/jpeg"}, key=lambda kind: len(data[kind]))
        for larger in pictures[1:]:
            del data[larger]
        output.data = data
    elif "text" in output:
        output.text = _relative(output.text, folder)
    return output


def _relative(text: str, folder: str) -> str:
    return text.replace(f"{Path(folder).resolve()}/", "").replace(f"{folder}/", "")


if __name__ == "__main__":
    main()
