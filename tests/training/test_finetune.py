"""Fine-tuning: what learns and what must not, what is delivered, and that it is what a plain loop of torch gives."""

import copy
import hashlib
import itertools
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from conftest import draw_folder
from faults.processes import mostly_long
from regraft.backbones.catalog import Reference
from regraft.backbones.network import FeatureGraph, Network, build, check_linear
from regraft.backbones.stages import stages
from regraft.core.errors import ConfigError, TrainError
from regraft.core.progress import QUIET, Progress
from regraft.data.scan import list_photos
from regraft.data.transforms import Preprocessing, photo_to_input
from regraft.models.linear_head import Head
from regraft.training import cached_activations as prefixes
from regraft.training import finetune as finetuning
from regraft.training import loop, planning
from regraft.training.augmentation import augmentation
from regraft.training.batches import Loader, decode_for_training
from regraft.training.checkpoint import latest_checkpoint
from regraft.training.distributed import ProcessGroup
from regraft.training.finetune import FineTuneJob, finetune
from regraft.training.recipe import Recipe, tutorial
from rounding import rounding

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = Preprocessing(32, 32, (40, 40), "bilinear", "center", MEAN, STD)
CLASSES = ("red", "green", "blue")
WIDTH = 12
few_workers = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    """Also on a processor that has bf16: what is compared here is compared to the last digits."""
    monkeypatch.setattr("regraft.training.distributed.has_bf16", lambda: False)


@pytest.fixture
def in_torch(monkeypatch):
    """Frozen stages in torch, as on a GPU."""
    monkeypatch.setattr(prefixes, "front_engine", lambda division: None)


@pytest.fixture(scope="module")
def train_set(tmp_path_factory):
    return list_photos(draw_folder(tmp_path_factory.mktemp("train") / "photos", CLASSES, 5))


@pytest.fixture(scope="module")
def val_set(tmp_path_factory):
    return list_photos(draw_folder(tmp_path_factory.mktemp("val") / "photos", CLASSES, 3, seed=500))


