"""A report as one self-contained page that makes no network request."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from fpn_bench.reports.blocks import Gallery, Plot
from fpn_bench.reports.details import MOST_LETTERS
from fpn_bench.reports.evidence import Evidence
from fpn_bench.reports.plain import template_environment, template_text
from fpn_bench.reports.report import Report
from fpn_bench.reports.sections.necks import drawing, image_size_of

MOST_DRAWINGS = 1_200
"""Networks of which the page holds a drawing, the best designs' first; further designs are shown without."""
DRAWINGS_A_CHUNK = 64
"""Drawings that are packed together: unpacked when the first of them is asked for."""


def html_page(report: Report) -> str:
    """The page as text. Scripts other than its own two cannot run: their hashes stand in its policy."""
    plotly_js, page_js = get_plotlyjs(), template_text("report.js")
    environment = template_environment(autoescape=True)
    environment.filters |= {"figure": _figure, "gallery": _gallery, "markup": Markup}
    return environment.get_template("report.html.j2").render(
        report=report,
        designs=_for_script(_designs(report.evidence)),
        style=Markup(template_text("report.css")),
        plotly_js=Markup(plotly_js),
        page_js=Markup(page_js),
        script_hashes=" ".join(map(script_hash, (plotly_js, page_js))),
    )


def _figure(plot: Plot) -> Markup:
    """The figure's JSON without hover texts of designs, which the page makes of what it knows of each."""
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


def _designs(evidence: Evidence) -> dict[str, Any]:
    """The designs as the page's script reads them: columns, rows of text, drawings."""
    shown = evidence.shown.to_dict("records")
    told = evidence.details
    drawings, chunks = _drawings(shown)
    return {
        "columns": [
            {"name": d.name, "title": d.title, "numeric": d.numeric, "listed": d.listed, "hovered": d.hovered}
            for d in told
        ],
        "keys": [row["key"] for row in shown],
        "rows": [[d.text(row) for d in told] for row in shown],
        "letters": MOST_LETTERS,
        "drawings": drawings,
        "chunk": DRAWINGS_A_CHUNK,
        "chunks": chunks,
    }


def _drawings(rows: list[dict[Any, Any]]) -> tuple[list[int], list[str]]:
    """Which drawing each design has (-1: none), and the drawings, packed."""
    number: dict[tuple[str, int, int], int] = {}
    index: list[int] = []
    svgs: list[str] = []
    for row in rows:
        network = (row["graph"], *image_size_of(row))  # the same graph costs more on a larger image
        if row["graph"] and network not in number and len(svgs) < MOST_DRAWINGS:
            made = drawing(row)
            number[network] = len(svgs) if made.svg else -1
            if made.svg:
                svgs.append(made.svg)
        index.append(number.get(network, -1))
    parts = [svgs[i : i + DRAWINGS_A_CHUNK] for i in range(0, len(svgs), DRAWINGS_A_CHUNK)]
    packed = [base64.b64encode(gzip.compress(json.dumps(part).encode(), 6, mtime=0)).decode() for part in parts]
    return index, packed


def _for_script(value: Any) -> Markup:
    """JSON, with what could end or open a tag inside `<script>` written as escapes."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def script_hash(script: str) -> str:
    """What a Content-Security-Policy lets an inline script run by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
