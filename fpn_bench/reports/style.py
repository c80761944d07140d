"""What all figures share: colours, axes, and points that stand for designs.

Colours of text and grid are the page's, set when it is opened.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from fpn_bench.analysis.words import numbered
from fpn_bench.reports.units import interval_columns

# Legible on white and on near black alike.
FRONT, SEARCHED, PUBLISHED = "#2f7fd6", "#8f9aa8", "#d97a1e"
REJECTED, FAILED, STOPPED = "#a98bbd", "#cf5a5a", "#4f9d83"
SELECTED = "#d6257f"
STATUS_COLOURS = {"rejected": REJECTED, "failed": FAILED, "stopped": STOPPED}
SERIES = (FRONT, PUBLISHED, STOPPED, REJECTED, FAILED, "#b59b2d", "#5b6bc0", "#3aa6b9", "#a05a2c", "#7a8a3c")
SYMBOLS = ("diamond", "square", "triangle-up", "pentagon", "star", "cross", "triangle-down", "hexagon", "bowtie", "x")
DIGITS = 6
"""Significant digits of what is drawn: finer than any pixel, and a third of the page's size."""


def layout(x: str, y: str) -> dict[str, Any]:
    """The layout all figures share, with the titles of the two axes."""
    return {
        "template": go.layout.Template(),
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "margin": {"l": 64, "r": 16, "t": 16, "b": 56},
        "hoverlabel": {"align": "left"},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "orientation": "v"},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}},
        "xaxis": {"title": {"text": escape(x)}, "zeroline": False, "ticks": "outside", "ticklen": 4},
        "yaxis": {"title": {"text": escape(y)}, "zeroline": False},
    }


def numbers(values: Any, scale: float = 1.0) -> list[float | None]:
    """Plain numbers in the unit shown, with `DIGITS` digits; None where there is none."""
    scaled = np.asarray(values, dtype=np.float64) * scale
    return [float(f"{v:.{DIGITS}g}") if np.isfinite(v) else None for v in scaled]


def design_points(
    rows: pd.DataFrame, x: Any, y: Any, name: str, marker: dict[str, Any], *, z: Any = None, **more: Any
) -> go.Scatter | go.Scatter3d:
    """A trace whose points are designs: each has its key as customdata and the design's own hover text."""
    kind, place = (go.Scatter, {}) if z is None else (go.Scatter3d, {"z": z})
    return kind(
        x=x,
        y=y,
        **place,
        mode=more.pop("mode", "markers"),
        marker=marker,
        name=name,
        customdata=rows["key"].tolist(),
        hovertext=rows["hover"].tolist(),
        hoverinfo="text",
        **more,
    )


def bars(middle: Any, low: Any, high: Any, scale: float, colour: str = SEARCHED) -> dict[str, Any] | None:
    """Error bars from interval ends; None where no point has any."""
    value, below, above = (np.asarray(v, dtype=np.float64) for v in (middle, low, high))
    if not np.isfinite(above - value).any():
        return None
    up, down = numbers(above - value, scale), numbers(value - below, scale)
    return {
        "type": "data",
        "array": [v or 0.0 for v in up],
        "arrayminus": [v or 0.0 for v in down],
        "thickness": 1,
        "width": 3,
        "color": colour,
    }


def interval_ends(rows: pd.DataFrame, name: str) -> tuple[Any, Any]:
    """Both ends of the column's interval: of AP over seeds, of latency over repetitions; NaN where there is none."""
    low, high = (
        rows[c].to_numpy(dtype=np.float64) if c in rows else np.full(len(rows), np.nan) for c in interval_columns(name)
    )
    return low, high


def select(figure: go.Figure, key: str) -> go.Figure:
    """Ring the points of a design in a figure that is to be shown; the page's own script does the same."""
    for trace in list(figure.data):
        keys = trace.customdata
        at = [i for i, k in enumerate(keys) if k == key] if keys is not None else []
        if not at or trace.type not in ("scatter", "scatter3d"):
            continue
        places = {axis: [trace[axis][i] for i in at] for axis in ("x", "y", "z") if axis in trace}
        ring: dict[str, Any] = {
            "color": SELECTED,
            "size": 16 if trace.type == "scatter" else 12,
            "symbol": "circle-open",
        }
        ring |= {"line": {"width": 3, "color": SELECTED}}
        axes = {axis: trace[axis] for axis in ("xaxis", "yaxis") if trace.type == "scatter" and trace[axis]}
        figure.add_trace(
            {"type": trace.type, "mode": "markers", "marker": ring, "hoverinfo": "skip", "showlegend": False}
            | places
            | axes
        )
    return figure


def note(figure: go.Figure, text: str, **place: Any) -> None:
    """A few words in a figure, without an arrow."""
    figure.add_annotation(text=text, showarrow=False, font={"size": 11}, **place)


def log_scaled(values: npt.ArrayLike) -> bool:
    """Whether values spread so far that a logarithmic axis shows them better."""
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    return bool(len(finite) and finite.min() > 0 and finite.max() / finite.min() > 30)


def short_names(values: Iterable[object], most: int = 40) -> list[str]:
    """Names as an axis or a legend can show them: short, escaped, and no two alike."""
    names = map(str, values)
    short = (name if len(name) <= most else name[: most - 1] + "…" for name in names)
    return [escape(name) for name in numbered(short)]
