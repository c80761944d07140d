"""`fpn-bench report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fpn_bench.cli.app import app, out
from fpn_bench.errors import InputError

FORMATS = ("html", "csv", "md")


@app.command()
def report(
    study: Annotated[str, typer.Argument(help="Folder of a study (results/NAME), its study.db, or a storage URL.")],
    to: Annotated[
        str | None, typer.Option("--to", help="Path of the page; default report.html in the study's folder.")
    ] = None,
    formats: Annotated[str, typer.Option("--format", help="Some of html,csv,md.")] = "html,csv,md",
    name: Annotated[str | None, typer.Option(help="Of the study, where a database holds several.")] = None,
) -> None:
    """Write a study's report: one self-contained HTML page, with its table as CSV and Markdown beside it."""
    wanted = [part.strip() for part in formats.split(",") if part.strip()]
    unknown = [part for part in wanted if part not in FORMATS]
    if unknown or not wanted:
        raise InputError(f"--format {formats!r} came; some of {','.join(FORMATS)} are wanted, e.g. --format html,csv")
    from fpn_bench.reports import write_report
    from fpn_bench.search import load_study

    loaded = load_study(study, name)
    if to is None and loaded.path is None:
        raise InputError("the study lives in a database: say where the page goes with --to PATH")
    target = Path(to) if to is not None else Path(loaded.path or ".") / "report.html"
    for path in write_report(loaded.table(), loaded.metadata(), target, formats=wanted):
        out.print(str(path), soft_wrap=True, markup=False)
