"""Learning curves, where rungs stopped trainings, and how far early AP foretells final AP."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from fpn_bench.analysis import prediction_error
from fpn_bench.json_text import parse_json
from fpn_bench.reports import style
from fpn_bench.reports.blocks import Column, Plot, Section, Sentence, Table
from fpn_bench.reports.evidence import Evidence, evenly

MOST_CURVES = 160
LEAST_PAIRS = 5
KINDS = ("unfinished", "finished", "published", "on the front")


@dataclass(frozen=True)
class CurvesInfo:
    """AP as trainings went on.

    Attributes:
        curves: ``key``, ``seed``, ``kind`` (one of `KINDS`), ``epochs``, ``ap``, and the design's ``hover``; the
            design's first training alone.
        rungs: ``epochs``, how many trainings were ``evaluated`` there, how many ``stopped`` there and did not go on,
            and how many went ``on`` later.
        agreement: ``epochs``, ``tau`` (Kendall's, between AP there and at the end) and ``trainings``.
        of: designs with a curve.
    """

    curves: pd.DataFrame
    rungs: pd.DataFrame
    agreement: pd.DataFrame
    of: int


def section(evidence: Evidence) -> Section | None:
    info = curves_info(evidence)
    if info.curves.empty:
        return None
    told = []
    stopped, went_on = (int(info.rungs[name].sum()) for name in ("stopped", "on"))
    if stopped or went_on:
        facts = {"trainings stopped": stopped, "stopped and continued": went_on}
        told.append(
            Sentence(f"{stopped} trainings stand where a rung stopped them, {went_on} went on from one later.", facts)
        )
    drawn = info.curves["key"].nunique()
    if drawn < info.of:
        facts = {"curves": drawn, "designs with a curve": info.of}
        told.append(
            Sentence(f"{drawn} of {info.of} curves are drawn: those of the front and of published necks first.", facts)
        )
    blocks: list[Plot | Table] = []
    several = info.curves.groupby("key")["epochs"].nunique().max() > 1
    if several or stopped:
        blocks.append(
            Plot(
                "curves-drawn",
                partial(curves_figure, info),
                "AP over epochs",
                data={"curves": info.curves.drop(columns="hover")},
            )
        )
    rows = info.rungs.merge(info.agreement, on="epochs", how="left")
    if len(rows):
        note = (
            "Kendall's tau between the AP there and the AP at the end, over finished trainings: 1 says "
            "that the order was final already, 0 that it said nothing. Those that were stopped are not in it."
        )
        blocks.append(
            Table(
                "rungs",
                "Rungs",
                rows,
                (
                    Column("After epoch", lambda r: str(r["epochs"]), numeric=True),
                    Column("Evaluated", lambda r: str(r["evaluated"]), numeric=True),
                    Column("Stopped there", lambda r: str(r["stopped"]), numeric=True),
                    Column("Went on later", lambda r: str(r["on"]), numeric=True),
                    Column("Tau with final AP", _tau, numeric=True),
                    Column("Of", lambda r: "" if pd.isna(r["trainings"]) else f"{r['trainings']:.0f}", numeric=True),
                ),
                note if info.agreement["tau"].notna().any() else "",
            )
        )
    return Section("curves", "Learning curves and rungs", tuple(told), tuple(blocks)) if blocks else None


def _tau(row: Any) -> str:
    return "" if pd.isna(row["tau"]) else f"{row['tau']:.2f}"


def curves_info(evidence: Evidence) -> CurvesInfo:
    """The recorded AP of each training, epoch by epoch, as far as it was taken."""
    points = {text: _points(text) for text in evidence.table["ap_curve"].unique()}
    told = evidence.designs.assign(points=evidence.designs["ap_curve"].map(points))
    told = told[told["points"].map(len) > 0]
    kind = pd.Series("finished", index=told.index)
    kind[told["status"] != "complete"] = "unfinished"
    kind[told["source"] == "published"] = "published"
    kind[told["on_front"]] = "on the front"
    told = told.assign(kind=kind)
    first = told[told["kind"].isin(["on the front", "published"])]
    rest = told[~told["kind"].isin(["on the front", "published"]) & told["shown"]]
    room = max(0, MOST_CURVES - len(first))
    drawn = pd.concat([rest.iloc[evenly(len(rest), room)], first.iloc[evenly(len(first), MOST_CURVES)]])
    records = [
        {"key": row["key"], "seed": row["seed"], "kind": row["kind"], "epochs": epochs, "ap": ap, "hover": row["hover"]}
        for row in drawn.to_dict("records")
        for epochs, ap in row["points"]
    ]
    columns = ["key", "seed", "kind", "epochs", "ap", "hover"]
    table = evidence.table.assign(points=evidence.table["ap_curve"].map(points))
    return CurvesInfo(pd.DataFrame(records, columns=columns), _rungs(table), _agreement(table), len(told))


def _points(text: str) -> list[tuple[int, float]]:
    """What a row recorded; nothing where it is no list of pairs of numbers."""
    try:
        return [(int(epochs), float(ap)) for epochs, ap in parse_json(text)] if text else []
    except (TypeError, ValueError, OverflowError):
        return []


def _rungs(table: pd.DataFrame) -> pd.DataFrame:
    """Where trainings paused, and what became of them."""
    paused = table[table["status"].isin(["stopped", "continued"])].dropna(subset=["epochs"])
    # A training in pieces has a row a piece; each holds the whole curve so far.
    reached = {
        ((row["study"], row["candidate"], row["seed"]), epochs)
        for row in table[["study", "candidate", "seed", "points"]].to_dict("records")
        for epochs, _ in row["points"]
    }
    rows = []
    for epochs in sorted({int(e) for e in paused["epochs"]}):
        here = paused[paused["epochs"] == epochs]
        on = int((here["status"] == "continued").sum())
        evaluated = max(len(here), sum(at == epochs for _, at in reached))
        rows.append({"epochs": epochs, "evaluated": evaluated, "stopped": len(here) - on, "on": on})
    return pd.DataFrame(rows, columns=["epochs", "evaluated", "stopped", "on"])


def _agreement(table: pd.DataFrame) -> pd.DataFrame:
    """Rank agreement of early AP with final AP, among finished trainings."""
    done = table[(table["status"] == "complete") & table["ap"].notna()]
    curves = [(dict(points), float(ap)) for points, ap in zip(done["points"], done["ap"], strict=True)]
    rows = []
    for epochs in sorted({e for curve, _ in curves for e in list(curve)[:-1]}):
        pairs = [(curve[epochs], final) for curve, final in curves if epochs in curve]
        tau = prediction_error(*map(list, zip(*pairs, strict=True))).kendall_tau if len(pairs) >= LEAST_PAIRS else None
        rows.append({"epochs": epochs, "tau": float("nan") if tau is None else tau, "trainings": len(pairs)})
    return pd.DataFrame(rows, columns=["epochs", "tau", "trainings"])


def curves_figure(info: CurvesInfo) -> go.Figure:
    """AP over epochs: a line a training, the stopped ones as far as they got."""
    looks = {
        "unfinished": (style.STOPPED, 1.2, 0.7),
        "finished": (style.SEARCHED, 1.0, 0.5),
        "published": (style.PUBLISHED, 1.8, 1.0),
        "on the front": (style.FRONT, 1.8, 1.0),
    }
    figure = go.Figure()
    for kind in KINDS:
        rows = info.curves[info.curves["kind"] == kind]
        if rows.empty:
            continue
        colour, width, opacity = looks[kind]
        x: list[float | None] = []
        y: list[float | None] = []
        keys: list[str | None] = []
        hovers: list[str] = []
        for key, curve in rows.groupby("key", sort=False):  # one trace a kind: a gap after each curve
            x += [*style.numbers(curve["epochs"]), None]
            y += [*style.numbers(curve["ap"]), None]
            keys += [str(key)] * len(curve) + [None]
            hovers += [*curve["hover"], ""]
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines+markers",
            line={"color": colour, "width": width},
            marker={"size": 5},
            opacity=opacity,
            name=kind,
            customdata=keys,
            hovertext=hovers,
            hoverinfo="text",
            connectgaps=False,
        )
    for epochs in info.rungs["epochs"]:
        figure.add_vline(x=int(epochs), line={"color": style.STOPPED, "width": 1, "dash": "dot"})
    figure.update_layout(style.layout("Epochs", "AP"), height=420, xaxis_rangemode="tozero")
    return figure
