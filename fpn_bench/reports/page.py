"""One self-contained page from a table: HTML that makes no network request, and CSV and Markdown beside it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from fpn_bench.analysis import check_table, write_csv, write_text_atomic
from fpn_bench.errors import FpnBenchError, UnknownNameError
from fpn_bench.graph import NeckGraph
from fpn_bench.graph.draw import as_svg
from fpn_bench.reports.figures import front_figure, hypervolume_figure
from fpn_bench.reports.info import (
    FrontInfo,
    ReportInfo,
    choices_of,
    difference_text,
    front_to_draw,
    latency_text,
    report_info,
)
from fpn_bench.reports.units import quantity

FORMATS = ("html", "csv", "md")


def write_report(
    table: pd.DataFrame,
    meta: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    formats: Sequence[str] = FORMATS,
    mix_protocols: bool = False,
) -> list[Path]:
    """Write the report of a study: ``path`` with the suffix of each format, each file whole or not at all.

    Args:
        table: the rows (`fpn_bench.analysis.COLUMNS`).
        meta: the study's metadata: ``name``, ``objectives`` ``[{"name", "direction"}]``, ``constraints`` and
            ``warnings`` and ``commands`` (lists of text), ``protocol``, ``machine`` and ``versions`` (mappings),
            ``space`` (YAML text), ``notes`` (texts on the data set), ``created_at``. Everything may be left out.
        path: where the HTML page goes; its suffix is replaced by each format's own.
        formats: some of ``html``, ``csv`` (every row and column) and ``md``.

    Returns:
        The files, in the order of ``formats``.

    Raises:
        ProtocolError: rows of two protocols, unless ``mix_protocols``.
        InputError: no table of fpn_bench, or an unknown format. Nothing was written.
    """
    for name in formats:
        if name not in FORMATS:
            raise UnknownNameError("report format", name, FORMATS)
    info = report_info(table, meta, mix_protocols=mix_protocols)
    base = Path(path)
    render: dict[str, Callable[[Path], Path]] = {
        "html": lambda target: write_text_atomic(target, html_page(info, table)),
        "csv": lambda target: write_csv(table, target),
        "md": lambda target: write_text_atomic(target, markdown_page(info)),
    }
    return [render[name](base.with_suffix(f".{name}")) for name in formats]


def html_page(info: ReportInfo, table: pd.DataFrame) -> str:
    """The page as text. Scripts other than its own two cannot run: their hashes stand in its policy."""
    plotly_js, page_js = get_plotlyjs(), _template_text("report.js")
    figures = {f"plane-{i}": front_figure(plane) for i, plane in enumerate(info.planes) if _drawable(plane)}
    if len(info.hypervolume.curve) > 1 and len(info.front):
        figures["hypervolume"] = hypervolume_figure(info.hypervolume)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        **_shared(info),
        figures={name: _json_for_script(figure) for name, figure in figures.items()},
        cards=_cards(info),
        **_candidate_table(info, check_table(table)),
        style=Markup(_template_text("report.css")),
        plotly_js=Markup(plotly_js),
        page_js=Markup(page_js),
        script_hashes=" ".join(f"'sha256-{_sha256(js)}'" for js in (plotly_js, page_js)),
    )


def markdown_page(info: ReportInfo) -> str:
    """The answer, the front, the reasons and the protocol as Markdown."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template_text),
        autoescape=False,  # HTML's rules are not Markdown's: `finalize` escapes every expression instead
        finalize=_markdown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.md.j2").render(**_shared(info))


# --------------------------------------------------------------------------------------------------------------
# What the templates are given


def _shared(info: ReportInfo) -> dict[str, Any]:
    merit = info.objectives[0]
    levels = [
        {
            "neck": level.neck["neck_label"],
            "published": level.neck["source"] == "published",
            "values": [quantity(o.name).number(level.neck[o.name]) for o in info.objectives],
            "rival": level.rival["neck_label"] if level.rival else "",
            "difference": difference_text(level.comparison, merit) if level.comparison else "",
        }
        for level in info.answer.levels
    ]
    matches = [
        {
            "neck": match.published["neck_label"],
            "values": [quantity(o.name).number(match.published[o.name]) for o in info.objectives],
            "rival": match.searched["neck_label"] if match.searched else "",
            "difference": difference_text(match.comparison, merit) if match.comparison else "",
        }
        for match in info.answer.matches
    ]
    return {
        "info": info,
        "heads": [quantity(o.name).title for o in info.objectives],
        "levels": levels,
        "matches": matches,
        "reasons": info.reasons.to_dict("records"),
        "reference": ", ".join(
            f"{quantity(o.name).label} {quantity(o.name).text(v)}"
            if quantity(o.name).unit
            else quantity(o.name).text(v)
            for o, v in info.hypervolume.reference
        ),
    }


