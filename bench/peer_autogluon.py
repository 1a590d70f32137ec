"""AutoGluon's MultiModalPredictor with the default backbone's weights; needs an environment with autogluon.multimodal.

    python bench/peer_autogluon.py DIR [--minutes 10] [--seed 0]

DIR holds train/<class>/ and val/<class>/. Everything but the network, its normalisation and the time is as AutoGluon
chooses it. Prints one JSON object: accuracy on val, of which training sees nothing, and seconds.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from autogluon.multimodal import MultiModalPredictor

from peer_network import network


def main() -> None:
    """Fit within the time, then count right answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.perf_counter()
    train, val = (photos(arguments.folder / part) for part in ("train", "val"))
    with tempfile.TemporaryDirectory() as scratch:
        predictor = MultiModalPredictor(label="label", eval_metric="accuracy", path=f"{scratch}/model", verbosity=0)
        predictor.fit(
            train,
            presets="medium_quality",
            time_limit=60 * arguments.minutes,
            seed=arguments.seed,
            hyperparameters={
                "model.names": ["timm_image"],
                "model.timm_image.checkpoint_name": str(checkpoint(Path(scratch) / "lite0")),
                "model.timm_image.image_norm": "inception",
                "env.num_gpus": 0,
            },
        )
        answers = predictor.predict(val.drop(columns="label"), as_pandas=False)
    accuracy = float((answers == val["label"].to_numpy()).mean())
    print(json.dumps({"accuracy": accuracy, "seconds": time.perf_counter() - began}))


def photos(folder: Path) -> pd.DataFrame:
    """Paths and class names."""
    paths = sorted(path for path in folder.glob("*/*") if path.is_file())
    return pd.DataFrame({"image": [str(path) for path in paths], "label": [path.parent.name for path in paths]})


def checkpoint(folder: Path) -> Path:
    """A folder that AutoGluon takes for a network of timm's: weights without the head, and what timm says of it."""
    folder.mkdir()
    model = network()
    model.reset_classifier(0)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    config = {
        "architecture": "tf_efficientnet_lite0",
        "num_features": model.num_features,
        "pretrained_cfg": {**model.pretrained_cfg, "num_classes": 0, "input_size": [3, 224, 224]},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


if __name__ == "__main__":
    main()
