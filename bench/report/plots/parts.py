"""What all figures are made of: arrays, base layouts, colours of stages and flows."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bench.clock import NS_PER_MS
from bench.report.text import clean

Figure = dict[str, Any]

INK, MUTED, LINE, ACCENT, GOOD, BAD, WARN = "--ink", "--muted", "--line", "--accent", "--good", "--bad", "--warn"
SERIES: Final = tuple(f"--s{number}" for number in range(1, 9))
STAGES: Final[Mapping[str, str]] = {
    "onset": "--g1",
    "pause": "--g2",
    "final pages": "--g3",
    "device state": "--g4",
    "storage": "--g5",
    "resume": "--g6",
    "port wired": "--n1",
    "announce": "--n2",
    "relearned": "--n3",
    "client's wait": "--c1",
    "reply": "--c2",
}
"""Blue: what the engine and the guest do; amber: the network; green: the client."""
GROUPS: Final[Mapping[str, str]] = {"g": "engine and guest", "n": "network", "c": "client"}
PHASES: Final[Mapping[str, str]] = {
    "setup": "--p1",
    "precopy": "--p2",
    "stop-and-copy": "--p3",
    "device-state": "--p4",
    "storage": "--p5",
    "resume": "--p6",
    "announce": "--p7",
    "postcopy": "--p8",
}


def label(text: str, limit: int = 60) -> str:
    """*text* from a result, made safe for Plotly's labels, which know some HTML."""
    text = clean(text)
    return html.escape(text if len(text) <= limit else f"{text[: limit - 1]}…", quote=False)


def array(values: npt.ArrayLike) -> dict[str, str]:
    """Numbers as Plotly's typed arrays: small, and read at once."""
    made = np.ascontiguousarray(values, dtype="<f8")
    return {"dtype": "f8", "bdata": base64.b64encode(made.tobytes()).decode()}


def milliseconds(t_ns: npt.ArrayLike, origin_ns: int) -> npt.NDArray[np.float64]:
    """Moments relative to *origin_ns* in ms; the subtraction is exact."""
    made: npt.NDArray[np.float64] = (np.asarray(t_ns, np.int64) - origin_ns) / NS_PER_MS
    return made


def ms(ns: int) -> float:
    """ns to ms."""
    return ns / NS_PER_MS


def figure(data: Sequence[Mapping[str, Any]], height: int, **layout: Any) -> Figure:
    """A figure with the layout that all of them share."""
    base = {
        "height": height,
        "margin": {"l": 8, "r": 8, "t": 12, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": INK},
        "hoverlabel": {"bgcolor": "--card", "bordercolor": LINE, "font": {"color": INK}, "align": "left"},
        "legend": {"orientation": "h", "x": 0, "y": -0.12, "yanchor": "top", "traceorder": "normal"},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": MUTED, "activecolor": ACCENT},
        "dragmode": "zoom",
        "bargap": 0.3,
    }
    return {"data": list(data), "layout": {**base, **layout}}


def axis(title: str = "", **more: Any) -> dict[str, Any]:
    """An axis in the page's colours."""
    return {
        "title": {"text": title, "font": {"size": 11, "color": MUTED}, "standoff": 6},
        "gridcolor": LINE,
        "zerolinecolor": LINE,
        "linecolor": LINE,
        "tickfont": {"size": 11, "color": MUTED},
        "automargin": True,
        **more,
    }
