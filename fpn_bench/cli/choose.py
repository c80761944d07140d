"""`fpn-bench choose`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from fpn_bench.cli.app import app, out, printable
from fpn_bench.errors import InputError


@app.command()
def choose(
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="Folder of a study, its study.db, a storage URL, or a table as CSV.")
    ],
    name: Annotated[str | None, typer.Option(help="Of the study, where a database holds several.")] = None,
    latency_max: Annotated[float | None, typer.Option(help="Most milliseconds of latency.")] = None,
    params_max: Annotated[float | None, typer.Option(help="Most parameters, e.g. 5e6.")] = None,
    macs_max: Annotated[float | None, typer.Option(help="Most multiply-adds, e.g. 1e9.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Which neck of a study to take, how sure that is, and what it would cost to be surer.

    Of the necks within the bounds that are expected to lose next to nothing beside the best one, the cheapest is taken:
    by the study's first cost objective.
    """
    from fpn_bench.analysis import parse_objectives
    from fpn_bench.analysis.choice import choose as choose_neck
    from fpn_bench.cli.compare import load_side
    from fpn_bench.reports.recommendation import recommendation, recommendation_record

    given = {"latency_ms": latency_max, "params": params_max, "macs": macs_max}
    bounds = {column: bound for column, bound in given.items() if bound is not None}
    for column, bound in bounds.items():
        if not bound > 0:
            raise InputError(f"expected a bound above 0 on {column}, got {bound:g}")
    side = load_side(study, name, "--name")
    objectives = parse_objectives(side.metadata.get("objectives") or [{"name": "ap", "direction": "maximize"}])
    costs = tuple(o for o in objectives if not o.name.startswith("ap"))
    if not costs:
        costs = parse_objectives([{"name": column, "direction": "minimize"} for column in bounds or ("macs",)])
    found = choose_neck(side.table, costs=costs, bounds=bounds)
    if as_json:
        print(json.dumps(recommendation_record(found, costs), indent=2))
        return
    searched = found.neck["source"] != "listed"
    for sentence in recommendation(found, costs, searched=searched):
        out.print(printable(sentence.text), soft_wrap=True, markup=False, highlight=False)
    if Path(study).suffix.lower() != ".csv":
        trial = f"fpn-bench train {shlex.quote(study)} --trial {found.neck['trial']}"
        out.print(f"next: {trial}", soft_wrap=True, markup=False, highlight=False)
