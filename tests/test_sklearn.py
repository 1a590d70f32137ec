"""A classifier that scikit-learn takes for one of its own."""

import pickle
import shutil
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import pandas as pd
import pytest
import torch
from joblib import parallel_config
from joblib.externals.loky import get_reusable_executor
from PIL import Image
from sklearn import config_context
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.exceptions import DataConversionWarning, NotFittedError, SkipTestWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict, cross_val_score, cross_validate
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.estimator_checks import (
    check_estimator,
    check_estimator_cloneable,
    check_estimator_repr,
    check_estimator_tags_renamed,
    check_get_params_invariance,
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
    check_set_params,
    check_valid_tag_types,
)
from sklearn.utils.validation import check_is_fitted, validate_data

import regraft
from faults.processes import IS_LONG
from regraft import ImageClassifier
from regraft.backbones import backbone as backbones
from regraft.core.errors import DataError, InputError, WeightsError
from regraft.data.scan import scan
from regraft.data.splits import split
from tiny_backbone import draw_photos, tiny_backbone

CHECKS = (
    check_estimator_cloneable,
    check_estimator_repr,
    check_estimator_tags_renamed,
    check_get_params_invariance,
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
    check_set_params,
    check_valid_tag_types,
)
FAILED = {  # scikit-learn's checks that may fail, and why that is right
    "check_sample_weight_equivalence_on_dense_data": "wants 1e-7; a head is solved to 1e-12 nats and kept in single "
    "precision, which is 1e-5: test_a_whole_weight_is_so_many_copies_and_none_is_leaving_out",
}
SKIPPED = {  # scikit-learn's checks that do not run, and why that is right
    "check_array_api_input": "needs SCIPY_ARRAY_API: photos are files or numpy's pixels, never arrays on a device",
}
COLUMNS = 16  # of a table that is drawn as photos, three numbers each


class OfTables(ImageClassifier):
    """The classifier for tables, each row drawn as a photo: so all of scikit-learn's checks of tables apply to it."""

    def fit(self, X, y, sample_weight=None):  # noqa: N803  # scikit-learn's name
        super().fit(rows_drawn(validate_data(self, X)), y, sample_weight)
        validate_data(self, X, skip_check_array=True)
        return self

    def _logits(self, photos):
        check_is_fitted(self)
        return super()._logits(rows_drawn(validate_data(self, photos, reset=False)))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.string = True, False
        return tags


