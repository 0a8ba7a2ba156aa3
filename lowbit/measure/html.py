"""Pages of one HTML file: a template filled, pictures inside."""

import base64
import io
from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def filled(template: Path, **values) -> str:
    """A Jinja template with these values, escaped as HTML; a value that is missing is an error."""
    folder = Environment(loader=FileSystemLoader(template.parent), autoescape=True, undefined=StrictUndefined,
                         trim_blocks=True, lstrip_blocks=True)
    return folder.get_template(template.name).render(**values)


def inlined(write_svg: Callable[[io.BytesIO], object]) -> str:
    """What a function writes as SVG into a file, as an address that stands inside the page."""
    drawn = io.BytesIO()
    write_svg(drawn)
    return f"data:image/svg+xml;base64,{base64.b64encode(drawn.getvalue()).decode()}"
