"""Every design, to be sorted, filtered and selected."""

from __future__ import annotations

from fpn_bench.reports.blocks import Designs, Section, Sentence
from fpn_bench.reports.evidence import Evidence
from fpn_bench.reports.sections.answer import status_counts


def section(evidence: Evidence) -> Section | None:
    if evidence.designs.empty:
        return None
    counts = status_counts(evidence.table)
    told = ", ".join(f"{n} {status}" for status, n in counts.items())
    text = (
        f"Rows of the table: {told}. Seeds of one design are one line here; a repeat was answered from the store and "
        "is not listed. Click a head to sort, a line to select."
    )
    return Section("designs", "All designs", (Sentence(text, counts),), (Designs(),))
