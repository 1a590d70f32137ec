"""Transfer learning for image classification: a folder of photos in, a model that predicts out.

Example::

    import regraft
    bundle = regraft.train("photos/", out="runs/pets")
    bundle.predict("cat.jpg")

Names are loaded when they are first used, so that importing regraft costs nothing and never imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from regraft.core.version import __version__ as __version__

if TYPE_CHECKING:
    from regraft.backbones.backbone import Backbone, load_backbone
    from regraft.backbones.features import Features, extract
    from regraft.bundle.bundle import Bundle, Prediction, load
    from regraft.bundle.predict import predict
    from regraft.commands.compare import Comparison, compare, side_by_side
    from regraft.commands.demo import demo
    from regraft.commands.embed import Embeddings, Neighbour, embed, similar
    from regraft.commands.export import Exported, export
    from regraft.commands.report import Report, report
    from regraft.commands.scan import ScanResult, find_issues
    from regraft.commands.train import train
    from regraft.core.errors import RegraftError
    from regraft.data.orchard import unpack_orchard
    from regraft.data.scan import Dataset, scan
    from regraft.data.splits import Splits, split
    from regraft.evaluation.evaluate import Evaluation, evaluate
    from regraft.models.linear_head import Head, solve
    from regraft.reporting.charts import Chart
    from regraft.reporting.confusion_matrix import confusion_chart
    from regraft.reporting.html_compare import SideBySide, learning_curve
    from regraft.reporting.plots import dataset_grid, filter_grid, heat_picture, photo_grid, prediction_grid
    from regraft.serving.server import serve
    from regraft.sklearn import ImageClassifier

_HOMES = {
    "Backbone": "backbones.backbone",
    "Bundle": "bundle.bundle",
    "Chart": "reporting.charts",
    "Comparison": "commands.compare",
    "Dataset": "data.scan",
    "Embeddings": "commands.embed",
    "Evaluation": "evaluation.evaluate",
    "Exported": "commands.export",
    "Features": "backbones.features",
    "Head": "models.linear_head",
    "ImageClassifier": "sklearn",
    "Neighbour": "commands.embed",
    "Prediction": "bundle.bundle",
    "RegraftError": "core.errors",
    "Report": "commands.report",
    "ScanResult": "commands.scan",
    "SideBySide": "reporting.html_compare",
    "Splits": "data.splits",
    "compare": "commands.compare",
    "confusion_chart": "reporting.confusion_matrix",
    "dataset_grid": "reporting.plots",
    "demo": "commands.demo",
    "embed": "commands.embed",
    "evaluate": "evaluation.evaluate",
    "export": "commands.export",
    "extract": "backbones.features",
    "filter_grid": "reporting.plots",
    "find_issues": "commands.scan",
    "heat_picture": "reporting.plots",
    "learning_curve": "reporting.html_compare",
    "load": "bundle.bundle",
    "load_backbone": "backbones.backbone",
    "photo_grid": "reporting.plots",
    "predict": "bundle.predict",
    "prediction_grid": "reporting.plots",
    "report": "commands.report",
    "scan": "data.scan",
    "serve": "serving.server",
    "side_by_side": "commands.compare",
    "similar": "commands.embed",
    "solve": "models.linear_head",
    "split": "data.splits",
    "train": "commands.train",
    "unpack_orchard": "data.orchard",
}

__all__ = [
    "Backbone",
    "Bundle",
    "Chart",
    "Comparison",
    "Dataset",
    "Embeddings",
    "Evaluation",
    "Exported",
    "Features",
    "Head",
    "ImageClassifier",
    "Neighbour",
    "Prediction",
    "RegraftError",
    "Report",
    "ScanResult",
    "SideBySide",
    "Splits",
    "compare",
    "confusion_chart",
    "dataset_grid",
    "demo",
    "embed",
    "evaluate",
    "export",
    "extract",
    "filter_grid",
    "find_issues",
    "heat_picture",
    "learning_curve",
    "load",
    "load_backbone",
    "photo_grid",
    "predict",
    "prediction_grid",
    "report",
    "scan",
    "serve",
    "side_by_side",
    "similar",
    "solve",
    "split",
    "train",
    "unpack_orchard",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'regraft' has no attribute {name!r}")
    return getattr(import_module(f"regraft.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
