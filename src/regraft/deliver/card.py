"""The model card: what a stranger should know before using the model."""

from typing import Any

from regraft.data.transforms import Preprocessing
from regraft.ground.progress import printable
from regraft.ground.statistics import Accuracy


def card(manifest: dict[str, Any]) -> str:
    """README.md of a bundle, Markdown, from its manifest."""
    backbone, provenance = manifest["backbone"], manifest["provenance"]
    lines = [
        "# Image classifier",
        "",
        f"Tells apart {len(manifest['classes'])} classes: {', '.join(map(_code, manifest['classes']))}.",
        "",
        "## How good it is",
        "",
        *_metrics(manifest["metrics"]),
        "",
        "## What it is made of",
        "",
        f"- Backbone: {_code(backbone['name'])}, {backbone['num_params'] / 1e6:.1f} million parameters, licence "
        f"{backbone['licence']}; weights from {backbone['origin']}.",
        f"- Mode: {provenance['mode']}.",
        *(["- Features: mean and maximum of all its levels, beside the usual ones."] if backbone["levels"] else []),
        f"- Input: {Preprocessing.from_json(manifest['preprocessing'])}.",
        f"- Photos: {provenance['images']['used']} used of {provenance['images']['found']} found; data fingerprint "
        f"{_code(provenance['data_sha256'][:16])}.",
        "",
        "## How to use it",
        "",
        "    regraft predict BUNDLE photo.jpg",
        "",
        "It answers with one of its classes whatever it is shown. Judge it on photos of your own before relying on it:",
        "",
        "    regraft evaluate BUNDLE photos/",
        "",
    ]
    return "\n".join(lines)


def _metrics(metrics: dict[str, Any]) -> list[str]:
    if not metrics:
        return ["Not measured."]
    lines = [f"- Accuracy: {Accuracy(**metrics['accuracy'])}, measured through this bundle."]
    lines += [f"- {name}: {metrics[name]:.3f}" for name in ("macro_f1", "log_loss", "ece") if name in metrics]
    if "cross_validated" in metrics:
        lines.append(f"- Cross-validated on all photos: {Accuracy(**metrics['cross_validated'])}.")
    return lines


def _code(text: str) -> str:
    return "`" + printable(text).replace("`", "'") + "`"
