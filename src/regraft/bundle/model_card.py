"""The model card: what a stranger should know before using the model, and above it what a model hub reads.

Names of classes and files are input from outside: in the text they are code, and no name can end the head of the card.
"""

import json
import re
from typing import Any

from regraft.bundle.format import special_features
from regraft.core.progress import printable
from regraft.core.statistics import Accuracy
from regraft.data.transforms import Preprocessing

HUB_LICENCES = {"apache-2.0", "apple-amlr", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "gemma", "mit"}
NO_LICENCES = {"none", "not stated", "the file's own", "unknown"}


def card(manifest: dict[str, Any]) -> str:
    """Write README.md of a bundle, Markdown with YAML before it, from its manifest."""
    backbone, provenance = manifest["backbone"], manifest["provenance"]
    lines = [
        "---",
        *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in _front_matter(manifest).items()),
        "---",
        "",
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
        f"{_code(backbone['licence'])}; weights from {_code(backbone['origin'])}.",
        f"- Mode: {provenance['mode']}.",
        *(f"- Features: {text}; only model.onnx computes them." for text in special_features(backbone)),
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


def _front_matter(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what the Hugging Face Hub reads at the head of a card, as JSON values, which are YAML too.

    library_name is timm where timm can load the bundle. The licence is that of the backbone's weights.
    """
    backbone = manifest["backbone"]
    in_timm = backbone["name"].startswith("timm/") and not special_features(backbone)
    return {
        **_licence(backbone["licence"]),
        "library_name": "timm" if in_timm else "regraft",
        "pipeline_tag": "image-classification",
        "tags": ["regraft", "transfer-learning", "onnx"],
        **_model_index(manifest),
    }


def _licence(name: str) -> dict[str, str]:
    """Name a licence as the Hub wants it: one of its identifiers, or `other` and a name in small letters."""
    if name in NO_LICENCES:
        return {"license": "unknown"}
    if name in HUB_LICENCES:
        return {"license": name}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "other"}


def _model_index(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the measured accuracy as a row of the Hub's table; nothing where it was not measured."""
    if not manifest["metrics"]:
        return {}
    accuracy = Accuracy(**manifest["metrics"]["accuracy"])
    interval = {name: round(getattr(accuracy, name), 4) for name in ("low", "high")}
    metric = {
        "type": "accuracy",
        "value": round(accuracy.value, 4),
        "name": f"Accuracy on {accuracy.n} {accuracy.split} photos",
        "args": {"n": accuracy.n, **interval},
    }
    fingerprint = manifest["provenance"]["data_sha256"][:16]
    dataset = {"type": "imagefolder", "name": f"photos with fingerprint {fingerprint}", "split": accuracy.split}
    result = {"task": {"type": "image-classification"}, "dataset": dataset, "metrics": [metric]}
    return {"model-index": [{"name": printable(manifest["backbone"]["name"]), "results": [result]}]}


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
