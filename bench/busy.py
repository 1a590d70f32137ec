"""Training steps while another process takes one core: how much of the quiet speed is left, in turns.

    python bench/busy.py [--rounds 3] [--steps 8] [--batchnorm train]

Each round runs a quiet and a busy process with OpenMP's own way of waiting and all threads for every operation, and
with regraft's threads, so that ratios come from the same minutes. A process computes gradients of batches of 32 by the
default network with random weights and BatchNorm that keeps its statistics, or learns, and says the photos a second of
its steps after the first two; a busy one does so beside a loop that never ends.
Writes bench/results/busy.json, or busy-train.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

from record import HERE, machine, where
from regraft.core.runtime import SPINS, WAITING, num_cores

SPIN = "while True: pass"
PHOTOS = 32
STEP = """
import sys, time
from types import SimpleNamespace
from regraft.core.runtime import import_torch_module
networks, loop = import_torch_module("backbones.network"), import_torch_module("training.loop")
from regraft.core.progress import QUIET
from regraft.training.batches import Batch
from regraft.training.distributed import ProcessGroup
from regraft.training.parallel import parallel_threads
from regraft.training.recipe import Recipe
from regraft.training.threads import threads_beside_others
from regraft.training.train_state import TrainState
import torch
steps, photos, is_own = map(int, sys.argv[1:4])
torch.manual_seed(0)
module = networks.build("tf_efficientnet_lite0", "random").module.to(memory_format=torch.channels_last)
recipe, world = Recipe(batchnorm=sys.argv[4], batch_size=photos), ProcessGroup()
loop.put_into_training(module, recipe)
optimizer = torch.optim.SGD(module.parameters(), 0.0)
state = TrainState(module, optimizer, world, 0, 1280, SimpleNamespace(carried_out=recipe), microbatch_size=16)
pixels = torch.randn(photos, 3, 224, 224).contiguous(memory_format=torch.channels_last)
labels = torch.arange(photos)
batch = Batch(pixels, labels, torch.ones(photos), float(photos), (photos,))
with parallel_threads(world) as threads, threads_beside_others(world, QUIET) as choose:
    if is_own:
        state.threads, state.choose_threads = threads, choose
    for step in range(steps + 2):
        if step == 2:
            began = time.perf_counter()
        loop.gradients(state, batch, QUIET)
print(steps * photos / (time.perf_counter() - began))
"""
WAYS = {"OpenMP's own": "300000", "regraft's": None}  # what GOMP_SPINCOUNT is set to; None leaves it to regraft


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batchnorm", choices=["eval", "train"], default="eval")
    arguments = parser.parse_args()
    rounds, learns = [], arguments.batchnorm == "train"
    for _ in range(arguments.rounds):
        rounds.append(one_round(arguments.steps, arguments.batchnorm))
        print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)
    command = "python bench/busy.py" + (" --batchnorm train" if learns else "")
    result = {"command": command, **machine(), "spins": SPINS, "photos_per_s": rounds}
    (HERE / "results" / f"busy{'-train' if learns else ''}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(sentence(result))


def one_round(steps: int, batchnorm: str) -> dict[str, dict[str, float]]:
    """Photos a second of each way, quiet and busy."""
    found: dict[str, dict[str, float]] = {way: {} for way in WAYS}
    for state in ("quiet", "busy"):
        for way, spins in WAYS.items():
            found[way][state] = speed(spins, state == "busy", steps, batchnorm)
    return found


def speed(spins: str | None, is_busy: bool, steps: int, batchnorm: str) -> float:
    """Photos a second of one process. spins: GOMP_SPINCOUNT, None to leave it to regraft."""
    env = {name: value for name, value in os.environ.items() if name not in (*WAITING, "OMP_NUM_THREADS")}
    if spins is not None:
        env |= {"GOMP_SPINCOUNT": spins, "OMP_NUM_THREADS": str(num_cores())}
    beside = subprocess.Popen([sys.executable, "-c", SPIN]) if is_busy else None
    try:
        command = [sys.executable, "-c", STEP, str(steps), str(PHOTOS), str(int(spins is None)), batchnorm]
        return float(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)
    finally:
        if beside is not None:
            beside.kill()
            beside.wait()


def sentence(result: dict) -> str:
    """Medians over the rounds, in words."""
    middle = {
        way: {state: statistics.median(r[way][state] for r in result["photos_per_s"]) for state in ("quiet", "busy")}
        for way in WAYS
    }
    parts = [
        f"{way} threads: {speeds['quiet']:.1f} photos/s quiet, {speeds['busy']:.1f} with one core taken "
        f"({100 * speeds['busy'] / speeds['quiet']:.0f} %)"
        for way, speeds in middle.items()
    ]
    return f"{'; '.join(parts)}; {where(result)}; `{result['command']}`."


if __name__ == "__main__":
    main()
