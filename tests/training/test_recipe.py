"""Recipes: every number is checked, decided for the user, explained, and the notebook's are the notebook's."""

import json
import math
from dataclasses import fields, replace

import pytest
import torch
from torchvision.transforms import v2

from regraft.core.errors import ConfigError
from regraft.core.settings import settings_of
from regraft.data.transforms import Preprocessing
from regraft.training.augmentation import augmentation
from regraft.training.loop import rate_factor
from regraft.training.recipe import Recipe, check_names, choose_recipe, decide, tutorial

NAN, INF = math.nan, math.inf
NOT_A_COUNT = (1.0, 1.5, "1", None, True, [1], NAN)
NOT_A_NUMBER = ("0.1", None, True, [0.1], 1j)
NOT_A_SWITCH = (0, 1, "yes", None)

# field: (what it may be, up to its ends; what is out of range; what is of the wrong kind)
VALUES = {
    "epochs": ((1, 100_000), (0, -1, 100_001), NOT_A_COUNT),
    "batch_size": ((1, 1_000_000), (0, -8, 10**7), NOT_A_COUNT),
    "val_batch_size": ((1, 1_000_000), (0, -8, 10**7), NOT_A_COUNT),
    "microbatch_size": ((0, 1), (-1, 10**7), NOT_A_COUNT),
    "optimizer": (("adamw", "sgd"), ("adam", "SGD", ""), (1, None, True)),
    "learning_rate": ((0, 0.0, 1, 100.0), (-1e-9, 101, NAN, INF, -INF), NOT_A_NUMBER),
    "head_learning_rate": ((0, 0.0, 1, 100.0), (-1e-9, 101, NAN, INF, -INF), NOT_A_NUMBER),
    "layer_decay": ((1e-6, 1, 1.0), (0.0, 1.01, -0.5, NAN, INF), NOT_A_NUMBER),
    "momentum": ((0, 0.9), (-0.1, 1.0, NAN, INF), NOT_A_NUMBER),
    "weight_decay": ((0, 0.05), (-0.1, NAN, INF), NOT_A_NUMBER),
    "schedule": (("cosine", "constant"), ("linear", ""), (0, None)),
    "warmup": ((0, 1, 0.5), (-0.1, 1.1, NAN, INF), NOT_A_NUMBER),
    "clip": ((0, 1.0), (-1.0, NAN, INF), NOT_A_NUMBER),
    "head_start": (("solved", "zero", "random"), ("near", ""), (0, None)),
    "batchnorm": (("eval", "train"), ("frozen", ""), (0, None, True)),
    "unfreeze": ((-1, 0, 3), (-2, 10_001), NOT_A_COUNT),
    "views": ((0, 7), (-1, 100_001), NOT_A_COUNT),
    "small_epochs": ((0, 7), (-1, 100_001), NOT_A_COUNT),
    "min_crop": ((0.001, 0.5, 1), (0.0, 1.1, -0.3, NAN, INF), NOT_A_NUMBER),
    "flip": ((True, False), (), NOT_A_SWITCH),
    "augment": (("crop", "color", "trivial"), ("colour", "none"), (0, None)),
    "mix": (("none", "mixup", "cutmix"), ("mixed", ""), (0, None, False)),
    "label_smoothing": ((0, 0.5), (-0.1, 1.0, NAN, INF), NOT_A_NUMBER),
    "class_weights": ((True, False), (), NOT_A_SWITCH),
    "ema": ((0, 0.999), (-0.1, 1.0, NAN, INF), NOT_A_NUMBER),
    "interpolation": ((0, 0.5, 1.0), (-0.1, 1.1, NAN, INF), NOT_A_NUMBER),
    "keep": (("last", "best"), ("first", ""), (0, None)),
    "patience": ((0, 5), (-1, 100_001), NOT_A_COUNT),
    "compile": ((True, False), (), NOT_A_SWITCH),
}


def cases(column):
    return [pytest.param(name, value, id=f"{name}-{value}") for name, row in VALUES.items() for value in row[column]]


def made(name, value):
    return Recipe(**{"keep": "best", "unfreeze": 1, "batchnorm": "eval", name: value})


def test_the_table_of_this_test_has_every_setting():
    assert set(VALUES) == {field.name for field in fields(Recipe)}


@pytest.mark.parametrize(("name", "value"), cases(0))
def test_a_value_in_range_is_taken_as_it_is(name, value):
    assert getattr(made(name, value), name) == value


@pytest.mark.parametrize(("name", "value"), cases(1))
def test_a_value_out_of_range_is_refused_by_the_name_of_its_option(name, value):
    with pytest.raises(ConfigError, match=f"^--{name.replace('_', '-')} .*Expected") as caught:
        made(name, value)
    assert str(value) in str(caught.value)


@pytest.mark.parametrize(("name", "value"), cases(2))
def test_a_value_of_the_wrong_kind_is_refused_by_the_name_of_its_option(name, value):
    with pytest.raises(ConfigError, match=f"^--{name.replace('_', '-')} .*Expected"):
        made(name, value)


def test_smaller_photos_and_kept_activations_exclude_each_other():
    with pytest.raises(ConfigError, match="--small-epochs and --views exclude each other"):
        Recipe(views=2, unfreeze=1, small_epochs=1)


def test_patience_without_a_best_epoch_is_refused():
    with pytest.raises(ConfigError, match="--patience needs --keep best"):
        Recipe(patience=3)
    assert Recipe(patience=3, keep="best").patience == 3


def test_a_misspelt_setting_is_refused_with_the_nearest_name():
    check_names({"epochs": 1, "learning_rate": 1})
    with pytest.raises(ConfigError, match=r"Unknown setting 'epoch'. Did you mean 'epochs'"):
        check_names({"batch_size": 1, "epoch": 3})


