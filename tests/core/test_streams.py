"""stdout and stderr that are closed, full or unread: the right exit code, one line, no traceback."""

import subprocess
import sys

import pytest

CODE = """if True:
    import os, sys
    from regraft.core import streams
    from regraft.core.progress import Progress, talk
    streams.open_streams()
    kept = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
    assert kept > 2, "a file took the place of a closed stream"
    Progress().say("talk")
    code = 0
    try:
        print("data" * int(sys.argv[2]))
    except OSError as error:
        assert streams.is_of_stdout(error), error
        code = streams.lost(error)
    sys.exit(streams.flushed(code))
"""
STREAMS = {
    "all well": ("", 0, "talk"),
    "stdout closed": (">&-", 1, "talk\nerror: cannot write to stdout: closed. What went to files is there."),
    "stdout full": (">/dev/full", 1, "talk\nerror: cannot write to stdout: no space left on device. What went to"),
    "unread": ("| true", 1, "talk"),
    "stderr closed": ("2>&-", 0, ""),
    "stderr full": ("2>/dev/full", 0, ""),
    "all closed": ("<&- >&- 2>&-", 1, ""),
    "all full": (">/dev/full 2>&1", 1, ""),
}


@pytest.mark.parametrize("size", [1, 100_000])
@pytest.mark.parametrize("kind", STREAMS)
def test_streams_as_a_shell_gives_them(tmp_path, kind, size):
    redirection, code, said = STREAMS[kind]
    if size == 1 and kind == "unread":
        pytest.skip("a pipe holds so little even when nobody reads it")
    shell = f'set -o pipefail; "$0" -c "$1" "$2" {size} {redirection}'
    done = subprocess.run(
        ["bash", "-c", shell, sys.executable, CODE, tmp_path / "file"], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == len(said.splitlines())
    assert (tmp_path / "file").stat().st_size == 0
