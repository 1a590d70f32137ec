"""Write commands.md: what `--help` says of every command. A test holds that it is current."""

from pathlib import Path

import click

from regraft.cli import cli

PAGE = Path(__file__).with_name("commands.md")
BEGINNING = """# Commands

What `--help` says. Every command with `--json` prints data alone to stdout; talk and progress go to stderr.
Exit codes: 0 done, 1 an error with its cure in one line, 2 wrong usage, 128 + n stopped by signal n.
`--debug` before a command, or `REGRAFT_DEBUG=1`, shows the traceback of an error.

| environment variable | means |
|---|---|
| `REGRAFT_CACHE` | folder of graphs and features, by default the user's cache folder; none that all may write to |
| `REGRAFT_OFFLINE=1` | never download anything, as `--offline` |
| `REGRAFT_PRECISION=f32` | single precision also where the processor has bf16: the same numbers on every machine |
| `REGRAFT_TOKEN` | what requests to `regraft serve` have to bear |
"""


def page() -> str:
    """The whole page as Markdown."""
    sections = [f"## regraft {name}\n\n```text\n{help_of(name, one)}\n```\n" for name, one in cli.commands.items()]
    return "\n".join([BEGINNING, *sections])


def help_of(name: str, command: click.Command) -> str:
    """The text of `regraft NAME --help`, 100 columns wide."""
    parent = click.Context(cli, info_name="regraft", **cli.context_settings)
    with click.Context(command, parent, info_name=name, terminal_width=100, max_content_width=100) as context:
        return "\n".join(line.rstrip() for line in command.get_help(context).splitlines())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