def _cards(info: ReportInfo) -> list[dict[str, Any]]:
    """The front members that are drawn, best first."""
    cards = []
    for row in front_to_draw(info.front).to_dict("records"):
        ap = quantity("ap").number(row["ap"]) or "–"
        if row["seeds"] > 1:
            ap += f" ({row['ap_low']:.1f} to {row['ap_high']:.1f}, {row['seeds']} seeds)"
        figures = {"AP": ap, "Latency": latency_text(row)}
        for name in ("params", "macs"):
            figures[quantity(name).label] = (
                f"{quantity(name).text(row[name])} (neck {quantity(f'neck_{name}').text(row[f'neck_{name}'])})"
            )
        svg, problem = _drawing(row["graph"])
        cards.append(
            {
                "label": row["neck_label"] or row["candidate"],
                "published": row["source"] == "published",
                "figures": figures,
                "choices": choices_of(row),
                "candidate": row["candidate"],
                "trial": row["trial"],
                "svg": svg,
                "problem": problem,
            }
        )
    return cards


def _drawing(graph: str) -> tuple[Markup, str]:
    """The neck as SVG, or why there is none."""
    if not graph:
        return Markup(""), "no graph was recorded"
    try:
        return Markup(as_svg(NeckGraph.from_dict(json.loads(graph)))), ""
    except json.JSONDecodeError:
        return Markup(""), "the recorded graph is no JSON"
    except FpnBenchError as error:
        return Markup(""), f"the recorded graph cannot be read: {error}"


_TABLE_COLUMNS = ("ap", "ap50", "ap_s", "ap_m", "ap_l", "params", "macs", "latency_ms", "train_s")


def _candidate_table(info: ReportInfo, table: pd.DataFrame) -> dict[str, Any]:
    """Finished candidates (seeds collapsed) best first, then every row that did not finish; repeats only count."""
    merit = info.objectives[0]
    finished = info.candidates.sort_values(merit.name, ascending=not merit.maximize, kind="stable")
    columns = (*_TABLE_COLUMNS, *(o.name for o in info.objectives if o.name not in _TABLE_COLUMNS))
    unfinished = table[table["status"].isin(["stopped", "rejected", "failed", "running"])]
    rows = []
    for row in (*finished.to_dict("records"), *unfinished.to_dict("records")):
        spread = row.get("ap_high", float("nan")) - row["ap"]
        rows.append(
            {
                "trial": row["trial"],
                "neck": row["neck_label"] or row["candidate"],
                "source": row["source"],
                "cells": [quantity(name).number(row[name]) for name in columns],
                "spread": "" if pd.isna(spread) else f"±{spread:.1f}",
                "seeds": row.get("seeds", ""),
                "status": "on the front" if row.get("on_front") else row["status"],
                "front": bool(row.get("on_front")),
                "reason": row["reason"],
            }
        )
    statuses = [
        s
        for s in ("on the front", "complete", "stopped", "rejected", "failed", "running")
        if any(r["status"] == s for r in rows)
    ]
    return {"columns": [quantity(name).title for name in columns], "rows": rows, "statuses": statuses}


def _drawable(plane: FrontInfo) -> bool:
    return bool(len(plane.points) or len(plane.apart))


def _json_for_script(figure: go.Figure) -> Markup:
    """The figure's JSON, with what could end or open a tag inside `<script>` written as escapes."""
    text = figure.to_json()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _markdown(value: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    if isinstance(value, jinja2.Undefined):
        return str(value)  # raises, as it should
    text = escape(" ".join(str(value).split()), quote=False)
    return re.sub(r"[\\`*\[\]|~#$!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", text)


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _template_text(name: str) -> str:
    return resources.files("fpn_bench.reports").joinpath("templates", name).read_text(encoding="utf-8")