def rows_drawn(table):
    """`(N, 16, 16, 3)` uint8 of a table `(N, D)`: numbers are shades, side by side."""
    shades = np.round(255 * (0.5 + np.arctan(table) / np.pi)).astype(np.uint8)
    bands = shades[:, np.arange(3 * COLUMNS) * shades.shape[1] // (3 * COLUMNS)]
    return np.repeat(bands.reshape(len(shades), 1, COLUMNS, 3), COLUMNS, axis=1)


@pytest.fixture(scope="module")
def tiny_network(tmp_path_factory):
    return tiny_backbone(tmp_path_factory.mktemp("network") / "tiny")


@pytest.fixture
def tiny(tiny_network, monkeypatch):
    """The classifier on a backbone of a few hundred numbers, with few penalties to choose from."""
    monkeypatch.setattr("regraft.models.linear_head.PENALTIES", (0.01, 0.1, 1.0))
    monkeypatch.setattr("regraft.sklearn.load_backbone", lambda *_, **__: tiny_network)
    return ImageClassifier(num_folds=2)


@pytest.fixture(scope="module")
def shaded(tmp_path_factory):
    """Paths and labels of two shades that overlap, mixed."""
    root = draw_photos(tmp_path_factory.mktemp("shades"), {"ash": 14, "birch": 10})
    paths = [
        path
        for pair in zip(*(sorted(root.glob(f"{name}/*")) for name in ("ash", "birch")), strict=False)
        for path in pair
    ] + sorted(root.glob("ash/*"))[10:]
    return paths, [path.parent.name for path in paths]


def coloured(num_classes, count=4, seed=0):
    """Photos `(N, 16, 16, 3)` of so many colours, `count` of each, and their names."""
    rng = np.random.default_rng(seed)
    colours = rng.permutation(np.stack(np.meshgrid([40, 128, 215], [40, 128, 215], [40, 215]), -1).reshape(-1, 3))
    y = np.tile(np.arange(num_classes), count)
    pixels = colours[y][:, None, None] + rng.normal(0, 20, (len(y), 16, 16, 3)) + rng.normal(0, 12, (len(y), 1, 1, 3))
    return pixels.clip(0, 255).astype(np.uint8), np.array([f"colour {label}" for label in y])


@pytest.fixture(scope="module")
def listed(photos):
    """Paths and labels of the three colours."""
    paths = sorted(photos.rglob("*.jpg"))
    return paths, [path.parent.name for path in paths]


@pytest.fixture(scope="module")
def fitted(listed):
    return ImageClassifier().fit(*listed)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_checks_of_scikit_learn_that_apply(check):
    check("ImageClassifier", ImageClassifier())


def test_check_estimator_has_nothing_to_say_beyond_checks_that_need_tables():
    with pytest.warns(SkipTestWarning, match="Can't test estimator ImageClassifier which requires input"):
        done = check_estimator(ImageClassifier())
    assert done
    assert {one["status"] for one in done} == {"passed"}


def test_it_learns_and_says_classes_in_the_order_of_its_probabilities(fitted, listed):
    paths, labels = listed
    assert list(fitted.classes_) == ["blue", "green", "red"]
    assert list(fitted.predict(paths)) == labels
    p = fitted.predict_proba(paths)
    assert p.shape == (30, 3)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert (fitted.classes_[p.argmax(axis=1)] == fitted.predict(paths)).all()
    assert fitted.score(paths, labels) == 1


def test_paths_pictures_and_arrays_of_the_same_photo_get_the_same_answer(fitted, listed):
    path = str(listed[0][0])
    picture = Image.open(path).convert("RGB")
    p = fitted.predict_proba([path, picture, np.asarray(picture)])
    np.testing.assert_allclose(p[1], p[0], atol=1e-6)
    np.testing.assert_array_equal(p[2], p[1])
    alone = fitted.predict_proba(np.asarray(picture)[np.newaxis])[0]
    np.testing.assert_allclose(alone, p[2], rtol=1e-10)  # whatever photos are beside it


def test_labels_may_be_numbers(listed):
    paths, labels = listed
    numbers = np.array([{"red": 7, "green": 3, "blue": 5}[label] for label in labels])
    fitted = ImageClassifier().fit(paths, numbers)
    assert list(fitted.classes_) == [3, 5, 7]
    assert (fitted.predict(paths) == numbers).all()


def test_the_head_is_that_of_train(photos, tmp_path):
    bundle = regraft.train(photos, tmp_path, mode="frozen", quiet=True, report=False)
    train = split(scan(photos)).train
    labels = [train.classes[label] for label in train.labels]
    names = sorted(set(labels))
    fitted = ImageClassifier().fit([train.root / path for path in train.paths], labels)
    weight, bias = bundle.head
    order = [bundle.classes.index(name) for name in names]
    np.testing.assert_allclose(fitted.head_.weight, weight[order], atol=1e-6)
    np.testing.assert_allclose(fitted.head_.bias, bias[order], atol=1e-6)


def test_clone_cross_validation_and_pipeline(fitted, listed):
    paths, labels = listed
    assert not hasattr(clone(fitted), "classes_")
    by_hand = [
        ImageClassifier()
        .fit([paths[i] for i in seen], [labels[i] for i in seen])
        .score(*zip(*((paths[i], labels[i]) for i in left), strict=False))
        for seen, left in StratifiedKFold(3).split(labels, labels)
    ]
    assert cross_val_score(ImageClassifier(), paths, labels, cv=3).tolist() == by_hand
    assert make_pipeline(ImageClassifier()).fit(paths, labels).score(paths, labels) == 1


def test_what_cannot_be_is_said(listed, tmp_path):
    paths, labels = listed
    with pytest.raises(NotFittedError):
        ImageClassifier().predict(paths)
    with pytest.raises(DataError, match="two classes or more"):
        ImageClassifier().fit(paths[:3], ["a", "a", "a"])
    with pytest.raises(DataError, match="as many labels as photos"):
        ImageClassifier().fit(paths[:3], ["a", "b"])
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no photo")
    with pytest.raises(DataError, match=r"bad\.jpg cannot be used: not an image"):
        ImageClassifier().fit([*paths, bad], [*labels, "red"])
    with pytest.raises(DataError, match=r"none\.jpg cannot be used: the file does not exist"):
        ImageClassifier().fit([*paths, tmp_path / "none.jpg"], [*labels, "red"])
    with pytest.raises(DataError, match="photo 0 cannot be used"):
        ImageClassifier().fit([object(), *paths[1:]], labels)


def shuffled(values):
    """A series whose index says another order than its positions."""
    return pd.Series(values, index=np.random.default_rng(0).permutation(len(values)))


HOLDERS = {
    "tuple": tuple,
    "texts": lambda paths: np.array([str(path) for path in paths]),
    "objects": lambda paths: np.array(paths, dtype=object),
    "column of objects": lambda paths: np.array(paths, dtype=object)[:, np.newaxis],
    "shuffled series": lambda paths: shuffled([str(path) for path in paths]),
    "series of paths": shuffled,
    "shuffled table": lambda paths: shuffled([str(path) for path in paths]).to_frame("photo"),
    "contents": lambda paths: [path.read_bytes() for path in paths],
    "pictures": lambda paths: [Image.open(path).convert("RGB") for path in paths],
    "pixels": lambda paths: np.stack([np.asarray(Image.open(path)) for path in paths]),
    "tensors": lambda paths: torch.stack(
        [torch.from_numpy(np.array(Image.open(path)).transpose(2, 0, 1)) for path in paths]
    ),
}


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
def test_photos_labels_and_weights_are_read_by_position_whatever_holds_them(tiny, shaded, holder):
    paths, labels = shaded
    weights = np.arange(len(paths)) % 3 + 1.0
    expected = clone(tiny).fit(paths, labels, weights)
    found = tiny.fit(holder(paths), shuffled(labels), shuffled(weights))
    np.testing.assert_allclose(found.head_.weight, expected.head_.weight, atol=1e-5)
    np.testing.assert_allclose(found.predict_proba(paths), expected.predict_proba(paths), atol=1e-6)
    np.testing.assert_allclose(found.predict_proba(holder(paths)), expected.predict_proba(paths), atol=1e-6)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (np.zeros((4, 64)), r"table of 64 columns, of shape \(4, 64\), holds no photos"),
        (pd.DataFrame({"path": ["a"] * 4, "age": 1}), r"table of 2 columns \(path, age, ...\)"),
        (np.zeros((4, 16, 3), np.uint8), r"shape \(4, 16, 3\) are one photo"),
        (torch.zeros(3, 16, 4), r"are one photo"),
        ("a.jpg", "A single str is one photo"),
        ({"a.jpg": 1}, "dict has no order"),
        ({"a.jpg"}, "set has no order"),
        (3, "int holds no photos"),
        ([], r"0 sample\(s\)"),
        ([[1.0]] * 4, "photo 0 cannot be used: list is no photo"),
        (np.zeros((4, 1)), "photo 0 cannot be used: float64 is no photo"),
        (np.zeros((4, 16, 16, 3)) - 2, "photo 0 cannot be used: floats from -2"),
    ],
)
def test_what_holds_no_photos_is_refused_by_name(tiny, held, message):
    with pytest.raises(InputError, match=message):
        tiny.fit(held, ["a", "b", "a", "b"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.0, np.nan, 1.0, np.nan], "2 of 4 labels are missing .* the first for photo 1"),
        (["a", "b", np.nan, "a"], "1 of 4 labels are missing"),
        ([0.0, 1.0, np.inf, 1.0], "1 of 4 labels are missing"),
        (["a", "b", None, "a"], "1 of 4 labels are missing"),
        (pd.Series(["a", "b", pd.NA, "a"], dtype="string"), "1 of 4 labels are missing"),
        (pd.Series([0, 1, None, 1], dtype="Int64"), "1 of 4 labels are missing"),
        (pd.Categorical(["a", "b", None, "a"]), "1 of 4 labels are missing"),
        (["a", 1, "b", 2], "Some labels are texts and some are not"),
        ([0.5, 0.1, 0.2, 0.3], "Unknown label type: continuous"),
        ([[0, 1], [1, 0], [0, 1], [1, 0]], "one label a photo"),
        (["a", "b", "a"], "got 3 labels for 4 photos"),
        (["a"] * 4, "two classes or more"),
    ],
)
def test_labels_that_are_missing_or_no_classes_are_refused(tiny, labels, message):
    with pytest.raises(ValueError, match=message):
        tiny.fit(np.zeros((4, 16, 16, 3), np.uint8), labels)


