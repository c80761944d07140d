"""Progress of the search: hypervolume over trials, epochs and wall time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fpn_bench.analysis import Objective, hypervolume_over_trials, reference_point
from fpn_bench.reports import style
from fpn_bench.reports.blocks import Plot, Section, Sentence
from fpn_bench.reports.evidence import Evidence, began_at, ended_at, evenly
from fpn_bench.reports.units import quantity

AXES = {"step": "Trials", "epochs": "Epochs trained", "hours": "Hours since the first trial began"}
MOST_STEPS = 1_500
"""Points a curve is drawn with: more than there are pixels."""


@dataclass(frozen=True)
class ProgressInfo:
    """How the hypervolume grew.

    Attributes:
        curve: a row for each trial that ended, in the order they ended: ``study``, ``trial``, ``step`` (trials so far),
            ``epochs`` and ``hours`` (so far; NaN where unknown), ``hypervolume`` and ``share`` of what all reached.
        reference: what the volume is measured from: the worst finished value of each objective.
        published: trials of published necks that ended before any other; 0 where there are several studies.
    """

    curve: pd.DataFrame
    reference: tuple[tuple[Objective, float], ...]
    published: int


def section(evidence: Evidence) -> Section | None:
    info = progress_info(evidence)
    searched = evidence.table["source"] != "listed"  # a suite is gone through, and gets nowhere in particular
    if len(info.curve) < 2 or evidence.front.empty or not searched.any():
        return None
    reference = ", ".join(
        f"{quantity(o.name).label} {quantity(o.name).text(v)}" if quantity(o.name).unit else quantity(o.name).text(v)
        for o, v in info.reference
    )
    told = Sentence(
        "Hypervolume: the share of objective space that the finished candidates dominate, here in percent of what was "
        f"reached in the end. Reference point: the worst finished value of each objective ({reference}). A curve that "
        "still rises says that more trials would pay.",
        {f"reference {o.name}": v for o, v in info.reference},
    )
    drawn = [axis for axis in AXES if info.curve[axis].notna().any() and info.curve[axis].nunique() > 1]
    plots = tuple(
        Plot(
            f"progress-{axis}",
            partial(progress_figure, info, axis),
            f"Hypervolume over {AXES[axis].lower()}",
            data={"curve": info.curve} if axis == drawn[0] else {},
            size="small" if len(drawn) > 1 else "short",
        )
        for axis in drawn
    )
    return Section("progress", "Progress of the search", (told,), plots)


def progress_info(evidence: Evidence) -> ProgressInfo:
    """The hypervolume reached after each trial, of each study by itself, from one reference point."""
    objectives = evidence.objectives
    reference = reference_point(evidence.table, objectives)
    curves = [_curve(rows, objectives, reference) for _, rows in evidence.table.groupby("study", sort=False)]
    columns = ["study", "trial", "step", "epochs", "hours", "hypervolume"]
    curve = pd.concat(curves, ignore_index=True)[columns] if curves else pd.DataFrame(columns=columns, dtype="float64")
    reached = float(curve["hypervolume"].max()) if len(curve) else 0.0
    curve = curve.assign(share=curve["hypervolume"] / reached if reached else 0.0)
    trials = evidence.table.drop_duplicates(["study", "trial"]).set_index(["study", "trial"])["source"]
    order = [trials[name] == "published" for name in zip(curve["study"], curve["trial"], strict=True)]
    published = order.index(False) if False in order else len(order)
    if evidence.table["study"].nunique() > 1:
        published = 0
    return ProgressInfo(curve, tuple(zip(objectives, reference, strict=True)), published)


def _curve(rows: pd.DataFrame, objectives: tuple[Objective, ...], reference: tuple[float, ...]) -> pd.DataFrame:
    """Of one study. Workers side by side end trials in another order than they began them."""
    rows = rows[rows["status"] != "running"]
    began, ended = began_at(rows), ended_at(rows)
    rows = rows.assign(ended=ended).sort_values("ended", kind="stable") if ended.notna().all() else rows
    # Whether protocols may be mixed was decided where the evidence was gathered.
    plain = rows.drop(columns="ended", errors="ignore")
    curve = hypervolume_over_trials(plain, objectives, reference=reference, mix_protocols=True)
    # Seeds of one trial are rows of their own; what it trained is their sum.
    trained = rows["epochs_trained"].astype("float64")
    whole = rows["epochs"].astype("float64").where(rows["status"] == "complete", 0.0)
    trained = trained.fillna(whole.where(rows["shared_from"] == "", 0.0))
    paid = trained.groupby(rows["trial"]).sum()
    curve["epochs"] = curve["trial"].map(paid).cumsum().to_numpy(dtype=np.float64)
    hours = (ended - began.min()).dt.total_seconds() / 3600
    last = hours.groupby(rows["trial"]).max() if ended.notna().any() else pd.Series(dtype="float64")
    curve["hours"] = curve["trial"].map(last).cummax().to_numpy(dtype=np.float64)
    return curve


def progress_figure(info: ProgressInfo, axis: str = "step") -> go.Figure:
    """Hypervolume in percent of what was reached in the end, over ``step``, ``epochs`` or ``hours``."""
    figure = go.Figure()
    studies = list(info.curve.groupby("study", sort=False))
    names = style.short_names(study for study, _ in studies)
    for i, (name, (_, rows)) in enumerate(zip(names, studies, strict=True)):
        rows = rows.dropna(subset=[axis])
        rows = rows.iloc[evenly(len(rows), MOST_STEPS)]
        figure.add_scatter(
            x=style.numbers(rows[axis]),
            y=style.numbers(rows["share"], 100),
            mode="lines",
            line={"shape": "hv", "color": style.SERIES[i % len(style.SERIES)], "width": 2},
            name=name,
            hovertext=[f"trial {t}: {s:.1%}" for t, s in zip(rows["trial"], rows["share"], strict=True)],
            hoverinfo="text",
            showlegend=len(studies) > 1,
        )
    if axis == "step" and 0 < info.published < len(info.curve):
        figure.add_vrect(
            x0=0.5, x1=info.published + 0.5, fillcolor=style.PUBLISHED, opacity=0.12, line_width=0, layer="below"
        )
        edge = {"x": info.published + 0.5, "y": 0, "yref": "paper"}
        style.note(figure, "← published first", **edge, xanchor="left", yanchor="bottom")
    figure.update_layout(style.layout(AXES[axis], "Hypervolume (% of final)"), height=300, yaxis_rangemode="tozero")
    return figure
