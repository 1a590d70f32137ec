"""The documentation: every link leads somewhere, every command parses, every line of Python runs, the site builds.

Commands in README.md are also run, in test_readme.py; the others are read by the parser that would read them.
"""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

import regraft
from conftest import draw, draw_folder
from regraft.cli import cli

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *DOCS]
USED = [*sorted(ROOT.glob("README*.md")), *DOCS]  # by readers who type what they see; LOG.md tells of other days
COMMAND = re.compile(r"^(?:\$ |  )?((?:srun )?torchrun .* -m regraft|regraft) (.+)$")


def named(pages):
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page, *languages):
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def prose(page):
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def slug(heading):
    """An anchor as GitHub and the site make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page):
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)}


@named(PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith(("https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def shown(page):
    """Words after `regraft`, of every line in a block that is a command."""
    lines = "\n".join(blocks(page, "console", "bash", "text")).replace("\\\n", " ").splitlines()
    found = [match[2] for line in lines if (match := COMMAND.match(line))]
    return [shlex.split(one.partition(" > ")[0], comments=True) for one in found]


def mentioned(page):
    """The same of commands in the text, which may be whole or not."""
    return [shlex.split(one) for one in re.findall(r"`regraft ([a-z][^`]*)`", prose(page))]


def parse(words):
    """Raises click.UsageError for what the program would refuse."""
    name, *rest = words
    cli.commands[name].make_context(name, rest, parent=click.Context(cli, **cli.context_settings))


@named(USED)
def test_commands_are_known_with_all_their_options(page):
    for words in shown(page):
        if words[0] not in ("[OPTIONS]", *cli.commands) or "[OPTIONS]" in words:  # how it is used, in help
            continue
        try:
            parse(words)
        except click.UsageError as error:
            pytest.fail(f"regraft {shlex.join(words)}: {error.format_message()}")
    for words in mentioned(page):
        assert words[0] in cli.commands, words
        try:
            parse([word for word in words if word != "..."])
        except click.NoSuchOption as error:
            pytest.fail(f"regraft {shlex.join(words)}: {error.format_message()}")
        except click.UsageError:
            pass  # named in passing, not in full


def test_commands_were_found():
    assert sum(len(shown(page)) for page in USED) > 60
    assert sum(len(mentioned(page)) for page in USED) > 20


@named([page for page in PAGES if blocks(page, "bash")])
def test_scripts_are_well_formed(page):
    for script in blocks(page, "bash"):
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the pages assume."""
    root = tmp_path_factory.mktemp("place")
    draw_folder(root / "photos", ("cat", "dog"), 6)
    draw_folder(root / "new_photos", ("cat", "dog"), 2, seed=70)
    draw(root / "cat.jpg", (200, 40, 40), 5)
    regraft.train(root / "photos", root / "runs/pets", mode="frozen", quiet=True)
    return root


@named([page for page in DOCS if blocks(page, "python")])
def test_python_runs(page, place, monkeypatch):
    monkeypatch.chdir(place)
    known = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), known)


def test_the_commands_page_is_what_help_says(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import write_commands

    assert write_commands.PAGE.read_text() == write_commands.page(), "run: python docs/write_commands.py"


def test_the_table_of_folders_is_that_of_the_tree(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import write_architecture

    assert write_architecture.PAGE.read_text() == write_architecture.page(), "run: python docs/write_architecture.py"


def test_every_promise_of_security_names_a_test_that_exists():
    rows = [line for line in (ROOT / "SECURITY.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert rows
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row.rpartition(" | ")[2])
        assert named, row
        for path, name in named:
            assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.M), f"{path}::{name}"


def test_the_api_reference_has_every_public_name():
    listed = re.findall(r"^\.\. auto(?:class|function):: regraft\.(\w+)$", (ROOT / "docs/api.rst").read_text(), re.M)
    assert sorted(listed) == regraft.__all__


def test_the_licences_are_those_that_the_packages_state(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import write_licences

    written = dict(re.findall(r"^\| ([a-z0-9-]+) \| (.+) \|$", write_licences.PAGE.read_text(), re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(one for name in write_licences.SHIPPED for one in extras[name])]
    for requirement in wanted:
        name = re.match(r"[\w-]+", requirement)[0].lower().replace("_", "-")
        assert written[name] == write_licences.licence(name), "run: python docs/write_licences.py"
    assert not [name for name, licence in written.items() if re.search(r"\bA?GPL", licence)]


def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", ROOT / "docs", tmp_path / "site"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").glob("*.html"))
    assert len(pages) >= len(DOCS)
    for page in pages:
        assert not re.findall(r'<(?:link|script|img|iframe)[^>]*(?:href|src)="(?:https?:)?//', page.read_text()), page
