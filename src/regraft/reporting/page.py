"""Templates to one self-contained HTML file; pictures become part of it."""

import base64
import io
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from regraft.core.ownership import seal_text, write_output
from regraft.core.progress import printable
from regraft.core.version import __version__


def render(template: str, **context: Any) -> str:
    """Make a page from a template.

    Args:
        template: Name of a file among the templates.
        context: What the template shows; everything is escaped, except what is markup.
    """
    made = datetime.now(UTC).strftime("%Y-%m-%d")
    return _environment().get_template(template).render(version=__version__, made=made, **context)


@cache
def _environment() -> Environment:
    """Return what keeps templates compiled: that takes longer than to fill them in."""
    environment = Environment(
        loader=PackageLoader("regraft.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if not isinstance(value, str) or hasattr(value, "__html__") else printable(value),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["path"] = _path
    return environment


def _path(text: str) -> Markup:
    """Let a browser break a path after its folders rather than within a name."""
    return Markup("/<wbr>").join(printable(part) for part in text.split("/"))


def write_page(path: Path, html: str) -> Path:
    """Write a page, whole or not at all, with a seal.

    Returns:
        Its path.

    Raises:
        OutputError: It cannot be written, or something else is there, which stays.
    """
    write_output(path, seal_text(html, ".html"))
    return path


def jpeg(picture: Image.Image, size: int) -> Markup:
    """Return a photo as a data URI, its longer side `size` pixels at most."""
    small = picture.copy()
    small.info.clear()  # what a camera wrote is nobody's business
    small.thumbnail((size, size), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return _uri(small, "jpeg", quality=72, optimize=True)


def png(picture: Image.Image) -> Markup:
    """Return a drawing as a data URI."""
    return _uri(picture, "png", optimize=True)


def _uri(picture: Image.Image, kind: str, **options: Any) -> Markup:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    content = base64.b64encode(buffer.getvalue()).decode()
    return Markup(f"data:image/{kind};base64,{content}")  # noqa: S704  # letters, digits, + and / alone
