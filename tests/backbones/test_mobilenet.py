"""The tutorial's MobileNet: the same network under the same names, and its program's checkpoints load."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn
from torchvision.transforms.v2.functional import normalize

import regraft
from conftest import draw_folder
from faults.processes import mostly_long
from regraft.backbones import catalog
from regraft.backbones.mobilenet import MobileNet
from regraft.backbones.network import build, find_heads, with_new_head
from regraft.cli import cli
from regraft.core.errors import WeightsError


class Classic(nn.Module):
    """MobileNet as the tutorials write it."""

    def __init__(self):
        super().__init__()

        def conv_bn(inp, oup, stride):
            return nn.Sequential(
                nn.Conv2d(inp, oup, 3, stride, 1, bias=False), nn.BatchNorm2d(oup), nn.ReLU(inplace=True)
            )

        def conv_dw(inp, oup, stride):
            return nn.Sequential(
                nn.Conv2d(inp, inp, 3, stride, 1, groups=inp, bias=False),
                nn.BatchNorm2d(inp),
                nn.ReLU(inplace=True),
                nn.Conv2d(inp, oup, 1, 1, 0, bias=False),
                nn.BatchNorm2d(oup),
                nn.ReLU(inplace=True),
            )

        self.model = nn.Sequential(
            conv_bn(3, 32, 2),
            conv_dw(32, 64, 1),
            conv_dw(64, 128, 2),
            conv_dw(128, 128, 1),
            conv_dw(128, 256, 2),
            conv_dw(256, 256, 1),
            conv_dw(256, 512, 2),
            conv_dw(512, 512, 1),
            conv_dw(512, 512, 1),
            conv_dw(512, 512, 1),
            conv_dw(512, 512, 1),
            conv_dw(512, 512, 1),
            conv_dw(512, 1024, 2),
            conv_dw(1024, 1024, 1),
            nn.AvgPool2d(7),
        )
        self.fc = nn.Linear(1024, 1000)

    def forward(self, x):
        x = self.model(x)
        x = x.view(-1, 1024)
        return self.fc(x)


@pytest.fixture(scope="module")
def classic():
    """The tutorial's network, its BatchNorm as if it had been trained."""
    torch.manual_seed(0)
    net = Classic()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.bias, 0, 0.2)
    with torch.inference_mode():
        net(torch.randn(4, 3, 7, 7).repeat_interleave(32, 2).repeat_interleave(32, 3))
    return net.eval()


def save_as_the_notebook_does(classic, path, **how):
    wrapped = nn.DataParallel(classic)
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    for parameter in wrapped.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    content = {
        "epoch": 90,
        "arch": "mobilenet",
        "state_dict": wrapped.state_dict(),
        "best_prec1": torch.tensor(69.5),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(content, path, **how)
    return path


def same_weights(one, other):
    a, b = one.state_dict(), other.state_dict()
    counters = {name for name in a if name.endswith("num_batches_tracked")}
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a.keys() - counters)


def test_it_has_4_2_million_parameters_under_the_tutorials_names(classic):
    net = MobileNet()
    assert sum(parameter.numel() for parameter in net.parameters()) == 4_231_976
    names = list(net.state_dict())
    assert (names[0], names[-2], names[-1]) == ("model.0.0.weight", "fc.weight", "fc.bias")
    assert names == list(classic.state_dict())
    shapes = {name: value.shape for name, value in net.state_dict().items()}
    assert shapes == {name: value.shape for name, value in classic.state_dict().items()}


def test_it_is_the_tutorials_network(classic):
    net = MobileNet().eval()
    net.load_state_dict(classic.state_dict())
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = classic(images)
        assert expected.shape == (2, 1000)
        assert expected.std() > 0.1
        assert torch.allclose(net(images), expected, atol=1e-5)


def test_the_last_map_is_seven_by_seven_at_224_pixels():
    net, shapes = MobileNet().eval(), []
    for layer in net.model:
        layer.register_forward_hook(lambda layer, inputs, output: shapes.append(tuple(output.shape[1:])))
    with torch.inference_mode():
        net(torch.zeros(1, 3, 224, 224))
    assert shapes[0] == (32, 112, 112)
    assert shapes[-2:] == [(1024, 7, 7), (1024, 1, 1)]


