"""The loop: what a step does, what an epoch leaves, when it ends, and that a cut run ends as if it had not been cut."""

import contextlib
import copy
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import signal
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from faults.processes import mostly_long, record
from regraft.core import signals
from regraft.core.errors import TrainError
from regraft.core.progress import QUIET, Progress
from regraft.data.scan import Dataset
from regraft.data.transforms import Preprocessing
from regraft.training import loop
from regraft.training import train_state as train_state_module
from regraft.training.augmentation import augmentation
from regraft.training.batches import DecodedPhotos, Loader
from regraft.training.checkpoint import latest_checkpoint
from regraft.training.distributed import ProcessGroup
from regraft.training.loop import fit, gradients, hold_still, network_logits, rate_factor, validate
from regraft.training.recipe import Recipe
from regraft.training.resume import CheckpointInfo
from regraft.training.train_state import EpochMetrics, FitResult, TrainState, restore_checkpoint
from rounding import rounding

SMALL = Preprocessing(32, 32, (40, 40), "bilinear", "center", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NUM_CLASSES = 3
CLOSE = rounding(8, num_sums=4)  # weights of about 1 after the steps of `recipe_of()`: 4, of 8 photos each
few_workers = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    """Also on a processor that has bf16: what is compared here is compared to the last digits."""
    monkeypatch.setattr("regraft.training.distributed.has_bf16", lambda: False)


class Toy(nn.Module):
    """Pixels to logits, with two BatchNorms on the way."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, 2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, NUM_CLASSES),
        )

    def forward(self, pixels):
        return self.layers(pixels.float() / 128 - 1)


def recipe_of(**changes):
    """Plain gradient descent, unless something is asked for."""
    plain = {
        "epochs": 2,
        "batch_size": 8,
        "microbatch_size": 0,
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup": 0.0,
        "batchnorm": "train",
        "augment": "crop",
        "label_smoothing": 0.0,
    }
    return Recipe(**{**plain, **changes})


def photos_of(count, side=40, seed=0, colour=70):
    """Noise around a colour of each class, more or less strong."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % NUM_CLASSES
    centres = 60 + colour * np.eye(3)
    pixels = [rng.normal(centres[c], 60, (side, side, 3)).clip(0, 255).astype(np.uint8) for c in labels]
    dataset = Dataset(
        root=Path("photos"),
        paths=tuple(f"{i}.jpg" for i in range(count)),
        labels=labels,
        classes=("red", "green", "blue"),
        splits=("",) * count,
        hashes=tuple(hashlib.sha256(p.tobytes()).hexdigest() for p in pixels),
    )
    return DecodedPhotos(dataset, pixels)


def train_loader(recipe, count=16, **options):
    ghost_size = recipe.microbatch_size if recipe.batchnorm == "train" else 0
    options = {"ghost_size": ghost_size, "change": augmentation(recipe, SMALL), **options}
    return Loader(photos_of(count), recipe.batch_size, 0, ProcessGroup(), **options)


def val_loader(count=9, batch_size=4):
    return Loader(photos_of(count, side=32, seed=1), batch_size, 0, ProcessGroup())


def sgd(groups, recipe):
    return torch.optim.SGD(groups, momentum=recipe.momentum)


def train_state_of(recipe, network=None, seed=0):
    network = (network or Toy()).to(memory_format=torch.channels_last)
    parameters = [p for p in network.parameters() if p.requires_grad]
    group = {"params": parameters, "lr": recipe.learning_rate, "peak_lr": recipe.learning_rate}
    average = None
    if recipe.ema:
        average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True)
    return TrainState(
        network=network,
        optimizer=torch.optim.AdamW([group]) if recipe.optimizer == "adamw" else sgd([group], recipe),
        world=ProcessGroup(),
        seed=seed,
        num_classes=NUM_CLASSES,
        about=CheckpointInfo({}, recipe, recipe),
        average=average,
        microbatch_size=recipe.microbatch_size,
    )


def run(train_state, train=None, val=None, folder=None, deadline=math.inf, progress=QUIET, fitted=None):
    train, val = train or train_loader(train_state.recipe), val or val_loader()
    return fit(train_state, fitted or FitResult(), train, val, folder, deadline, progress)


def trained(recipe, network=None, **options):
    run(train_state := train_state_of(recipe, network), **options)
    return train_state


def weights(network):
    return {name: value.detach().clone() for name, value in network.state_dict().items() if value.is_floating_point()}


