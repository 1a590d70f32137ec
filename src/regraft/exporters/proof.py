"""Run an exported program in a process of its own, without regraft, with what its recipient will have installed."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from regraft.core.errors import ExportError, MissingExtra
from regraft.core.progress import printable
from regraft.exporters import standalone_proof

PACKAGES = (
    "regraft",
    "onnx",
    "onnxruntime",
    "openvino",
    "openvino_telemetry",  # without which OpenVINO has a silent stub: it would start a process and call home
    "safetensors",
    "scipy",
    "sklearn",
    "timm",
    "torch",
    "torchvision",
)


@dataclass(frozen=True)
class ProgramOutputs:
    """What a program makes of some photos.

    Attributes:
        inputs: By photo, hash of the model's input as `standalone_proof.digest` gives it; None where there is none.
        errors: By photo, why there is none, "" where there is one.
        probabilities: `(N, C)` float64 of the photos that have an input, in their order; `(0,)` where none were asked
            for.
    """

    inputs: list[str | None]
    errors: list[str]
    probabilities: np.ndarray


@dataclass
class RunningProgram:
    """A program that waits for photos. Made by `running`.

    Attributes:
        path: Its file.
        process: That runs it.
        talk: What it writes to stderr.
    """

    path: Path
    process: "subprocess.Popen[str]"
    talk: IO[str] = field(repr=False)

    def __call__(self, paths: Sequence[Path], *, predict: bool = True) -> ProgramOutputs:
        """Ask what it makes of photos, all that can be read of one size.

        Args:
            paths: Of the files.
            predict: Whether to run the model on them too.

        Raises:
            ExportError: The program has ended.
        """
        reply = self.ask({"paths": list(map(str, paths)), "predict": predict})
        rows = reply["rows"]
        inputs, errors = [row.get("sha256") for row in rows], [row.get("error", "") for row in rows]
        return ProgramOutputs(inputs, errors, np.array(reply["probabilities"], dtype=np.float64))

    def ask(self, order: dict[str, Any] | None) -> dict[str, Any]:
        """Return the answer to one order.

        Args:
            order: As `standalone_proof` reads it; None only listens.

        Raises:
            ExportError: The program has ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            if order is not None:
                print(json.dumps(order), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.process.wait()
            self.talk.seek(0)
            last = next(reversed(self.talk.read().split("\n")[:-1]), "it said nothing")
            raise ExportError(
                f"The exported program {self.path.name} ended with {self.process.returncode} where it was to prove "
                f"itself: {printable(last)[:300]}. Nothing was written."
            )
        return dict(json.loads(line))


@contextmanager
def running(program: Path, package: str) -> Iterator[RunningProgram]:
    """Start a program, and end it at the end of the block.

    Args:
        program: Its file; the model lies beside it.
        package: What it runs the model with.

    Raises:
        MissingExtra: That is not installed.
        ExportError: The program does not start.
    """
    absent = [name for name in PACKAGES if name != package]
    command = [sys.executable, "-P", standalone_proof.__file__, str(program), *absent]
    with (
        tempfile.TemporaryFile("w+", errors="backslashreplace") as talk,
        subprocess.Popen(  # noqa: S603  # our own script and the program that we wrote
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=talk, text=True, encoding="ascii"
        ) as process,
    ):
        try:
            child = RunningProgram(program, process, talk)
            if missing := child.ask(None).get("missing"):
                raise MissingExtra(str(missing), "export")
            yield child
        finally:
            process.kill()
