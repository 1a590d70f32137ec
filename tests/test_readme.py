"""The README runs: every command and every line of Python in it, and its table is the benchmark's."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import draw, draw_folder

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what the README assumes."""
    draw_folder(tmp_path / "photos", ("cat", "dog"), 6)
    draw_folder(tmp_path / "new_photos", ("cat", "dog"), 2, seed=70)
    draw(tmp_path / "cat.jpg", (200, 40, 40), 5)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_run(run, place):
    lines = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ regraft")]
    assert len(lines) >= 4
    for line in lines:
        done = run(*shlex.split(line)[1:], cwd=place)
        assert done.returncode == 0, (line, done.stderr)


def test_python_runs(place):
    assert blocks("python")
    for block in blocks("python"):
        done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, cwd=place, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("cat ")


def test_make_knows_the_words_that_documents_use():
    words = set(re.findall(r"`?make ([a-z]+)", README + (ROOT / "CONTRIBUTING.md").read_text()))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert words <= targets


def test_files_and_modules_named_exist():
    for link in re.findall(r"\]\(([A-Za-z]+[^):]*)\)", README):
        assert (ROOT / link).is_file(), link
    tree = README.partition("src/regraft/\n")[2].partition("\n\n")[0]
    for line in tree.splitlines():
        room, _, rest = line.strip().partition("/ ")
        modules = re.split(r"\s+", re.split(r"\s{3,}", rest.strip())[0]) if rest else []
        for module in modules:
            assert (ROOT / "src/regraft" / room / f"{module}.py").is_file(), (room, module)


def test_tables_are_the_benchmarks():
    sys.path.insert(0, str(ROOT / "bench"))
    import engines
    import frozen
    import limits
    import peers
    import prefixes
    import regimes
    import searching
    import training
    from record import processes

    texts = {
        "frozen": lambda result: frozen.table(result),
        "limits": lambda result: limits.table(result),
        "engines": lambda result: engines.table(result),
        "scale": lambda result: processes(result, 0),
        "scanning": lambda result: processes(result, 1),
        "searching": lambda result: searching.table(result),
        "regimes": lambda result: regimes.table(result["rows"]),
        "peers": peers.table,
        "training": training.sentence,
        "prefixes": prefixes.table,
    }
    for name, text in texts.items():
        stands = README.partition(f"<!-- bench:{name} -->")[2].partition(f"<!-- /bench:{name} -->")[0].strip()
        result = ROOT / f"bench/results/{name}.json"
        assert stands == (text(json.loads(result.read_text())) if result.exists() else ""), name


def test_changelog_knows_the_version():
    from regraft import __version__

    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()