def distance(one, other):
    return max(float((one[name] - other[name]).detach().abs().max()) for name in one | other)


def without_times(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


# the epoch and the step


def test_one_function_goes_through_batches_for_training_and_judging(monkeypatch):
    calls, original = [], loop.run_epoch

    def recorded(batches, step, after):
        metrics = original(batches, step, after)
        calls.append(metrics.n)
        return metrics

    monkeypatch.setattr(loop, "run_epoch", recorded)
    fitted = run(train_state_of(recipe_of()), train_loader(recipe_of(), count=13), val_loader(9))
    assert calls == [13, 9, 13, 9]
    assert len(fitted.rows) == 2


def test_an_epoch_adds_up_what_its_steps_return_and_ends_when_told():
    seen = []
    told = loop.run_epoch(range(1, 9), lambda i: seen.append(i) or EpochMetrics(i, 1, 0, 2), lambda one: one.loss == 3)
    assert seen == [1, 2, 3]
    assert told == EpochMetrics(6, 3, 0, 6)
    assert loop.run_epoch([], lambda _: EpochMetrics(1), lambda _: False) == EpochMetrics()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_loop_is_plain_gradient_descent(momentum):
    recipe = recipe_of(momentum=momentum)
    train_state = trained(recipe)
    network = Toy().train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=momentum)
    for epoch in range(2):
        for batch in train_loader(recipe).load(epoch):
            optimizer.zero_grad()
            nn.CrossEntropyLoss()(network(batch.pixels), batch.labels).backward()
            optimizer.step()
    assert distance(weights(train_state.network), weights(network)) <= CLOSE
    assert distance(weights(Toy()), weights(network)) > 1e-2


def gradient(recipe, network, batch, microbatch_size=0):
    train_state = train_state_of(recipe, network)
    train_state.microbatch_size = microbatch_size
    hold_still(train_state.network.train(), recipe)
    metrics = gradients(train_state, batch, QUIET)
    return {name: p.grad.clone() for name, p in network.named_parameters()}, metrics


@pytest.mark.parametrize("microbatch_size", [1, 3, 4, 5, 11, 12])
@pytest.mark.parametrize("changes", [{}, {"label_smoothing": 0.3}])
def test_gradients_of_microbatches_add_up_to_that_of_the_batch(microbatch_size, changes):
    recipe = recipe_of(batchnorm="eval", batch_size=11, **changes)
    (batch,) = train_loader(recipe, count=11, weights=(1.0, 4.0, 0.25)).load(0)
    whole, metrics = gradient(recipe, Toy(), batch)
    parts, metrics_of_parts = gradient(recipe, Toy(), batch, microbatch_size)
    assert distance(whole, parts) <= rounding(11)
    assert max(float(g.abs().max()) for g in whole.values()) > 1e-3
    assert metrics_of_parts.loss == pytest.approx(metrics.loss, rel=rounding(11))
    assert (metrics_of_parts.weight, metrics_of_parts.n) == (metrics.weight, 11)
    assert metrics_of_parts.num_right == metrics.num_right


@pytest.mark.parametrize("options", [{"weight": torch.tensor([1.0, 4.0, 0.25])}, {"label_smoothing": 0.3}, {}])
def test_the_loss_is_torchs(options):
    recipe = recipe_of(batchnorm="eval", batch_size=11, label_smoothing=options.get("label_smoothing", 0.0))
    per_class = tuple(options["weight"].tolist()) if "weight" in options else None
    (batch,) = train_loader(recipe, count=11, weights=per_class).load(0)
    found, metrics = gradient(recipe, Toy(), batch)
    network = Toy().eval()
    loss = nn.CrossEntropyLoss(**options)(network(batch.pixels), batch.labels)
    loss.backward()
    assert metrics.loss / metrics.weight == pytest.approx(loss.item(), rel=rounding(11))
    assert distance(found, {name: p.grad for name, p in network.named_parameters()}) <= rounding(11)


def test_clipping_shortens_a_steps_gradient_to_its_limit():
    recipe = recipe_of(epochs=1, batch_size=16, batchnorm="eval")
    (batch,) = train_loader(recipe).load(0)
    g, _ = gradient(recipe, Toy(), batch)
    norm = float(torch.cat([value.flatten() for value in g.values()]).norm())
    for clip, factor in ((norm / 10, 0.1), (norm * 2, 1.0)):
        train_state = trained(recipe_of(epochs=1, batch_size=16, batchnorm="eval", clip=clip))
        expected = {name: value - 0.05 * factor * g[name] for name, value in Toy().named_parameters()}
        assert distance(dict(train_state.network.named_parameters()), expected) <= rounding(16)