@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "before torch 1.6"])
def test_the_checkpoint_of_the_notebooks_program_loads_whole(classic, tmp_path, how):
    path = save_as_the_notebook_does(classic, tmp_path / "model_best.pth.tar", **how)
    net = build("mobilenet_v1", str(path))
    assert same_weights(net.module, classic)
    assert str(net.loaded) == "164 of 164 tensors loaded"
    assert (net.heads, net.num_features) == (("fc",), 1024)
    assert net.origin.startswith("file model_best.pth.tar, sha256 ")
    p = net.preprocessing
    assert (p.height, p.resize, p.interpolation, p.crop_mode) == (224, (256, 256), "bilinear", "center")
    assert (p.mean, p.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_checkpoint_from_before_batchnorm_counted_loads_too(classic, tmp_path):
    state = {f"module.{k}": v for k, v in classic.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save({"state_dict": state, "arch": "mobilenet"}, tmp_path / "old.pth.tar")
    assert same_weights(build("mobilenet_v1", str(tmp_path / "old.pth.tar")).module, classic)


def test_a_new_head_on_the_wrapper_changes_nothing_and_ours_replaces_the_right_layer(classic):
    """The notebook sets `fc`, of another network's width, on DataParallel, where nobody calls it."""
    wrapped = nn.DataParallel(classic)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before = wrapped(images)
        wrapped.fc = nn.Linear(2048, 2)
        assert torch.equal(wrapped(images), before)
    assert before.shape == (2, 1000)
    assert find_heads(wrapped, 224, 224) == ("fc",)
    network = replace(build("mobilenet_v1", "random"), module=wrapped)
    weight, bias = torch.randn(2, 1024), torch.tensor([3.0, -5.0])
    ours = with_new_head(network, weight, bias).module.eval()
    features = classic.model(images).flatten(1)
    assert torch.allclose(ours(images), features @ weight.T + bias, atol=1e-4)
    assert isinstance(ours, Classic)
    assert classic.fc.out_features == 1000


def test_without_weights_the_error_says_how_to_give_them():
    for offline in (False, True):
        with pytest.raises(WeightsError, match=r"regraft/mobilenet_v1 has no published weights\. .*--weights"):
            build("mobilenet_v1", offline=offline)


@pytest.mark.parametrize("name", ["mobilenet_v1", "regraft/mobilenet_v1"])
def test_it_is_known_by_its_name(name):
    assert str(catalog.resolve(name)) == "regraft/mobilenet_v1"
    net = build(name, "random")
    assert str(net.reference) == "regraft/mobilenet_v1"
    assert net.origin == "random, seed 0"


def test_backbones_lists_it():
    done = CliRunner().invoke(cli, ["backbones", "mobilenet_v1", "--json"])
    (row,) = json.loads(done.stdout)
    assert (row["name"], row["num_params"], row["input_size"]) == ("mobilenet_v1", 4_231_976, 224)
    assert not row["on_this_machine"]
    assert "give --weights" in CliRunner().invoke(cli, ["backbones", "mobilenet_v1"]).stdout


@pytest.mark.slow
@pytest.mark.parametrize("mode", mostly_long(["frozen", "full"], "full"))
def test_a_training_starts_from_the_notebooks_checkpoint(regraft_main, classic, tmp_path, mode):
    photos = draw_folder(tmp_path / "photos", ("kiwi", "melon"), 4)
    path = save_as_the_notebook_does(classic, tmp_path / "model_best.pth.tar")
    epochs = ["--epochs", 1] if mode == "full" else []
    start = ["--backbone", "mobilenet_v1", "--weights", path]
    options = ["--out", tmp_path / "run", "--mode", mode, "--no-report", "--json"]
    done = regraft_main("train", photos, *options, *epochs, *start)
    assert done.returncode == 0, done.stderr
    assert "164 of 164 tensors loaded; from file model_best.pth.tar" in done.stderr
    result = json.loads(done.stdout)
    assert (result["mode"], result["backbone"]) == (mode, "regraft/mobilenet_v1")
    saved = load_file(tmp_path / "run" / "bundle" / "model.safetensors")
    trained = Classic()
    trained.fc = nn.Linear(1024, 2)
    trained.load_state_dict(saved)
    moved = not torch.equal(saved["model.6.3.weight"], classic.model[6][3].weight)
    assert moved == (mode == "full")
    bundle = regraft.load(tmp_path / "run")
    pixels = torch.from_numpy(bundle.to_input(photos / "kiwi" / "kiwi_0.jpg").copy()).permute(2, 0, 1) / 255
    pixels = normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.inference_mode():
        theirs = trained.eval()(pixels[None]).softmax(dim=1)[0]
    ours = bundle.predict(photos / "kiwi" / "kiwi_0.jpg").probabilities
    assert theirs.tolist() == pytest.approx(list(ours.values()), abs=1e-3)
