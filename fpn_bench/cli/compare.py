"""`fpn-bench compare`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from fpn_bench.cli.app import app, human, out, printable
from fpn_bench.errors import InputError
from fpn_bench.metrics import metric_of

if TYPE_CHECKING:
    import pandas as pd

    from fpn_bench.analysis import TableComparison
    from fpn_bench.reports import ComparisonText

SHOWN = 20
"""Rows of a list that are printed; --csv and --json have all."""

WHERE = "Folder of a study (results/NAME), its study.db, a storage URL, or a table as CSV."


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=WHERE)],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one; all verdicts say how it stands to the first.")],
    name_a: Annotated[str | None, typer.Option(help="Of the first study, where a database holds several.")] = None,
    name_b: Annotated[str | None, typer.Option(help="Of the second study.")] = None,
    margin: Annotated[float, typer.Option(help="Difference of AP, in points, that does not matter.")] = 0.5,
    tolerance: Annotated[float, typer.Option(help="Share by which latencies may differ and be the same.")] = 0.02,
    csv: Annotated[Path | None, typer.Option(help="Write the candidates that are in both as CSV.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What changed from one study or benchmark table to another of the same protocol, and how sure that is.

    Each candidate that finished in both is better, worse, the same or unclear: by the 95 % interval over its seeds
    against the margin, corrected for the number of candidates. The fronts are compared by the hypervolume within one
    reference point. Two protocols are refused, with the fields that differ; latencies measured under other conditions
    get no verdict.
    """
    from fpn_bench.analysis import compare_tables
    from fpn_bench.analysis.rows import csv_text
    from fpn_bench.paths import write_text_atomic
    from fpn_bench.reports import comparison_text

    sides = (load_side(a, name_a, "--name-a"), load_side(b, name_b, "--name-b"))
    found = compare_tables(
        sides[0].table,
        sides[1].table,
        metadata=(sides[0].metadata, sides[1].metadata),
        margin_ap=margin,
        latency_tolerance=tolerance,
    )
    if csv is not None:
        write_text_atomic(csv, csv_text(found.shared))
    said = comparison_text(found)
    if as_json:
        plain = found.to_dict()
        described = {key: side.to_dict() for key, side in zip("ab", sides, strict=True)}
        described |= {"schema_version": plain["schema_version"], **asdict(said)}
        print(json.dumps({**described, **plain}, indent=2))
        return
    _print(found, said, sides)
    if csv is not None:
        out.print(f"table: {csv}", soft_wrap=True, markup=False)


@dataclass(frozen=True)
class Side:
    """What is compared: its table, a study's metadata, and where it is from, without a password."""

    where: str
    table: pd.DataFrame
    metadata: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"source": self.where, "studies": self.studies, "rows": len(self.table)}

    @property
    def studies(self) -> list[str]:
        return sorted({str(self.metadata["name"])} if "name" in self.metadata else set(self.table["study"]))


def load_side(where: str, name: str | None, option: str) -> Side:
    """The table of a study or a CSV file, with a study's metadata; ``option`` names the study, for messages."""
    if Path(where).suffix.lower() == ".csv" and not Path(where).is_dir():
        if name is not None:
            raise InputError(
                f"expected a database or a folder with {option} {name}, got the table {where}; leave out {option}"
            )
        from fpn_bench.analysis import read_csv

        return Side(where, read_csv(where), {})
    from fpn_bench.search import load_study
    from fpn_bench.search.database import redacted

    study = load_study(where, name)
    return Side(redacted(where), study.table(), study.metadata())


def _print(found: TableComparison, said: ComparisonText, sides: Sequence[Side]) -> None:
    _print_line(said.headline)
    for name, side in zip("AB", sides, strict=True):
        _print_line(f"{name}: {side.where}, {', '.join(side.studies) or 'no study'}, {len(side.table)} rows")
    for warning in said.warnings:
        _print_line(f"warning: {warning}")
    for sentence in said.sentences:
        _print_line(sentence)
    names = [o.name for o in found.objectives]
    front = found.front
    if front.hypervolume_union:
        reference = ", ".join(f"{n} {_value(n, v)}" for n, v in zip(names, front.reference, strict=True))
        a, b = (100 * v / front.hypervolume_union for v in (front.hypervolume_a, front.hypervolume_b))
        _print_line(f"Hypervolume within {reference}: A {a:.1f} %, B {b:.1f} % of the joint front's.")
    _print_table("rows", ("status", "A", "B"), [(r.status, r.a, r.b) for r in found.statuses.itertuples()], ("A", "B"))
    _print_table("other conditions", ("", "A", "B"), [(r.field, r.a, r.b) for r in found.conditions.itertuples()])
    _print_table(
        "fronts",
        ("side", "candidate", "neck", *names, "beaten by the other"),
        [(*_neck_text(r, names), "yes" if r["dominated"] else "") for r in front.members.to_dict("records")],
        names,
    )
    merit = next((n for n in names if f"{n}_verdict" in found.levels), "ap")
    label = metric_of(merit).label
    _print_table(
        f"best {label} at a cost",
        ("at most", "A", f"{label} of A", "B", f"{label} of B", "B - A (95 %)", "verdict", "by"),
        [
            (
                f"{r['cost']} {_value(r['cost'], r['at_most'])}",
                *(cell for s in "ab" for cell in (r[f"neck_label_{s}"], _mean(r, merit, s))),
                *_changed(r, merit),
            )
            for r in found.levels.to_dict("records")
        ],
        (f"{label} of A", f"{label} of B", "B - A (95 %)"),
    )
    _print_shared(found.shared)
    for name in names:
        if name != "ap" and f"{name}_difference" in found.shared:
            _print_further(found.shared, name)
    alone = found.only[found.only["on_joint_front"]]
    _print_table(
        "in one only, on the joint front",
        ("side", "candidate", "neck", *names),
        [_neck_text(r, names) for r in alone.to_dict("records")],
        names,
    )


