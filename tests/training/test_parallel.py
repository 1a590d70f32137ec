"""Microbatches side by side learn what they learn one after the other, and only where that can be."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_loop import NUM_CLASSES, Toy, recipe_of, train_loader, train_state_of, val_loader, weights
from torch import nn

from regraft.core.progress import QUIET, Progress
from regraft.training import parallel
from regraft.training.checkpoint import latest_checkpoint
from regraft.training.distributed import ProcessGroup
from regraft.training.loop import fit, gradients, network_logits, put_into_training
from regraft.training.parallel import Threads, draws_at_random, parallel_threads, side_by_side
from regraft.training.train_state import FitResult, restore_checkpoint

STILL = {"batchnorm": "eval", "batch_size": 12, "microbatch_size": 4}


@pytest.fixture(autouse=True)
def float32_on_one_thread(monkeypatch):
    monkeypatch.setattr("regraft.training.distributed.has_bf16", lambda: False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def two():
    with ThreadPoolExecutor(2) as pool:
        yield Threads(pool, 2)


def state(recipe, network=None, threads=None):
    made = replace(train_state_of(recipe, network), threads=threads, microbatch_size=recipe.microbatch_size)
    put_into_training(made.network, recipe)
    return made


def learned(train_state, recipe, count=11):
    """Gradients by name, and the sums, of one batch of `count` photos."""
    (batch,) = train_loader(replace(recipe, batch_size=count), count=count, weights=(1.0, 4.0, 0.25)).load(0)
    metrics = gradients(train_state, batch, QUIET)
    named = train_state.network.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}, metrics


def are_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("batchnorm", ["eval", "train"])
@pytest.mark.parametrize(("count", "microbatch_size"), [(2, 6), (3, 4), (2, 3), (6, 2)])
def test_gradients_are_those_of_one_after_the_other_to_the_last_bit(count, microbatch_size, batchnorm):
    """With 11 photos each microbatch has a thread to itself: one of two that had none to do would help."""
    recipe = recipe_of(**{**STILL, "microbatch_size": microbatch_size, "batchnorm": batchnorm})
    one, other = state(recipe), state(recipe)
    start = {name: value.clone() for name, value in one.network.named_buffers()}
    alone, metrics = learned(one, recipe)
    with ThreadPoolExecutor(count) as pool:
        together, metrics_together = learned(replace(other, threads=Threads(pool, count)), recipe)
    assert are_equal(alone, together)
    assert metrics == metrics_together
    statistics = {name: value for name, value in one.network.named_buffers() if "running" in name}
    assert are_equal(statistics, {name: dict(other.network.named_buffers())[name] for name in statistics})
    moved = [not torch.equal(value, start[name]) for name, value in statistics.items()]
    assert moved == [batchnorm == "train"] * len(moved)
    assert max(float(g.abs().max()) for g in alone.values()) > 1e-3


def test_statistics_that_are_plain_means_of_all_steps_are_the_same_too(two):
    """BatchNorm with `momentum=None` goes by its count of what it has seen."""
    recipe, networks = recipe_of(**{**STILL, "microbatch_size": 6, "batchnorm": "train"}), []
    for threads in (None, two):
        network = Toy()
        for norm in (one for one in network.modules() if isinstance(one, nn.BatchNorm2d)):
            norm.momentum = None
        train_state = state(recipe, network, threads)
        for _ in range(3):
            learned(train_state, recipe)
        networks.append(network)
    one, other = (dict(network.named_buffers()) for network in networks)
    assert are_equal(one, other)
    assert one["layers.1.num_batches_tracked"] == 3


def test_they_are_added_in_their_order_whoever_is_first():
    """The first waits for the last, and what is added last would round otherwise."""
    values, was_last = [1e8, 1.0, -1e8], threading.Event()
    weight = nn.Parameter(torch.ones(1))

    def work(i):
        if i == 0:
            assert was_last.wait(30)
        elif i == 2:
            was_last.set()
        return (weight * values[i]).sum(), i

    with ThreadPoolExecutor(3) as pool:
        found = parallel.gradients_at_once([lambda i=i: work(i) for i in range(3)], [weight], Threads(pool, 3))
    assert found == [0, 1, 2]
    assert float(weight.grad) == float(np.float32(np.float32(1e8) + np.float32(1.0)) - np.float32(1e8))


def test_what_does_not_learn_gets_no_gradient_and_what_is_not_used_none(two):
    network, unused = Toy(), nn.Linear(2, 2)
    network.layers[0].weight.requires_grad_(False)
    network.add_module("unused", unused)
    found, _ = learned(state(recipe_of(**STILL), network, two), recipe_of(**STILL))
    assert "layers.0.weight" not in found
    assert unused.weight.grad is None
    assert "layers.3.weight" in found


class Counting(Threads):
    """Threads that count what they are asked for."""

    def __new__(cls, threads, asked):
        made = object.__new__(Threads)
        pool = type("Pool", (), {"submit": lambda _, *work: asked.append(work) or threads.pool.submit(*work)})()
        object.__setattr__(made, "pool", pool)
        object.__setattr__(made, "count", threads.count)
        return made


class Dropping(Toy):
    def __init__(self, share):
        super().__init__()
        self.layers.insert(6, nn.Dropout(share))


@pytest.mark.parametrize(
    ("changes", "network", "num_works"),
    [
        ({}, Toy, 3),
        ({"microbatch_size": 0}, Toy, 0),
        ({"batchnorm": "train"}, Toy, 3),
        ({"mix": "mixup"}, Toy, 0),
        ({}, lambda: Dropping(0.5), 0),
        ({}, lambda: Dropping(0.0), 3),
    ],
)
def test_only_where_nothing_is_drawn_at_random(two, changes, network, num_works):
    recipe, asked, chosen = recipe_of(**{**STILL, **changes}), [], []
    train_state = state(recipe, network(), Counting(two, asked))
    train_state.choose_threads = lambda: chosen.append(1)
    learned(train_state, recipe)
    assert len(asked) == num_works
    assert len(chosen) == (num_works == 0), "torch's own threads matter where it divides the work"


def test_trying_whether_it_draws_leaves_no_trace():
    network = Dropping(0.5)
    network.eval()
    network.layers[1].train()
    modes = [module.training for module in network.modules()]
    torch.manual_seed(7)
    mean, state = network.layers[1].running_mean.clone(), torch.get_rng_state()
    assert draws_at_random(network, torch.zeros(1, 3, 32, 32))
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(network.layers[1].running_mean, mean)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("batchnorm", ["eval", "train"])
def test_where_memory_runs_out_all_is_begun_anew_with_smaller_ones(batchnorm):
    """Also the statistics, which the part that did fit has moved. Each of the smaller ones has a thread to itself."""

    class Large(Toy):
        def forward(self, pixels):
            logits = super().forward(pixels)
            if len(pixels) > 3:
                raise RuntimeError("out of memory")
            return logits

    recipe = recipe_of(**{**STILL, "batchnorm": batchnorm})
    large, small = state(recipe, Large()), replace(state(recipe), microbatch_size=2)
    with ThreadPoolExecutor(6) as pool:
        large.threads = Threads(pool, 6)
        found, metrics = learned(large, recipe)
    expected, plain = learned(small, recipe)
    assert are_equal(found, expected)
    assert metrics == plain
    assert are_equal(weights(large.network), weights(small.network))


def test_other_errors_come_through(two):
    class Broken(Toy):
        def forward(self, pixels):
            if len(pixels) > 1:
                raise ZeroDivisionError
            return super().forward(pixels)

    with pytest.raises(ZeroDivisionError):
        learned(state(recipe_of(**STILL), Broken(), two), recipe_of(**STILL))


def test_answers_come_in_their_order_and_threads_are_shared_out():
    seen = []
    with ThreadPoolExecutor(4) as pool:
        works = [lambda i=i: seen.append(torch.get_num_threads()) or i for i in range(6)]
        assert list(side_by_side(works, Threads(pool, 4))) == list(range(6))
    assert seen == [1, 1, 1, 1, 2, 2]
    assert torch.get_num_threads() == 1


def test_answers_to_photos_are_the_same(two):
    recipe = recipe_of(**STILL)
    alone, together = (network_logits(state(recipe, threads=one), val_loader(), QUIET) for one in (None, two))
    assert together.shape == (9, NUM_CLASSES)
    assert np.abs(alone - together).max() <= 1e-6 * np.abs(alone).max()


@pytest.mark.parametrize("batchnorm", ["eval", "train"])
def test_a_training_that_is_cut_ends_with_the_same_bits(two, tmp_path, batchnorm):
    recipe = recipe_of(**{**STILL, "microbatch_size": 6, "batchnorm": batchnorm}, epochs=3, momentum=0.9)
    train, val = train_loader(recipe, count=30), val_loader()  # batches of 12, 12 and 6, in 2, 2 and 1 microbatches

    def run(train_state, fitted, folder=None, deadline=math.inf):
        return fit(train_state, fitted, train, val, folder, deadline, QUIET)

    whole = state(recipe, threads=two)
    run(whole, FitResult())
    run(state(recipe, threads=two), FitResult(), tmp_path, -math.inf)
    cut = state(recipe, threads=two)
    run(cut, restore_checkpoint(cut, latest_checkpoint(tmp_path / "checkpoints", Progress(quiet=True))))
    one_by_one = state(recipe)
    run(one_by_one, FitResult())
    assert are_equal(weights(whole.network), weights(cut.network))
    assert are_equal(weights(whole.network), weights(one_by_one.network))
    assert not are_equal(weights(whole.network), weights(Toy()))


@pytest.mark.parametrize(
    ("world", "torchs", "cores", "count"),
    [
        (ProcessGroup(), 4, 4, 4),
        (ProcessGroup(), 4, 3, 3),
        (ProcessGroup(), 1, 4, None),
        (ProcessGroup(), 4, 1, None),
        (ProcessGroup(0, 2), 4, 4, None),
        (ProcessGroup(0, 1, "cuda:0"), 4, 4, None),
    ],
)
def test_there_are_as_many_as_torch_has_and_cores_allow(world, torchs, cores, count, monkeypatch):
    monkeypatch.setattr(parallel, "num_cores", lambda: cores)
    torch.set_num_threads(torchs)
    with parallel_threads(world) as found:
        assert (None if found is None else found.count) == count