# rates


def test_rates_rise_through_the_warm_up_and_fall_along_half_a_cosine():
    recipe = recipe_of(schedule="cosine", warmup=0.25)
    factors = [rate_factor(recipe, step, 80) for step in range(80)]
    assert 0 < factors[0] < 0.1
    assert np.allclose(np.diff(factors[:20]), factors[0])
    assert max(factors) == factors[20] == 1.0
    assert all(np.diff(factors[20:]) < 0)
    assert factors[50] == pytest.approx(0.5)
    assert 0 < factors[-1] < 0.001


def test_the_cosine_is_torchs():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, recipe = CosineAnnealingLR(optimizer, T_max=37), recipe_of(schedule="cosine", warmup=0.0)
    for step in range(37):
        assert rate_factor(recipe, step, 37) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 100])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_every_step_has_a_rate_between_none_and_the_highest(schedule, num_steps, warmup):
    recipe = recipe_of(schedule=schedule, warmup=warmup)
    factors = [rate_factor(recipe, step, num_steps) for step in range(num_steps)]
    assert all(0 < factor <= 1 for factor in factors)
    if schedule == "constant":
        assert set(factors[math.ceil(warmup * num_steps) :]) <= {1.0}


def test_each_step_is_taken_at_the_rate_of_its_number_over_all_epochs():
    recipe = recipe_of(epochs=3, schedule="cosine", warmup=0.2)
    train_state, used = train_state_of(recipe), []
    train_state.optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
    fitted = run(train_state)
    assert used == [0.05 * rate_factor(recipe, step, 6) for step in range(6)]
    assert [row["learning_rate"] for row in fitted.rows] == used[1::2]


# BatchNorm


@pytest.mark.parametrize("batchnorm", ["eval", "train"])
def test_batchnorm_takes_statistics_only_where_it_is_asked_to(batchnorm):
    train_state = trained(recipe_of(batchnorm=batchnorm))
    before, after = Toy().state_dict(), train_state.network.state_dict()
    for name in before:
        if "running" in name or "num_batches" in name:
            assert torch.equal(before[name], after[name]) == (batchnorm == "eval"), name
        else:
            assert not torch.equal(before[name], after[name]), name


@pytest.mark.parametrize("batchnorm", ["eval", "train"])
def test_batchnorm_that_keeps_its_statistics_is_computed_by_the_convolution_before_it(batchnorm, monkeypatch):
    class InDouble(Toy):
        def forward(self, pixels):
            return self.layers(pixels.double() / 128 - 1)

    def end():
        return trained(recipe_of(batchnorm=batchnorm), InDouble().double())

    folded = end()
    monkeypatch.setattr(loop, "foldable_norms", lambda network, images: {})
    plain = end()
    assert len(folded.folded) == (2 if batchnorm == "eval" else 0)
    assert distance(weights(plain.network), weights(folded.network)) < 1e-6 * distance(
        weights(plain.network), weights(InDouble().double())
    ), "losses are in float32, and nothing else"


def test_batchnorm_that_does_not_learn_keeps_its_statistics():
    network = Toy()
    network.layers[1].requires_grad_(False)
    train_state = trained(recipe_of(batchnorm="train"), network)
    before, after = Toy().state_dict(), train_state.network.state_dict()
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert kept == {name for name in before if name.startswith("layers.1.")}


# validation


def test_judging_gives_plain_cross_entropy_and_accuracy():
    train_state = trained(recipe_of(label_smoothing=0.2))
    (whole,) = val_loader(batch_size=100).load(0)
    with torch.no_grad():
        p = copy.deepcopy(train_state.network).eval()(whole.pixels).double().softmax(dim=1).numpy()
    for batch_size in (1, 4, 8, 100):
        metrics = validate(train_state, val_loader(batch_size=batch_size), QUIET)
        assert (metrics.n, metrics.weight) == (9, 9)
        assert metrics.loss / 9 == pytest.approx(
            log_loss(whole.labels, p), rel=rounding(72)
        )  # the longest sum: a kernel of 3 x 3 x 8
        assert metrics.num_right / 9 == accuracy_score(whole.labels, p.argmax(axis=1))
        assert np.array_equal(
            network_logits(train_state, val_loader(batch_size=batch_size), QUIET).argmax(axis=1), p.argmax(axis=1)
        )