def test_of_two_classes_the_decision_is_one_number_that_all_answers_agree_with(tiny, shaded):
    paths, labels = shaded
    fitted = tiny.fit(paths, labels)
    decision = fitted.decision_function(paths)
    assert decision.shape == (24,)
    assert 0 < (decision > 0).sum() < 24
    assert (fitted.predict(paths) == fitted.classes_[(decision > 0).astype(int)]).all()
    p = fitted.predict_proba(paths)
    np.testing.assert_allclose(p[:, 1], 1 / (1 + np.exp(-decision / fitted.temperature_)))
    assert roc_auc_score(labels, decision) == roc_auc_score(labels, p[:, 1]) > 0.8


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_the_meta_estimators_of_scikit_learn(tiny, num_classes):
    x, y = coloured(num_classes)
    model = clone(tiny)
    means = {
        "calibrated": CalibratedClassifierCV(model, cv=2),
        "one against the rest": OneVsRestClassifier(model),
        "stacked": StackingClassifier([("a", model)], LogisticRegression(), cv=2),
        "voting": VotingClassifier([("a", model), ("b", clone(model))], voting="soft"),
    }
    for name, mean in means.items():
        fitted = mean.fit(x, y)
        assert list(fitted.classes_) == sorted(set(y)), name
        assert fitted.score(x, y) >= 0.9, name
        assert fitted.predict_proba(x).shape == (len(y), num_classes), name
    method, scoring = ("decision_function", "roc_auc") if num_classes == 2 else ("predict_proba", "roc_auc_ovr")
    scores = cross_val_score(model, x, y, cv=2, scoring=scoring)
    assert scores.min() > 0.95
    answers = cross_val_predict(model, x, y, cv=2, method=method)
    assert roc_auc_score(y, answers, multi_class="ovr") > 0.95
    with parallel_config("threading"):
        found = GridSearchCV(model, {"seed": [0, 1]}, cv=2, n_jobs=2, scoring=scoring).fit(x, y)
    assert found.best_score_ == scores.mean()


