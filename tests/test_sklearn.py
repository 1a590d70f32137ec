"""A classifier that scikit-learn takes for one of its own."""

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
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

import regraft
from regraft import ImageClassifier
from regraft.core.errors import DataError
from regraft.data.scan import scan
from regraft.data.splits import split

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
    np.testing.assert_allclose(alone, p[2], rtol=1e-5)  # a product of other shape rounds otherwise


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


def test_clone_cross_validation_grid_search_and_pipeline(fitted, listed):
    paths, labels = listed
    assert not hasattr(clone(fitted), "classes_")
    by_hand = [
        ImageClassifier()
        .fit([paths[i] for i in seen], [labels[i] for i in seen])
        .score(*zip(*((paths[i], labels[i]) for i in left), strict=False))
        for seen, left in StratifiedKFold(3).split(labels, labels)
    ]
    assert cross_val_score(ImageClassifier(), paths, labels, cv=3).tolist() == by_hand
    found = GridSearchCV(ImageClassifier(), {"all_levels": [False, True]}, cv=2).fit(paths, labels)
    assert found.best_score_ == max(found.cv_results_["mean_test_score"]) >= 0.9
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


@pytest.mark.slow
def test_cross_validation_on_real_photos_is_that_of_the_report(real_photos, tmp_path):
    folder = real_photos / "wbc4"
    bundle = regraft.train(folder, tmp_path, mode="frozen", quiet=True, report=False)
    told = bundle.manifest["metrics"]["cross_validated"]
    dataset = scan(folder)
    labels = [dataset.classes[label] for label in dataset.labels]
    scores = cross_val_score(ImageClassifier(), [dataset.root / path for path in dataset.paths], labels, cv=5)
    assert told["low"] <= scores.mean() <= told["high"]
    assert abs(scores.mean() - told["value"]) <= 2 * scores.std(ddof=1) / 5**0.5