def block(width_in, width):
    return nn.Sequential(nn.Conv2d(width_in, width, 3, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU())


class Toy(nn.Module):
    """Three stages and a head, trained somewhere else."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.features = nn.Sequential(block(3, 8), block(8, 8), block(8, WIDTH))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(WIDTH, 7)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1)
                layer.num_batches_tracked.fill_(9)  # 0.9 * 9 + 0.1 * 9 is less than 9

    def body(self, images):
        return self.pool(self.features(images)).flatten(1)

    def forward(self, images):
        return self.fc(self.body(images))


def network_of(module=None, heads=("fc",)):
    module = (Toy() if module is None else module).eval()
    return Network(Reference("regraft", "toy"), module, heads, SMALL, "none", "drawn", None)


def recipe_of(**changes):
    """Plain gradient descent from a random head, unless something is asked for."""
    plain = {
        "epochs": 2,
        "batch_size": 6,
        "val_batch_size": 4,
        "microbatch_size": 0,
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "head_learning_rate": 0.05,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup": 0.0,
        "head_start": "random",
        "batchnorm": "train",
        "augment": "crop",
        "label_smoothing": 0.0,
    }
    return Recipe(**{**plain, **changes})


STILL = {"epochs": 1, "learning_rate": 0.0, "head_learning_rate": 0.0, "batchnorm": "eval"}


@pytest.fixture
def tune(train_set, val_set):
    """`tune(recipe, network)`: fine-tuned on the photos of these tests."""

    def tuned(recipe=None, network=None, head=None, progress=QUIET, **job):
        job = FineTuneJob(**{"train": train_set, "val": val_set, **job})
        return finetune(network or network_of(), job, recipe or recipe_of(), head, ProcessGroup(), progress)

    return tuned


def sha256(tuned):
    digest = hashlib.sha256()
    for name, value in tuned.network.module.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def test_for_each_step_there_may_be_another_number_of_threads(tune, train_set, monkeypatch):
    asked = []

    @contextmanager
    def counted(world, progress):
        yield lambda: asked.append(torch.get_num_threads())

    monkeypatch.setattr("regraft.training.finetune.threads_beside_others", counted)
    rows = tune(recipe_of(epochs=3, batch_size=6)).rows
    assert len(asked) == len(rows) * math.ceil(len(train_set) / 6) > 3


def distance(one, other):
    """Largest difference of a weight or statistic."""
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one if one[name].is_floating_point())


def without_times(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def logits_of(network, dataset):
    """As anyone would compute them who was given the network and the photos."""
    p = network.preprocessing
    inputs = np.stack([photo_to_input(dataset.read(i), p) for i in range(len(dataset))])
    images = torch.from_numpy(inputs).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        return network.module(v2.functional.normalize(images, list(p.mean), list(p.std)))


def loss_of(network, dataset):
    return nn.functional.cross_entropy(logits_of(network, dataset), torch.from_numpy(dataset.labels)).item()


# the tutorial


def by_hand(network, recipe, mode, train_set, val_set):
    """The notebook's loop, from torch's own parts. Returns the model and its history."""
    photos = decode_for_training(train_set, network.preprocessing, QUIET)
    loader = Loader(photos, recipe.batch_size, 0, ProcessGroup(), augmentation(recipe, network.preprocessing))
    model, criterion, normalise = copy.deepcopy(network.module), nn.CrossEntropyLoss(), v2.Normalize(MEAN, STD)
    model.requires_grad_(mode != "frozen")
    torch.manual_seed(0)
    model.fc = nn.Linear(model.fc.in_features, 3)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer, history = torch.optim.SGD(learning, lr=1e-2, weight_decay=1e-4), []
    for epoch in range(recipe.epochs):
        model.train()
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d) and mode == "frozen":
                layer.eval()
        losses, num_right = 0.0, 0
        for batch in loader.load(epoch):
            optimizer.zero_grad()
            outputs = model(normalise(batch.pixels.float() / 255))
            loss = criterion(outputs, batch.labels)
            loss.backward()
            optimizer.step()
            losses += loss.item() * len(batch.labels)
            num_right += int((outputs.argmax(dim=1) == batch.labels).sum())
        model.eval()
        judged = replace(network, module=model)
        right = logits_of(judged, val_set).argmax(dim=1).numpy() == val_set.labels
        history.append((losses / len(train_set), num_right / len(train_set), loss_of(judged, val_set), right.mean()))
    return model, history


@pytest.mark.parametrize("mode", ["full", "frozen", "scratch"])
def test_the_tutorials_recipe_gives_the_weights_of_the_tutorials_loop(mode, tune, train_set, val_set):
    recipe = replace(tutorial(mode), epochs=2, batch_size=4)
    expected, history = by_hand(network_of(), recipe, mode, train_set, val_set)
    tuned = tune(recipe)
    close = rounding(4, num_sums=8)  # batches of 4, 8 steps
    assert distance(tuned.network.module, expected) <= close
    assert distance(tuned.network.module.features, Toy().features) > 1e-3 or mode == "frozen"
    names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    for row, figures in zip(tuned.rows, history, strict=True):
        assert [row[name] for name in names] == pytest.approx(figures, abs=close)


# the same run, however it is carried out


@few_workers
def test_the_number_of_workers_changes_no_bit(tune):
    recipe = recipe_of(augment="color", mix="cutmix", optimizer="adamw", learning_rate=1e-3, microbatch_size=3)
    expected = sha256(tune(recipe, workers=0))
    assert sha256(tune(recipe, workers=2)) == expected
    assert sha256(tune(recipe, workers=0, seed=1)) != expected


@few_workers
def test_a_run_goes_on_with_another_number_of_workers_to_the_same_bits(tune, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "KEEPING_SHARE", 0.0)  # a checkpoint after every epoch, however long it takes

    class Killed(Exception):
        pass

    class UntilTheThirdEpoch(Progress):
        def say(self, message):
            if message.startswith("epoch  3/"):
                raise Killed

    recipe = recipe_of(epochs=4, momentum=0.9, ema=0.5, keep="best")
    expected = tune(recipe)
    with pytest.raises(Killed):
        tune(recipe, folder=tmp_path, workers=2, progress=UntilTheThirdEpoch())
    tuned = tune(recipe, folder=tmp_path, workers=0, progress=Progress())
    assert "continued: epoch 3, step 1\n" in capsys.readouterr().err
    assert sha256(tuned) == sha256(expected)
    assert without_times(tuned.rows) == without_times(expected.rows)
    assert tuned.epoch == expected.epoch


def test_the_order_of_the_files_changes_no_bit(tune, train_set, val_set):
    expected = tune()
    mixed = np.random.default_rng(0).permutation(len(train_set))
    assert sha256(tune(train=train_set.subset(mixed))) == sha256(expected)
    turned = tune(val=val_set.subset(range(len(val_set))[::-1]))
    assert sha256(turned) == sha256(expected)
    assert np.array_equal(turned.answers, expected.answers[::-1])


def test_the_network_that_was_given_is_left_as_it_was(tune):
    network = network_of()
    before = copy.deepcopy(network.module.state_dict())
    tuned = tune(network=network)
    assert all(torch.equal(value, before[name]) for name, value in network.module.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in network.module.parameters())
    assert not network.module.training
    assert tuned.network.module is not network.module


# what is delivered


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ema": 0.6},
        {"keep": "best"},
        {"keep": "best", "ema": 0.6},
        {"unfreeze": 1},
        {"unfreeze": -1},
        {"unfreeze": 1, "views": 2},
        {"unfreeze": 2, "views": 2, "keep": "best", "ema": 0.6},
    ],
)
def test_what_is_delivered_is_what_was_judged(changes, tune, val_set):
    tuned = tune(recipe_of(epochs=5, learning_rate=0.5, head_learning_rate=0.5, momentum=0.9, **changes))
    losses = [row["val_loss"] for row in tuned.rows]
    assert tuned.epoch == (1 + int(np.argmin(losses)) if "keep" in changes else 5)
    rounding = 1e-2 if "views" in changes else 1e-4  # what frozen stages give is kept in float16
    assert loss_of(tuned.network, val_set) == pytest.approx(losses[tuned.epoch - 1], rel=rounding, abs=1e-6)
    right = tuned.answers == val_set.labels
    assert np.array_equal(tuned.answers, logits_of(tuned.network, val_set).argmax(dim=1).numpy())
    assert right.mean() == tuned.rows[tuned.epoch - 1]["val_accuracy"]


def test_the_best_epoch_is_another_than_the_last_where_training_goes_too_far(tune, val_set):
    """Photos with wrong labels to judge on: the more is learned, the worse."""
    changes = {"epochs": 6, "learning_rate": 0.1, "head_learning_rate": 0.1, "momentum": 0.9, "keep": "best"}
    wrong = replace(val_set, labels=(val_set.labels + 1) % 3)
    tuned = tune(recipe_of(**changes), val=wrong)
    losses = [row["val_loss"] for row in tuned.rows]
    assert tuned.epoch == 1 + int(np.argmin(losses)) < 5
    assert losses[-1] > 2 * min(losses)
    patient = tune(recipe_of(**changes, patience=2), val=wrong)
    assert (patient.stopped, len(patient.rows), patient.epoch) == ("patience", tuned.epoch + 2, tuned.epoch)
    assert sha256(patient) == sha256(tuned)


def test_the_running_average_is_delivered_in_place_of_the_weights(tune):
    """One that hardly moves stays where the first step led."""
    first_step = tune(recipe_of(epochs=1, batch_size=64)).network.module
    last = tune(recipe_of(epochs=6, batch_size=64)).network.module
    average = tune(recipe_of(epochs=6, batch_size=64, ema=0.999999)).network.module
    assert distance(average, first_step) < 1e-4
    assert distance(average, last) > 1e-2


@pytest.mark.parametrize("changes", [{}, {"ema": 0.5}, {"unfreeze": 1, "views": 2}, {"unfreeze": 1}], ids=str)
def test_between_first_and_learned_weights_lies_what_is_delivered_and_judged(changes, tune, val_set):
    first, learned, between = (
        tune(recipe_of(**{"batchnorm": "eval", **changes, **end}))
        for end in ({"learning_rate": 0.0, "head_learning_rate": 0.0}, {}, {"interpolation": 0.25})
    )
    states = [one.network.module.state_dict() for one in (first, learned, between)]
    for name, value in states[2].items():
        ends = (states[0][name], states[1][name])
        assert torch.equal(value, torch.lerp(*ends, 0.25) if value.is_floating_point() else ends[1]), name
    assert distance(between.network.module, learned.network.module) > 0
    assert between.answers.tolist() == logits_of(between.network, val_set).argmax(dim=1).tolist()
    assert between.frozen_sha256 == learned.frozen_sha256


def test_photos_of_val_choose_between_learned_weights_and_those_between(tune, val_set):
    """Under labels that training does not teach, the less is learned the less is lost."""
    recipe = recipe_of(batchnorm="eval", interpolation=0.25)
    wrong = replace(val_set, labels=(val_set.labels + 1) % 3)
    for val, share in ((val_set, 1.0), (wrong, 0.25)):
        tuned = tune(recipe, val=val, val_chooses=True)
        assert tuned.recipe.interpolation == share
        assert sha256(tuned) == sha256(tune(replace(recipe, interpolation=share), val=val))
        assert tuned.answers.tolist() == logits_of(tuned.network, val).argmax(dim=1).tolist()


def test_weights_between_want_statistics_that_stay():
    with pytest.raises(ConfigError, match="--interpolation below 1 needs --batchnorm eval"):
        recipe_of(interpolation=0.5)


def test_the_delivered_network_is_ready_for_use(tune):
    tuned = tune(recipe_of(unfreeze=-1))
    module = tuned.network.module
    assert not any(m.training for m in module.modules())
    assert all(p.requires_grad and p.is_contiguous() and p.device.type == "cpu" for p in module.parameters())
    assert tuned.network.heads == ("fc",)
    assert tuned.network.num_features == WIDTH
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    check_linear(tuned.network, FeatureGraph(tuned.network).eval(), images)


def test_colours_are_learned(tune):
    tuned = tune(recipe_of(epochs=10, momentum=0.9, schedule="cosine"))
    assert tuned.rows[-1]["val_accuracy"] == 1.0
    assert tuned.rows[-1]["train_loss"] < 0.5 * tuned.rows[0]["train_loss"]


# heads


class TwoHeads(Toy):
    """As in distilled networks: the answers of two heads are averaged."""

    def __init__(self):
        super().__init__()
        self.fc_dist = nn.Linear(WIDTH, 7)

    def get_classifier(self):
        return self.fc, self.fc_dist

    def forward(self, images):
        return (self.fc(self.body(images)) + self.fc_dist(self.body(images))) / 2


class ConvolutionHead(Toy):
    def __init__(self):
        super().__init__()
        self.fc = nn.Conv2d(WIDTH, 7, 1)

    def forward(self, images):
        return self.fc(self.pool(self.features(images))).flatten(1)


class Auxiliary(Toy):
    """As in Inception: more answers than one while training."""

    def __init__(self):
        super().__init__()
        self.aux = nn.Linear(WIDTH, 7)

    def forward(self, images):
        x = self.body(images)
        return (self.fc(x), self.aux(x)) if self.training else self.fc(x)


@pytest.mark.parametrize(
    ("module", "heads"), [(TwoHeads, ("fc", "fc_dist")), (ConvolutionHead, ("fc",)), (Auxiliary, ("fc",))]
)
@pytest.mark.parametrize("changes", [{}, {"unfreeze": -1, "ema": 0.9}, {"optimizer": "adamw", "learning_rate": 0.01}])
def test_networks_with_other_heads_learn_new_classes(module, heads, changes, tune, val_set, tmp_path):
    tuned = tune(recipe_of(epochs=3, **changes), network_of(module(), heads), folder=tmp_path)
    layers = [tuned.network.module.get_submodule(name) for name in heads]
    assert all(layer.weight.shape[:2] == (3, WIDTH) for layer in layers)
    assert all(torch.equal(layer.weight, layers[0].weight) for layer in layers)
    assert logits_of(tuned.network, val_set).shape == (9, 3)
    assert loss_of(tuned.network, val_set) == pytest.approx(tuned.rows[-1]["val_loss"], rel=1e-4)
    assert tuned.rows[-1]["train_loss"] < tuned.rows[0]["train_loss"]
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    check_linear(tuned.network, FeatureGraph(tuned.network).eval(), images)


@pytest.mark.parametrize("module", [Toy, ConvolutionHead])
def test_a_solved_head_is_where_training_starts(module, tune):
    rng = np.random.default_rng(0)
    head = Head(
        rng.normal(size=(3, WIDTH)).astype(np.float32),
        rng.normal(size=3).astype(np.float32),
        0.1,
        (),
        np.empty((0, 3)),
        None,
    )
    tuned = tune(recipe_of(**STILL, head_start="solved"), network_of(module()), head=head)
    assert np.array_equal(tuned.network.module.fc.weight.detach().flatten(1).numpy(), head.weight)
    assert np.array_equal(tuned.network.module.fc.bias.detach().numpy(), head.bias)


def test_a_head_that_cannot_be_solved_is_an_error_with_its_cure(tune):
    with pytest.raises(ConfigError, match="--head-start solved needs a pretrained backbone"):
        tune(recipe_of(head_start="solved"))


def test_a_head_near_zero_lets_every_class_begin_alike(tune, val_set):
    tuned = tune(recipe_of(**STILL, head_start="zero"))
    layer = tuned.network.module.fc
    assert 0.005 < float(layer.weight.detach().std()) < 0.02
    assert torch.equal(layer.bias, torch.zeros(3))
    assert loss_of(tuned.network, val_set) == pytest.approx(math.log(3), abs=0.01)


def test_a_random_head_is_drawn_as_torch_draws_a_linear_layer(tune):
    for seed in (0, 3):
        tuned = tune(recipe_of(**STILL), seed=seed)
        torch.manual_seed(seed)
        drawn = nn.Linear(WIDTH, 3)
        assert torch.equal(tuned.network.module.fc.weight, drawn.weight)
        assert torch.equal(tuned.network.module.fc.bias, drawn.bias)


# what learns, and what must not


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize(("unfreeze", "learning"), [(0, "012"), (3, "012"), (2, "12"), (1, "2"), (-1, "")])
def test_only_the_last_stages_move_where_that_is_asked_for(unfreeze, learning, ema, tune):
    tuned = tune(recipe_of(unfreeze=unfreeze, ema=ema, weight_decay=0.1, momentum=0.9, batchnorm="train"))
    before, after = Toy().state_dict(), tuned.network.module.state_dict()
    for name in before:
        if not name.startswith("fc."):
            is_learning = name.split(".")[1] in learning
            assert torch.equal(before[name], after[name]) != is_learning, name
    assert (tuned.frozen_sha256 is None) == (learning == "012")


def test_the_hash_of_what_is_frozen_depends_on_what_that_is(tune):
    hashes = [tune(recipe_of(unfreeze=unfreeze, epochs=1)).frozen_sha256 for unfreeze in (-1, 1, 2)]
    assert len(set(hashes)) == 3
    assert tune(recipe_of(unfreeze=-1, epochs=2, momentum=0.9)).frozen_sha256 == hashes[0]


class Leaking(Toy):
    """Something in it moves, although nothing should."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, images):
        if self.training:
            with torch.no_grad():
                self.state_dict()[self.name].add_(1)
        return super().forward(images)


@pytest.mark.parametrize(
    "name", ["features.0.0.weight", "features.1.1.bias", "features.0.1.running_var", "features.1.1.num_batches_tracked"]
)
def test_a_frozen_layer_that_has_moved_is_noticed(name, tune):
    with pytest.raises(TrainError, match="frozen have moved"):
        tune(recipe_of(unfreeze=1), network_of(Leaking(name)))
    tune(recipe_of(unfreeze=1), network_of(Leaking("features.2.1.running_mean")))


def test_more_stages_than_there_are_cannot_be_unfrozen(tune):
    with pytest.raises(ConfigError, match=r"--unfreeze 4 is more than .* has: 3 stages"):
        tune(recipe_of(unfreeze=4))


# frozen stages that run once


@pytest.mark.usefixtures("in_torch")
def test_frozen_stages_run_once_for_each_version_of_a_photo(tune):
    seen = []

    class Counted(nn.Conv2d):
        def forward(self, images):
            seen.append(len(images))
            return super().forward(images)

    def num_seen(**changes):
        seen.clear()
        module = Toy()
        module.features[0][0] = Counted(3, 8, 3, 2, bias=False)
        tune(recipe_of(unfreeze=2, **changes), network_of(module))
        return sum(seen)

    assert num_seen(epochs=9, views=3) - num_seen(epochs=1, views=1) == 2 * 15, "nine epochs, three versions"


def test_frozen_stages_in_the_engine_give_what_torch_gives(tune, monkeypatch):
    """And training behind them ends where it would: they are rounded to float16 in any case."""
    recipe = recipe_of(unfreeze=2, epochs=3, views=2)
    calls, whole = [], prefixes._by_engine
    monkeypatch.setattr(prefixes, "_by_engine", lambda *given: calls.append(given) or whole(*given))
    by_engine = tune(recipe)
    assert len(calls) == 3, "two versions to learn from, one to judge"
    monkeypatch.setattr(prefixes, "front_engine", lambda division: None)
    by_torch = tune(recipe)
    assert len(calls) == 3
    assert distance(by_engine.network.module, by_torch.network.module) < 1e-3
    assert [row["train_loss"] for row in by_engine.rows] == pytest.approx(
        [row["train_loss"] for row in by_torch.rows], rel=1e-3
    )


def test_with_a_version_for_each_epoch_it_is_the_training_in_which_they_run_each_time(tune):
    usual, kept, few = (tune(recipe_of(unfreeze=2, epochs=3, views=views)) for views in (0, 3, 1))
    of_kept, of_few = (distance(one.network.module, usual.network.module) for one in (kept, few))
    assert of_kept < 0.1 * of_few, "rounding to float16; fewer versions show other crops"
    assert distance(usual.network.module.features, Toy().features) > 10 * of_kept
    assert kept.frozen_sha256 == usual.frozen_sha256
    assert [row["train_loss"] for row in kept.rows] == pytest.approx(
        [row["train_loss"] for row in usual.rows], rel=1e-3
    )


def test_a_run_on_kept_activations_goes_on_to_the_same_bits(tune, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    recipe = recipe_of(unfreeze=1, views=2, epochs=4, momentum=0.9, ema=0.5)
    whole, steps, original = tune(recipe), [], loop.gradients

    def cut(*arguments):
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(loop, "gradients", cut)
    with pytest.raises(KeyboardInterrupt):
        tune(recipe, folder=tmp_path)
    assert latest_checkpoint(tmp_path / "checkpoints", QUIET).state["fit"]["epoch"] == 1
    again = tune(recipe, folder=tmp_path)
    assert sha256(again) == sha256(whole)
    assert without_times(again.rows) == without_times(whole.rows)


def test_a_network_that_cannot_be_divided_runs_whole_and_says_so(tune, capsys):
    class LooksBack(Toy):
        def body(self, images):
            return super().body(images) + images.mean()

    usual, other = (
        tune(recipe_of(unfreeze=1, views=views), network_of(LooksBack()), progress=Progress()) for views in (0, 2)
    )
    assert sha256(other) == sha256(usual)
    assert capsys.readouterr().err.count("cannot be divided") == 1


def test_what_float16_cannot_hold_is_an_error_with_its_cure(tune):
    module = Toy()
    with torch.no_grad():
        module.features[0][1].weight.fill_(1e6)
    with pytest.raises(TrainError, match=r"more than float16 holds.*--views"):
        tune(recipe_of(unfreeze=2, views=1), network_of(module))


@pytest.mark.usefixtures("in_torch")
def test_frozen_stages_that_run_out_of_memory_take_fewer_photos_at_once(tune, capsys):
    class Hungry(nn.Conv2d):
        def forward(self, images):
            if len(images) > 2:
                raise torch.OutOfMemoryError
            return super().forward(images)

    def module(layer):
        torch.manual_seed(3)
        changed = Toy()
        changed.features[0][0] = layer(3, 8, 3, 2, bias=False)
        return network_of(changed)

    recipe = recipe_of(unfreeze=2, views=1)
    short, enough = tune(recipe, module(Hungry), progress=Progress()), tune(recipe, module(nn.Conv2d))
    told = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert told == [f"out of memory: microbatches of {n}; batches stay as they are" for n in (3, 1, 2)]
    assert distance(short.network.module, enough.network.module) < 1e-4


@pytest.mark.usefixtures("in_torch")
def test_as_many_versions_are_kept_as_a_share_of_the_time_allows(tune, clock):
    recipe = recipe_of(unfreeze=2, epochs=500, views=400)
    clock.tick = 0.01
    few = tune(recipe, budget_s=2.0)
    assert 1 <= few.recipe.views < 40
    assert tune(replace(recipe, epochs=1, views=2), budget_s=1e6).recipe.views == 2


def rates(recipe):
    """{parameter: (its highest rate, its weight decay)}"""
    network = network_of()
    named = dict(network.module.named_parameters())
    names = {id(p): name for name, p in named.items()}
    optimizer = finetuning._optimizer(named, finetuning._learning(network, recipe), recipe)
    return optimizer, {
        names[id(p)]: (group["peak_lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_each_stage_learns_at_its_own_rate(layer_decay, optimizer):
    _, found = rates(
        recipe_of(layer_decay=layer_decay, learning_rate=0.08, head_learning_rate=0.3, optimizer=optimizer)
    )
    assert set(found) == {name for name, _ in Toy().named_parameters()}
    for name, (rate, _) in found.items():
        stage = 3 if name.startswith("fc") else int(name.split(".")[1])
        assert rate == pytest.approx(0.3 if stage == 3 else 0.08 * layer_decay ** (3 - stage)), name


def test_sgd_decays_everything_and_adamw_leaves_biases_and_norms_alone():
    optimizer, found = rates(recipe_of(optimizer="sgd", weight_decay=0.1, momentum=0.7))
    assert type(optimizer) is torch.optim.SGD
    assert {group["momentum"] for group in optimizer.param_groups} == {0.7}
    assert {decay for _, decay in found.values()} == {0.1}
    optimizer, found = rates(recipe_of(optimizer="adamw", weight_decay=0.1))
    assert type(optimizer) is torch.optim.AdamW
    assert {name for name, (_, decay) in found.items() if decay} == {
        "fc.weight",
        *(f"features.{n}.0.weight" for n in range(3)),
    }


def test_only_what_learns_is_in_the_optimizer():
    _, found = rates(recipe_of(unfreeze=1))
    assert set(found) == {"fc.weight", "fc.bias", "features.2.0.weight", "features.2.1.weight", "features.2.1.bias"}
    assert [len(group) for group in stages(network_of())] == [3, 3, 3]


def test_layer_decay_slows_the_first_stages(tune):
    def moved(recipe):
        now, start = tune(recipe).network.module, Toy()
        return [float((now.features[n][0].weight - start.features[n][0].weight).detach().norm()) for n in range(3)]

    one_step = {"epochs": 1, "batch_size": 64, "batchnorm": "eval"}
    even, slower = moved(recipe_of(**one_step)), moved(recipe_of(**one_step, layer_decay=0.5))
    assert [a / b for a, b in zip(slower, even, strict=True)] == pytest.approx([1 / 8, 1 / 4, 1 / 2], rel=1e-2)


# options


UNEVEN = [i for i in range(15) if i not in (0, 1, 2, 6)]


@pytest.fixture(scope="module")
def plain():
    """Hash of what is tuned without any option, once it has been."""
    return []


@pytest.mark.parametrize(
    "changes",
    [
        {"mix": "mixup"},
        {"mix": "cutmix"},
        {"augment": "trivial"},
        {"augment": "color"},
        {"flip": False},
        {"min_crop": 0.9},
        {"label_smoothing": 0.2},
        {"clip": 0.01},
        {"momentum": 0.9},
        {"weight_decay": 0.5},
        {"layer_decay": 0.3},
        {"schedule": "cosine"},
        {"warmup": 0.5},
        {"ema": 0.9},
        {"optimizer": "adamw"},
        {"batchnorm": "eval"},
        {"batchnorm": "eval", "interpolation": 0.5},
        {"microbatch_size": 2},
        {"batch_size": 4},
        {"class_weights": True},
        {"unfreeze": 2},
        {"unfreeze": 2, "views": 2, "mix": "mixup"},
    ],
    ids=str,
)
def test_every_option_has_its_effect_and_is_repeatable(changes, tune, train_set, plain):
    uneven = train_set.subset(UNEVEN)
    one, again = (tune(recipe_of(**changes), train=uneven) for _ in range(2))
    if not plain:
        plain.append(sha256(tune(recipe_of(), train=uneven)))
    assert sha256(one) == sha256(again) != plain[0]
    for row in one.rows:
        assert all(math.isfinite(value) for value in row.values())


@pytest.mark.parametrize("changes", [{"val_batch_size": 1}, {"compile": True}, {"val_batch_size": 50}])
def test_some_options_change_no_result(changes, tune):
    plain, other = tune(), tune(recipe_of(**changes))
    assert sha256(other) == sha256(plain)
    for row, expected in zip(without_times(other.rows), without_times(plain.rows), strict=True):
        assert row == pytest.approx(expected, rel=rounding(9))


def test_class_weights_make_every_class_count_alike(train_set):
    uneven = train_set.subset([*range(5), 5, 10, 11])
    weights = finetuning._class_weights(uneven)
    counts = np.bincount(uneven.labels)
    assert sorted(counts) == [1, 2, 5]
    assert np.allclose(weights * counts, 8 / 3)


def test_with_class_weights_a_rare_class_is_not_forgotten(tune, train_set):
    uneven = train_set.subset([*range(5), 5, 10])
    changes = {"epochs": 3, "batch_size": 64, "unfreeze": -1, "learning_rate": 0.0, "batchnorm": "eval"}
    biases = [
        tune(recipe_of(**changes, class_weights=weighted), train=uneven).network.module.fc.bias.detach().numpy()
        for weighted in (False, True)
    ]
    often = uneven.labels[0]
    assert biases[1][often] < biases[0][often] - 1e-3


def test_microbatches_give_the_weights_of_whole_batches(tune):
    whole = tune(recipe_of(batchnorm="eval"))
    for size in (1, 2, 4, 5):
        assert distance(
            whole.network.module, tune(recipe_of(batchnorm="eval", microbatch_size=size)).network.module
        ) <= rounding(6, num_sums=6)


# few photos


FEW = {
    "two photos": ((0, 5), 64),
    "a last batch of one": ((0, 5, 10), 2),
    "a last batch of one after two": ((0, 1, 2, 5, 6, 7, 10, 11, 12), 4),
    "a class of two": ((0, 1, 2, 3, 4, 5, 6), 3),
    "one photo": ((0,), 4),
    "batches of one": ((0, 1, 5, 6, 10, 11), 1),
    "a batch larger than the set": (range(15), 1000),
}
WAYS = list(itertools.product(FEW, (0, 2), ("train", "eval")))


@pytest.mark.parametrize(
    ("few", "microbatch_size", "batchnorm"),
    mostly_long(WAYS, *(way for way in WAYS if (way[1] == 0) == (way[2] == "train"))),
)
def test_any_number_of_photos_can_be_learned_from(few, microbatch_size, batchnorm, tune, train_set, val_set):
    chosen, batch_size = FEW[few]
    recipe = recipe_of(batch_size=batch_size, microbatch_size=microbatch_size, batchnorm=batchnorm)
    for val in (val_set, val_set.subset([4])):
        tuned = tune(recipe, train=train_set.subset(chosen), val=val)
        assert len(tuned.rows) == 2
        assert all(math.isfinite(value) for row in tuned.rows for value in row.values())
        assert len(tuned.answers) == len(val)
        num_right = tuned.rows[0]["train_accuracy"] * len(chosen)
        assert num_right == pytest.approx(round(num_right)), "each photo is counted once"


class NormAtTheEnd(Toy):
    """As in MobileNetV4: BatchNorm after pooling, where a photo is one value a channel."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def body(self, images):
        return self.norm(super().body(images))


@pytest.mark.parametrize("microbatch_size", [0, 1, 2, 3])
@pytest.mark.parametrize("count", [2, 3, 5, 9, 13])
def test_batchnorm_after_pooling_never_meets_a_photo_alone(count, microbatch_size, tune, train_set):
    chosen = [0, 5, 10, 1, 6, 11, 2, 7, 12, 3, 8, 13, 4][:count]
    recipe = recipe_of(batch_size=4, microbatch_size=microbatch_size, batchnorm="train")
    tuned = tune(recipe, network_of(NormAtTheEnd()), train=train_set.subset(chosen))
    assert all(math.isfinite(value) for row in tuned.rows for value in row.values())


# time


@dataclass
class Clock:
    """Stands still but for what is added to it, and for `tick` whenever it is looked at."""

    now: float = 1000.0
    tick: float = 0.0

    def __call__(self):
        self.now += self.tick
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(time, "monotonic", clock := Clock())
    return clock


class Slow(Toy):
    """Takes 4 ms for a photo that it learns from, and what is reckoned with for one that it is judged on."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def __deepcopy__(self, memo):
        other = Slow(self.clock)
        other.load_state_dict(self.state_dict())
        return other.train(self.training)

    def forward(self, images):
        self.clock.now += 0.004 * len(images) * (1 if torch.is_grad_enabled() else finetuning.VALIDATION_COST)
        return super().forward(images)


def test_as_many_epochs_are_planned_as_fit_into_the_time(tune, clock, capsys):
    began = clock.now
    recipe = recipe_of(epochs=500, schedule="cosine", warmup=0.1)
    tuned = tune(recipe, network_of(Slow(clock)), budget_s=2.0, progress=Progress())
    assert 0.8 * 2.0 <= clock.now - began <= 2.0
    assert tuned.recipe == replace(recipe, epochs=tuned.recipe.epochs)
    assert tuned.stopped == ""
    assert len(tuned.rows) == tuned.recipe.epochs > 3
    said = capsys.readouterr().err
    assert f"plan: {tuned.recipe.epochs} of 500 epochs at 250 photos/s, about 2 of 2 s" in said
    assert f"recipe: {tuned.recipe}" in said
    assert tuned.rows[-1]["learning_rate"] < 0.1 * 0.05, "the rate has fallen when the time is over"


@pytest.mark.parametrize("changes", [{}, {"mix": "mixup", "ema": 0.9, "momentum": 0.9, "microbatch_size": 3}])
def test_measuring_the_speed_changes_nothing(changes, tune):
    assert sha256(tune(recipe_of(**changes), budget_s=1e6)) == sha256(tune(recipe_of(**changes)))


def test_without_time_one_step_is_taken_and_a_network_delivered(tune, val_set, tmp_path):
    tuned = tune(recipe_of(epochs=9), budget_s=0.0, folder=tmp_path)
    assert (tuned.stopped, tuned.rows, tuned.epoch, tuned.recipe.epochs) == ("time", [], 1, 1)
    assert logits_of(tuned.network, val_set).shape == (9, 3)
    assert distance(tuned.network.module.features, Toy().features) > 0


def test_what_is_optional_is_not_begun_for_less_than_half_of_its_epochs(tune, clock, tmp_path):
    recipe = recipe_of(epochs=500)
    with pytest.raises(planning.TooLittleTime, match=r"not begun: \d+ of 500 epochs would fit into the"):
        tune(recipe, network_of(Slow(clock)), budget_s=1.0, folder=tmp_path, least=0.5)
    assert not (tmp_path / "checkpoints").exists()
    assert tune(recipe_of(epochs=1), network_of(Slow(clock)), budget_s=1e6, least=0.5).recipe.epochs == 1


class Seeing(Slow):
    """Takes time for every pixel; remembers the sides of the photos that it learns from. One size: takes no other."""

    sides: ClassVar[list[int]] = []
    one_size = False

    def __deepcopy__(self, memo):
        other = type(self)(self.clock)
        other.load_state_dict(self.state_dict())
        return other.train(self.training)

    def forward(self, images):
        if self.one_size and images.shape[-1] != 64:
            raise AssertionError("takes photos of 64 pixels")
        share = (images.shape[-1] / 64) ** 2
        if torch.is_grad_enabled():
            self.sides.append(images.shape[-1])
        self.clock.now += 0.004 * len(images) * (share if torch.is_grad_enabled() else finetuning.VALIDATION_COST)
        return Toy.forward(self, images)


class Stubborn(Seeing):
    """Such a network that takes photos of one size."""

    one_size = True


def seeing(clock, kind=Seeing):
    kind.sides.clear()
    return replace(network_of(kind(clock)), preprocessing=replace(SMALL, height=64, width=64, resize=(72, 72)))


def test_the_first_epochs_learn_from_smaller_photos(tune, clock):
    tuned = tune(recipe_of(epochs=3, small_epochs=1), seeing(clock))
    assert Seeing.sides == [32] * 3 + [64] * 6
    assert tuned.recipe.small_epochs == 1


def test_where_time_is_short_photos_are_smaller_before_epochs_are_fewer(tune, clock, capsys):
    job = {"budget_s": 0.5, "may_shrink": True, "progress": Progress()}
    tuned = tune(recipe_of(epochs=8), seeing(clock), **job)
    assert (tuned.recipe.epochs, tuned.stopped) == (8, "")
    assert 0 < tuned.recipe.small_epochs <= 6
    assert f"plan: 8 of 8 epochs, the first {tuned.recipe.small_epochs} with smaller photos," in capsys.readouterr().err
    assert tune(recipe_of(epochs=8), seeing(clock), **job | {"budget_s": 9.0}).recipe.small_epochs == 0
    assert tune(recipe_of(epochs=8), seeing(clock), **job | {"may_shrink": False}).recipe.epochs < 8
    assert tune(recipe_of(epochs=8), seeing(clock, Stubborn), **job).recipe.epochs < 8


def test_a_network_of_one_size_learns_from_no_smaller_photos(tune, clock):
    with pytest.raises(ConfigError, match="--small-epochs 1: regraft/toy takes no smaller photos"):
        tune(recipe_of(small_epochs=1), seeing(clock, Stubborn))


def test_time_that_ends_before_the_plan_does_ends_the_run_in_an_epochs_midst(tune, clock, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "SAFETY", 20.0)
    began = clock.now
    tuned = tune(recipe_of(epochs=500), network_of(Slow(clock)), budget_s=0.8, folder=tmp_path)
    assert tuned.stopped == "time"
    late = clock.now - began - 0.8
    assert 0 < late <= 0.004 * (6 + 9 * finetuning.VALIDATION_COST), "a step under way is finished, and it is judged"
    assert 1 <= len(tuned.rows) < tuned.recipe.epochs
    assert tuned.epoch in (len(tuned.rows), len(tuned.rows) + 1)


# networks as they are


NETWORKS = [
    ("timm/deit_tiny_distilled_patch16_224", 224),
    ("timm/dla46x_c", 64),
    ("timm/mobilenetv4_conv_small", 64),
    ("timm/test_resnet", 64),
    ("timm/swin_tiny_patch4_window7_224", 224),
    ("torchvision/swin_t", 224),
    ("torchvision/googlenet", 96),
    ("torchvision/inception_v3", 299),
    ("torchvision/mobilenet_v2", 64),
    ("regraft/mobilenet_v1", 64),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), mostly_long(NETWORKS, *NETWORKS[:4]))
def test_real_networks_learn(name, side, tune, train_set, val_set):
    network = build(name, "random")
    network = replace(
        network, preprocessing=replace(network.preprocessing, height=side, width=side, resize=(side, side))
    )
    few = train_set.subset([0, 5, 10])
    recipe = recipe_of(epochs=3, batch_size=2, ema=0.9, learning_rate=1e-3, unfreeze=1, microbatch_size=16)
    tuned = tune(recipe, network, train=few, val=val_set.subset([0, 3]))
    assert tuned.frozen_sha256
    assert logits_of(tuned.network, val_set.subset([0, 3])).shape == (2, 3)
    assert loss_of(tuned.network, val_set.subset([0, 3])) == pytest.approx(tuned.rows[-1]["val_loss"], rel=1e-3)
    all_of_it = tune(replace(recipe, unfreeze=0, epochs=1), network, train=few, val=val_set.subset([0, 3]))
    buffers = dict(network.module.named_buffers())
    for place, value in all_of_it.network.module.named_buffers():
        if not value.is_floating_point() and "num_batches" not in place:
            assert torch.equal(value, buffers[place]), f"{place} points to places"
