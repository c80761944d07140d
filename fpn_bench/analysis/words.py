"""Counts and names as people say them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fpn_bench.analysis.rows import Objective


def count(n: int, noun: str) -> str:
    """E.g. ``1 neck``, ``3 necks``."""
    return f"{n} {noun}" + ("" if n == 1 else "s")


def numbered(names: Iterable[str]) -> list[str]:
    """The names, no two alike: ``a``, ``a (2)``."""
    taken: list[str] = []
    for name in names:
        number, own = 1, name
        while own in taken:
            number += 1
            own = f"{name} ({number})"
        taken.append(own)
    return taken


def named(objectives: Sequence[Objective]) -> str:
    """``"ap, macs"``."""
    return ", ".join(o.name for o in objectives)
