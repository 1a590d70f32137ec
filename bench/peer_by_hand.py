"""What one would write by hand: timm's network as a feature extractor, scikit-learn's logistic regression.

python bench/peer_by_hand.py DIR      prints {"accuracy": 0..1} on DIR/val
"""

import json
import sys
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from timm.data import create_transform, resolve_model_data_config
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from peer_network import network

backbone = network()
backbone.reset_classifier(0)
backbone.eval()
transform = create_transform(**resolve_model_data_config(backbone))


def features(folder: Path) -> tuple:
    """`(N, D)` and `(N,)`."""
    rows, labels = [], []
    with torch.inference_mode():
        for images, y in DataLoader(ImageFolder(folder, transform), batch_size=32, num_workers=2):
            rows.append(backbone(images))
            labels.append(y)
    return torch.cat(rows).numpy(), torch.cat(labels).numpy()


if __name__ == "__main__":
    root = Path(sys.argv[1])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(*features(root / "train"))
    print(json.dumps({"accuracy": model.score(*features(root / "val"))}))
