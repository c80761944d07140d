"""AP of small, medium and large objects: what each neck is good at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pandas as pd
import plotly.graph_objects as go

from fpn_bench.reports import style
from fpn_bench.reports.blocks import Column, Plot, Section, Sentence, Table
from fpn_bench.reports.evidence import Evidence, evenly
from fpn_bench.reports.units import quantity

SIZES = ("ap_s", "ap_m", "ap_l")
MOST_NECKS = 16


@dataclass(frozen=True)
class SizesInfo:
    """Front members and published necks: their columns, most AP first; and how many there are in all."""

    rows: pd.DataFrame
    of: int


def section(evidence: Evidence) -> Section | None:
    info = sizes_info(evidence)
    if info.rows.empty:
        return None
    told = [
        Sentence(
            "Small objects have an area below 32 x 32 pixels of the image file, large ones above 96 x 96. "
            "Means over seeds; a size that no object has is missing."
        )
    ]
    if len(info.rows) < info.of:
        facts = {"necks shown": len(info.rows), "necks": info.of}
        told.append(Sentence(f"{len(info.rows)} of {info.of} necks on the front or published, evenly spread.", facts))
    names = ("ap", "ap50", "ap75", *SIZES)
    table = Table(
        "sizes-table",
        "The figures",
        info.rows[["key", "label", "source", *names]].reset_index(drop=True),
        (
            Column.neck(),
            *(Column.number(name) for name in names),
        ),
        folded=True,
    )
    plot = Plot("sizes-necks", partial(sizes_figure, info), "AP of small, medium and large objects of each neck")
    return Section("sizes", "Small, medium and large objects", tuple(told), (plot, table))


def sizes_info(evidence: Evidence) -> SizesInfo:
    """The front and the published necks of which AP by size is known."""
    finished = evidence.finished
    rows = finished[(finished["on_front"] | (finished["source"] == "published")) & finished["shown"]]
    rows = rows[rows[list(SIZES)].notna().any(axis=1)].sort_values("ap", ascending=False, kind="stable")
    return SizesInfo(rows.iloc[evenly(len(rows), MOST_NECKS)], len(rows))


def sizes_figure(info: SizesInfo) -> go.Figure:
    """One line a neck, one mark a size."""
    names = style.short_names(info.rows["label"])
    figure = go.Figure()
    marks = zip(("ap", *SIZES), ("diamond-open", "circle", "circle", "circle"), (11, 7, 10, 13), strict=True)
    colours = (style.SEARCHED, style.STOPPED, style.FRONT, style.PUBLISHED)
    for (name, symbol, size), colour in zip(marks, colours, strict=True):
        marker = {"symbol": symbol, "size": size, "color": colour}
        x = style.numbers(info.rows[name])
        figure.add_trace(style.design_points(info.rows, x, names, quantity(name).label, marker))
    figure.update_layout(style.layout("AP", ""), height=120 + 26 * len(names))
    figure.update_layout(
        yaxis={"autorange": "reversed", "automargin": True, "type": "category"}, xaxis_rangemode="tozero"
    )
    return figure
