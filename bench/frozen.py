"""Whole processes of the frozen regime, timed beside what one would write by hand with the same weights.

    python bench/frozen.py [--rounds 3] [--photos DIR] [--slow] [--fastai PYTHON]

Every round runs all contenders one after the other, so that ratios come from the same minutes. Without --photos it
takes `REGRAFT_DATA/hymenoptera`, or the orchard. --slow: once, the tutorial's notebook, frozen, its 20
epochs, in plain PyTorch; with --fastai, fine_tune(5) too, by an interpreter as bench/peers.py wants it. Writes
bench/results/frozen.json, and fills the table in README.md. --check: two contenders, and exit 1 where regraft is
less than half as far ahead of what was written by hand as on record.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import HERE, check, fill, machine, real_or_drawn, where


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--fastai")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="regraft-bench-") as folder:
        scratch = Path(folder)
        photos = arguments.photos or real_or_drawn("hymenoptera", scratch)
        num_photos = sum(1 for path in photos.rglob("*") if path.is_file())
        if arguments.check:
            check("frozen", lambda: _ahead(_two(photos, scratch)), lambda recorded: recorded["ahead"])
            return
        rounds = [_round(photos, scratch / str(number)) for number in range(arguments.rounds)]
        slow = _slow(photos, scratch, arguments.fastai) if arguments.slow else {}
    result = {
        "command": "python bench/frozen.py",
        "photos": photos.name,
        "num_photos": num_photos,
        **machine(),
        "ahead": statistics.median(map(_ahead, rounds)),
        "rows": [_summary(name, [r[name] for r in rounds]) for name in rounds[0]]
        + [_summary(name, [one]) for name, one in slow.items()],
    }
    path = HERE / "results" / "frozen.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))
    fill("frozen", table(result))


def _round(photos: Path, scratch: Path) -> dict[str, dict[str, float]]:
    """Seconds and accuracy of every contender, once."""
    cache, out = scratch / "cache", scratch / "run"
    train = [sys.executable, "-m", "regraft", "train", photos, "--mode", "frozen", "--out", out, "--json", "--quiet"]
    one = next(path for path in sorted(photos.rglob("*.jpg")))
    rows = {"train, nothing cached": _run(train, cache)}
    shutil.rmtree(cache / "features")
    rows["train, new photos"] = _run(train, cache)
    rows["train, same photos again"] = _run(train, cache)
    rows["predict one photo"] = _run([sys.executable, "-m", "regraft", "predict", out, one, "--json"], cache)
    rows["timm + scikit-learn by hand"] = _run([sys.executable, HERE / "peer_by_hand.py", photos], cache)
    return rows


def _two(photos: Path, scratch: Path) -> dict[str, dict[str, float]]:
    """What `_ahead` needs."""
    cache, out = scratch / "cache", scratch / "run"
    train = [sys.executable, "-m", "regraft", "train", photos, "--mode", "frozen", "--out", out, "--json", "--quiet"]
    _run(train, cache)  # leaves the backbone's graph
    shutil.rmtree(cache / "features")
    ours = _run(train, cache)
    by_hand = _run([sys.executable, HERE / "peer_by_hand.py", photos], cache)
    return {"train, new photos": ours, "timm + scikit-learn by hand": by_hand}


def _ahead(rows: dict[str, dict[str, float]]) -> float:
    """How many times faster new photos are than by hand."""
    return rows["timm + scikit-learn by hand"]["seconds"] / rows["train, new photos"]["seconds"]


def _slow(photos: Path, scratch: Path, fastai: str | None) -> dict[str, dict[str, float]]:
    """What follows gradients, once."""
    tutorial = [sys.executable, HERE / "peer_tutorial.py", photos, "--mode", "frozen", "--workers", "2"]
    rows = {"the tutorial's notebook, frozen": _run(tutorial, scratch / "cache")}
    if fastai:
        rows["fastai fine_tune(5)"] = _run([fastai, HERE / "peer_fastai.py", photos, "--seed", "0"], scratch / "cache")
    return rows


def _run(command: list[object], cache: Path) -> dict[str, float]:
    start = time.perf_counter()
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "REGRAFT_CACHE": str(cache)},
    )
    seconds = time.perf_counter() - start
    answer = json.loads(done.stdout[done.stdout.index("{") :])
    accuracy = answer.get("accuracy")
    return {"seconds": seconds, "accuracy": accuracy["value"] if isinstance(accuracy, dict) else accuracy}


def _summary(name: str, runs: list[dict[str, float]]) -> dict[str, object]:
    seconds = [run["seconds"] for run in runs]
    return {
        "name": name,
        "seconds": {"min": min(seconds), "median": statistics.median(seconds), "max": max(seconds)},
        "accuracy": runs[0]["accuracy"],
    }


def table(result: dict) -> str:
    """The rows as Markdown."""
    what = f"{result['num_photos']} photos of {result['photos']}, {where(result)}"
    seconds = {row["name"]: row["seconds"]["median"] for row in result["rows"]}
    lines = ["| whole process | seconds (median) | beside new photos | accuracy |", "|---|---:|---:|---:|"]
    for row in result["rows"]:
        accuracy = "" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f} %"
        times = (
            "" if row["name"].startswith("predict") else f"{seconds[row['name']] / seconds['train, new photos']:.1f} x"
        )
        lines.append(f"| {row['name']} | {seconds[row['name']]:.1f} | {times} | {accuracy} |")
    return "\n".join([*lines, "", f"{what}; `{result['command']}`."])


if __name__ == "__main__":
    main()
