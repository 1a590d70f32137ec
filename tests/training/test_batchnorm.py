"""BatchNorm's running statistics are those of the ghost batches, whichever process saw which of them."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional

from regraft.training.batches import evenly
from regraft.training.batchnorm import RunningStatistics
from regraft.training.distributed import ProcessGroup
from rounding import rounding

SIZES = [5, 4, 7, 2]


@dataclass(frozen=True)
class Together(ProcessGroup):
    """A process whose fellows have come to the end of the step already."""

    fellows: tuple[RunningStatistics, ...] = ()

    def all_reduce(self, tensors):
        for fellow in self.fellows:
            for mine, theirs in zip(tensors, fellow._sums, strict=True):
                mine.add_(theirs)

    def total(self, values):
        return [value + sum(fellow._n for fellow in self.fellows) for value in values]


def network(momentum=(0.1, 0.4)):
    """Two BatchNorms, one after the other, that have seen photos before."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6, momentum=momentum[0]),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 5),
        nn.BatchNorm1d(5, momentum=momentum[1]),
    )
    for layer in (net[1], net[6]):
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return net.train()


def photos(sizes=SIZES):
    torch.manual_seed(1)
    return list(torch.split(3 * torch.randn(sum(sizes), 3, 8, 8) + 1, sizes))


def buffers(net):
    return [b for layer in net if hasattr(layer, "running_mean") for b in (layer.running_mean, layer.running_var)]


def see(net, parts, num_stand_ins=0):
    """A step's forward passes in one process. num_stand_ins: the last parts, which do not count."""
    statistics = RunningStatistics(net)
    for number, part in enumerate(parts):
        statistics.rewind()
        net(part)
        statistics.add(len(part) if number < len(parts) - num_stand_ins else 0)
    return statistics


def by_hand(net, parts):
    """Every statistic from the formulas, photo by photo share."""
    n, (first, second) = sum(map(len, parts)), (net[1], net[6])
    expected = [torch.zeros_like(b) for b in buffers(net)]
    for part in parts:
        x = functional.conv2d(part, net[0].weight, net[0].bias)
        flat = x.transpose(0, 1).flatten(1)
        mean, var = flat.mean(dim=1), flat.var(dim=1, unbiased=False)
        x = (x - mean.view(1, -1, 1, 1)) / torch.sqrt(var.view(1, -1, 1, 1) + first.eps)
        x = functional.adaptive_avg_pool2d(torch.relu(x), 2).flatten(1) @ net[5].weight.T + net[5].bias
        found = [mean, flat.var(dim=1, unbiased=True), x.mean(dim=0), x.var(dim=0, unbiased=True)]
        for total, value in zip(expected, found, strict=True):
            total += value * len(part) / n
    momenta = [first.momentum] * 2 + [second.momentum] * 2
    return [(1 - m) * old + m * new for m, old, new in zip(momenta, buffers(net), expected, strict=True)]


CLOSE = rounding(18)  # photos are added up in other groups; within a photo torch adds up as always


def same(one, other, atol=CLOSE):
    return all(torch.allclose(a, b, rtol=atol, atol=atol) for a, b in zip(one, other, strict=True))


def test_a_step_moves_the_statistics_by_the_mean_over_its_ghost_batches():
    net, parts = network(), photos()
    expected = by_hand(net, parts)
    before = [b.clone() for b in buffers(net)]
    with torch.no_grad():
        see(net, parts).settle(ProcessGroup())
    assert same(buffers(net), expected)
    assert not same(buffers(net), before, atol=1e-2)


def test_one_whole_batch_is_plain_batchnorm():
    net, other, (part,) = network(), network(), photos([18])
    see(net, [part]).settle(ProcessGroup())
    other(part)
    assert same(buffers(net), buffers(other))


@pytest.mark.parametrize("momentum", [(0.1, 0.4), (1.0, 0.01)])
@pytest.mark.parametrize("num_processes", [2, 3, 4, 6])
def test_the_number_of_processes_does_not_matter(num_processes, momentum):
    parts = photos()
    alone = network(momentum)
    see(alone, parts).settle(ProcessGroup())
    nets = [copy.deepcopy(network(momentum)) for _ in range(num_processes)]
    shares = [parts[rank::num_processes] for rank in range(num_processes)]
    stand_in = parts[0][:2]
    seen = [see(net, share or [stand_in], num_stand_ins=not share) for net, share in zip(nets, shares, strict=True)]
    for rank, (net, statistics) in enumerate(zip(nets, seen, strict=True)):
        own = copy.deepcopy(statistics._sums)
        statistics.settle(Together(rank, num_processes, fellows=tuple(s for s in seen if s is not statistics)))
        assert same(buffers(net), buffers(alone))
        statistics._sums = own  # what this process sent


def test_the_order_of_the_ghost_batches_does_not_matter():
    one, other, parts = network(), network(), photos()
    see(one, parts).settle(ProcessGroup())
    see(other, parts[::-1]).settle(ProcessGroup())
    assert same(buffers(one), buffers(other))


def test_several_steps_follow_each_other():
    one, other, parts = network(), network(), photos()
    for part in parts:
        see(one, [part]).settle(ProcessGroup())
        other(part)
    assert same(buffers(one), buffers(other))


def test_each_ghost_batch_finds_the_statistics_of_the_steps_start():
    net, parts = network(), photos()
    start = [b.clone() for b in buffers(net)]
    statistics = RunningStatistics(net)
    net(parts[0])
    assert not same(buffers(net), start)
    statistics.rewind()
    assert all(map(torch.equal, buffers(net), start))


def test_layers_in_evaluation_keep_their_statistics_to_the_bit():
    net, parts = network(), photos()
    net[1].eval()
    start = [b.clone() for b in buffers(net)]
    see(net, parts).settle(ProcessGroup())
    assert all(map(torch.equal, buffers(net)[:2], start[:2]))
    assert not any(map(torch.equal, buffers(net)[2:], start[2:]))


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        network().eval(),
    ],
)
def test_networks_without_running_statistics_go_through_unchanged(net):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    see(net, photos()).settle(ProcessGroup())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_statistics_are_those_of_all_photos_however_a_batch_is_cut_into_equal_parts():
    """The mean does not depend on the size of the ghosts; the variance is that within them."""
    (whole,) = photos([16])
    means = []
    for size in (2, 4, 16):
        net = network((1.0, 1.0))
        see(net, [whole[list(part)] for part in evenly(range(16), size)]).settle(ProcessGroup())
        means.append(net[1].running_mean.clone())
    assert all(torch.allclose(mean, means[0], atol=rounding(16)) for mean in means)
