"""The command line: one short function for each command. stdout is data, stderr is talk.

Commands import what they need when they run, so that `regraft --help` answers at once.
"""

import os
import sys
import warnings
from contextlib import suppress
from typing import NoReturn

import click

from regraft.cli.answers import embed, evaluate, predict, report, similar
from regraft.cli.delivery import export, pull, push, serve
from regraft.cli.machine import backbones, doctor
from regraft.cli.photos import data, demo, label, scan
from regraft.cli.training import add, compare, relabel, train
from regraft.core import signals, streams
from regraft.core.errors import RegraftError
from regraft.core.memory import is_lack_of_memory, too_little
from regraft.core.progress import talk
from regraft.core.version import __version__


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 1 an error that the user can mend, 2 wrong usage, 128 + n for signal n."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    streams.open_streams()
    signals.install()
    _leave_a_lost_folder()
    sys.exit(streams.flushed(_run("--debug" in sys.argv or bool(os.environ.get("REGRAFT_DEBUG")))))


def _run(debug: bool) -> int:
    """Run the command, say in one line what has gone wrong, and return the exit code."""
    try:
        return cli.main(standalone_mode=False) or 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except RegraftError as error:
        if debug:
            raise
        return _report(f"error: {error}", 1)
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        signum = getattr(error, "signum", getattr(error.__cause__, "signum", 2))
        return _report("interrupted: the same command goes on from here", 128 + signum)
    except Exception as error:
        if isinstance(error, OSError) and streams.is_of_stdout(error):
            return streams.lost(error)
        if debug or not is_lack_of_memory(error):
            raise
        return _report(f"error: {too_little(f'This cannot be done ({type(error).__name__})')}", 1)


def _report(message: str, code: int) -> int:
    talk(message)
    return code


def _leave_a_lost_folder() -> None:
    """Leave a working folder that has been deleted: there MKL, among others, does not start."""
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        import tempfile

        os.chdir(tempfile.mkdtemp(prefix="regraft-"))
        print(f"the working folder is gone; relative paths begin in {os.getcwd()}", file=sys.stderr)  # noqa: PTH109


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="regraft")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Transfer learning for image classification: a folder of photos in, a model that predicts out.

    \b
    regraft demo                          see it work, offline
    regraft train photos/                 photos/<class>/<image>
    regraft predict runs/photos cat.jpg
    """


for _command in (
    demo,
    scan,
    data,
    train,
    label,
    add,
    relabel,
    compare,
    predict,
    embed,
    similar,
    evaluate,
    report,
    export,
    serve,
    backbones,
    doctor,
    push,
    pull,
):
    cli.add_command(_command)