def test_processes_that_fitted_ones_come_back_from(listed):
    paths, labels = listed
    model, grid = ImageClassifier(num_folds=2), {"all_levels": [False, True]}
    try:
        told = cross_validate(model, paths, labels, cv=2, n_jobs=2, return_estimator=True)
        found = GridSearchCV(model, grid, cv=2, n_jobs=2).fit(paths, labels) if IS_LONG else None
    finally:
        get_reusable_executor().shutdown(wait=True)
    alone = cross_validate(model, paths, labels, cv=2, return_estimator=True)
    for there, here in zip(told["estimator"], alone["estimator"], strict=True):
        np.testing.assert_array_equal(there.predict_proba(paths), here.predict_proba(paths))
    assert alone["test_score"].mean() >= 0.9
    if found:
        assert found.best_score_ == found.cv_results_["mean_test_score"].max() >= alone["test_score"].mean()
        assert found.cv_results_["mean_test_score"][0] == alone["test_score"].mean()


def test_a_pickled_one_needs_neither_the_cache_nor_the_network_s_files(tmp_path, monkeypatch, shaded):
    paths, labels = shaded
    network = tiny_backbone(tmp_path / "network")
    monkeypatch.setattr("regraft.sklearn.load_backbone", lambda *_, **__: network)
    fitted = ImageClassifier(num_folds=2).fit(paths, labels)
    expected = fitted.predict_proba(paths)
    data, size = pickle.dumps(fitted), network.graph.stat().st_size
    assert size < len(data) < size + 20_000, "the graph, once"
    others = pickle.loads(data), ImageClassifier(num_folds=2).fit(paths, labels)
    assert all(one.backbone_.checked is fitted.backbone_.checked for one in others), "one graph in a process"
    assert pickle.dumps([fitted, *others]).count(fitted.backbone_.checked.data) == 1, "and in a pickle"
    shutil.rmtree(network.folder)
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "elsewhere"))
    np.testing.assert_array_equal(fitted.predict_proba(paths), expected)
    del fitted, others
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "another machine"))
    monkeypatch.setattr(backbones, "_GRAPHS", WeakValueDictionary())
    np.testing.assert_array_equal(pickle.loads(data).predict_proba(paths), expected)


