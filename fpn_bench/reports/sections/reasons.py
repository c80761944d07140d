"""Why designs were rejected or failed."""

from __future__ import annotations

import pandas as pd

from fpn_bench.reports.blocks import Column, Section, Table
from fpn_bench.reports.evidence import Evidence

MOST_REASONS = 40


def section(evidence: Evidence) -> Section | None:
    reasons = reasons_info(evidence.table)
    if reasons.empty:
        return None
    table = Table(
        "reasons-table",
        "",
        reasons.iloc[:MOST_REASONS],
        (
            Column("Status", lambda row: str(row["status"])),
            Column("Rows", lambda row: str(row["count"]), numeric=True),
            Column("Reason", _reason),
        ),
        f"The {MOST_REASONS} most frequent of {len(reasons)}." if len(reasons) > MOST_REASONS else "",
    )
    return Section("reasons", "Rejected and failed", (), (table,))


def _reason(row: object) -> str:
    text = str(row["reason"] or "none was recorded")  # type: ignore[index]
    return f"{text} (the first; the others differ in numbers only)" if row["count"] > 1 else text  # type: ignore[index]


def reasons_info(table: pd.DataFrame) -> pd.DataFrame:
    """Rejected and failed rows: ``status``, ``count`` and the first ``reason`` of those alike but for numbers."""
    rows = table[table["status"].isin(["rejected", "failed"])]
    kind = rows["reason"].str.replace(r"\d[\d.,]*(?:[eE][+-]?\d+)?", "#", regex=True)
    grouped = rows.assign(kind=kind).groupby(["status", "kind"], sort=False)
    reasons = grouped.agg(count=("reason", "size"), reason=("reason", "first")).reset_index()
    return reasons.sort_values(["status", "count"], ascending=[False, False], kind="stable")[
        ["status", "count", "reason"]
    ].reset_index(drop=True)
