"""Latency: how long each neck takes and how far single calls spread; what was predicted, and what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fpn_bench.analysis import PredictionError, prediction_error
from fpn_bench.analysis.words import count
from fpn_bench.metrics import LATENCY_CONDITIONS
from fpn_bench.reports import style
from fpn_bench.reports.blocks import Column, Plot, Section, Sentence, Table
from fpn_bench.reports.evidence import Evidence, evenly, joined
from fpn_bench.reports.units import quantity

MOST_NECKS = 16
BINS = 40


@dataclass(frozen=True)
class LatencyInfo:
    """What is known of latencies.

    Attributes:
        rows: front members and published necks that were measured, fastest first; ``of`` how many there are in all.
        histogram: of all designs that were measured: ``status``, ``low_ms``, ``high_ms``, ``designs``.
        predicted: designs with both a prediction and a measurement.
        error: of these predictions; None without any.
        conditions: name and value.
    """

    rows: pd.DataFrame
    of: int
    histogram: pd.DataFrame
    predicted: pd.DataFrame
    error: PredictionError | None
    conditions: tuple[tuple[str, str], ...]


def section(evidence: Evidence) -> Section | None:
    info = latency_info(evidence)
    if info.histogram.empty:
        return None
    said = ", ".join(f"{name} {value}" for name, value in info.conditions)
    told = [
        Sentence(
            "Forward time of one batch through backbone, neck and head, without box decoding and NMS: the median, its "
            "95 % interval, and the 90th percentile of single calls."
            + (f" {said[:1].upper()}{said[1:]}." if said else "")
        )
    ]
    blocks: list[Plot | Table] = []
    if len(info.rows):
        if len(info.rows) < info.of:
            facts = {"necks shown": len(info.rows), "necks": info.of}
            text = f"{len(info.rows)} of {info.of} measured necks on the front or published, evenly spread."
            told.append(Sentence(text, facts))
        blocks.append(Plot("latency-necks", partial(latency_figure, info), "Latency of each neck with its interval"))
        blocks.append(_table(info))
    blocks.append(
        Plot(
            "latency-histogram",
            partial(histogram_figure, info),
            "How many designs have which latency",
            data={"histogram": info.histogram},
            caption="All designs that were measured, those rejected for it among them.",
            size="small" if len(info.predicted) else "short",
        )
    )
    if info.error is not None:
        tau = f", Kendall's tau {info.error.kendall_tau:.2f}" if info.error.candidates > 1 else ""
        caption = (
            f"Prediction missed by {info.error.median_ape:.0f} % at the median over "
            f"{count(info.error.candidates, 'design')}{tau}. Predictions reject; they never stand for a measurement."
        )
        figures = {"median_ape": info.error.median_ape, "kendall_tau": info.error.kendall_tau}
        told.append(Sentence(caption, figures | {"designs predicted": info.error.candidates}))
        blocks.append(
            Plot(
                "latency-predicted", partial(predicted_figure, info), "Predicted against measured latency", size="small"
            )
        )
    return Section("latency", "Latency", tuple(told), tuple(blocks))


def _table(info: LatencyInfo) -> Table:
    names = ("latency_ms", "latency_low_ms", "latency_high_ms", "latency_p90_ms")
    return Table(
        "latency-table",
        "The figures",
        info.rows[["key", "label", "source", *names, "latency_samples"]].reset_index(drop=True),
        (
            Column.neck(),
            *(Column.number(name) for name in names),
            Column(
                "Calls", lambda r: "–" if pd.isna(r["latency_samples"]) else str(r["latency_samples"]), numeric=True
            ),
        ),
        folded=True,
    )


def latency_info(evidence: Evidence) -> LatencyInfo:
    """Latencies of all that was measured, under whichever conditions."""
    measured = evidence.designs[np.isfinite(evidence.designs["latency_ms"])]
    picked = measured["on_front"] | ((measured["source"] == "published") & (measured["status"] == "complete"))
    rows = measured[picked & measured["shown"]].sort_values("latency_ms", kind="stable")
    both = measured.dropna(subset=["latency_predicted_ms"])
    error = prediction_error(both["latency_predicted_ms"].tolist(), both["latency_ms"].tolist()) if len(both) else None
    conditions = [
        (name.removeprefix("latency_").replace("_", " "), joined(measured[name])) for name in LATENCY_CONDITIONS[1:]
    ]
    return LatencyInfo(
        rows.iloc[evenly(len(rows), MOST_NECKS)],
        len(rows),
        _histogram(measured),
        both[both["shown"]],
        error,
        tuple((name, value) for name, value in conditions if value),
    )


def _histogram(measured: pd.DataFrame) -> pd.DataFrame:
    columns = ["status", "low_ms", "high_ms", "designs"]
    if measured.empty:
        return pd.DataFrame(columns=columns)
    values = measured["latency_ms"].to_numpy(dtype=np.float64)
    edges = np.histogram_bin_edges(values, bins=min(BINS, max(5, int(len(values) ** 0.5) * 2)))
    parts = []
    for status, rows in measured.groupby("status", sort=False):
        heights, _ = np.histogram(rows["latency_ms"], bins=edges)
        part = pd.DataFrame({"status": status, "low_ms": edges[:-1], "high_ms": edges[1:], "designs": heights})
        parts.append(part[part["designs"] > 0])
    return pd.concat(parts, ignore_index=True)[columns]


def latency_figure(info: LatencyInfo) -> go.Figure:
    """One line a neck: the median with its interval, and the 90th percentile."""
    names = style.short_names(info.rows["label"])
    median = style.design_points(
        info.rows, style.numbers(info.rows["latency_ms"]), names, "median, 95 %", {"size": 9, "color": style.FRONT}
    )
    median["error_x"] = style.bars(
        info.rows["latency_ms"], info.rows["latency_low_ms"], info.rows["latency_high_ms"], 1.0, style.FRONT
    )
    tail = style.design_points(
        info.rows,
        style.numbers(info.rows["latency_p90_ms"]),
        names,
        "90th percentile of calls",
        {"size": 11, "color": style.PUBLISHED, "symbol": "line-ns-open"},
    )
    figure = go.Figure([median, tail])
    figure.update_layout(style.layout(quantity("latency_ms").title, ""), height=120 + 26 * len(names))
    figure.update_layout(
        yaxis={"autorange": "reversed", "automargin": True, "type": "category"}, xaxis_rangemode="tozero"
    )
    return figure


def histogram_figure(info: LatencyInfo) -> go.Figure:
    """Designs by latency, stacked by what became of them."""
    figure = go.Figure()
    for status, rows in info.histogram.groupby("status", sort=False):
        figure.add_bar(
            x=style.numbers((rows["low_ms"] + rows["high_ms"]) / 2),
            width=style.numbers(rows["high_ms"] - rows["low_ms"]),
            y=rows["designs"].tolist(),
            name=str(status),
            marker={"color": style.STATUS_COLOURS.get(str(status), style.FRONT)},
            hovertemplate="%{y} near %{x:.2f} ms<extra></extra>",
        )
    figure.update_layout(style.layout(quantity("latency_ms").title, "Designs"), barmode="stack", height=300)
    return figure


def predicted_figure(info: LatencyInfo) -> go.Figure:
    """Measured over predicted; on the line they agree."""
    rows = info.predicted
    figure = go.Figure()
    ends = [float(rows[["latency_predicted_ms", "latency_ms"]].min().min())]
    ends.append(float(rows[["latency_predicted_ms", "latency_ms"]].max().max()))
    figure.add_scatter(
        x=style.numbers(ends),
        y=style.numbers(ends),
        mode="lines",
        line={"color": style.SEARCHED, "width": 1, "dash": "dot"},
        hoverinfo="skip",
        showlegend=False,
    )
    x, y = style.numbers(rows["latency_predicted_ms"]), style.numbers(rows["latency_ms"])
    figure.add_trace(style.design_points(rows, x, y, "", {"size": 6, "color": style.FRONT}, showlegend=False))
    figure.update_layout(style.layout("Predicted latency (ms)", "Measured latency (ms)"), height=300)
    return figure