def test_a_pickled_network_that_was_changed_is_refused(tiny, shaded, monkeypatch):
    fitted = tiny.fit(*shaded)
    info = {**fitted.backbone_.info, "sha256": {"features.onnx": "0" * 64}}
    other = backbones.BackboneInMemory(Path(), info, fitted.backbone_.checked)
    with pytest.raises(WeightsError, match="graph is damaged: expected sha256 000000000000"):
        pickle.loads(pickle.dumps(other))


def test_a_whole_weight_is_so_many_copies_and_none_is_leaving_out(tiny, shaded):
    paths, labels = shaded
    weights = np.arange(len(paths)) % 4
    weighted = clone(tiny).fit(paths, labels, sample_weight=weights)
    copies = [i for i, count in enumerate(weights) for _ in range(count)]
    repeated = clone(tiny).fit([paths[i] for i in copies], [labels[i] for i in copies])
    plain = clone(tiny).fit(paths, labels)
    same(weighted, repeated)
    assert abs(weighted.head_.weight - plain.head_.weight).max() > 1e-3
    seen = np.flatnonzero(weights)
    assert weighted.score(paths, labels, weights) == accuracy_score(
        labels, weighted.predict(paths), sample_weight=weights
    )
    zero = clone(tiny).fit([*paths, "none.jpg"], [*labels, "cedar"], [*np.minimum(weights, 1), 0])
    assert list(zero.classes_) == ["ash", "birch"], "a class of no weight is no class, and its photo is not read"
    same(zero, clone(tiny).fit([paths[i] for i in seen], [labels[i] for i in seen]))


