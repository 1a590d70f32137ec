"""What benchmarks share: where they ran, and how their tables get into README.md and README.zh.md."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chinese import in_chinese
from regraft.data.orchard.photos import draw_orchard
from regraft.ground.runtime import environment, num_cores

HERE = Path(__file__).parent
READMES = {"README.md": str, "README.zh.md": in_chinese}  # what a table becomes in each
PEAK = "import resource; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)"
MEASURED = f"import subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); {PEAK}"


def machine() -> dict[str, Any]:
    """Cores, processor, commit and versions."""
    return {"cores": num_cores(), "processor": _processor(), "commit": _commit(), "versions": environment()}


def fill(name: str, text: str, folder: Path = HERE.parent) -> None:
    """Replace what stands between `<!-- bench:name -->` and its end mark, in both languages."""
    start, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    for file, spoken in READMES.items():
        readme = folder / file
        before, _, rest = readme.read_text().partition(start)
        _, found, after = rest.partition(end)
        if not found:
            raise SystemExit(f"{readme} has no {start} ... {end}")
        readme.write_text(f"{before}{start}\n{spoken(text)}\n{end}{after}")


def real_or_drawn(name: str, scratch: Path) -> Path:
    """A set of `REGRAFT_DATA`, or the orchard drawn into `scratch`."""
    real = Path(os.environ.get("REGRAFT_DATA", "/nonexistent")) / name
    return real if real.is_dir() else draw_orchard(scratch / "orchard")


def check(name: str, ratio: float, of: Callable[[dict[str, Any]], float]) -> None:
    """Say a ratio beside the one on record, and exit 1 where it is less than half of it."""
    recorded = of(json.loads((HERE / "results" / f"{name}.json").read_text()))
    print(f"{name}: {ratio:.2f}, on record {recorded:.2f}")
    if ratio < recorded / 2:
        raise SystemExit(f"{name}: the ratio has fallen by more than half")


def processes(result: dict[str, Any], digits: int) -> str:
    """Seconds and memory of whole processes as Markdown."""
    lines = ["| whole process | seconds | peak memory |", "|---|---:|---:|"]
    lines += [f"| {row['name']} | {row['seconds']:.{digits}f} | {row['megabytes']:.0f} MB |" for row in result["rows"]]
    return "\n".join([*lines, "", f"{result['cores']} cores, {result['processor']}; `{result['command']}`."])


def measured(command: list[object], cache: Path) -> tuple[float, float]:
    """Seconds and peak memory in MB of a whole process."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, command)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "REGRAFT_CACHE": str(cache)},
    )
    return time.perf_counter() - start, int(done.stderr.splitlines()[-1]) / 1024


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown processor")


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE, check=False
    )
    return done.stdout.strip()
