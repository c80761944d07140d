"""What matters: how much each searched choice explains, and how designs spread over its values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fpn_bench.analysis import CHOICE_PREFIX, choice_groups, choice_importance
from fpn_bench.analysis.rows import SEARCHED
from fpn_bench.reports import style
from fpn_bench.reports.blocks import Column, Plot, Section, Sentence, Table
from fpn_bench.reports.evidence import Evidence, evenly
from fpn_bench.reports.units import quantity

MOST_CHOICES = 12
MOST_POINTS = 600
"""Designs drawn over a choice's values; the boxes are those of all."""


@dataclass(frozen=True)
class ChoicesInfo:
    """What the searched choices did.

    Attributes:
        importance: of each objective: `fpn_bench.analysis.choice_importance`, with ``objective``.
        spread: the merit over each choice's values: ``choice``, ``value``, ``count``, ``low`` and ``high`` (5 % and 95
            %), ``q1``, ``median``, ``q3``.
        points: designs: their columns, ``choice``, ``value``, ``y``.
        merit: the column.
        designs: how many sampled designs finished.
    """

    importance: pd.DataFrame
    spread: pd.DataFrame
    points: pd.DataFrame
    merit: str
    designs: int


def section(evidence: Evidence) -> Section | None:
    info = choices_info(evidence)
    if info.spread.empty:
        return None
    label = quantity(info.merit).label
    told = Sentence(
        f"Over the {info.designs} designs that were sampled and finished. A sampler that dwells where {label} is high "
        "narrows what there is to explain; choices that work only together are not seen here.",
        {"sampled designs": info.designs},
    )
    blocks: list[Plot | Table] = []
    if len(info.importance):
        caption = (
            "Share of the variance that each choice explains by itself (epsilon squared). The outline is what shuffled "
            "values reach in one case of twenty: a bar that ends within it is noise."
        )
        blocks.append(
            Plot("importance", partial(importance_figure, info), "Importance of choices", caption=caption, size="short")
        )
        blocks.append(_table(info))
    blocks += [
        Plot(
            f"choice-{i}",
            partial(spread_figure, info, choice),
            f"{label} over the values of {choice}",
            data={"spread": info.spread[info.spread["choice"] == choice]},
            caption=choice,
            size="small",
        )
        for i, choice in enumerate(dict.fromkeys(info.spread["choice"]))
    ]
    return Section("choices", "What matters", (told,), tuple(blocks))


def _table(info: ChoicesInfo) -> Table:
    return Table(
        "importance-table",
        "The figures",
        info.importance,
        (
            Column("Choice", lambda row: str(row["choice"])),
            Column("Of", lambda row: quantity(row["objective"]).label),
            Column("Share explained", lambda row: f"{max(0.0, row['share']):.0%}", numeric=True),
            Column("Noise reaches", lambda row: f"{row['noise']:.0%}", numeric=True),
            Column("Values", lambda row: str(row["values"]), numeric=True),
            Column("Designs", lambda row: str(row["candidates"]), numeric=True),
        ),
        folded=True,
    )


def choices_info(evidence: Evidence) -> ChoicesInfo:
    """Importance of each choice for each objective, and the merit over its values, most important first."""
    merit = evidence.merit.name
    sampled = evidence.finished[evidence.finished["source"].isin(SEARCHED)].dropna(subset=[merit])
    parts = [choice_importance(sampled, o.name).assign(objective=o.name) for o in evidence.objectives]
    importance = pd.concat(parts, ignore_index=True)
    ranked = list(importance[importance["objective"] == merit]["choice"])
    spread, points = [], []
    for choice in ranked[:MOST_CHOICES]:
        name = CHOICE_PREFIX + choice
        rows = sampled[sampled[name] != ""]
        groups, labels = choice_groups(rows[name])
        y = rows[merit].to_numpy(dtype=np.float64)
        for group, value in enumerate(labels):
            own = y[groups == group]
            low, q1, median, q3, high = np.quantile(own, [0.05, 0.25, 0.5, 0.75, 0.95])
            fields = {"low": low, "q1": q1, "median": median, "q3": q3, "high": high}
            spread.append({"choice": choice, "value": value, "count": len(own)} | fields)
        drawn = rows.assign(choice=choice, value=[labels[g] for g in groups], y=y)
        drawn = drawn[drawn["shown"]]
        points.append(drawn.iloc[evenly(len(drawn), MOST_POINTS)])
    columns = ["choice", "value", "count", "low", "q1", "median", "q3", "high"]
    drawn = pd.concat(points) if points else sampled.iloc[:0].assign(choice="", value="", y=0.0)
    return ChoicesInfo(importance, pd.DataFrame(spread, columns=columns), drawn, merit, len(sampled))


def importance_figure(info: ChoicesInfo) -> go.Figure:
    """One bar a choice and objective, with the noise it must pass."""
    figure = go.Figure()
    objectives = list(dict.fromkeys(info.importance["objective"]))
    for i, objective in enumerate(objectives):
        rows = info.importance[info.importance["objective"] == objective].iloc[:MOST_CHOICES]
        names = style.short_names(rows["choice"])
        colour = style.SERIES[i % len(style.SERIES)]
        figure.add_bar(
            y=names,
            x=[max(0.0, v) for v in style.numbers(rows["share"], 100) if v is not None],
            orientation="h",
            name=quantity(objective).label,
            offsetgroup=str(i),
            marker={"color": colour},
            hovertemplate="%{x:.0f} %<extra></extra>",
        )
        figure.add_bar(
            y=names,
            x=style.numbers(rows["noise"], 100),
            orientation="h",
            offsetgroup=str(i),
            marker={"color": "rgba(0,0,0,0)", "line": {"color": style.SEARCHED, "width": 1}},
            showlegend=False,
            hovertemplate="shuffled: %{x:.0f} %<extra></extra>",
        )
    figure.update_layout(style.layout("Share of variance explained (%)", ""), barmode="group", height=300)
    figure.update_layout(yaxis={"autorange": "reversed", "automargin": True, "type": "category"}, margin={"l": 110})
    return figure


def spread_figure(info: ChoicesInfo, choice: str) -> go.Figure:
    """Boxes of the merit over a choice's values, with the designs."""
    shown = quantity(info.merit)
    spread = info.spread[info.spread["choice"] == choice]
    values = style.short_names(spread["value"])
    called = dict(zip(spread["value"], values, strict=True))
    figure = go.Figure()
    figure.add_box(
        x=values,
        lowerfence=style.numbers(spread["low"], shown.scale),
        q1=style.numbers(spread["q1"], shown.scale),
        median=style.numbers(spread["median"], shown.scale),
        q3=style.numbers(spread["q3"], shown.scale),
        upperfence=style.numbers(spread["high"], shown.scale),
        line={"color": style.SEARCHED, "width": 1.5},
        fillcolor="rgba(0,0,0,0)",
        showlegend=False,
        hoverinfo="skip",
    )
    for on_front, colour in ((False, style.SEARCHED), (True, style.FRONT)):
        points = info.points
        rows = points[(points["choice"] == choice) & (points["on_front"] == on_front)]
        if len(rows):
            marker = {"color": colour, "size": 8 if on_front else 5, "opacity": 1 if on_front else 0.5}
            x = [called[v] for v in rows["value"]]
            y = style.numbers(rows["y"], shown.scale)
            figure.add_trace(style.design_points(rows, x, y, "", marker, showlegend=False))
    figure.update_layout(style.layout("", shown.title), height=300)
    figure.update_layout(xaxis={"type": "category", "categoryorder": "array", "categoryarray": values})
    return figure