def test_judging_leaves_the_network_as_it_was():
    train_state = train_state_of(recipe_of())
    train_state.network.train()
    train_state.network.layers[1].eval()
    modes, before = [m.training for m in train_state.network.modules()], copy.deepcopy(train_state.network.state_dict())
    validate(train_state, val_loader(), QUIET)
    assert [m.training for m in train_state.network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in train_state.network.state_dict().items())


# history


def test_a_row_tells_what_an_epoch_did(tmp_path):
    recipe, train_state = (
        recipe_of(epochs=3, learning_rate=0.0, batchnorm="eval"),
        train_state_of(recipe_of(learning_rate=0.0)),
    )
    train_state.about = CheckpointInfo({}, recipe, recipe)
    fitted = run(train_state, train_loader(recipe, count=13), folder=tmp_path)
    network = Toy().eval()
    for epoch, row in enumerate(fitted.rows):
        losses, right = [], []
        for batch in train_loader(recipe, count=13).load(epoch):
            with torch.no_grad():
                logits = network(batch.pixels)
            losses += functional.cross_entropy(logits, batch.labels, reduction="none").tolist()
            right += (logits.argmax(dim=1) == batch.labels).tolist()
        assert row["epoch"] == epoch + 1
        assert row["train_loss"] == pytest.approx(np.mean(losses), rel=rounding(72))
        assert row["train_accuracy"] == pytest.approx(np.mean(right))
        assert row["seconds"] > 0
    assert len({row["train_loss"] for row in fitted.rows}) == 3, "each epoch shows other crops"
    assert len({row["val_loss"] for row in fitted.rows}) == 1
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == fitted.rows


def test_each_epoch_is_told_in_one_line(capsys):
    fitted = run(train_state_of(recipe_of(epochs=2)), progress=Progress())
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch")]
    assert told == [loop.line(row, 2) for row in fitted.rows]
    assert told[1].startswith("epoch  2/2  train loss ")
    for name, digits in (("train_loss", 4), ("train_accuracy", 3), ("val_loss", 4), ("val_accuracy", 3)):
        assert f"{fitted.rows[1][name]:.{digits}f}" in told[1]


# what is delivered


def test_the_running_average_is_that_of_the_weights_after_each_step():
    recipe = recipe_of(epochs=3, ema=0.8)
    train_state, after = train_state_of(recipe), []
    train_state.optimizer.register_step_post_hook(lambda *_: after.append(weights(train_state.network)))
    fitted = run(train_state)
    expected = after[0]
    for one in after[1:]:
        expected = {name: 0.8 * expected[name] + 0.2 * one[name] for name in one}
    assert len(after) == 6
    assert train_state.delivered is not train_state.network
    assert distance(weights(train_state.delivered), expected) <= rounding(2, num_sums=6)  # 6 steps, 2 terms each
    assert distance(weights(train_state.network), expected) > 1e-3
    train_state.average = None
    train_state.network.load_state_dict(expected, strict=False)
    metrics = validate(train_state, val_loader(), QUIET)
    assert fitted.rows[-1]["val_loss"] == pytest.approx(metrics.loss / 9, rel=rounding(9, num_sums=6))


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_best_epoch_is_kept_by_the_loss_on_photos_not_learned_from(ema):
    train_state = train_state_of(recipe_of(epochs=6, learning_rate=1.5, keep="best", ema=ema))
    val = Loader(photos_of(9, side=32, seed=1, colour=10), 4, 0, ProcessGroup())
    fitted = run(train_state, val=val)
    losses = [row["val_loss"] for row in fitted.rows]
    assert fitted.best_epoch == int(np.argmin(losses))
    assert 0 < fitted.best_epoch < 5, "a run in which neither the first nor the last is"
    train_state.delivered.load_state_dict(train_state.best)
    assert validate(train_state, val, QUIET).loss / 9 == pytest.approx(min(losses), rel=rounding(9))


