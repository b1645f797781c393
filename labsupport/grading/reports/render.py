"""The HTML pages: the files in ``templates/``, filled in by Jinja2 with every value escaped.

Whatever a notebook puts into a name, a message or a source stays text: values are escaped where they are inserted
(autoescape), never rendered as templates themselves, and no template marks a value as safe. A name that a template
uses and the caller did not give is an error, not an empty string.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from labsupport.grading.reports import csv_safe


def render(template: str, **values: object) -> str:
    """The whole document that ``templates/<template>`` makes of ``values``."""
    return _ENVIRONMENT.get_template(template).render(values)


def printable(value: object) -> object:
    """A text without the control characters and lone surrogates that no page may hold; anything else as it is."""
    if not isinstance(value, str) or hasattr(value, "__html__"):  # a macro's markup, in which every value was seen
        return value
    return "".join(c if c in "\n\t" else csv_safe.printable(c, "\ufffd") for c in value)


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=printable,
    trim_blocks=True,
    lstrip_blocks=True,
)
