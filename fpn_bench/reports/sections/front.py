"""The Pareto front: merit against each cost, and against two at once; who is on it, and how surely."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fpn_bench.analysis import Objective, pareto_mask, seed_scatter
from fpn_bench.analysis.noise import DRAWS, standard_errors
from fpn_bench.analysis.rows import SEARCHED
from fpn_bench.analysis.words import count
from fpn_bench.metrics import metric_of, metrics
from fpn_bench.reports import style
from fpn_bench.reports.blocks import Column, Plot, Section, Sentence, Table
from fpn_bench.reports.details import chance_text, merit_text
from fpn_bench.reports.evidence import Evidence
from fpn_bench.reports.units import interval_columns, quantity

PLOT_SIZE, MARGIN_X = (900, 320), 54
"""Pixels the points spread over on a common screen and the room beside them, to judge which labels would collide."""
MOST_NAMED = 24
"""Published necks beyond which they share one entry of the legend."""
APART = ("stopped", "rejected", "failed")


@dataclass(frozen=True)
class PlaneInfo:
    """The designs in the plane of a cost and the merit.

    Attributes:
        x: the cost; None puts the trial's number there (a single objective).
        y: the merit.
        points: designs that finished, with ``x``, ``y`` and the ends of their intervals.
        line: the points on the front of this very plane, by ``x``.
        apart: designs without a final merit (stopped, rejected, failed) whose cost is known, with ``x``.
        limit: hard constraint on ``x``, if there is one.
    """

    x: Objective | None
    y: Objective
    points: pd.DataFrame
    line: pd.DataFrame
    apart: pd.DataFrame
    limit: float | None


@dataclass(frozen=True)
class SpaceInfo:
    """The finished designs over two costs at once.

    Attributes:
        x, y, z: the columns; ``z`` is the merit.
        borrowed: ``y`` is no objective of the study.
        points: designs with ``x``, ``y``, ``z`` and the ends of their intervals.
    """

    x: str
    y: str
    z: str
    borrowed: bool
    points: pd.DataFrame


def section(evidence: Evidence) -> Section:
    planes = front_info(evidence)
    plots = [
        Plot(
            f"front-{plane.x.name if plane.x else 'trial'}",
            partial(front_figure, plane),
            f"{quantity(plane.y.name).label} over {quantity(plane.x.name).label if plane.x else 'trials'} of each "
            "design",
            size="tall",
        )
        for plane in planes
        if len(plane.points) or len(plane.apart)
    ]
    sentences = []
    if not plots:
        sentences.append(Sentence("Nothing to draw: no trial finished and none was rejected at a known cost."))
    if len(planes) > 1:
        n = len(evidence.objectives)
        text = (
            f"{n} objectives: blue points are on the front over all of them, the line is the front of each plane alone."
        )
        sentences.append(Sentence(text, {"objectives": n}))
    if evidence.thinned:
        shown, of = int(evidence.designs["shown"].sum()), len(evidence.designs)
        text = (
            f"{shown} of {of} designs are drawn and listed on this page: the front, the published necks and an even "
            "share of the rest. The tables beside it hold all."
        )
        sentences.append(Sentence(text, {"designs drawn": shown, "designs": of}))
    sentences += _unknown_sentences(evidence)
    space = space_info(evidence)
    if space is not None:
        caption = "Drag to turn."
        if space.borrowed:
            caption += f" {quantity(space.y).label} is no objective of this study: it takes no part in the front."
        plots.append(Plot("front-3d", partial(space_figure, space), _alt(space), caption=caption, size="tall"))
    tables = (_table(evidence),) if len(evidence.front) else ()
    return Section("front", "Pareto front", tuple(sentences), (*plots, *tables))


def _unknown_sentences(evidence: Evidence) -> list[Sentence]:
    """Why no member of the front has a chance to be on it."""
    front = evidence.front
    if front.empty or front["front_probability"].notna().any():
        return []
    unknown = [
        quantity(o.name).within
        for o in evidence.objectives
        if np.isnan(standard_errors(front, o.name, seed_scatter(evidence.table, o.name))).all()
    ]
    text = (
        f"How sure the front is cannot be said: nothing is known of how {' and '.join(unknown) or 'figures'} "
        "would come out again. A second seed of a few necks tells."
    )
    return [Sentence(text, {"objectives of unknown scatter": len(unknown)})]


def _alt(space: SpaceInfo) -> str:
    return f"{quantity(space.z).label} over {quantity(space.x).label} and {quantity(space.y).label}"


def _table(evidence: Evidence) -> Table:
    names = [o.name for o in evidence.objectives]
    front = evidence.front
    columns = [
        Column.neck(),
        *(_with_interval(n) if metric_of(n).noise == "seeds" else Column.number(n) for n in names),
        Column("Seeds", lambda row: str(row["seeds"]), numeric=True),
    ]
    note = ""
    if front["front_probability"].notna().any():
        columns.append(Column("Chance to be on it", chance_text, numeric=True))
        note = (
            f"The chance is the share of {DRAWS:,} draws of the true figures (AP: given all necks' and how seeds "
            "scatter; latency: by its interval) in which the neck is on the front."
        )
    ends = [end for n in names if metric_of(n).noise == "seeds" for end in interval_columns(n)]
    kept = ["key", "label", "source", *names, "ap_low", "ap_high", *ends, "seeds", "front_probability"]
    rows = front[list(dict.fromkeys(kept))].reset_index(drop=True)
    return Table("front-members", f"On the front: {count(len(front), 'neck')}", rows, tuple(columns), note)


def _with_interval(name: str) -> Column:
    return Column(f"{quantity(name).title} [95 %]", partial(merit_text, name=name), numeric=True)


def front_info(evidence: Evidence) -> tuple[PlaneInfo, ...]:
    """The merit against each cost; against the trial's number where there is none."""
    pairs: list[tuple[Objective | None, Objective]] = [(cost, evidence.merit) for cost in evidence.costs]
    return tuple(_plane(evidence, x, y) for x, y in pairs or [(None, evidence.merit)])


