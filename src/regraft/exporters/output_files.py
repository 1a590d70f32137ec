"""Where an exported model goes, and which files there are an earlier export's: only these are replaced.

The program beside a model ends in a seal, and above it names the SHA-256 of each file of its model. So what belongs to
regraft is known wherever the files are moved, as long as they stay together and nobody changes them.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from regraft.core.errors import ExportError, OutputError
from regraft.core.files import sha256_file
from regraft.core.ownership import foreign, is_sealed, seal_text

Format = Literal["onnx", "openvino", "torch"]
SUFFIXES: dict[Format, tuple[str, ...]] = {
    "onnx": (".onnx",),
    "openvino": (".xml", ".bin"),
    "torch": (".pt2", ".safetensors"),
}
PROGRAM = ".py"
_RECORD = re.compile(r"^# its (\.\w+): ([0-9a-f]{64}(?: [0-9a-f]{64})*)$", re.MULTILINE)


@dataclass(frozen=True)
class ExportedFiles:
    """A model's files and its program's, as a user names them.

    Attributes:
        out: With or without one of the format's suffixes; anything else after a dot is part of the name.
        format: "onnx", "openvino" or "torch".

    Raises:
        ExportError: `out` names no file, or one of another format.
    """

    out: Path
    format: Format

    def __post_init__(self) -> None:
        if not self.out.name:
            raise ExportError(f"--out {str(self.out)!r} names no file. Expected NAME{SUFFIXES[self.format][0]}.")
        suffix = self.out.suffix.lower()
        other = next((name for name, suffixes in SUFFIXES.items() if suffix in suffixes and name != self.format), None)
        if other and suffix not in SUFFIXES[self.format]:
            raise ExportError(
                f"{self.out} is named as a file of --format {other}, and --format is {self.format}. Name it "
                f"{self.model} or choose --format {other}."
            )

    @property
    def model(self) -> Path:
        """The model's first file."""
        return self._with(SUFFIXES[self.format][0])

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them, the model first and the program last."""
        return tuple(self._with(suffix) for suffix in (*SUFFIXES[self.format], PROGRAM))

    def check(self) -> None:
        """Make sure that what is there may be replaced.

        Raises:
            OutputError: A file is not an earlier export's, or was changed since; the first is named.
        """
        program, recorded = self.files[-1], self._recorded()
        for path in self.files:
            if not os.path.lexists(path):
                continue
            is_model = path.is_file() and not path.is_symlink() and sha256_file(path) in recorded.get(path.suffix, ())
            if foreign(path) if path == program else not is_model:
                raise OutputError(
                    f"{path} is there already, and is not as an export of regraft wrote it beside {program.name}: it "
                    "stays. Move it away, or choose another --out."
                )

    def program_of(self, text: str, drafts: Path) -> bytes:
        """Return a program's content, with the files that belong to it and a seal.

        Args:
            text: The program.
            drafts: Folder with the model's files under their final names.
        """
        recorded = self._recorded()
        for path in self.files[:-1]:  # the old content too: a kill leaves the one or the other
            before = (sha256_file(path),) if path.is_file() else ()
            recorded[path.suffix] = (sha256_file(drafts / path.name), *before)
        lines = [f"# its {suffix}: {' '.join(hashes)}\n" for suffix, hashes in sorted(recorded.items())]
        return seal_text(f"{text}\n{''.join(lines)}", PROGRAM)

    def _recorded(self) -> dict[str, tuple[str, ...]]:
        """Return the hashes of the model's files that the program which is there names, by suffix."""
        program = self.files[-1]
        if program.is_symlink() or not program.is_file() or not is_sealed(data := program.read_bytes()):
            return {}
        return {suffix: tuple(hashes.split()) for suffix, hashes in _RECORD.findall(data.decode(errors="replace"))}

    def _with(self, suffix: str) -> Path:
        known = (*SUFFIXES[self.format], PROGRAM)
        name = self.out.stem if self.out.suffix.lower() in known else self.out.name
        return self.out.with_name(f"{name}{suffix}")
