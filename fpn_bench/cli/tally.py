"""The state of a running search in a few lines: its front, its pace, what was saved and what was rejected."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

SHOWN = 6
"""Front members named; the rest is counted."""


class Tally:
    """Counts rows as they come in.

    Args:
        objectives: as in a study's metadata.
    """

    def __init__(self, objectives: Sequence[Mapping[str, str]]) -> None:
        """See the class."""
        self._objectives = [(o["name"], o["direction"]) for o in objectives]
        self._front: list[Mapping[str, Any]] = []
        self._counts: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()
        self._shared = 0
        self._known: set[str] = set()

    def add(self, row: Mapping[str, Any]) -> None:
        """Take in a finished row."""
        self._counts[row["status"]] += 1
        self._shared += bool(row.get("shared_from"))
        if row["status"] == "rejected":
            for reason in row["reason"].split("; "):
                broken = re.search(r"breaks (.*)", reason)
                self._rejected[broken[1] if broken else reason] += 1
        if row["status"] == "complete" and row["candidate"] not in self._known:  # further seeds are no further necks
            self._known.add(row["candidate"])
            self._front = [kept for kept in self._front if not self._dominates(row, kept)]
            if not any(self._dominates(kept, row) for kept in self._front):
                self._front.append(row)

    def _dominates(self, a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
        """Whether ``a`` is nowhere worse and somewhere better."""
        gains = [(a[n] - b[n]) * (1 if d == "maximize" else -1) for n, d in self._objectives]
        return all(gain >= 0 for gain in gains) and any(gain > 0 for gain in gains)

    def lines(self, seconds: float) -> list[Text]:
        """What is known after so many seconds; nothing before the first row."""
        done = sum(self._counts.values())
        if not done:
            return []
        told = ", ".join(f"{n} {status}" for status, n in self._counts.most_common())
        pace = f"{3600 * done / max(seconds, 1e-9):.0f} trials an hour"
        saved = f", {self._shared} trained elsewhere" if self._shared else ""
        lines = [f"{pace}: {told}{saved}"]
        if self._rejected:
            lines.append("rejected: " + ", ".join(f"{n} by {bound}" for bound, n in self._rejected.most_common(4)))
        name, direction = self._objectives[0]
        best = sorted(self._front, key=lambda row: row[name], reverse=direction == "maximize")
        for row in best[:SHOWN]:
            figures = ", ".join(f"{n} {row[n]:.4g}" for n, _ in self._objectives)
            lines.append(f"  front: {row.get('neck_label', '')}  {figures}")
        if len(best) > SHOWN:
            lines.append(f"  front: and {len(best) - SHOWN} more")
        return [Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in lines]
