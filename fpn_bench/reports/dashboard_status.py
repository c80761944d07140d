"""How studies stand: their trials by status, what runs now, what finished last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import pandas as pd

from fpn_bench.analysis import Objective
from fpn_bench.analysis.words import count
from fpn_bench.metrics import metric_of
from fpn_bench.reports.blocks import Column, Table
from fpn_bench.reports.dashboard_feed import Feed
from fpn_bench.reports.details import choices_of, merit_text
from fpn_bench.reports.evidence import ended_at, keys_of, several_protocols
from fpn_bench.reports.sections.answer import status_counts
from fpn_bench.reports.units import quantity

LAST_FINISHED = 4
_UNFINISHED = ("running", "repeat")


def _ended(rows: pd.DataFrame) -> pd.Series[Any]:
    """When each row's trial ended; NaT where it has not, or where that is unknown."""
    return ended_at(rows).where(~rows["status"].isin(_UNFINISHED))


def status_lines(feed: Feed, now: datetime) -> list[str]:
    """How the studies stand, one line each, and how fast they go; changes only where something did."""
    lines = []
    for rows, meta, _ in feed.studies:
        counts = ", ".join(f"{n} {status}" for status, n in status_counts(rows).items()) or "no trial yet"
        lines.append(f"{meta.get('name') or 'study'}: {counts}" if len(feed.studies) > 1 else counts)
    rows = feed.rows
    ended = _ended(rows)
    recent = rows[(ended > now - pd.Timedelta(hours=1)) & (ended <= now + pd.Timedelta(minutes=5))]
    lines.append(f"{count(len(recent.drop_duplicates(['study', 'trial'])), 'trial')} finished in the last hour")
    if ended.notna().any():
        lines.append(f"the last one at {ended.max():%Y-%m-%d %H:%M:%S} UTC")
    return lines


def running_now(rows: pd.DataFrame, objectives: Sequence[Objective]) -> tuple[Table, ...]:
    """The trials under way, and those that finished last."""
    keys = keys_of(rows, several_protocols(rows))
    rows = rows.assign(key=keys, ended=_ended(rows), ap_low=float("nan"))
    trial = Column("Trial", lambda row: str(row["trial"]), numeric=True)
    study = [Column("Study", lambda row: str(row["study"]))] if rows["study"].nunique() > 1 else []
    neck = Column(
        "Neck", lambda row: str(row["neck_label"]) or " · ".join(map(" ".join, choices_of(row).items())) or "–"
    )
    running = rows[rows["status"] == "running"]
    tables: list[Table] = []
    if len(running):
        tables.append(
            Table("running", f"Running now: {len(running)}", running.drop(columns="key"), (neck, *study, trial))
        )
    finished = rows[~rows["status"].isin(_UNFINISHED)].sort_values("ended", kind="stable", na_position="first")
    if len(finished):
        columns = [neck, *study, trial, Column("Status", lambda row: str(row["status"]))]
        columns += [Column(quantity(o.name).title, partial(_figure_of, o.name), numeric=True) for o in objectives]
        last = finished.iloc[::-1][:LAST_FINISHED]
        tables.append(Table("finished", "Finished last", last, tuple(columns)))
    return tuple(tables)


def _figure_of(name: str, row: Mapping[str, Any]) -> str:
    return merit_text(row, name) if metric_of(name).noise == "seeds" else quantity(name).number(row[name])
