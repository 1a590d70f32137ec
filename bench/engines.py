"""Which engine runs a frozen network fastest on this processor: photos a second of four, on three networks.

    python bench/engines.py [--seconds 3] [--rounds 3]

Weights are random, inputs are noise, decoding is left out; every engine on all cores at the batch size that suits it
best. Writes bench/results/engines.json and fills README.md.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import onnxruntime
import torch

from record import HERE, fill, machine, where
from regraft.backbones import network
from regraft.backbones.backbone import Backbone, load_backbone
from regraft.core.runtime import num_cores
from regraft.data.scan import map_photos

NETWORKS = ("tf_efficientnet_lite0", "resnet50", "timm/vit_tiny_patch16_224")
BATCHES = (1, 8, 32)
Run = Callable[[], int]  # does something and says of how many photos


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="regraft-bench-") as folder:
        os.environ["REGRAFT_CACHE"] = folder
        for name in NETWORKS:
            engines = contenders(load_backbone(name, "random"), name)
            rounds = [
                {engine: max(speed(run, arguments.seconds) for run in runs) for engine, runs in engines.items()}
                for _ in range(arguments.rounds)
            ]
            rows.append({"network": name} | {e: statistics.median(r[e] for r in rounds) for e in engines})
            print(rows[-1], flush=True)
    result = {"command": "python bench/engines.py", **machine(), "rows": rows}
    (HERE / "results" / "engines.json").write_text(json.dumps(result, indent=1) + "\n")
    fill("engines", table(result))
    print(table(result))


def contenders(backbone: Backbone, name: str) -> dict[str, list[Run]]:
    """Engines by name, each at several batch sizes."""
    p = backbone.preprocessing
    noise = {b: np.random.default_rng(0).integers(0, 256, (b, p.height, p.width, 3), np.uint8) for b in BATCHES}
    return {
        "OpenVINO": [openvino(backbone, noise[1])],
        "ONNX Runtime": [onnx(backbone, noise[b]) for b in BATCHES],
        "torch": [eager(name, noise[b], torch.float32, torch.contiguous_format) for b in BATCHES],
        "torch, channels last": [eager(name, noise[b], torch.float32, torch.channels_last) for b in BATCHES],
        "torch, channels last, bf16": [eager(name, noise[b], torch.bfloat16, torch.channels_last) for b in BATCHES],
    }


def openvino(backbone: Backbone, noise: np.ndarray) -> Run:
    """As regraft runs it: a photo a request, a request a core."""
    engine, count = backbone.engine(), 8 * num_cores()

    def run() -> int:
        for _ in map_photos(lambda _: engine(noise), count, lambda _: None):
            pass
        return count

    return run


def onnx(backbone: Backbone, noise: np.ndarray) -> Run:
    """The same graph."""
    session = onnxruntime.InferenceSession(str(backbone.graph), providers=["CPUExecutionProvider"])

    def run() -> int:
        session.run(["features"], {"images": noise})
        return len(noise)

    return run


def eager(name: str, noise: np.ndarray, dtype: torch.dtype, memory: torch.memory_format) -> Run:
    """The network itself, evaluating."""
    module = network.build(name, "random").module.eval().to(memory_format=memory)
    images = torch.from_numpy(noise).permute(0, 3, 1, 2).float().div(255).contiguous(memory_format=memory)

    def run() -> int:
        with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            module(images)
        return len(noise)

    return run


def speed(run: Run, seconds: float) -> float:
    """Photos a second, after one call to warm up."""
    run()
    count, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        count += run()
    return count / passed


def table(result: dict) -> str:
    """A line for each network."""
    engines = [name for name in result["rows"][0] if name != "network"]
    lines = ["| photos/s | " + " | ".join(engines) + " |", "|---|" + "---:|" * len(engines)]
    lines += [f"| {row['network']} | " + " | ".join(f"{row[e]:.0f}" for e in engines) + " |" for row in result["rows"]]
    return "\n".join([*lines, "", f"{where(result)}; `{result['command']}`."])


if __name__ == "__main__":
    main()
