"""How each quantity is shown to people: its name, unit, scale and digits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fpn_bench.metrics import metric_of


@dataclass(frozen=True, slots=True)
class Quantity:
    """A column as it is shown: ``value * scale`` with ``digits`` after the point, and ``unit`` behind it."""

    label: str
    unit: str = ""
    scale: float = 1.0
    digits: int = 2

    @property
    def title(self) -> str:
        """Label with unit, for an axis or a table's head."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def within(self) -> str:
        """The label inside a sentence."""
        return self.label if self.label[:2].isupper() else self.label[:1].lower() + self.label[1:]

    def number(self, value: Any) -> str:
        """The scaled number; ``""`` when missing."""
        if pd.isna(value):
            return ""
        if not math.isfinite(value):
            return str(value)
        return f"{value * self.scale:.{self.digits}f}"

    def text(self, value: Any) -> str:
        """Number and unit; an en dash when missing."""
        number = self.number(value)
        if not number:
            return "–"
        return f"{number} {self.unit or self.label}"


_QUANTITIES = {
    "latency_low_ms": Quantity("Latency, low", "ms"),
    "latency_high_ms": Quantity("Latency, high", "ms"),
    "latency_p90_ms": Quantity("Latency, p90", "ms"),
    "train_s": Quantity("Training", "s", digits=1),
    "total_s": Quantity("Trial", "s", digits=1),
    "overhead_s": Quantity("Overhead", "s"),
}


def quantity(name: str) -> Quantity:
    """How the column ``name`` is shown."""
    metric = metric_of(name)
    return _QUANTITIES.get(name) or Quantity(metric.label, metric.unit, metric.scale, metric.digits)


def interval_columns(name: str) -> tuple[str, str]:
    """The columns with both ends of the 95 % interval of column ``name``, which a table may lack."""
    interval = metric_of(name).interval
    return interval if all(interval) else (f"{name}_low", f"{name}_high")
