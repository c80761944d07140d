"""Backbones compared, where there are several."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fpn_bench.analysis import hypervolume, objective_values, reference_point
from fpn_bench.reports import style
from fpn_bench.reports.blocks import Column, Plot, Section, Sentence, Table
from fpn_bench.reports.evidence import Evidence, evenly
from fpn_bench.reports.units import quantity

MOST_POINTS = 400


@dataclass(frozen=True)
class BackbonesInfo:
    """What each backbone reached.

    Attributes:
        rows: a row a backbone, the one that reaches most first: ``backbone``, ``designs`` that finished, ``on_front``
            (how many are on the front of all), ``hypervolume`` of its own designs as a share of all designs', ``best``
            and ``best_key`` (the design of most merit), and that design's objectives, AP interval and seeds.
        points: finished designs, thinned.
    """

    rows: pd.DataFrame
    points: pd.DataFrame


def section(evidence: Evidence) -> Section | None:
    info = backbones_info(evidence)
    if len(info.rows) < 2:
        return None
    names = [o.name for o in evidence.objectives]
    table = Table(
        "backbones-table",
        "",
        info.rows,
        (
            Column("Backbone", lambda row: str(row["backbone"])),
            Column("Designs", lambda row: str(row["designs"]), numeric=True),
            Column("On the front", lambda row: str(row["on_front"]), numeric=True),
            Column(
                "Hypervolume alone", lambda row: "–" if pd.isna(row["share"]) else f"{row['share']:.0%}", numeric=True
            ),
            Column("Its best neck", lambda row: str(row["best"])),
            *(Column.number(name) for name in names),
            Column("Seeds", lambda row: str(row["seeds"]), numeric=True),
        ),
    )
    told = Sentence(
        "Hypervolume alone: what the backbone's own designs dominate, in percent of what all do, from one reference "
        "point. Frozen backbones are compared with the weights and the padding that stand in the table beside the page."
    )
    plots = [
        Plot(
            f"backbones-{cost.name}",
            partial(backbones_figure, info, evidence.merit.name, cost.name),
            f"{quantity(evidence.merit.name).label} over {quantity(cost.name).label} by backbone",
            size="wide" if len(evidence.costs) == 1 else "small",
        )
        for cost in evidence.costs[:2]
    ]
    return Section("backbones", "Backbones compared", (told,), (table, *plots))


def backbones_info(evidence: Evidence) -> BackbonesInfo:
    """Best neck, share of the front and hypervolume of each backbone, from one reference point."""
    objectives = evidence.objectives
    directions, reference = [o.direction for o in objectives], reference_point(evidence.table, objectives)
    finished = evidence.finished.dropna(subset=[evidence.merit.name])

    def volume(rows: pd.DataFrame) -> float:
        return hypervolume(objective_values(rows, objectives), directions, reference)

    whole = volume(finished) if len(finished) and np.isfinite(reference).all() else 0.0
    rows = []
    for backbone, own in finished.groupby("backbone", sort=False):
        best = own.iloc[0]
        own_volume = volume(own) if whole else 0.0
        rows.append(
            {
                "backbone": str(backbone),
                "designs": len(own),
                "on_front": int(own["on_front"].sum()),
                "hypervolume": own_volume,
                "share": own_volume / whole if whole else float("nan"),
                "best": best["label"],
                "best_key": best["key"],
                **{o.name: best[o.name] for o in objectives},
                "ap_low": best["ap_low"],
                "ap_high": best["ap_high"],
                "seeds": int(best["seeds"]),
            }
        )
    frame = pd.DataFrame(rows)
    if len(frame):
        frame = frame.sort_values("hypervolume", ascending=False, kind="stable", ignore_index=True)
    drawn = finished[finished["shown"]]
    parts = [own.iloc[evenly(len(own), MOST_POINTS)] for _, own in drawn.groupby("backbone", sort=False)]
    return BackbonesInfo(frame, pd.concat(parts) if parts else drawn)


def backbones_figure(info: BackbonesInfo, merit: str, cost: str) -> go.Figure:
    """Merit over a cost, a colour a backbone."""
    x, y = quantity(cost), quantity(merit)
    figure = go.Figure()
    for i, (backbone, name) in enumerate(
        zip(info.rows["backbone"], style.short_names(info.rows["backbone"]), strict=True)
    ):
        rows = info.points[info.points["backbone"] == backbone].dropna(subset=[cost])
        marker = {"color": style.SERIES[i % len(style.SERIES)], "size": 7, "opacity": 0.8}
        xs, ys = style.numbers(rows[cost], x.scale), style.numbers(rows[merit], y.scale)
        figure.add_trace(style.design_points(rows, xs, ys, name, marker))
    figure.update_layout(style.layout(x.title, y.title), height=420)
    if style.log_scaled(info.points[cost].to_numpy(dtype=np.float64)):
        figure.update_layout(xaxis_type="log")
    return figure
