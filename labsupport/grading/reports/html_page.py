"""HTML that cannot be forgotten to be escaped: `tag` escapes every text, and only what `tag` made is taken as HTML.

Pages load nothing from anywhere and run no script, whatever a notebook put into a name or a message; the content
security policy says so to the browser as well.
"""

from __future__ import annotations

import html
from collections.abc import Iterable


class Html(str):
    """A text that is HTML already. Made by `tag`, never from someone's input."""

    __slots__ = ()


def tag(name: str, *children: str | Html, **attributes: str) -> Html:
    """An element. A trailing underscore in an attribute's name goes (``class_``)."""
    rendered = "".join(f' {key.rstrip("_")}="{escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{rendered}>{join(children)}</{name}>")


def join(children: Iterable[str | Html]) -> Html:
    return Html("".join(child if isinstance(child, Html) else escape(child) for child in children))


def escape(text: str) -> str:
    """Also without control characters and lone surrogates, which no page may hold."""
    visible = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in str(text))
    return html.escape(visible, quote=True)


def table(header: Iterable[str | Html], rows: Iterable[Iterable[str | Html]]) -> Html:
    head = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in header)))
    return tag("table", head, tag("tbody", *(tag("tr", *(tag("td", cell) for cell in row)) for row in rows)))


def bar(share: float, label: str) -> Html:
    """A bar of this share of the full width, with its value as text for readers who see none."""
    width = f"{100 * min(max(share, 0.0), 1.0):.0f}%"
    return tag("span", tag("span", "", class_="fill", style=f"width:{width}"), tag("b", label), class_="bar")


def page(title: str, *body: str | Html) -> str:
    """A whole document."""
    policy = Html(
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    )
    head = join([
        Html('<meta charset="utf-8">'), policy,
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", title), Html(f"<style>{_STYLE}</style>"),
    ])  # fmt: skip
    document = tag("html", tag("head", head), tag("body", tag("main", tag("h1", title), *body)), lang="en")
    return f"<!DOCTYPE html>\n{document}\n"


_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0; }
main { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid #ddd; }
td { overflow-wrap: anywhere; }
th { background: #f3f3f3; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: 14px; }
.passed { color: #00664d; font-weight: 600; }
.failed { color: #a33b00; font-weight: 600; }
.quiet { color: #555; }
.bar { display: block; position: relative; min-width: 9rem; height: 1.5rem; background: #eee; }
.bar .fill { position: absolute; inset: 0 auto 0 0; background: #9fd0ec; }
.bar b { position: relative; padding-left: .4rem; font-weight: 500; }
@media print { details { display: none; } }
""".strip()
