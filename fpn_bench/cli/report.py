"""`fpn-bench report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fpn_bench.cli.app import app, out
from fpn_bench.errors import InputError

FORMATS = ("html", "csv", "md", "json", "png")


@app.command()
def report(
    studies: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY",
            help="Folders of studies (results/NAME), study.db files, or storage URLs. Several become one report.",
        ),
    ],
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            help="Path of the page; default report.html in the study's folder, and here where several are given.",
        ),
    ] = None,
    formats: Annotated[str, typer.Option("--format", help=f"Some of {','.join(FORMATS)}.")] = "html,csv,md",
    name: Annotated[
        list[str] | None,
        typer.Option(help="Of the study, where a database holds several; repeat it for each."),
    ] = None,
    mix_protocols: Annotated[
        bool, typer.Option("--mix-protocols", help="Let rows of several protocols stand side by side.")
    ] = False,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Put the sample images, with detections, into the page.")
    ] = True,
) -> None:
    """Write the report of a study: one self-contained HTML page, with tables and Markdown beside it."""
    wanted = [part.strip() for part in formats.split(",") if part.strip()]
    unknown = [part for part in wanted if part not in FORMATS]
    if unknown or not wanted:
        raise InputError(
            f"expected --format to be some of {','.join(FORMATS)}, e.g. --format html,csv, got {formats!r}"
        )
    if name and len(studies) > 1:
        raise InputError("expected one database with --name, which chooses among its studies, got several studies")
    from fpn_bench.reports import merge_studies, write_report
    from fpn_bench.search import load_study

    names: list[str | None] = [*name] if name else [None]
    loaded = {
        (study if found.path is None else str(found.path.resolve()), found.name): found
        for study in studies
        for chosen in names
        for found in [load_study(study, chosen)]
    }
    if len(loaded) < len(studies) * len(names):
        raise InputError("expected each study once, got one twice")
    folder = next(iter(loaded.values())).path if len(loaded) == 1 else Path()
    if to is None and folder is None:
        raise InputError("the study lives in a database: say where the page goes with --to PATH")
    target = to if to is not None else (folder or Path()) / "report.html"
    given = [(study.table(), study.metadata(), study.samples if images else None) for study in loaded.values()]
    table, metadata, samples = merge_studies(given)
    written = write_report(table, metadata, target, formats=wanted, samples=samples, mix_protocols=mix_protocols)
    for path in written:
        out.print(str(path), soft_wrap=True, markup=False)
