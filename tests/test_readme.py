"""The README runs: every command and every line of Python in it, and its table is the benchmark's."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import draw, draw_folder

ROOT = Path(__file__).parents[1]
README, CHINESE = ((ROOT / name).read_text() for name in ("README.md", "README.zh.md"))
MARK = re.compile(r"<!-- bench:([\w-]+) -->\n(.*?)\n?<!-- /bench:\1 -->", re.DOTALL)
LINK = re.compile(r"\]\(([^)]+)\)")


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


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
    words = set(
        re.findall(r"(?:`|^ {4}|^)make ([a-z]+)", README + (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    )
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert words <= targets


def test_files_and_folders_named_exist():
    names = [line.split()[0] for line in tree_of(README)]
    assert names
    for name in names:
        assert (ROOT / "src/regraft" / name).exists(), name


def tree_of(text):
    return text.partition("src/regraft/\n")[2].partition("\n\n")[0].splitlines()


def test_both_languages_have_the_same_parts():
    without = re.compile(r" +# .*")
    for language in ("", "console", "python"):
        ours, theirs = ([without.sub("", one) for one in blocks(language, text)] for text in (README, CHINESE))
        assert ours == theirs
        assert ours
    for part in (re.compile(r"^#+ ", re.MULTILINE), re.compile(r"^- \*\*", re.MULTILINE)):
        assert len(part.findall(README)) == len(part.findall(CHINESE))
    assert sorted(LINK.findall(README.replace("README.zh", "README"))) == sorted(LINK.findall(CHINESE))
    assert [line[:19].split() for line in tree_of(README)] == [line[:19].split() for line in tree_of(CHINESE)]
    assert [name for name, _ in MARK.findall(README)] == [name for name, _ in MARK.findall(CHINESE)]


def benchmark(name):
    """Import a benchmark under a name that no folder of tests has; what it imports itself is found beside it."""
    if str(ROOT / "bench") not in sys.path:
        sys.path.append(str(ROOT / "bench"))
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "bench" / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_the_benchmarks():
    record = benchmark("record")
    texts = {
        **{name: benchmark(name).table for name in ("frozen", "limits", "engines", "searching", "regimes", "peers")},
        **{name: benchmark(name).table for name in ("serving", "prefixes", "auto")},
        "auto-others": benchmark("auto").table,
        "scale": lambda result: record.processes(result, 0),
        "scanning": lambda result: record.processes(result, 1),
        "training": benchmark("training").sentence,
    }
    assert {name for name, _ in MARK.findall(README)} == texts.keys()
    for name, text in texts.items():
        measured = ROOT / f"bench/results/{name}.json"
        told = text(json.loads(measured.read_text())) if measured.exists() else ""
        for file, spoken in record.READMES.items():
            stands = dict(MARK.findall((ROOT / file).read_text()))[name]
            assert stands == spoken(told), (file, name)


def test_a_table_is_filled_into_both(tmp_path):
    for name in ("README.md", "README.zh.md"):
        (tmp_path / name).write_text("before\n<!-- bench:scale -->\nold\n<!-- /bench:scale -->\nafter\n")
    fill = benchmark("record").fill
    fill("scale", "| seconds |\n|---:|\n| 3 |", tmp_path)
    assert dict(MARK.findall((tmp_path / "README.md").read_text())) == {"scale": "| seconds |\n|---:|\n| 3 |"}
    assert "| 秒 |" in (tmp_path / "README.zh.md").read_text()
    with pytest.raises(SystemExit, match="has no <!-- bench:none -->"):
        fill("none", "", tmp_path)


def test_changelog_knows_the_version():
    from regraft import __version__

    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
