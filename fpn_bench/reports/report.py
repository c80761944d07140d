"""A report before it takes a form: what must be read first, and the sections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fpn_bench.analysis.words import count
from fpn_bench.reports.blocks import Section, Sentence
from fpn_bench.reports.evidence import MOST_SHOWN, Evidence, Samples, gather, joined
from fpn_bench.reports.sections import sections
from fpn_bench.reports.sections.provenance import loud_warnings, warnings


@dataclass(frozen=True)
class Report:
    """Everything that is said, in order.

    Attributes:
        title, subtitle: which study.
        loud: what must be read before any figure.
        mind: what a reader should mind.
        sections: the answer first.
        evidence: what all was computed from.
    """

    title: str
    subtitle: str
    loud: tuple[Sentence, ...]
    mind: tuple[Sentence, ...]
    sections: tuple[Section, ...]
    evidence: Evidence


def report_info(
    table: pd.DataFrame,
    meta: Mapping[str, Any],
    *,
    samples: Samples = None,
    mix_protocols: bool = False,
    most: int = MOST_SHOWN,
) -> Report:
    """Everything a report says of ``table`` and its study's metadata; missing metadata is left out, not invented.

    Args:
        table: the rows (`fpn_bench.analysis.COLUMNS`).
        meta: see `fpn_bench.reports.write_report`.
        samples: sample images with detections, or what gives them for candidates (`fpn_bench.search.Study.samples`).
        mix_protocols: let rows of several protocols stand side by side, which the report then says.
        most: designs drawn and listed at most.

    Raises:
        ProtocolError: rows of two protocols, unless ``mix_protocols``.
        InputError: no table of fpn_bench (`check_table`).
    """
    evidence = gather(table, meta, samples=samples, mix_protocols=mix_protocols, most=most)
    return Report(
        title=str(meta.get("name") or joined(evidence.table["study"]) or "study"),
        subtitle=_subtitle(evidence),
        loud=loud_warnings(evidence.table),
        mind=warnings(evidence),
        sections=sections(evidence),
        evidence=evidence,
    )


def _subtitle(evidence: Evidence) -> str:
    table, created = evidence.table, evidence.meta.get("created_at")
    parts = [
        joined(table["dataset"]),
        joined(table["backbone"]),
        count(len(table.drop_duplicates(["study", "trial"])), "trial"),
        f"protocol {evidence.protocol}" if evidence.protocol else "",
        str(created)[:10] if isinstance(created, str) else "",
    ]
    return " · ".join(part for part in parts if part)
