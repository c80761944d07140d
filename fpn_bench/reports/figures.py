"""The figures, drawn from what `info` computed. Colours of text and grid are the page's, set when it is opened."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fpn_bench.reports.info import FrontInfo, HypervolumeInfo
from fpn_bench.reports.units import quantity

# Legible on white and on near black alike.
FRONT, SEARCHED, PUBLISHED, REJECTED, FAILED = "#2f7fd6", "#8f9aa8", "#d97a1e", "#a98bbd", "#cf5a5a"
SYMBOLS = ("diamond", "square", "triangle-up", "pentagon", "star", "cross", "triangle-down", "hexagon", "bowtie", "x")
PLOT_SIZE, MARGIN_X = (900, 320), 54
"""Pixels the points spread over on a common screen and the room beside them, to judge which labels would collide."""


def front_figure(info: FrontInfo) -> go.Figure:
    """Searched and published candidates, the front as a step line, rejected and failed ones in a strip below."""
    points = info.points
    published = points["source"] == "published"
    figure = go.Figure()
    cost = quantity(info.x.name) if info.x else None
    scale_x = cost.scale if cost else 1.0
    scale_y = quantity(info.y.name).scale
    if info.x and len(info.line) > 1:
        # The best y at a cost is that of the last front member passed on the way to it.
        shape = "vh" if info.x.maximize else "hv"
        figure.add_scatter(
            x=info.line["x"] * scale_x,
            y=info.line["y"] * scale_y,
            mode="lines",
            line={"shape": shape, "color": FRONT, "width": 1.5},
            name="Pareto front",
            hoverinfo="skip",
        )
    plain, best = points[~published & ~points["on_front"]], points[~published & points["on_front"]]
    if len(plain):
        marker = {"color": SEARCHED, "size": 7, "opacity": 0.65}
        figure.add_trace(_trace(plain, scale_x, scale_y, "searched", marker, bars=False))
    if len(best):
        marker = {"color": FRONT, "size": 10, "line": {"width": 1, "color": "white"}}
        figure.add_trace(_trace(best, scale_x, scale_y, "searched, on the front", marker))
    necks = points[published]
    positions = dict(zip(necks.index, _label_positions(points, necks), strict=True))
    for i, (label, rows) in enumerate(necks.groupby("label", sort=False)):
        marker = {
            "color": PUBLISHED,
            "symbol": SYMBOLS[i % len(SYMBOLS)],
            "size": 12,
            "line": {
                "width": [2 if on else 1 for on in rows["on_front"]],
                "color": FRONT if rows["on_front"].any() else "white",
            },
        }
        trace = _trace(rows, scale_x, scale_y, f"published: {escape(str(label))}", marker)
        where = [positions[j] for j in rows.index]
        trace.update(
            mode="markers+text" if any(where) else "markers",
            text=[escape(str(label)) if at else "" for at in where],
            textposition=[at or "middle right" for at in where],
            textfont={"size": 11},
        )
        figure.add_trace(trace)
    strip = [s for s in ("rejected", "failed") if (info.apart["status"] == s).any()]
    for status in strip:
        rows = info.apart[info.apart["status"] == status]
        figure.add_scatter(
            x=rows["x"] * scale_x,
            y=[status] * len(rows),
            yaxis="y2",
            mode="markers",
            marker={"color": REJECTED if status == "rejected" else FAILED, "symbol": "line-ns-open", "size": 10},
            name=f"{status}, no {quantity(info.y.name).label}",
            hovertext=_hovertexts(rows["hover"]),
            hoverinfo="text",
            showlegend=False,
        )
    if info.limit is not None:
        figure.add_vline(x=info.limit * scale_x, line={"color": REJECTED, "width": 1, "dash": "dot"})
        figure.add_annotation(
            x=info.limit * scale_x,
            y=1,
            yref="paper",
            xanchor="right",
            yanchor="top",
            showarrow=False,
            text="hard limit",
            font={"size": 11},
        )
    log = bool(info.x and len(points) and points["x"].min() > 0 and points["x"].max() / points["x"].min() > 30)
    figure.update_layout(
        _layout(cost.title if cost else "Trial", quantity(info.y.name).title),
        height=540,
        xaxis_type="log" if log else "linear",
        yaxis_domain=[0.07 + 0.045 * len(strip), 1] if strip else [0, 1],
    )
    if len(points) > 1 and not log:
        _look_at_finished(figure, info, scale_x)
    if strip:
        figure.update_layout(
            yaxis2={
                "domain": [0, 0.035 + 0.035 * len(strip)],
                "type": "category",
                "categoryarray": strip,
                "tickfont": {"size": 11},
                "dtick": 1,
                "fixedrange": True,
                "showgrid": False,
            },
            xaxis_anchor="y2",
        )
    return figure


def _look_at_finished(figure: go.Figure, info: FrontInfo, scale_x: float) -> None:
    """Open on the candidates that finished: rejected ones may cost many times more and would squeeze the rest."""
    low, high = float(info.points["x"].min()), float(info.points["x"].max())
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    if info.limit is not None and high < info.limit < high + (high - low):
        high = info.limit
    low, high = low - margin, high + margin
    figure.update_layout(xaxis_range=[low * scale_x, high * scale_x])
    beyond = int((info.apart["x"] > high).sum())
    if beyond:
        figure.add_annotation(
            x=1,
            xref="paper",
            y=figure.layout.yaxis.domain[0],
            yref="paper",
            xanchor="right",
            yanchor="top",
            showarrow=False,
            text=f"{beyond} rejected or failed beyond this edge, double-click shows all →",
            font={"size": 11},
        )


def _label_positions(points: pd.DataFrame, necks: pd.DataFrame) -> list[str]:
    """Where each published neck's name goes: over no other name and no published marker, over few other points.

    Returns:
        plotly's textposition for each neck, ``""`` where no place is free (the legend names it anyway).
    """
    pixels = {}
    for axis, size in zip("xy", PLOT_SIZE, strict=True):
        low, high = float(points[axis].min()), float(points[axis].max())
        pixels[axis] = (points[axis] - low) / ((high - low) or 1.0) * size
    dots = [(x - 4, y - 4, x + 4, y + 4) for x, y in zip(pixels["x"], pixels["y"], strict=True)]
    centres = list(zip(pixels["x"][necks.index], pixels["y"][necks.index], strict=True))
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in centres]
    positions = []
    for (x, y), label in zip(centres, necks["label"], strict=True):
        width = 6.3 * len(label)
        places = {
            "middle right": (x + 8, y - 8, x + 8 + width, y + 8),
            "middle left": (x - 8 - width, y - 8, x - 8, y + 8),
            "bottom center": (x - width / 2, y - 24, x + width / 2, y - 8),
            "top center": (x - width / 2, y + 8, x + width / 2, y + 24),
        }
        if necks["x_low"].notna().any():  # error bars lie where names beside the marker would
            places = dict(sorted(places.items(), key=lambda place: place[0].startswith("middle")))
        free = {
            at: sum(_overlap(box, dot) for dot in dots)
            for at, box in places.items()
            if not any(_overlap(box, other) for other in taken)
            and box[0] > -MARGIN_X
            and box[2] < PLOT_SIZE[0] + MARGIN_X
        }
        best = min(free, key=lambda at: free[at], default="")
        positions.append(best)
        if best:
            taken.append(places[best])
    return positions


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def hypervolume_figure(info: HypervolumeInfo) -> go.Figure:
    """Hypervolume over trials, as a share of what was reached in the end."""
    curve = info.curve
    reached = curve["hypervolume"].to_numpy(dtype=np.float64)
    final = float(reached[-1]) if len(reached) else 0.0
    figure = go.Figure()
    figure.add_scatter(
        x=curve["step"],
        y=reached / final * 100 if final else reached,
        mode="lines",
        line={"shape": "hv", "color": FRONT, "width": 2},
        customdata=curve[["trial", "hypervolume"]].to_numpy(dtype=np.float64),
        hovertemplate="trial %{customdata[0]}: %{y:.1f} % (%{customdata[1]:.4g})<extra></extra>",
        showlegend=False,
    )
    if 0 < info.published < len(curve):
        figure.add_vrect(x0=0.5, x1=info.published + 0.5, fillcolor=PUBLISHED, opacity=0.12, line_width=0)
        figure.add_annotation(
            x=info.published + 0.5,
            y=0,
            yref="paper",
            xanchor="left",
            yanchor="bottom",
            showarrow=False,
            text="← published necks first",
            font={"size": 11},
        )
    figure.update_layout(_layout("Trials", "Hypervolume (% of final)"), height=300, yaxis_rangemode="tozero")
    return figure


def _trace(
    rows: pd.DataFrame, scale_x: float, scale_y: float, name: str, marker: dict[str, Any], *, bars: bool = True
) -> go.Scatter:
    trace = go.Scatter(
        x=rows["x"] * scale_x,
        y=rows["y"] * scale_y,
        mode="markers",
        marker=marker,
        name=name,
        hovertext=_hovertexts(rows["hover"]),
        hoverinfo="text",
    )
    for axis, scale in (("x", scale_x), ("y", scale_y)):
        up, down = (rows[f"{axis}_high"] - rows[axis]) * scale, (rows[axis] - rows[f"{axis}_low"]) * scale
        if bars and up.notna().any():
            bar = {"type": "data", "array": up, "arrayminus": down, "thickness": 1, "width": 3, "color": SEARCHED}
            trace.update({f"error_{axis}": bar})
    return trace


def _hovertexts(hovers: pd.Series[Any]) -> list[str]:
    """Lines of text as the few tags plotly reads; what came from files is escaped."""
    return [_hovertext(lines) for lines in hovers]


def _hovertext(lines: Sequence[str]) -> str:
    title, *rest = (escape(line[:200], quote=False) for line in lines)
    return "<br>".join([f"<b>{title}</b>", *rest])


def _layout(x: str, y: str) -> dict[str, Any]:
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
