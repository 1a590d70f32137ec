"""What this process has set in torch changes no network and no graph."""

import pytest

torch = pytest.importorskip("torch")

from regraft.backbones import onnx_export as trace  # noqa: E402
from regraft.backbones.network import build  # noqa: E402
from regraft.backbones.torch_defaults import torch_defaults  # noqa: E402

SWITCHES = {
    "dtype": lambda: torch.set_default_dtype(torch.float64),
    "device": lambda: torch.set_default_device("meta"),
    "gradients": lambda: torch.set_grad_enabled(False),
}


@pytest.fixture
def unharmed():
    """Puts back what a switch changes."""
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)


def key() -> str:
    return trace._key(build("timm/test_resnet", "random", seed=3))


@pytest.fixture(scope="module")
def expected() -> str:
    return key()


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_of_the_process_changes_no_network(unharmed, expected, name):
    SWITCHES[name]()
    assert key() == expected
    found = (torch.get_default_dtype(), str(torch.get_default_device()), torch.is_grad_enabled())
    assert (
        found
        == {
            "dtype": (torch.float64, "cpu", True),
            "device": (torch.float32, "meta", True),
            "gradients": (torch.float32, "cpu", False),
        }[name]
    )


def test_nor_does_inference_mode_or_autocast(expected):
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert key() == expected
        assert torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled("cpu")


def test_gradients_can_be_taken_whatever_is_set_around():
    with torch.inference_mode(), torch.autocast("cpu"), torch_defaults():
        weight = torch.ones(3, 3, requires_grad=True)
        found = (weight @ torch.ones(3)).sum()
        found.backward()
    assert found.dtype == torch.float32
    assert weight.grad.tolist() == [[1.0] * 3] * 3


def test_what_was_set_comes_back_after_an_error(unharmed):
    @torch_defaults()
    def fail() -> None:
        assert torch.get_default_dtype() == torch.float32
        raise ValueError("inside")

    torch.set_default_dtype(torch.float64)
    with pytest.raises(ValueError, match="inside"):
        fail()
    assert torch.get_default_dtype() == torch.float64