def same(a, b):
    """Two fitted ones are one, up to what the solver leaves."""
    assert a.head_.penalty == b.head_.penalty
    np.testing.assert_allclose(a.head_.weight, b.head_.weight, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(a.head_.bias, b.head_.bias, rtol=1e-3, atol=1e-5)
    assert a.temperature_ == pytest.approx(b.temperature_, rel=1e-4)
    assert (a.head_.cross_validated.num_right, a.head_.cross_validated.n) == (
        b.head_.cross_validated.num_right,
        b.head_.cross_validated.n,
    )
    losses = [[point.log_loss for point in one.head_.curve] for one in (a, b)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_class_weights_are_the_weights_of_their_photos(tiny, shaded):
    paths, labels = shaded
    weights = np.arange(len(paths)) % 2 + 1
    for given in ({"ash": 3}, {"birch": 0.2, "ash": 1.5}, "balanced"):
        found = clone(tiny).set_params(class_weight=given).fit(paths, labels)
        same(found, clone(tiny).fit(paths, labels, compute_sample_weight(given, labels)))
    both = clone(tiny).set_params(class_weight={"ash": 3}).fit(paths, labels, weights)
    same(both, clone(tiny).fit(paths, labels, compute_sample_weight({"ash": 3}, labels) * weights))
    copies = [i for i, count in enumerate(weights) for _ in range(count)]
    balanced = clone(tiny).set_params(class_weight="balanced")
    expected = clone(balanced).fit([paths[i] for i in copies], [labels[i] for i in copies])
    same(clone(balanced).fit(paths, labels, weights), expected)


@pytest.mark.parametrize(
    ("class_weight", "weights", "message"),
    [
        (None, [1, 1, 1], r"shape \(3,\). Expected one number a photo: \(4,\)"),
        (None, [1, 1, -1, 1], "negative"),
        (None, [1, 1, np.nan, 1], "negative, infinite or none"),
        (None, ["a"] * 4, "not made of numbers"),
        (None, [0] * 4, "zero for all photos"),
        (None, [1, 0, 1, 0], "two classes or more; got 2 photos of one class"),
        ("even", None, "class_weight is 'even'"),
        ({"c": 1.0}, None, "class_weight names 'c', which is no label"),
        ({"a": 0.0}, None, "Expected numbers above 0"),
        ({"a": "much"}, None, "class_weight is not made of numbers"),
        ([1.0, 2.0], None, r"class_weight is \[1.0, 2.0\]"),
    ],
)
def test_weights_that_cannot_be_are_refused(tiny, class_weight, weights, message):
    with pytest.raises(InputError, match=message):
        tiny.set_params(class_weight=class_weight).fit(np.zeros((4, 16, 16, 3), np.uint8), ["a", "b"] * 2, weights)


def test_the_name_of_a_column_and_tables_out(tiny, shaded):
    paths, labels = shaded
    table = pd.DataFrame({"photo": paths}, index=range(100, 124))
    fitted = tiny.fit(table, labels)
    assert fitted.n_features_in_ == 1
    assert list(fitted.feature_names_in_) == ["photo"]
    with pytest.raises(ValueError, match="feature names should match"):
        fitted.predict(table.rename(columns={"photo": "picture"}))
    assert not hasattr(clone(fitted).fit(paths, labels), "feature_names_in_")
    assert not hasattr(fitted, "set_output"), "it answers with labels, not with tables"
    stacked = StackingClassifier([("a", clone(tiny))], cv=2).set_output(transform="pandas").fit(table, labels)
    assert stacked.transform(table).index.tolist() == list(table.index)
    assert list(stacked.feature_names_in_) == ["photo"]


def test_weights_are_routed_to_fit_and_to_score(tiny, shaded):
    paths, labels = shaded
    weights = np.arange(len(paths)) % 3 + 1.0
    folds = StratifiedKFold(2)
    with config_context(enable_metadata_routing=True):
        model = clone(tiny).set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        found = cross_val_score(model, np.array(paths), labels, cv=folds, params={"sample_weight": weights})
        piped = make_pipeline(model).fit(paths, labels, sample_weight=weights)
    np.testing.assert_array_equal(
        piped.predict_proba(paths), clone(tiny).fit(paths, labels, weights).predict_proba(paths)
    )
    p, y = np.array(paths), np.array(labels)
    by_hand = [clone(tiny).fit(p[a], y[a], weights[a]).score(p[b], y[b], weights[b]) for a, b in folds.split(p, y)]
    assert found.tolist() == by_hand


def test_labels_in_a_column_are_taken_with_a_warning(tiny, shaded):
    with pytest.warns(DataConversionWarning, match="column-vector"):
        tiny.fit(shaded[0], np.array(shaded[1])[:, np.newaxis])


def test_all_checks_of_scikit_learn_on_tables_drawn_as_photos(tiny):
    done = check_estimator(OfTables(num_folds=2), on_fail=None, on_skip=None, expected_failed_checks=FAILED)
    others = {one["check_name"]: (one["status"], one["exception"]) for one in done if one["status"] != "passed"}
    assert {name for name, (status, _) in others.items() if status == "skipped"} == SKIPPED.keys(), others
    assert {name for name, (status, _) in others.items() if status not in ("skipped", "xfail")} == set(), others
    assert len(done) > 60


@pytest.mark.slow
def test_cross_validation_on_real_photos_is_that_of_the_report(real_photos, tmp_path):
    folder = real_photos / "wbc4"
    bundle = regraft.train(folder, tmp_path, mode="frozen", quiet=True, report=False)
    told = bundle.manifest["metrics"]["cross_validated"]
    dataset = scan(folder)
    labels = [dataset.classes[label] for label in dataset.labels]
    photos = [dataset.root / path for path in dataset.paths]
    drawn = StratifiedKFold(5, shuffle=True, random_state=0)  # cv=5 cuts the photos in the order of their names
    scores = cross_val_score(ImageClassifier(), photos, labels, cv=drawn)
    assert abs(scores.mean() - told["value"]) <= 2 * scores.std(ddof=1) / 5**0.5
    assert told["low"] <= scores.mean() <= told["high"]
