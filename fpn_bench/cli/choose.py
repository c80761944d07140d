"""`fpn-bench choose`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fpn_bench.cli.app import app, human, out, printable
from fpn_bench.errors import InputError

if TYPE_CHECKING:
    from fpn_bench.analysis.choice import Choice
    from fpn_bench.analysis.rows import Objective

_LISTED = 5
"""Necks that are named where several cannot be told apart; --json has all."""


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
        print(json.dumps(_to_dict(found, costs), indent=2))
        return
    for line in _sentences(found, costs):
        out.print(printable(line), soft_wrap=True, markup=False, highlight=False)
    if Path(study).suffix.lower() != ".csv":
        trial = f"fpn-bench train {shlex.quote(study)} --trial {found.neck['trial']}"
        out.print(f"next: {trial}", soft_wrap=True, markup=False, highlight=False)


def _sentences(found: Choice, costs: Sequence[Objective]) -> list[str]:
    neck, seeds = found.neck, int(found.neck["seeds"])
    figures = ", ".join(_figure(o.name, neck[o.name]) for o in costs)
    lines = [
        f"take {neck['neck_label']} (trial {neck['trial']}): {figures}",
        f"AP {neck['ap']:.1f} over {seeds} seed{'s' * (seeds > 1)}; its true AP is expected to be {found.ap:.1f} "
        f"[{found.ap_low:.1f}, {found.ap_high:.1f}], at most {max(found.regret, 0):.1f} below the best of "
        f"{found.allowed}",
    ]
    if found.neck["source"] != "listed":  # a suite searches nothing
        lines.append(_against_published(found))
    if len(found.alike) > 1:
        others = [str(row["neck_label"]) for row in found.alike if row["candidate"] != neck["candidate"]]
        more = f" and {len(others) - _LISTED} more" if len(others) > _LISTED else ""
        lines.append(f"not to be told from the best by these figures: {', '.join(others[:_LISTED])}{more}")
    if found.seeds:
        trainings = found.seeds * len(found.alike)
        lines.append(
            f"to tell them apart: {found.seeds} more seeds of each, {trainings} trainings, about "
            f"{_duration(found.seconds)}"
        )
    return lines


def _against_published(found: Choice) -> str:
    if found.comparison is None or found.published is None:
        what = "it is a published neck" if found.neck["source"] == "published" else "no published neck costs as little"
        return f"{what} under this protocol"
    verdict = {
        "better": "it is better than",
        "worse": "it is worse than",
        "same": "it is the same, within 0.5 AP, as",
        "unclear": "it cannot be told from",
    }[found.comparison.verdict]
    c = found.comparison
    return (
        f"{verdict} the best published neck at no more cost, {found.published['neck_label']}: "
        f"{c.difference:+.1f} AP [{c.low:+.1f}, {c.high:+.1f}]"
    )


def _figure(name: str, value: Any) -> str:
    import pandas as pd

    if pd.isna(value):
        return f"{name} not measured"
    if name.endswith(("params", "macs")):
        return f"{human(float(value))} {name}"
    return f"{float(value):.3g} ms" if name == "latency_ms" else f"{name} {float(value):.4g}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _to_dict(found: Choice, costs: Sequence[Objective]) -> dict[str, Any]:
    names = ("trial", "candidate", "neck", "neck_label", "source", "seeds", "ap", *(o.name for o in costs))

    def described(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
        from fpn_bench.analysis.rows import json_value

        return None if row is None else {name: json_value(row[name]) for name in names}

    comparison = found.comparison
    return {
        "take": described(found.neck),
        "expected_ap": {"value": found.ap, "low": found.ap_low, "high": found.ap_high},
        "expected_regret": found.regret,
        "published": described(found.published),
        "comparison": None
        if comparison is None
        else {
            "verdict": comparison.verdict,
            "difference": comparison.difference,
            "low": comparison.low,
            "high": comparison.high,
        },
        "not_told_from_the_best": [described(row) for row in found.alike],
        "to_tell_them_apart": {
            "seeds_of_each": found.seeds,
            "trainings": found.seeds * len(found.alike),
            "seconds": found.seconds,
        },
        "allowed": found.allowed,
    }
