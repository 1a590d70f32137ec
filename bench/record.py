"""What benchmarks share: where they ran, and how their tables get into README.md and README.zh.md."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

from chinese import in_chinese
from regraft.core.runtime import environment, num_cores
from regraft.data.orchard import unpack_orchard

HERE = Path(__file__).parent
READMES = {"README.md": str, "README.zh.md": in_chinese}  # what a table becomes in each
INSTRUCTIONS = {  # as /proc/cpuinfo spells them, the widest first
    "amx_bf16": "AMX",
    "avx512_bf16": "bf16",
    "bf16": "bf16",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "asimd": "NEON",
}
PEAK = "import resource; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)"
MEASURED = f"import subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); {PEAK}"


def machine() -> dict[str, Any]:
    """Cores, processor, what it computes with, commit and versions."""
    return {
        "cores": num_cores(),
        "processor": _in_cpuinfo("model name") or "unknown processor",
        "instructions": instructions(),
        "commit": _commit(),
        "versions": environment(),
    }


def instructions() -> str:
    """The widest arithmetic of this processor that engines make use of, on which ratios depend; "" if none is known."""
    flags = (_in_cpuinfo("flags") or _in_cpuinfo("Features")).split()
    return next((name for flag, name in INSTRUCTIONS.items() if flag in flags), "")


def where(result: dict[str, Any]) -> str:
    """Cores and processor of a result in words, of all machines that its rows come from.

    What was measured before instructions were noted says none.
    """
    others = (row["machine"] for row in result.get("rows", ()) if "machine" in row)
    return "; ".join(dict.fromkeys(_in_words(one) for one in (result, *others)))


def _in_words(one: dict[str, Any]) -> str:
    cores = "1 core" if one["cores"] == 1 else f"{one['cores']} cores"
    arithmetic = one.get("instructions")
    return f"{cores}, {one['processor']}" + (f" with {arithmetic}" if arithmetic else "")


def cases(**values: Iterable) -> Iterator[dict[str, Any]]:
    """Every choice of one value for each name; the last name changes first."""
    return (dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))


def complete(path: Path, command: str, wanted: Iterable[dict], measure: Callable[[dict], dict]) -> dict[str, Any]:
    """A result whose rows are the cases wanted: what its file does not hold yet is measured, and written case by case.

    A row that comes from another machine, commit or version than the first one names its own.

    wanted: what names each row, like {"set": "wbc4", "seed": 0}.  measure: gives the rest of it.
    """
    here = machine()
    result = json.loads(path.read_text()) if path.exists() else {"rows": []}
    result = result if result["rows"] else {"command": command, **here, "rows": []}
    elsewhere = {} if here.items() <= result.items() else {"machine": here}
    for case in wanted:
        if not any(case.items() <= row.items() for row in result["rows"]):
            result["rows"].append({**case, **measure(case), **elsewhere})
            path.write_text(json.dumps(result, indent=1) + "\n")
            print(json.dumps(result["rows"][-1]), file=sys.stderr, flush=True)
    return result


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
    """A set of `REGRAFT_DATA`, or the orchard unpacked into `scratch`."""
    real = Path(os.environ.get("REGRAFT_DATA", "/nonexistent")) / name
    return real if real.is_dir() else unpack_orchard(scratch / "orchard")


def check(name: str, measure: Callable[[], float], of: Callable[[dict[str, Any]], float]) -> None:
    """Say a ratio beside the one on record, and exit 1 where it is less than half of it, twice in a row."""
    recorded = of(json.loads((HERE / "results" / f"{name}.json").read_text()))
    for _ in range(2):  # other work on the machine may fall on one side of a ratio
        ratio = measure()
        print(f"{name}: {ratio:.2f}, on record {recorded:.2f}", flush=True)
        if ratio >= recorded / 2:
            return
    raise SystemExit(f"{name}: the ratio has fallen by more than half")


def processes(result: dict[str, Any], digits: int) -> str:
    """Seconds and memory of whole processes as Markdown."""
    lines = ["| whole process | seconds | peak memory |", "|---|---:|---:|"]
    lines += [f"| {row['name']} | {row['seconds']:.{digits}f} | {row['megabytes']:.0f} MB |" for row in result["rows"]]
    return "\n".join([*lines, "", f"{where(result)}; `{result['command']}`."])


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


def _in_cpuinfo(name: str) -> str:
    """What Linux says of the first core; "" elsewhere."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith(name)), "")


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE, check=False
    )
    return done.stdout.strip()