def _print_shared(shared: pd.DataFrame) -> None:
    """What has a verdict first, then the largest differences."""
    decided = shared[["ap_verdict", "latency_verdict"]].isin(["better", "worse"]).any(axis=1)
    order = shared.assign(later=~decided, size=-shared["ap_difference"].abs())
    timed = (shared["latency_verdict"] != "").any()
    rows = []
    for r in order.sort_values(["later", "size"], kind="stable").to_dict("records"):
        latency = (_interval(r, "latency_ratio", ".3f"), r["latency_verdict"]) if timed else ()
        means = (_mean(r, "ap", "a"), _mean(r, "ap", "b"))
        rows.append((r["candidate"], r["neck_label"], *means, *_changed(r, "ap"), *latency))
    _print_table(
        "in both: AP (seeds)",
        (
            *("candidate", "neck", "AP of A", "AP of B", "B - A (95 %)", "verdict", "by"),
            *(("latency B / A (95 %)", "verdict") if timed else ()),
        ),
        rows,
        ("AP of A", "AP of B", "B - A (95 %)", "latency B / A (95 %)"),
    )


def _neck_text(row: Mapping[Any, Any], names: Sequence[str]) -> tuple[str, ...]:
    return (row["side"], row["candidate"], row["neck_label"], *(_value(n, row[n]) for n in names))


def _print_further(shared: pd.DataFrame, name: str) -> None:
    """An objective of the fronts that is none of the columns every comparison has, the largest differences first."""
    label, trained = metric_of(name).label, f"{name}_verdict" in shared
    rows = []
    for r in shared.sort_values(f"{name}_difference", key=lambda c: -c.abs(), kind="stable").to_dict("records"):
        cells = (_value(name, r[f"{name}_{s}"]) for s in ("a", "b", "difference"))
        figures = (_mean(r, name, "a"), _mean(r, name, "b"), *_changed(r, name)) if trained else cells
        rows.append((r["candidate"], r["neck_label"], *figures))
    change = ("B - A (95 %)", "verdict", "by") if trained else ("B - A",)
    numbers = (f"{label} of A", f"{label} of B", change[0])
    _print_table(f"in both: {label}", ("candidate", "neck", *numbers[:2], *change), rows, numbers)


def _mean(row: Mapping[Any, Any], name: str, side: str) -> str:
    """A trained figure with the number of its seeds."""
    return f"{_number(row[f'{name}_{side}'], f'.{metric_of(name).digits}f')} ({row[f'seeds_{side}']})"


def _changed(row: Mapping[Any, Any], name: str) -> tuple[str, str, str]:
    change = _interval(row, f"{name}_difference", f"+.{metric_of(name).digits + 1}f")
    return change, row[f"{name}_verdict"], row[f"{name}_basis"]


def _interval(row: Mapping[Any, Any], name: str, form: str) -> str:
    value, low, high = (float(row[key]) for key in (name, f"{name}_low", f"{name}_high"))
    if math.isnan(low):
        return _number(value, form)
    return f"{value:{form}} ({low:{form}} to {high:{form}})"


def _value(name: str, value: Any) -> str:
    """A figure of a column: counts as people say them, the rest with four digits."""
    said = _number(value, ".4g")
    return human(float(value)) if said != "-" and name.endswith(("params", "macs")) else said


def _number(value: Any, form: str) -> str:
    from pandas import isna

    return "-" if isna(value) else f"{float(value):{form}}"


def _print_line(text: str) -> None:
    out.print(Text(printable(text)), soft_wrap=True)


def _print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], numbers: Sequence[str] = ()
) -> None:
    """A table under its title; nothing where there are no rows."""
    if not rows:
        return
    table = Table(box=None, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if column in numbers else "left", no_wrap=i == 0)
    for row in rows[:SHOWN]:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    out.print()
    _print_line(title)
    out.print(table)
    if len(rows) > SHOWN:
        _print_line(f"and {len(rows) - SHOWN} more: --json has them all")
