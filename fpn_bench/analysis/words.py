"""Counts and names as people say them."""

from __future__ import annotations

from collections.abc import Sequence

from fpn_bench.analysis.rows import Objective


def count(n: int, noun: str) -> str:
    """E.g. ``1 neck``, ``3 necks``."""
    return f"{n} {noun}" + ("" if n == 1 else "s")


def named(objectives: Sequence[Objective]) -> str:
    """``"ap, macs"``."""
    return ", ".join(o.name for o in objectives)
