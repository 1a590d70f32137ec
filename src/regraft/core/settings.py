"""Settings read back from their dataclass: type, default and explanation of each, so that nothing spells them twice."""

import ast
import inspect
from dataclasses import MISSING, dataclass, fields
from itertools import pairwise
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Setting:
    """One field of a dataclass of settings.

    Attributes:
        name: Name of the field.
        kind: Its type without `None`, or the tuple of what can be chosen.
        default: What it is when nobody sets it.
        text: The string below the field, in one line.
        is_several: Whether it is a tuple of any length; `kind` is then that of its parts.
    """

    name: str
    kind: Any
    default: Any
    text: str
    is_several: bool = False


def settings_of(config: type) -> tuple[Setting, ...]:
    """List the fields of a dataclass, in order.

    Args:
        config: A dataclass with a string below each field, such as `TrainConfig` or `Recipe`.

    Returns:
        A setting for each field.
    """
    texts, hints = _texts(config), get_type_hints(config)
    settings = []
    for field in fields(config):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        kind, is_several = _kind(hints[field.name])
        settings.append(Setting(field.name, kind, default, texts[field.name], is_several))
    return tuple(settings)


def _kind(hint: Any) -> tuple[Any, bool]:
    """Return a type hint without `None`, and whether it is a tuple of any length: then it is the hint of its parts."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (one for one in get_args(hint) if one is not NoneType)
    if get_origin(hint) is tuple:
        return _kind(get_args(hint)[0])[0], True
    return (get_args(hint) if get_origin(hint) is Literal else hint), False


def _texts(config: type) -> dict[str, str]:
    """Return the string below each field, by the field's name; Python itself throws these strings away."""
    body: Any = ast.parse(inspect.getsource(config)).body[0]
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(body.body)
        if hasattr(field, "target") and hasattr(text, "value")
    }
