"""The sections of a report, one a file: `*_info` computes, `*_figure` draws, `section` puts them together.

A new section is a new file and a name in `SECTIONS`. It takes the evidence and returns None where there is nothing to
say.
"""

from __future__ import annotations

from collections.abc import Callable

from fpn_bench.reports.blocks import Section
from fpn_bench.reports.evidence import Evidence
from fpn_bench.reports.sections import (
    answer,
    backbones,
    choices,
    curves,
    designs,
    front,
    held_out,
    latency,
    necks,
    progress,
    provenance,
    reasons,
    samples,
    sizes,
    trust,
)

SECTIONS: list[Callable[[Evidence], Section | None]] = [
    answer.section,
    held_out.section,
    front.section,
    trust.section,
    necks.section,
    sizes.section,
    latency.section,
    backbones.section,
    progress.section,
    choices.section,
    curves.section,
    samples.section,
    designs.section,
    reasons.section,
    provenance.section,
]


def sections(evidence: Evidence) -> tuple[Section, ...]:
    """All that there is to say, in the order of the page."""
    return tuple(said for make in SECTIONS if (said := make(evidence)) is not None)
