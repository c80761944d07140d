"""How each quantity is shown to people: its name, unit, scale and digits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd


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
    "ap": Quantity("AP", digits=1),
    "ap50": Quantity("AP50", digits=1),
    "ap75": Quantity("AP75", digits=1),
    "ap_s": Quantity("AP small", digits=1),
    "ap_m": Quantity("AP medium", digits=1),
    "ap_l": Quantity("AP large", digits=1),
    "params": Quantity("Parameters", "M", 1e-6),
    "macs": Quantity("MACs", "G", 1e-9, 3),
    "neck_params": Quantity("Neck parameters", "M", 1e-6, 3),
    "neck_macs": Quantity("Neck MACs", "G", 1e-9, 3),
    "latency_ms": Quantity("Latency", "ms"),
    "latency_low_ms": Quantity("Latency, low", "ms"),
    "latency_high_ms": Quantity("Latency, high", "ms"),
    "latency_p90_ms": Quantity("Latency, p90", "ms"),
    "train_s": Quantity("Training", "s", digits=1),
    "total_s": Quantity("Trial", "s", digits=1),
    "overhead_s": Quantity("Overhead", "s"),
}


def quantity(name: str) -> Quantity:
    """How the column ``name`` is shown."""
    return _QUANTITIES.get(name) or Quantity(name)
