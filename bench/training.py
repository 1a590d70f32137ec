"""Training speed: `regraft train --mode full` beside the tutorial's plain loop, epoch for epoch, in turns.

    python bench/training.py [--rounds 3]

Takes REGRAFT_DATA/hymenoptera. Each round runs both as processes of their own, two epochs each, of which the second
counts: learning from all photos and judging the others. Writes bench/results/training.json and fills README.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from record import HERE, fill, machine, where


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    photos = Path(os.environ["REGRAFT_DATA"]) / "hymenoptera"
    rounds = []
    with tempfile.TemporaryDirectory(prefix="regraft-bench-") as scratch:
        for _ in range(arguments.rounds):
            rounds.append({"regraft": ours(photos, Path(scratch)), "plain": plain(photos)})
            print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)
    ratio = statistics.median(r["regraft"] / r["plain"] for r in rounds)
    result = {"command": "python bench/training.py", **machine(), "photos_per_s": rounds, "ratio": ratio}
    (HERE / "results" / "training.json").write_text(json.dumps(result, indent=1) + "\n")
    fill("training", sentence(result))
    print(sentence(result))


def sentence(result: dict) -> str:
    """What README.md says."""
    speed = {name: statistics.median(r[name] for r in result["photos_per_s"]) for name in ("regraft", "plain")}
    return (
        f"All layers learn at {speed['regraft']:.1f} photos/s on {where(result)}, judging after each epoch "
        f"included, {result['ratio']:.1f} times as fast as the tutorial's plain loop ({speed['plain']:.1f}); "
        f"`{result['command']}`."
    )


def ours(photos: Path, scratch: Path) -> float:
    """Photos a second of the second epoch."""
    command = [sys.executable, "-m", "regraft", "train", photos, "--mode", "full", "--epochs", "2", "--quiet", "--json"]
    env = {**os.environ, "REGRAFT_CACHE": str(scratch / "cache")}
    done = subprocess.run(
        [*map(str, command), "--out", str(scratch / "run")], capture_output=True, text=True, check=True, env=env
    )
    lines = (scratch / "run" / "photos.jsonl").read_text().splitlines()
    num_train = sum(json.loads(line).get("split") == "train" for line in lines)
    return num_train / json.loads(done.stdout)["history"][1]["seconds"]


def plain(photos: Path) -> float:
    """Photos a second of the notebook's second epoch."""
    command = [sys.executable, str(HERE / "peer_tutorial.py"), str(photos), "--epochs", "2"]
    answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return answer["num_train"] / answer["epoch_s"][1]


if __name__ == "__main__":
    main()
