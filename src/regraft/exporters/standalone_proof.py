"""Runs an exported program where regraft is not: a script that `exporters.proof` starts in a process of its own.

    python -P standalone_proof.py PROGRAM ABSENT...

ABSENT are packages that a user of the program does not have; importing one fails. Each line of stdin is a JSON object
{"paths": [...], "predict": true}; each line of stdout answers with the SHA-256 of every photo's input, or why there is
none, and with the probabilities of those that there are. Imports nothing but the standard library and the program.
"""

import hashlib
import importlib.util
import json
import os
import sys
from importlib.abc import MetaPathFinder
from typing import Any


class _Absent(MetaPathFinder):
    """Stands for all finders of modules, and finds none of some packages, as where they are not installed."""

    def __init__(self, names: list[str], finders: list[Any]) -> None:
        self.names, self.finders = set(names), finders

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Return None for these packages, and what the other finders find for the rest."""
        if name.partition(".")[0] in self.names:
            return None
        return next(filter(None, (finder.find_spec(name, path, target) for finder in self.finders)), None)

    def find_distributions(self, *arguments: Any) -> Any:
        """Yield what `importlib.metadata` asks for."""
        for finder in self.finders:
            yield from getattr(finder, "find_distributions", lambda *_: ())(*arguments)


def digest(array: Any) -> str:
    """Hash an array's shape, type and content."""
    return hashlib.sha256(repr((array.shape, str(array.dtype))).encode() + array.tobytes()).hexdigest()


def main() -> None:
    """Answer until stdin ends."""
    program_file, *absent = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints is no answer
    sys.meta_path[:] = [_Absent(absent, sys.meta_path[:])]
    spec = importlib.util.spec_from_file_location("exported", program_file)
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(program)
    except ImportError as error:
        print(json.dumps({"missing": error.name or str(error)}), file=answers, flush=True)
        return
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(program, **json.loads(line))), file=answers, flush=True)


def _answer(program: Any, paths: list[str], predict: bool) -> dict[str, Any]:
    rows, images = [], []
    for path in paths:
        try:
            image = program.to_input(path)
        except Exception as error:  # whatever it is, a user would see it
            rows.append({"error": f"{type(error).__name__}: {error}"})
            continue
        rows.append({"sha256": digest(image)})
        images.append(image)
    probabilities = program.predict(program.np.stack(images)).tolist() if predict and images else []
    return {"rows": rows, "probabilities": probabilities}


if __name__ == "__main__":
    main()
