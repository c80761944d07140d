"""What is told of a single design, wherever it is: in a list, beside its drawing, under the pointer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd

from fpn_bench.analysis import CHOICE_PREFIX, Objective
from fpn_bench.reports.units import interval_columns, quantity

LISTED = ("ap", "ap50", "ap_s", "ap_m", "ap_l", "params", "macs", "latency_ms", "train_s")
HOVERED = ("reason", "ap", "interval", "params", "macs", "latency_ms", "trial", "seeds", "source")
MOST_LETTERS = 200
"""Of a line under the pointer."""


@dataclass(frozen=True)
class Detail:
    """One thing that is told.

    Attributes:
        name: unlike any other's.
        title: for people, with the unit.
        text: of a design's record; ``""`` where there is nothing to tell.
        numeric: the text is a number.
        listed: it is a column of the list of designs.
    """

    name: str
    title: str
    text: Callable[[Mapping[Any, Any]], str]
    numeric: bool = True
    listed: bool = False

    @property
    def hovered(self) -> bool:
        """It is told under the pointer too."""
        return self.name in HOVERED


def details(designs: pd.DataFrame, objectives: Sequence[Objective]) -> tuple[Detail, ...]:
    """What is told of each of the designs, in order."""
    listed = [*LISTED, *(o.name for o in objectives if o.name not in LISTED)]
    choices = [str(c) for c in designs.columns if str(c).startswith(CHOICE_PREFIX) and (designs[c] != "").any()]

    def told(
        name: str, title: str, text: Callable[[Mapping[Any, Any]], str] | None = None, listed: bool = False
    ) -> Detail:
        return Detail(name, title, text or (lambda row: str(row[name])), numeric=False, listed=listed)

    def number(name: str, listed: bool) -> Detail:
        shown = quantity(name)
        return Detail(name, shown.title, lambda row: shown.number(row[name]), listed=listed)

    several = {name: designs[name].nunique() > 1 for name in ("study", "backbone")}
    return (
        Detail("trial", "Trial", lambda row: str(row["trial"]), listed=True),
        told("label", "Neck", listed=True),
        *(told(name, name.capitalize(), listed=True) for name in several if several[name]),
        told("status", "Status", status_text),
        told("reason", "Reason"),
        *(number(name, listed=True) for name in listed),
        told("interval", "AP, 95 % interval", lambda row: _range(row["ap_low"], row["ap_high"], 1)),
        Detail("seeds", "Seeds", lambda row: str(row["seeds"]) if row["seeds"] else "", listed=True),
        told("chance", "Chance to be on the front", chance_text),
        told("latency", "Latency, 95 % interval", lambda row: _range(row["latency_low_ms"], row["latency_high_ms"], 2)),
        *(number(name, listed=False) for name in ("latency_p90_ms", "neck_params", "neck_macs")),
        told("source", "Source"),
        *(told(name, name.removeprefix(CHOICE_PREFIX)) for name in choices),
    )


def status_text(row: Mapping[Any, Any]) -> str:
    return "on the front" if row["on_front"] else str(row["status"])


def chance_text(row: Mapping[Any, Any]) -> str:
    """How likely the design is to be on the front, e.g. ``92%``; ``""`` where it is not known."""
    return "" if pd.isna(row["front_probability"]) else f"{row['front_probability']:.0%}"


def _range(low: float, high: float, digits: int) -> str:
    return "" if pd.isna(low) or pd.isna(high) else f"{low:.{digits}f} to {high:.{digits}f}"


def hover_text(row: Mapping[Any, Any], told: Sequence[Detail]) -> str:
    """What a design's point says, as the few tags that plotly reads; what files hold is escaped.

    The page's own script makes the same of the columns it has.
    """
    lines = [f"{detail.title}: {text}" for detail in told if detail.hovered and (text := detail.text(row))]
    title, *rest = (escape(line[:MOST_LETTERS], quote=False) for line in (str(row["label"]), *lines))
    return "<br>".join([f"<b>{title}</b>", *rest])


def latency_text(row: Mapping[Any, Any]) -> str:
    """Median with its interval, e.g. ``14.02 ms [13.80, 14.31]``."""
    text = quantity("latency_ms").text(row["latency_ms"])
    if pd.isna(row["latency_low_ms"]) or pd.isna(row["latency_high_ms"]):
        return text
    return f"{text} [{row['latency_low_ms']:.2f}, {row['latency_high_ms']:.2f}]"


def merit_text(row: Mapping[Any, Any], name: str = "ap") -> str:
    """AP (or another column) with its interval over seeds, e.g. ``20.6 [19.8, 21.4]``; ``–`` when missing."""
    shown = quantity(name)
    value, low, high = (shown.number(row.get(column)) for column in (name, *interval_columns(name)))
    return f"{value} [{low}, {high}]" if low else value or "–"


def choices_of(row: Mapping[Any, Any]) -> dict[str, str]:
    """The searched choices of a row that were active."""
    return {
        str(k).removeprefix(CHOICE_PREFIX): str(v)
        for k, v in row.items()
        if str(k).startswith(CHOICE_PREFIX) and v != ""
    }