def _plane(evidence: Evidence, x: Objective | None, y: Objective) -> PlaneInfo:
    cost = x.name if x else "trial"
    points = _placed(evidence.finished, x=cost, y=y.name)
    mask = pareto_mask(points[["x", "y"]].to_numpy(dtype=np.float64), [x.direction if x else "minimize", y.direction])
    line = points[mask].sort_values(["x", "y"], kind="stable").reset_index(drop=True)
    aside = evidence.shown[evidence.shown["status"].isin(APART)].dropna(subset=[cost])
    aside = aside.assign(x=aside[cost].astype("float64"))
    return PlaneInfo(x, y, points[points["shown"]], line, aside, _limit(evidence.constraints, cost))


def _placed(designs: pd.DataFrame, **axes: str) -> pd.DataFrame:
    """The designs of which each column is known, with it and the ends of its interval under the axis' name."""
    known = designs.dropna(subset=list(axes.values())).reset_index(drop=True)
    placed = {}
    for axis, name in axes.items():
        placed[axis] = known[name].to_numpy(dtype=np.float64)
        placed[f"{axis}_low"], placed[f"{axis}_high"] = style.interval_ends(known, name)
    return known.assign(**placed)


def _limit(constraints: Sequence[str], name: str) -> float | None:
    for constraint in constraints:
        match = re.fullmatch(rf"\s*{re.escape(name)}\s*<=?\s*([0-9._]+(?:[eE][+-]?[0-9]+)?)\s*", constraint)
        if match:
            with contextlib.suppress(ValueError):  # no constraint of a space, but the text may come from anywhere
                return float(match[1])
    return None


def space_info(evidence: Evidence) -> SpaceInfo | None:
    """Two costs and the merit; None where no two costs are known of what finished."""
    costs = [o.name for o in evidence.costs]
    borrowed = len(costs) == 1
    if borrowed:
        others = (
            m.name for m in metrics("measured") + metrics("static") if m.name not in (*costs, evidence.merit.name)
        )
        costs += [n for n in others if evidence.finished[n].nunique() > 1][:1]
    if len(costs) < 2:
        return None
    points = _placed(evidence.finished[evidence.finished["shown"]], x=costs[0], y=costs[1], z=evidence.merit.name)
    return SpaceInfo(costs[0], costs[1], evidence.merit.name, borrowed, points) if len(points) else None


