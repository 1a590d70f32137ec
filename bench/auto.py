"""The default command beside timm's settings for fine-tuning: the same photos, split and weights, whole processes.

    python bench/auto.py [--sets grocery_veg22,wbc4] [--tools "auto 10m,timm"] [--seeds 0,1] [--busy | --others PYTHON]

Takes sets from REGRAFT_DATA. Measures what bench/results/auto.json does not hold yet, all tools of one set and seed one
after the other, and fills README.md. --busy: beside a process that takes one core, into auto-busy.json and no README.
--others: ten minutes of fastai and AutoGluon on three sets, in an environment of theirs, beside the default command,
into auto-others.json.
No choice of the recipe looked at the sets marked with a star.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from busy import SPIN
from peers import TOOLS as PEERS
from peers import cell
from peers import measure as measured_peer
from record import HERE, cases, complete, fill, where
from regimes import by_set, measure, traced

SETS = ("grocery_veg22", "wbc4", "signdigits10s", "hymenoptera", "grocery_fruit5", "pollen2", "hemlock2")
CONFIRMING = ("grocery_fruit5", "pollen2", "hemlock2")
TOOLS = {  # by name in the results: name in the table, options
    "frozen": ("`--mode frozen`", ("--mode", "frozen")),
    "auto 3m": ("`regraft train --time 3m`", ("--time", "3m")),
    "auto 10m": ("`regraft train`", ()),
    "timm": (PEERS["timm"][0], None),
}
OTHER_SETS = ("grocery_veg22", "wbc4", "pollen2")
OTHER_TOOLS = {
    "auto 10m": TOOLS["auto 10m"],
    **{tool: (PEERS[tool][0], None) for tool in ("fastai 10m", "autogluon 10m")},
}


def main() -> None:
    """Measure what is missing, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets")
    parser.add_argument("--tools")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--others", metavar="PYTHON")
    arguments = parser.parse_args()
    name = "auto-others" if arguments.others else "auto-busy" if arguments.busy else "auto"
    sets, tools = (OTHER_SETS, OTHER_TOOLS) if arguments.others else (SETS, TOOLS)
    wanted = cases(
        seed=map(int, arguments.seeds.split(",")),
        set=arguments.sets.split(",") if arguments.sets else sets,
        tool=arguments.tools.split(",") if arguments.tools else tools,
    )
    options = "--others PYTHON" if arguments.others else "--busy" if arguments.busy else ""
    with tempfile.TemporaryDirectory(prefix="regraft-bench-") as folder, one_core_taken(arguments.busy):
        graphs = traced(Path(folder))
        result = complete(
            HERE / "results" / f"{name}.json",
            f"python bench/auto.py {options}".strip(),
            wanted,
            lambda case: cell_of(case, graphs, Path(folder), arguments.others),
        )
    if not arguments.busy:
        fill(name, table(result))
    print(table(result))


@contextmanager
def one_core_taken(is_busy: bool) -> Iterator[None]:
    """Within the block another process computes without end, where that is wanted."""
    spinning = subprocess.Popen([sys.executable, "-c", SPIN]) if is_busy else None
    try:
        yield
    finally:
        if spinning:
            spinning.kill()


def cell_of(case: dict, graphs: Path, scratch: Path, others: str | None) -> dict:
    """How many photos one tool has right in a process of its own, and its seconds."""
    options = (TOOLS | OTHER_TOOLS)[case["tool"]][1]
    if options is None:
        return measured_peer(case, graphs, scratch, others)
    found = measure(case, graphs, scratch, options)
    return {**found, "accuracy": found["num_right"] / found["n"]}


def table(result: dict) -> str:
    """A line for each tool, a column for each set."""
    names = {tool: name for tool, (name, _) in (TOOLS | OTHER_TOOLS).items()}
    lines = by_set(result["rows"], "tool", names, cell, SETS)
    lines[0] = " ".join(f"{word}\\*" if word in CONFIRMING else word for word in lines[0].split(" "))
    note = f"Accuracy and seconds, means over seeds, {where(result)}; `{result['command']}`."
    return "\n".join([*lines, "", f"\\* No choice of the recipe looked at this set. {note}"])


if __name__ == "__main__":
    main()
