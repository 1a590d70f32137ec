"""Transfer learning for image classification: a folder of photos in, a model that predicts out.

    import regraft
    bundle = regraft.train("photos/", out="runs/pets")
    bundle.predict("cat.jpg")

Names are loaded when they are first used, so that importing regraft costs nothing and never imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from regraft.ground.version import __version__ as __version__

if TYPE_CHECKING:
    from regraft.api import Comparison, compare, demo, side_by_side, train
    from regraft.backbones.features import Features, extract
    from regraft.backbones.graph import Backbone, load_backbone
    from regraft.data.orchard import unpack_orchard
    from regraft.data.scan import Dataset, scan
    from regraft.data.splits import Splits, split
    from regraft.deliver.bundle import Bundle, Prediction, load
    from regraft.deliver.evaluate import Evaluation, evaluate
    from regraft.deliver.predict import predict
    from regraft.doctor import Examination, examine
    from regraft.estimator import ImageClassifier
    from regraft.exporting import Exported, export
    from regraft.ground.errors import RegraftError
    from regraft.learn.head import Head, solve
    from regraft.reporting import Report, report
    from regraft.server.serving import serve
    from regraft.show.charts import Chart
    from regraft.show.compared import SideBySide, learning_curve
    from regraft.show.matrix import confusion_chart
    from regraft.show.plots import dataset_grid, filter_grid, heat_picture, photo_grid, prediction_grid

_HOMES = {
    "Backbone": "backbones.graph",
    "Bundle": "deliver.bundle",
    "Chart": "show.charts",
    "Comparison": "api",
    "Dataset": "data.scan",
    "Evaluation": "deliver.evaluate",
    "Examination": "doctor",
    "Exported": "exporting",
    "Features": "backbones.features",
    "Head": "learn.head",
    "ImageClassifier": "estimator",
    "Prediction": "deliver.bundle",
    "RegraftError": "ground.errors",
    "Report": "reporting",
    "SideBySide": "show.compared",
    "Splits": "data.splits",
    "compare": "api",
    "confusion_chart": "show.matrix",
    "dataset_grid": "show.plots",
    "demo": "api",
    "evaluate": "deliver.evaluate",
    "examine": "doctor",
    "export": "exporting",
    "extract": "backbones.features",
    "filter_grid": "show.plots",
    "heat_picture": "show.plots",
    "learning_curve": "show.compared",
    "load": "deliver.bundle",
    "load_backbone": "backbones.graph",
    "photo_grid": "show.plots",
    "predict": "deliver.predict",
    "prediction_grid": "show.plots",
    "report": "reporting",
    "scan": "data.scan",
    "serve": "server.serving",
    "side_by_side": "api",
    "solve": "learn.head",
    "split": "data.splits",
    "train": "api",
    "unpack_orchard": "data.orchard",
}

__all__ = [
    "Backbone",
    "Bundle",
    "Chart",
    "Comparison",
    "Dataset",
    "Evaluation",
    "Examination",
    "Exported",
    "Features",
    "Head",
    "ImageClassifier",
    "Prediction",
    "RegraftError",
    "Report",
    "SideBySide",
    "Splits",
    "compare",
    "confusion_chart",
    "dataset_grid",
    "demo",
    "evaluate",
    "examine",
    "export",
    "extract",
    "filter_grid",
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