def front_figure(info: PlaneInfo) -> go.Figure:
    """Searched and published necks, the front as a step line; stopped, rejected and failed ones in a strip below."""
    figure = go.Figure()
    cost, merit = quantity(info.x.name) if info.x else None, quantity(info.y.name)
    scale_x = cost.scale if cost else 1.0
    if info.x and len(info.line) > 1:
        # The best y at a cost is that of the last front member passed on the way to it.
        figure.add_scatter(
            x=style.numbers(info.line["x"], scale_x),
            y=style.numbers(info.line["y"], merit.scale),
            mode="lines",
            line={"shape": "vh" if info.x.maximize else "hv", "color": style.FRONT, "width": 1.5},
            name="Pareto front",
            hoverinfo="skip",
        )
    for trace in (*_searched_traces(info, scale_x), *_published_traces(info, scale_x)):
        figure.add_trace(trace)
    log = bool(info.x) and style.log_scaled(info.points["x"].to_numpy(dtype=np.float64))
    strip = [s for s in APART if (info.apart["status"] == s).any()]
    figure.update_layout(
        style.layout(cost.title if cost else "Trial", merit.title),
        height=540,
        xaxis_type="log" if log else "linear",
        yaxis_domain=[0.07 + 0.045 * len(strip), 1] if strip else [0, 1],
    )
    if info.limit is not None:
        limit = info.limit * scale_x
        figure.add_vline(x=limit, line={"color": style.REJECTED, "width": 1, "dash": "dot"})
        at = np.log10(limit) if log else limit  # plotly's annotations count in decades there, its shapes do not
        style.note(figure, "hard limit", x=at, y=1, yref="paper", xanchor="right", yanchor="top")
    if len(info.points) > 1:
        if not log:
            _look_at_finished(figure, info, scale_x)
        # Intervals over two seeds may be many times wider than all that is known.
        low, high = _range(info.points["y"], 0.35)
        figure.update_layout(yaxis_range=[low * merit.scale, high * merit.scale])
    if strip:
        _add_strip(figure, info, scale_x, strip)
    return figure


def _trace(
    info: PlaneInfo,
    scale_x: float,
    rows: pd.DataFrame,
    name: str,
    marker: dict[str, Any],
    *,
    bars: bool = True,
    **more: Any,
) -> Any:
    scales = {"x": scale_x, "y": quantity(info.y.name).scale}
    x, y = (style.numbers(rows[axis], scale) for axis, scale in scales.items())
    made = style.design_points(rows, x, y, name, marker, **more)
    for axis, scale in scales.items() if bars else ():
        made[f"error_{axis}"] = style.bars(rows[axis], rows[f"{axis}_low"], rows[f"{axis}_high"], scale)
    return made


def _searched_traces(info: PlaneInfo, scale_x: float) -> Iterator[Any]:
    points, kind = info.points, _kind(info.points)
    searched = points[points["source"] != "published"]
    plain, best = searched[~searched["on_front"]], searched[searched["on_front"]]
    if len(plain):
        yield _trace(info, scale_x, plain, kind, {"color": style.SEARCHED, "size": 7, "opacity": 0.65}, bars=False)
    if len(best):
        marker = {"color": style.FRONT, "size": 10, "line": {"width": 1, "color": "white"}}
        yield _trace(info, scale_x, best, f"{kind}, on the front", marker)


def _published_traces(info: PlaneInfo, scale_x: float) -> Iterator[Any]:
    """An entry of the legend for each neck, or one for all where they are many."""
    necks = info.points[info.points["source"] == "published"]
    positions = dict(zip(necks.index, _label_positions(info.points, necks), strict=True))
    several = necks["label"].nunique() > MOST_NAMED
    for i, (label, rows) in enumerate([("", necks)] if several else necks.groupby("label", sort=False)):
        marker = {
            "color": style.PUBLISHED,
            "symbol": style.SYMBOLS[i % len(style.SYMBOLS)],
            "size": 12,
            "line": {
                "width": [2 if on else 1 for on in rows["on_front"]],
                "color": style.FRONT if rows["on_front"].any() else "white",
            },
        }
        where = [positions[j] for j in rows.index]
        yield _trace(
            info,
            scale_x,
            rows,
            "published" if several else f"published: {escape(str(label)[:80])}",
            marker,
            mode="markers+text" if any(where) else "markers",
            text=[escape(str(label)) if at else "" for at in where],
            textposition=[at or "middle right" for at in where],
            textfont={"size": 11},
        )