def test_of_epochs_that_are_alike_the_first_is_the_best():
    fitted = FitResult(rows=[{"val_loss": loss} for loss in (0.5, 0.3, 0.4, 0.3)])
    assert fitted.best_epoch == 1


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_patience_ends_when_no_epoch_has_been_better_for_so_long(patience, tmp_path):
    recipe = recipe_of(epochs=9, learning_rate=0.0, batchnorm="eval", keep="best", patience=patience)
    fitted = run(train_state_of(recipe), folder=tmp_path)
    assert (fitted.stopped, len(fitted.rows), fitted.best_epoch) == ("patience", 1 + patience, 0)
    again = train_state_of(recipe)
    restored = restore_checkpoint(again, latest_checkpoint(tmp_path / "checkpoints", QUIET))
    assert len(run(again, fitted=restored, folder=tmp_path).rows) == 1 + patience, "its end is an end"


def test_patience_lasts_as_long_as_epochs_get_better():
    recipe = recipe_of(epochs=6, learning_rate=0.01, keep="best", patience=1, batchnorm="eval")
    fitted = run(train_state_of(recipe))
    losses = [row["val_loss"] for row in fitted.rows]
    assert losses == sorted(losses, reverse=True)
    assert (fitted.stopped, len(losses)) == ("", 6)


# mixing


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_mixed_photos_have_the_labels_of_what_they_show(mix):
    """Photos of one value each: what a pixel is made of can be read off."""
    recipe = recipe_of(mix=mix)
    train_state = train_state_of(recipe)
    photos = photos_of(6)
    values = [20, 60, 100, 140, 180, 220]
    plain = DecodedPhotos(photos.dataset, [np.full((32, 32, 3), value, np.uint8) for value in values])
    (batch,) = Loader(plain, 6, 0, ProcessGroup()).load(0)
    shares = []
    for seed in range(5):
        torch.manual_seed(seed)
        pixels, targets = loop._mixed(train_state, batch)
        assert torch.allclose(targets.sum(dim=1), torch.ones(6))
        for i in range(6):
            own, partner = values[i], values[i - 1]
            share = float((pixels[i].mean() - partner) / (own - partner))
            expected = torch.zeros(NUM_CLASSES)
            expected[batch.labels[i]] += share
            expected[batch.labels[i - 1]] += 1 - share
            assert torch.allclose(targets[i], expected, atol=1e-3)
            if mix == "cutmix":
                assert set(pixels[i].unique().tolist()) <= {own, partner}
        shares.append(share)
    assert max(shares) - min(shares) > 0.1


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_mixing_changes_training_and_is_drawn_from_the_seed_alone(mix):
    plain = weights(trained(recipe_of()).network)
    torch.manual_seed(1)
    one = weights(trained(recipe_of(mix=mix)).network)
    torch.manual_seed(2)
    assert distance(one, weights(trained(recipe_of(mix=mix)).network)) == 0
    assert distance(one, plain) > 1e-3
    run(other := train_state_of(recipe_of(mix=mix), seed=1))
    assert distance(one, weights(other.network)) > 1e-4


def test_every_step_draws_from_a_seed_of_its_own():
    class Recording(Toy):
        def forward(self, pixels):
            if self.training:
                seeds.append(torch.initial_seed())
            return super().forward(pixels)

    drawn = []
    for seed in (0, 0, 1):
        seeds = []
        run(train_state_of(recipe_of(), Recording(), seed=seed))
        assert len(set(seeds)) == len(seeds) == 4
        drawn.append(seeds)
    assert drawn[0] == drawn[1]
    assert not set(drawn[0]) & set(drawn[2])


def test_a_photo_alone_is_not_mixed():
    recipe = recipe_of(mix="mixup", microbatch_size=1, batchnorm="eval")
    same = recipe_of(microbatch_size=1, batchnorm="eval")
    assert distance(weights(trained(recipe).network), weights(trained(same).network)) == 0


# what goes wrong


