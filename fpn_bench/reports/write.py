"""Writing a report: the formats, each file whole or not at all."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from fpn_bench.analysis import write_csv
from fpn_bench.analysis.rows import csv_text
from fpn_bench.errors import InputError, UnknownNameError
from fpn_bench.paths import write_bytes_atomic, write_text_atomic
from fpn_bench.reports.blocks import Plot
from fpn_bench.reports.evidence import Samples
from fpn_bench.reports.html import html_page
from fpn_bench.reports.plain import designs_table, json_document, markdown_page, numbers_table
from fpn_bench.reports.report import Report, report_info

FORMATS = ("html", "csv", "md", "json", "png")
DEFAULT_FORMATS = ("html", "csv", "md")
PNG_WIDTH, PNG_SCALE = 1000, 2
_CHROME = "fpn-bench report --format png draws with kaleido, which needs Chrome or Chromium"


def write_report(
    table: pd.DataFrame,
    meta: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    formats: Sequence[str] = DEFAULT_FORMATS,
    samples: Samples = None,
    mix_protocols: bool = False,
) -> list[Path]:
    """Write the report of a study: ``path`` with the suffix of each format, each file whole or not at all.

    Args:
        table: the rows (`fpn_bench.analysis.COLUMNS`).
        meta: the study's metadata: ``name``, ``objectives`` ``[{"name", "direction"}]``, ``constraints`` and
            ``warnings`` and ``commands`` (lists of text), ``protocol``, ``machine`` and ``versions`` (mappings),
            ``space`` (YAML text), ``notes`` (texts on the data set), ``created_at``. Everything may be left out.
        path: where the HTML page goes; a format's suffix is replaced by each format's own. A folder: ``report`` in it.
        formats: some of ``html``; ``csv`` (every row and column; beside it ``.designs.csv``, one row a design with
            means and intervals over seeds, and ``.numbers.csv``, every other number of the page); ``md``; ``json``
            (all that the page says); ``png`` (each figure a file, named after it; needs kaleido and Chrome).
        samples: sample images with detections, or what gives them for candidates (`fpn_bench.search.Study.samples`).
        mix_protocols: let rows of several protocols stand side by side, which the report then says.

    Returns:
        The files, in the order of ``formats``.

    Raises:
        ProtocolError: rows of two protocols, unless ``mix_protocols``.
        InputError: no table of fpn_bench, an unknown format, or PNG without kaleido or Chrome. Nothing was written.
    """
    for name in formats:
        if name not in FORMATS:
            raise UnknownNameError("report format", name, FORMATS)
    if "png" in formats and importlib.util.find_spec("kaleido") is None:
        raise InputError('PNG needs kaleido, which is not there: `pip install "fpn-bench[png]"`, or leave png out')
    report = report_info(table, meta, samples=samples, mix_protocols=mix_protocols)
    base = Path(path) / "report" if Path(path).is_dir() or str(path).endswith(("/", os.sep)) else Path(path)
    base = base.with_suffix("") if base.suffix.removeprefix(".").lower() in FORMATS else base
    pictures = _pictures(report, base) if "png" in formats else {}  # first: it is what may be refused
    render: dict[str, Callable[[], list[Path]]] = {
        "html": lambda: [_write_text(_named(base, ".html"), html_page(report))],
        "csv": lambda: _write_tables(report, base),
        "md": lambda: [_write_text(_named(base, ".md"), markdown_page(report))],
        "json": lambda: [write_text_atomic(_named(base, ".json"), json_document(report))],
        "png": lambda: [write_bytes_atomic(target, picture) for target, picture in pictures.items()],
    }
    return [written for name in dict.fromkeys(formats) for written in render[name]()]


def _write_text(path: Path, text: str) -> Path:
    """With "?" for halves of surrogate pairs, which UTF-8 has not, and which names of files and damaged rows hold."""
    return write_bytes_atomic(path, text.encode(errors="replace"))


def _named(base: Path, suffix: str) -> Path:
    return base.with_name(base.name + suffix)


def _write_tables(report: Report, base: Path) -> list[Path]:
    tables = {".designs.csv": designs_table(report), ".numbers.csv": numbers_table(report)}
    return [
        write_csv(report.evidence.table, _named(base, ".csv")),
        *(write_text_atomic(_named(base, suffix), csv_text(frame)) for suffix, frame in tables.items()),
    ]


def _pictures(report: Report, base: Path) -> dict[Path, bytes]:
    """Each figure as PNG, on white, at twice the pixels of the page."""
    plots = [block for section in report.sections for block in section.blocks if isinstance(block, Plot)]
    figures = {plot.id: plot.draw().update_layout(paper_bgcolor="white", plot_bgcolor="white") for plot in plots}
    with ThreadPoolExecutor(1) as thread:  # a notebook has an event loop of its own
        try:
            drawn = thread.submit(asyncio.run, _photographed(figures)).result()
        except (RuntimeError, OSError, TimeoutError) as error:  # what kaleido raises of a browser that is not there
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
            raise InputError(f"{_CHROME}: {reason}; install it, or leave png out") from error
    return {_named(base, f".{name}.png"): picture for name, picture in drawn.items()}


async def _photographed(figures: Mapping[str, go.Figure]) -> dict[str, bytes]:
    """By one browser, one after the other."""
    import kaleido

    pictures = {}
    async with kaleido.Kaleido(mathjax=False) as browser:  # MathJax would come over the network
        for name, figure in figures.items():
            size = {"width": PNG_WIDTH, "height": figure.layout.height or PNG_WIDTH // 2, "scale": PNG_SCALE}
            pictures[name] = await browser.calc_fig(figure, opts={"format": "png", **size})
    return pictures
