"""The page around everything: one file that needs neither a network nor a server.

A content security policy lets only the page's own two scripts run, known by their hashes, and nothing be loaded: what a
hostile result might smuggle in would not run, and no request leaves the reader's machine.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Iterable
from importlib import resources
from typing import Any

from bench.report.html.markup import Markup, join, tag, text
from bench.report.plots.parts import Figure


@functools.cache
def _asset(name: str) -> str:
    return resources.files("bench.report.html").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _plotly() -> str:
    """Plotly's own script, without an end tag in it that would end ours."""
    return resources.files("plotly").joinpath("package_data").joinpath("plotly.min.js").read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def plot(name: str, figure: Figure, *, title: str, windows: Iterable[tuple[str, float, float]] = ()) -> Markup:
    """A place for *figure*, which the page's script draws when it comes into view.

    :param name: unique in the page.
    :param title: what it shows, for those who cannot see it.
    :param windows: buttons: their text, and the stretch of the time axis that each shows.
    """
    data = json.dumps(figure, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    buttons = [
        tag("button", caption, type="button", data_begin=repr(begin), data_end=repr(end))
        for caption, begin, end in windows
    ]
    return join(
        [
            tag("div", *buttons, class_="windows", data_for=name) if buttons else None,
            tag(
                "div",
                class_="plot",
                id=name,
                role="img",
                aria_label=title,
                style=f"min-height:{int(figure['layout']['height'])}px",
            ),
            tag("script", Markup(data), type="application/json", data_plot=name),
        ]
    )


def section(anchor: str, title: str, *children: object, remark: str = "") -> Markup:
    """A part of the page with a heading; *remark*: what its numbers mean."""
    heading = tag("h2", title, Markup(" ") if remark else None, tag("small", remark) if remark else None)
    return tag("section", heading, *children, id=anchor)


def disclosure(title: str, *children: object, opened: bool = False) -> Markup:
    """Something that is shown when asked for; printed always."""
    return tag("details", tag("summary", title), *children, open=opened)


def page(title: str, body: Iterable[Any], navigation: Iterable[tuple[str, str]] = ()) -> str:
    """The whole file.

    :param navigation: anchors and their names.
    """
    script, plotly = _asset("page.js"), _plotly()
    policy = (
        f"default-src 'none'; script-src {_hash(script)} {_hash(plotly)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; font-src data:; form-action 'none'; base-uri 'none'"
    )
    links = [tag("a", name, href=f"#{anchor}") for anchor, name in navigation]
    head = join(
        [
            tag("meta", charset="utf-8"),
            tag("meta", http_equiv="Content-Security-Policy", content=policy),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("title", title),
            tag("style", Markup(_asset("page.css"))),
        ]
    )
    parts = [
        "<!doctype html>\n",
        tag(
            "html",
            tag("head", head),
            tag(
                "body",
                tag("nav", *links) if links else None,
                tag("main", *body),
                tag("script", Markup(plotly)),
                tag("script", Markup(script)),
            ),
            lang="en",
        ),
        "\n",
    ]
    return "".join(str(text(part)) if not isinstance(part, str) else part for part in parts)
