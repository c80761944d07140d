"""A report as one self-contained page that makes no network request."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from fpn_bench.reports.blocks import Gallery, Plot
from fpn_bench.reports.evidence import Evidence, choices_of, latency_text
from fpn_bench.reports.plain import kind, template_text
from fpn_bench.reports.report import Report
from fpn_bench.reports.sections.necks import drawing
from fpn_bench.reports.units import quantity

MOST_DRAWINGS = 1_500
"""Networks of which the page holds a drawing, the best designs' first; further designs are shown without."""
DRAWINGS_A_CHUNK = 64
"""Drawings that are packed together: unpacked when the first of them is asked for."""


@dataclass(frozen=True)
class Detail:
    """What the page knows of a design: a column of its table, or a line beside a selected design's drawing."""

    name: str
    title: str
    text: Callable[[Mapping[Any, Any]], str]
    numeric: bool = True
    listed: bool = False


def html_page(report: Report) -> str:
    """The page as text. Scripts other than its own two cannot run: their hashes stand in its policy."""
    plotly_js, page_js = get_plotlyjs(), template_text("report.js")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(template_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "kind": kind,
        "records": lambda frame: frame.to_dict("records"),
        "figure": _figure,
        "gallery": _gallery,
        "markup": Markup,
    }
    environment.filters |= filters
    return environment.get_template("report.html.j2").render(
        report=report,
        designs=_for_script(_designs(report.evidence)),
        style=Markup(template_text("report.css")),
        plotly_js=Markup(plotly_js),
        page_js=Markup(page_js),
        script_hashes=" ".join(f"'sha256-{_sha256(js)}'" for js in (plotly_js, page_js)),
    )


def _figure(plot: Plot) -> Markup:
    """The figure's JSON without hover texts of designs, which the page has once for all its figures."""
    figure: go.Figure = plot.draw()
    plain = json.loads(figure.to_json())
    for trace in plain["data"]:
        if trace.get("customdata") is not None and "hovertext" in trace:
            trace["hovertext"] = None
    return _for_script(plain)


def _gallery(gallery: Gallery) -> Markup:
    return _for_script(
        {
            "classes": gallery.classes,
            "detections": gallery.detections,
            "chosen": gallery.chosen,
            "labels": gallery.labels,
        }
    )


def details(evidence: Evidence) -> tuple[Detail, ...]:
    """What the page tells of each design, in order."""
    listed = ["ap", "ap50", "ap_s", "ap_m", "ap_l", "params", "macs", "latency_ms", "train_s"]
    listed += [o.name for o in evidence.objectives if o.name not in listed]
    several = evidence.table["study"].nunique() > 1
    choices = sorted({name for row in evidence.shown.to_dict("records") for name in choices_of(row)})
    return (
        Detail("trial", "Trial", lambda row: str(row["trial"]), listed=True),
        Detail("label", "Neck", lambda row: str(row["label"]), numeric=False, listed=True),
        Detail("study", "Study", lambda row: str(row["study"]), numeric=False, listed=several),
        Detail(
            "status", "Status", lambda row: "on the front" if row["on_front"] else str(row["status"]), numeric=False
        ),
        Detail("reason", "Reason", lambda row: str(row["reason"]), numeric=False),
        *(
            Detail(name, quantity(name).title, lambda row, n=name: quantity(n).number(row[n]), listed=True)  # type: ignore[misc]
            for name in listed
        ),
        Detail("interval", "AP, 95 % interval", lambda row: _interval(row["ap_low"], row["ap_high"]), numeric=False),
        Detail("seeds", "Seeds", lambda row: str(row["seeds"]) if row["seeds"] else "", listed=True),
        Detail("chance", "Chance to be on the front", _chance, numeric=False),
        Detail("latency", "Latency, 95 % interval", _latency, numeric=False),
        *(
            Detail(name, quantity(name).title, lambda row, n=name: quantity(n).number(row[n]))  # type: ignore[misc]
            for name in ("latency_p90_ms", "neck_params", "neck_macs")
        ),
        *(
            Detail(name, title, lambda row, n=name: str(row[n]), numeric=False)  # type: ignore[misc]
            for name, title in (("backbone", "Backbone"), ("source", "Source"), ("candidate", "Candidate"))
        ),
        *(Detail(f"choice.{n}", n, lambda row, n=n: choices_of(row).get(n, ""), numeric=False) for n in choices),  # type: ignore[misc]
    )


def _designs(evidence: Evidence) -> dict[str, Any]:
    """The designs as the page's script reads them: columns, rows of text, hover texts, drawings."""
    shown = evidence.shown.to_dict("records")
    told = details(evidence)
    drawings, chunks = _drawings(shown)
    return {
        "columns": [{"name": d.name, "title": d.title, "numeric": d.numeric, "listed": d.listed} for d in told],
        "keys": [row["key"] for row in shown],
        "rows": [[d.text(row) for d in told] for row in shown],
        "hover": [row["hover"] for row in shown],
        "drawings": drawings,
        "chunk": DRAWINGS_A_CHUNK,
        "chunks": chunks,
    }


def _drawings(rows: list[dict[Any, Any]]) -> tuple[list[int], list[str]]:
    """Which drawing each design has (-1: none), and the drawings, packed."""
    number: dict[str, int] = {}
    index: list[int] = []
    svgs: list[str] = []
    for row in rows:
        graph = row["graph"]
        if graph and graph not in number and len(svgs) < MOST_DRAWINGS:
            made = drawing(row)
            number[graph] = len(svgs) if made.svg else -1
            if made.svg:
                svgs.append(made.svg)
        index.append(number.get(graph, -1))
    parts = [svgs[i : i + DRAWINGS_A_CHUNK] for i in range(0, len(svgs), DRAWINGS_A_CHUNK)]
    packed = [base64.b64encode(gzip.compress(json.dumps(part).encode(), 6, mtime=0)).decode() for part in parts]
    return index, packed


def _interval(low: float, high: float) -> str:
    return "" if pd.isna(low) else f"{low:.1f} to {high:.1f}"


def _chance(row: Mapping[Any, Any]) -> str:
    return "" if pd.isna(row["front_probability"]) else f"{row['front_probability']:.0%}"


def _latency(row: Mapping[Any, Any]) -> str:
    return "" if pd.isna(row["latency_ms"]) else latency_text(row)


def _for_script(value: Any) -> Markup:
    """JSON, with what could end or open a tag inside `<script>` written as escapes."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
