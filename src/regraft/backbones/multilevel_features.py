"""All levels of a network as features: surgery on its graph, for which torch is not needed.

The last layer tells apart what ImageNet's classes are; what tells cells or signs apart may be gone by then, and lies in
the layers before. A level is the last activation of each spatial size, and gives its mean and its maximum.
"""

from pathlib import Path

import onnx
from onnx import helper

from regraft.backbones.engine import activations
from regraft.core.errors import BackboneError

SHRINKS = 0.6  # of one level's size, the next one's at most


def with_levels(graph: Path) -> tuple[bytes, int]:
    """Extend a graph so that its features are those of all its levels.

    Args:
        graph: The ONNX file.

    Returns:
        An ONNX file whose features are mean and maximum of each level, and at the end those it had; and how many they
        are.

    Raises:
        BackboneError: The network has no levels, such as a ViT.
    """
    levels = find_levels(activations(graph))
    if len(levels) < 2:
        raise BackboneError(f"{graph} has no activations of falling size, so it has no levels. Use its features alone.")
    model = onnx.load(str(graph))
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["last" if name == "features" else name for name in names]
    parts = ["last"]
    for number, name in enumerate(levels):
        for kind in ("Average", "Max"):
            pooled, part = f"level{number}/{kind}", f"level{number}/{kind}/flat"
            model.graph.node.append(helper.make_node(f"Global{kind}Pool", [name], [pooled]))
            model.graph.node.append(helper.make_node("Flatten", [pooled], [part], axis=1))
            parts.insert(-1, part)
    model.graph.node.append(helper.make_node("Concat", parts, ["features"], axis=1))
    (output,) = model.graph.output
    width = output.type.tensor_type.shape.dim[1]
    width.dim_value += 2 * sum(levels.values())
    return bytes(model.SerializeToString(deterministic=True)), int(width.dim_value)


def find_levels(computed: list[tuple[str, tuple[int, ...]]]) -> dict[str, int]:
    """Find the levels of a network, from the finest.

    Args:
        computed: Names and shapes, as `activations` gives them.

    Returns:
        The number of channels of each level, by its name.
    """
    (_, (_, height, width, _)), *rest = computed
    levels: list[tuple[int, str, int]] = []
    for name, shape in rest:
        if len(shape) != 4 or shape[0] != 1 or shape[2] * width != shape[3] * height:
            continue
        _, channels, size, _ = shape
        if levels and size == levels[-1][0]:
            levels[-1] = (size, name, channels)
        elif 1 < size <= SHRINKS * (levels[-1][0] if levels else height):
            levels.append((size, name, channels))
    return {name: channels for _, name, channels in levels}