@pytest.mark.parametrize("mode", ["full", "scratch"])
@pytest.mark.parametrize("num_train", [2, 40, 1000, 100_000])
def test_a_recipe_is_decided_for_every_size(mode, num_train):
    recipe = decide(mode, num_train)
    steps = recipe.epochs * math.ceil(num_train / recipe.batch_size)
    assert steps >= 50, "a small set needs its share of steps too"
    assert recipe.epochs <= 100
    assert recipe.keep == "last", "choosing an epoch would take photos away from training"
    assert (recipe.head_start == "random") == (mode == "scratch"), "nothing can be solved on random features"
    assert mode == "full" or recipe.batchnorm == "train", "random weights have no statistics to keep"


@pytest.mark.parametrize("name", ["regraft", "tutorial"])
@pytest.mark.parametrize("mode", ["full", "scratch"])
def test_what_the_user_fixes_is_all_that_changes(name, mode):
    decided = decide(mode, 100)
    plain = choose_recipe(name, decided, mode, {})
    assert plain == (tutorial(mode) if name == "tutorial" else decided)
    assert choose_recipe(name, decided, mode, {"epochs": 3, "mix": "cutmix"}) == replace(plain, epochs=3, mix="cutmix")
    with pytest.raises(ConfigError, match="--epochs 0"):
        choose_recipe(name, decided, mode, {"epochs": 0})


def test_training_that_begins_from_a_solved_head_keeps_what_it_rests_on_and_softens_it():
    solved, other = decide("full", 100, from_solved=True), decide("full", 100)
    assert (solved.head_start, solved.batchnorm) == ("softened", "eval"), "statistics that move spoil a solved head"
    assert (other.head_start, other.batchnorm) == ("zero", "train")
    assert solved.clip > 0 == other.clip
    assert solved.learning_rate < other.learning_rate, "without BatchNorm's help"
    assert decide("scratch", 100, from_solved=True) == decide("scratch", 100), "random weights know nothing"


def test_for_photos_from_elsewhere_weights_between_are_delivered():
    near, far = (decide("full", 100, from_solved=True, is_far=is_far) for is_far in (False, True))
    assert near.interpolation == 1
    assert 0.5 < far.interpolation < 1
    assert far == replace(near, interpolation=far.interpolation)
    assert choose_recipe("regraft", far, "full", {"batchnorm": "train"}).interpolation == 1, (
        "asked for, and nothing refused"
    )
    assert decide("full", 100, is_far=True) == decide("full", 100)


@pytest.mark.parametrize(("mode", "epochs", "unfreeze"), [("full", 10, 0), ("frozen", 20, -1), ("scratch", 20, 0)])
def test_the_tutorials_numbers_are_those_of_the_notebook(mode, epochs, unfreeze):
    assert tutorial(mode).to_json() == {
        "epochs": epochs,
        "batch_size": 64,
        "val_batch_size": 8,
        "microbatch_size": 0,
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "head_learning_rate": 0.01,
        "layer_decay": 1.0,
        "momentum": 0.0,
        "weight_decay": 0.0001,
        "schedule": "constant",
        "warmup": 0.0,
        "clip": 0.0,
        "head_start": "random",
        "batchnorm": "train",
        "unfreeze": unfreeze,
        "views": 0,
        "small_epochs": 0,
        "min_crop": 0.08,
        "flip": True,
        "augment": "crop",
        "mix": "none",
        "label_smoothing": 0.0,
        "class_weights": False,
        "ema": 0.0,
        "interpolation": 1.0,
        "keep": "last",
        "patience": 0,
        "compile": False,
    }


def test_the_tutorials_rate_never_changes():
    assert {rate_factor(tutorial("full"), step, 40) for step in range(40)} == {1.0}


def test_the_tutorials_augmentation_is_the_notebooks():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ours = augmentation(tutorial("full"), Preprocessing(224, 224, (256, 256), "bilinear", "center", mean, std))
    notebooks = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()])
    photo = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for seed in range(8):
        torch.manual_seed(seed)
        expected = notebooks(photo)
        torch.manual_seed(seed)
        assert torch.equal(ours(photo), expected)


def test_a_recipe_comes_back_from_json():
    recipe = Recipe(epochs=3, mix="mixup", keep="best", patience=2, layer_decay=0.7)
    assert Recipe(**json.loads(json.dumps(recipe.to_json()))) == recipe


def test_every_setting_is_explained_and_can_be_chosen():
    found = {one.name: (one.kind, one.text) for one in settings_of(Recipe)}
    assert list(found) == [field.name for field in fields(Recipe)]
    for name, (kind, text) in found.items():
        in_range = VALUES[name][0]
        assert all(value in kind for value in in_range) if isinstance(kind, tuple) else kind in (bool, int, float)
        assert text.endswith("."), name
        assert "\n" not in text
    assert found["optimizer"][0] == ("adamw", "sgd")
    assert found["epochs"] == (int, "Passes over the training photos.")
    assert found["momentum"] == (float, "Of SGD.")


def test_a_recipe_tells_what_is_unusual_about_it():
    rates = {"learning_rate": 3e-4, "head_learning_rate": 2e-3}
    told = str(Recipe(epochs=7, batch_size=20, clip=1.0, mix="cutmix", microbatch_size=4, head_start="solved", **rates))
    for part in ("7 epochs of batches of 20", "adamw rate 0.0003, head 0.002", "head from solved", "crops from 35 %"):
        assert part in told
    assert told.endswith("; microbatch_size 4; clip 1.0; mix cutmix")
    assert "clip" not in str(Recipe())