def _add_strip(figure: go.Figure, info: PlaneInfo, scale_x: float, strip: Sequence[str]) -> None:
    """Below the plane, by cost alone: a line for each status without a final merit."""
    for status in strip:
        rows = info.apart[info.apart["status"] == status]
        marker = {"color": style.STATUS_COLOURS[status], "symbol": "line-ns-open", "size": 10}
        name = f"{status}, no final {quantity(info.y.name).label}"
        x = style.numbers(rows["x"], scale_x)
        figure.add_trace(style.design_points(rows, x, [status] * len(rows), name, marker, yaxis="y2", showlegend=False))
    figure.update_layout(
        yaxis2={
            "domain": [0, 0.035 + 0.035 * len(strip)],
            "type": "category",
            "categoryorder": "array",
            "categoryarray": strip,
            "tickfont": {"size": 11},
            "dtick": 1,
            "fixedrange": True,
            "showgrid": False,
        },
        xaxis_anchor="y2",
    )


def _kind(points: pd.DataFrame) -> str:
    """What those are that are not published: found by a search, listed by a suite, or some of both."""
    listed = points["source"] == "listed"
    if not listed.any():
        return "searched"
    return "searched or listed" if points["source"].isin(SEARCHED).any() else "listed"


def space_figure(info: SpaceInfo) -> go.Figure:
    """Merit over two costs, to be turned; the front, the published necks and the rest."""
    shown = {axis: quantity(name) for axis, name in (("x", info.x), ("y", info.y), ("z", info.z))}
    figure = go.Figure()
    published = info.points["source"] == "published"
    kind = _kind(info.points)
    groups = (
        (kind, ~published & ~info.points["on_front"], {"color": style.SEARCHED, "size": 3, "opacity": 0.6}),
        (f"{kind}, on the front", ~published & info.points["on_front"], {"color": style.FRONT, "size": 6}),
        ("published", published, {"color": style.PUBLISHED, "size": 6, "symbol": "diamond"}),
    )
    for name, mask, marker in groups:
        rows = info.points[mask]
        if not len(rows):
            continue
        x, y, z = (style.numbers(rows[axis], shown[axis].scale) for axis in "xyz")
        trace = style.design_points(rows, x, y, name, marker, z=z)
        if name != "searched":
            for axis in "xyz":
                low, high = rows[f"{axis}_low"], rows[f"{axis}_high"]
                trace[f"error_{axis}"] = style.bars(rows[axis], low, high, shown[axis].scale)
        figure.add_trace(trace)
    figure.update_layout(style.layout("", ""), height=540, margin={"l": 0, "r": 0, "t": 16, "b": 0})
    figure.update_layout(xaxis=None, yaxis=None)
    figure.update_scenes(
        {f"{axis}axis": {"title": {"text": shown[axis].title}} for axis in "xyz"}
        | {"camera": {"eye": {"x": 1.5, "y": -1.5, "z": 0.7}}}
    )
    return figure


def _look_at_finished(figure: go.Figure, info: PlaneInfo, scale_x: float) -> None:
    """Open on the candidates that finished: rejected ones may cost many times more and would squeeze the rest."""
    low, high = _range(info.points["x"], 0.06)
    if info.limit is not None and high < info.limit < high + (high - low):
        high = info.limit + 0.06 * (high - low)
    figure.update_layout(xaxis_range=[low * scale_x, high * scale_x])
    if (info.apart["x"] > high).any():
        corner = {"x": 1, "xref": "paper", "y": figure.layout.yaxis.domain[0], "yref": "paper"}
        text = "more stopped, rejected or failed beyond this edge: double-click shows all →"
        style.note(figure, text, **corner, xanchor="right", yanchor="top")


def _range(values: pd.Series[Any], margin: float) -> tuple[float, float]:
    """Both ends of what is finite, with so much of their distance added on either side."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    room = margin * (high - low) or margin * abs(high) or 1.0
    return low - room, high + room


def _label_positions(points: pd.DataFrame, necks: pd.DataFrame) -> list[str]:
    """Where each published neck's name goes: over no other name and no published marker, over few other points.

    Returns:
        plotly's textposition for each neck, ``""`` where no place is free (the legend names it anyway).
    """
    pixels = {}
    for axis, size in zip("xy", PLOT_SIZE, strict=True):
        values = points[axis].astype("float64")
        if axis == "x" and style.log_scaled(values.to_numpy()):
            values = values.map(math.log10)
        low, high = float(values.min()), float(values.max())
        pixels[axis] = (values - low) / ((high - low) or 1.0) * size
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
