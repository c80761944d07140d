"""Whether the short training's ranking is that of a longer one: a sample of candidates under both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fpn_bench.analysis import Agreement, ProxyTrust, longest, proxy_trust, retrained_of
from fpn_bench.analysis.words import count
from fpn_bench.reports import style
from fpn_bench.reports.blocks import Column, Plot, Section, Sentence, Table
from fpn_bench.reports.evidence import Evidence


@dataclass(frozen=True)
class TrustInfo:
    """What was found by training a sample longer.

    Attributes:
        epochs, longer: of the short and of the longer training.
        study: where the longer trainings are.
        trust: how the rankings agree.
        rows: the candidates of the sample: ``label``, ``ap_short``, ``ap_long`` (means over seeds), and of those that
            are designs of this report ``key`` and ``hover``.
    """

    epochs: int
    longer: int
    study: str
    trust: ProxyTrust
    rows: pd.DataFrame


def section(evidence: Evidence) -> Section | None:
    info = trust_info(evidence)
    if info is not None:
        return Section("trust", "How far the short training can be trusted", _told(info), (_table(info), _plot(info)))
    if evidence.front.empty or evidence.merit.name != "ap":
        return None
    text = (
        "Whether a longer training would rank the necks alike was not measured. `fpn-bench bench STUDY --correlate` "
        "trains a sample of them longer and says so here."
    )
    return Section("trust", "How far the short training can be trusted", (Sentence(text),), ())


def trust_info(evidence: Evidence) -> TrustInfo | None:
    """What `fpn_bench.search.proxy.correlate` left with the study; None where it was not run."""
    kept = longest(evidence.meta.get("proxy"))
    if kept is None:
        return None
    retrained = retrained_of(kept)
    rows = pd.DataFrame(
        {
            "candidate": [r.candidate for r in retrained],
            "label": [r.label for r in retrained],
            "ap_short": [float(np.mean([*r.short.values()])) for r in retrained],
            "ap_long": [float(np.mean([*r.long.values()])) for r in retrained],
        }
    )
    known = evidence.designs.drop_duplicates("candidate")[["candidate", "key", "hover", "source", "shown"]]
    rows = rows.merge(known, on="candidate", how="inner")
    return TrustInfo(
        int(kept["epochs"]), int(kept["epochs"]) * int(kept["times"]), str(kept["study"]), proxy_trust(retrained), rows
    )


def _told(info: TrustInfo) -> tuple[Sentence, ...]:
    whole, top = info.trust.whole, info.trust.top
    first = (
        f"{count(whole.candidates, 'candidate')} {'was' if whole.candidates == 1 else 'were'} trained for "
        f"{info.longer} epochs too, instead of {info.epochs} (study {info.study})."
    )
    facts: dict[str, float] = {"candidates": whole.candidates, "epochs": info.epochs, "longer epochs": info.longer}
    told = [Sentence(first, facts)]
    if not math.isnan(whole.tau):
        text = f"Kendall's tau of the two rankings is {whole.tau:.2f} ({whole.low:.2f} to {whole.high:.2f})"
        numbers = {"tau": whole.tau, "tau_low": whole.low, "tau_high": whole.high}
        if top is not None and not math.isnan(top.tau):
            text += f", and {top.tau:.2f} ({top.low:.2f} to {top.high:.2f}) within the top"
            numbers |= {"tau_top": top.tau, "tau_top_low": top.low, "tau_top_high": top.high}
        told.append(Sentence(f"{text}: 1 is the same order, 0 no relation.", numbers))
    return tuple(told)


def _table(info: TrustInfo) -> Table:
    rows = pd.DataFrame([{"ranked": words, **_figures(found)} for words, found in info.trust.told()])
    return Table(
        "trust-table",
        "Rank correlation of short and longer training",
        rows,
        (
            Column("Kendall's tau", lambda row: str(row["ranked"])),
            *(Column(title, partial(_number, name), numeric=True) for name, title in (("tau", "Tau"), ("low", "From"))),
            Column("To", partial(_number, "high"), numeric=True),
            Column("Candidates", lambda row: str(row["candidates"]), numeric=True),
        ),
        "With 95 % intervals over the candidates. Among those of about one cost: pairs within a third of the MACs, "
        "where it does not help that larger necks are better. The top quarter is chosen by one seed and ranked by the "
        "others, for a figure that chose cannot be trusted to rank; it needs five candidates or more.",
    )


def _figures(found: Agreement | None) -> dict[str, float]:
    if found is None:
        return {"tau": math.nan, "low": math.nan, "high": math.nan, "candidates": 0}
    return {"tau": found.tau, "low": found.low, "high": found.high, "candidates": found.candidates}


def _number(name: str, row: object) -> str:
    value = row[name]  # type: ignore[index]
    return "–" if math.isnan(value) else f"{value:.2f}"


def _plot(info: TrustInfo) -> Plot:
    return Plot(
        "trust-plot",
        partial(trust_figure, info),
        "AP after the short training against AP after a longer one",
        data={"retrained": info.rows[["label", "ap_short", "ap_long"]]},
        size="small",
    )


def trust_figure(info: TrustInfo) -> go.Figure:
    """AP after the short training against AP after the longer one."""
    figure = go.Figure(layout=style.layout(f"AP after {info.epochs} epochs", f"AP after {info.longer} epochs"))
    rows = info.rows[info.rows["shown"]]
    figure.add_trace(
        style.design_points(
            rows,
            style.numbers(rows["ap_short"]),
            style.numbers(rows["ap_long"]),
            "trained longer too",
            {"color": style.FRONT, "size": 8},
        )
    )
    return figure