class Failing(Toy):
    """Its logits are not finite from a training step on, or in validation."""

    def __init__(self, value, *, at_step=0, validating=False):
        super().__init__()
        self.value, self.at_step, self.validating, self.steps = value, at_step, validating, 0

    def forward(self, pixels):
        self.steps += self.training and torch.is_grad_enabled()
        is_bad = self.validating if not self.training else self.steps == self.at_step
        return super().forward(pixels) * (self.value if is_bad else 1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_at_once_and_leaves_the_last_good_checkpoint(value, tmp_path):
    recipe = recipe_of(epochs=5, batchnorm="eval")
    train_state, after = train_state_of(recipe, Failing(value, at_step=6)), []
    train_state.optimizer.register_step_post_hook(lambda *_: after.append(weights(train_state.network)))
    with pytest.raises(TrainError, match=r"^The loss is (nan|inf) at step 2 of epoch 3\. .*--learning-rate.* 0.05"):
        run(train_state, folder=tmp_path)
    assert train_state.network.steps == 6
    assert len(after) == 5
    assert distance(weights(train_state.network), after[-1]) == 0, "the bad step is not taken"
    checkpoint = latest_checkpoint(tmp_path / "checkpoints", QUIET)
    assert checkpoint.state["fit"]["epoch"] in (1, 2)
    restored = train_state_of(recipe)
    fitted = restore_checkpoint(restored, checkpoint)
    assert distance(weights(restored.network), after[2 * fitted.epoch - 1]) == 0
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == fitted.epoch


def test_a_rate_that_is_far_too_high_ends_in_that_error():
    with pytest.raises(TrainError, match=r"at step \d of epoch \d"):
        trained(recipe_of(epochs=60, learning_rate=100.0, momentum=0.99, batchnorm="eval"))


def test_a_network_that_judges_to_nothing_finite_is_not_delivered(tmp_path):
    """The last step of all may be the one that goes too far."""
    train_state = train_state_of(recipe_of(epochs=3, keep="best"), Failing(math.nan, validating=True))
    with pytest.raises(TrainError, match=r"epoch 1"):
        run(train_state, folder=tmp_path)
    assert latest_checkpoint(tmp_path / "checkpoints", QUIET) is None


class Hungry(Toy):
    """Has memory for `limit` photos. after: whether it runs out in the last layer rather than in the first.

    validating: whether it is short of memory where it is evaluated rather than where it learns.
    """

    def __init__(self, limit, error, *, after=False, validating=False):
        super().__init__()
        self.limit, self.error, self.after, self.validating, self.sizes = limit, error, after, validating, []

    def forward(self, pixels):
        is_short = self.training != self.validating
        self.sizes += [len(pixels)] * is_short
        logits = super().forward(pixels) if self.after else None
        if is_short and len(pixels) > self.limit:
            self.error()
        return super().forward(pixels) if logits is None else logits


def on_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def on_a_processor():
    torch.empty(2**55, dtype=torch.uint8)


def in_python():
    raise MemoryError


@pytest.mark.parametrize("error", [on_a_gpu, on_a_processor, in_python])
@pytest.mark.parametrize("after", [False, True])
def test_out_of_memory_halves_the_microbatch_and_keeps_the_batch(error, after, capsys, record_property):
    recipe = recipe_of(batch_size=16, batchnorm="eval", momentum=0.9)
    train_state = trained(recipe, Hungry(4, error, after=after), progress=Progress())
    told = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert told == [f"out of memory: microbatches of {n}; batches stay as they are" for n in (8, 4)]
    assert train_state.microbatch_size == 4
    assert [n for n in train_state.network.sizes if n > 4] == [16, 8]
    from_the_start = trained(recipe_of(batch_size=16, batchnorm="eval", momentum=0.9, microbatch_size=4))
    assert distance(weights(train_state.network), weights(from_the_start.network)) <= CLOSE
    assert distance(weights(train_state.network), weights(trained(recipe).network)) <= CLOSE
    record(record_property, f"F6-{error.__name__}{'-after' * after}", halved=2, told=2, the_same=1)


@pytest.mark.parametrize("error", [on_a_gpu, on_a_processor, in_python])
@pytest.mark.parametrize("question", [validate, network_logits])
def test_out_of_memory_while_judging_takes_fewer_photos_at_once(question, error, capsys, record_property):
    train_state = train_state_of(recipe_of(val_batch_size=8), Hungry(3, error, validating=True))
    said = question(train_state, val_loader(batch_size=8), Progress())
    told = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert told == [f"out of memory: microbatches of {n}; batches stay as they are" for n in (4, 2)]
    assert train_state.network.sizes == [8, 4, 2, 2, 2, 2, 1]
    plain = question(train_state_of(recipe_of(val_batch_size=8)), val_loader(batch_size=8), QUIET)
    assert np.allclose(figures(said), figures(plain), rtol=rounding(8))
    record(record_property, f"F6-{question.__name__}-{error.__name__}", halved=2, told=2, the_same=1)


def figures(said):
    return said if isinstance(said, np.ndarray) else astuple(said)


@pytest.mark.parametrize("changes", [{}, {"mix": "mixup"}, {"mix": "cutmix", "batchnorm": "eval"}])
@pytest.mark.parametrize("after", [False, True])
def test_running_out_of_memory_leaves_no_trace_in_statistics_and_randomness(after, changes):
    recipe = {"microbatch_size": 8, "ema": 0.9, **changes}
    train_state = trained(recipe_of(**recipe), Hungry(4, on_a_gpu, after=after))
    assert train_state.microbatch_size == 4
    from_the_start = trained(recipe_of(**{**recipe, "microbatch_size": 4}))
    assert distance(weights(train_state.network), weights(from_the_start.network)) <= CLOSE
    assert distance(weights(train_state.delivered), weights(from_the_start.delivered)) <= CLOSE


def test_without_memory_for_one_photo_training_ends_with_the_cure():
    with pytest.raises(TrainError, match=r"Not enough memory for one photo\. Choose a smaller backbone"):
        trained(recipe_of(batchnorm="eval"), Hungry(0, on_a_gpu))


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def broken():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        trained(recipe_of(batchnorm="eval"), Hungry(4, broken))


# cut and continued


def test_the_deadline_ends_an_epoch_in_its_midst(tmp_path, capsys):
    recipe = recipe_of(epochs=3, batch_size=4)
    fitted = run(train_state_of(recipe), folder=tmp_path, deadline=-math.inf, progress=Progress())
    assert (fitted.stopped, fitted.epoch, fitted.step, fitted.rows) == ("time", 0, 1, [])
    assert "stopped (time) in epoch 1, after step 1" in capsys.readouterr().err
    state = latest_checkpoint(tmp_path / "checkpoints", QUIET).state["fit"]
    assert (state["stopped"], state["epoch"], state["step"]) == ("", 0, 1)


@pytest.fixture
def handlers(monkeypatch):
    """Signals as the command line takes them, for one test."""
    monkeypatch.setattr(signals, "_pending", [])
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signals.install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Signalled(Toy):
    """Gets a signal in the midst of a batch that it learns from, or one that it judges."""

    def __init__(self, at_batch, *, validating=False):
        super().__init__()
        self.at_batch, self.validating, self.num_batches = at_batch, validating, 0

    def forward(self, pixels):
        self.num_batches += self.training != self.validating
        if self.num_batches == self.at_batch:
            self.at_batch = 0
            os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(pixels)


@few_workers
@pytest.mark.parametrize(
    "changes",
    [
        {"momentum": 0.9, "schedule": "cosine", "warmup": 0.3},
        {"optimizer": "adamw", "learning_rate": 3e-3, "ema": 0.7, "keep": "best", "mix": "mixup"},
        {"microbatch_size": 3, "ema": 0.7, "patience": 5, "keep": "best"},
        {"learning_rate": 0.0, "batchnorm": "eval", "keep": "best"},  # the first epoch is the best
        {"batchnorm": "eval", "momentum": 0.9},  # BatchNorm is folded anew in each part
    ],
)
def test_a_run_cut_after_every_step_ends_as_if_it_had_not_been(changes, tmp_path, handlers):
    """Each part of it with another number of workers."""
    recipe = recipe_of(**changes)
    expected = train_state_of(recipe)
    rows = run(expected, train_loader(recipe, count=22)).rows
    for part in range(7):
        train_state = train_state_of(recipe, Signalled(1))
        checkpoint = latest_checkpoint(tmp_path / "checkpoints", QUIET)
        fitted = restore_checkpoint(train_state, checkpoint) if checkpoint else FitResult()
        assert fitted.epoch * 3 + fitted.step == part
        loader = train_loader(recipe, count=22, num_workers=2 * (part % 2))
        try:
            run(train_state, loader, folder=tmp_path, fitted=fitted)
        except signals.Interrupted:
            signals._pending.clear()
    assert (fitted.epoch, fitted.step, fitted.stopped) == (2, 0, "")
    assert without_times(fitted.rows) == without_times(rows)
    assert distance(weights(train_state.network), weights(expected.network)) == 0
    assert distance(weights(train_state.delivered), weights(expected.delivered)) == 0
    assert train_state.best.keys() == expected.best.keys()
    assert all(torch.equal(value, expected.best[name]) for name, value in train_state.best.items())


@pytest.mark.parametrize(
    ("at_batch", "validating", "steps"), [(1, False, 1), (2, False, 2), (3, False, 3), (1, True, 2), (3, True, 4)]
)
def test_a_signal_ends_the_run_after_a_whole_batch_and_a_checkpoint(at_batch, validating, steps, tmp_path, handlers):
    recipe = recipe_of(momentum=0.9)
    expected = train_state_of(recipe)
    rows = run(expected).rows
    network = Signalled(at_batch, validating=validating)
    with pytest.raises(signals.Interrupted) as caught:
        run(train_state_of(recipe, network), folder=tmp_path)
    assert caught.value.signum == signal.SIGTERM
    assert network.num_batches == at_batch, "none begins after it"
    signals._pending.clear()
    train_state = train_state_of(recipe)
    fitted = restore_checkpoint(train_state, latest_checkpoint(tmp_path / "checkpoints", QUIET))
    assert 2 * fitted.epoch + fitted.step == steps
    run(train_state, folder=tmp_path, fitted=fitted)
    assert distance(weights(train_state.network), weights(expected.network)) == 0
    assert without_times(fitted.rows) == without_times(rows)


@pytest.mark.parametrize(("seconds", "within"), [(0.0, [(0, 1), (0, 2), (1, 1), (1, 2)]), (3600.0, [])])
def test_checkpoints_are_written_within_epochs_too(seconds, within, tmp_path, monkeypatch):
    saved, keep = [], train_state_module._save

    def noted(folder, train_state, fitted):
        saved.append((fitted.epoch, fitted.step))
        keep(folder, train_state, fitted)

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", seconds)
    monkeypatch.setattr(train_state_module, "_save", noted)
    run(train_state_of(recipe_of()), folder=tmp_path)
    assert [(epoch, step) for epoch, step in saved if step] == within
    assert saved[-1] == (2, 0)


def test_the_keys_of_a_checkpoint_are_those_of_earlier_ones(tmp_path):
    train_state = train_state_of(recipe_of())
    train_state_module._save(tmp_path, train_state, FitResult(step=1, metrics=EpochMetrics(1.5, 8.0, 3.0, 8.0)))
    checkpoint = latest_checkpoint(tmp_path / "checkpoints", QUIET)
    assert checkpoint.state["fit"] == {
        "rows": [],
        "epoch": 0,
        "step": 1,
        "tally": {"loss": 1.5, "weight": 8.0, "num_right": 3.0, "n": 8.0},
        "stopped": "",
    }
    assert restore_checkpoint(train_state, checkpoint).metrics.num_right == 3


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(train_state_of(recipe_of()))
    assert list(tmp_path.iterdir()) == []


def one_of(rank, size, folder, changes):
    """A process among others: cut after its first step, continued to the end; the main one leaves what it has."""
    ProcessGroup.autocast = lambda self: contextlib.nullcontext()
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    recipe, world = recipe_of(**changes), ProcessGroup(rank, size)
    train, val = (replace(loader, world=world) for loader in (train_loader(recipe, count=22), val_loader()))
    train_state = replace(train_state_of(recipe), world=world)
    run(train_state, train, val, folder=folder, deadline=-math.inf)
    world.barrier()
    train_state = replace(train_state_of(recipe), world=world)
    fitted = restore_checkpoint(train_state, latest_checkpoint(folder / "checkpoints", QUIET))
    run(train_state, train, val, fitted=fitted)
    if world.is_main:
        torch.save({"rows": fitted.rows, "weights": weights(train_state.network)}, folder / "end.pt")
    torch.distributed.destroy_process_group()


PRELOADED = ["torch.distributed", "torch._dynamo", "sklearn.metrics", "regraft.training.finetune"]  # once, not by each
CHANGES = {"ghost batches": {"microbatch_size": 4}, "still": {"batchnorm": "eval", "label_smoothing": 0.1}}


@pytest.mark.slow
@pytest.mark.parametrize(("size", "name"), mostly_long(itertools.product((2, 3), CHANGES), (3, "ghost batches")))
def test_several_processes_end_as_one_does(size, name, tmp_path):
    changes = CHANGES[name]
    recipe = recipe_of(**changes)
    alone = train_state_of(recipe)
    rows = run(alone, train_loader(recipe, count=22)).rows
    multiprocessing.set_forkserver_preload(PRELOADED)
    torch.multiprocessing.start_processes(one_of, (size, tmp_path, changes), size, start_method="forkserver")
    end = torch.load(tmp_path / "end.pt")
    close = rounding(8, num_sums=6)  # 22 photos twice, in batches of 8
    assert distance(weights(alone.network), end["weights"]) <= close
    for row, expected in zip(without_times(end["rows"]), without_times(rows), strict=True):
        assert row == pytest.approx(expected, rel=close)
