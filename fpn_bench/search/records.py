"""What is known of a candidate and of a trial: the few shapes that the whole package shares.

A candidate is `Described` before anything of it is built. A trial of it ends in columns of the table, a plain dict that
is stored whole; `TrialRow` is its typed part, as small as decisions allow, because a worker holds one for each trial
of the study. Samplers of our own learn from `Observed`: a candidate with the AP that all its trials together say.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from fpn_bench.search.space import COSTS, Choices, choices_key

Columns = Mapping[str, Any]
"""A row of the table: name -> value, as it is stored."""
DETECTIONS = "detections"
"""Key of a stored row that is no column: what a complete training found on the study's sample images, `Boxes` by
position in the val split, as JSON in one string."""


class Status(StrEnum):
    """What became of a trial."""

    RUNNING = "running"
    COMPLETE = "complete"
    """Trained to its end."""
    STOPPED = "stopped"
    """Trained to a rung; a later trial may take it up again."""
    CONTINUED = "continued"
    """Stopped, and a later trial did take it up. Derived on reading, never stored."""
    REJECTED = "rejected"
    """Breaks a constraint."""
    REPEAT = "repeat"
    """The same network and seed as an earlier trial: nothing was paid."""
    FAILED = "failed"
    """Cannot be built, raised, timed out, or was interrupted."""


# --------------------------------------------------------------------------------------------------------------
# Candidates


@dataclass(frozen=True)
class Described:
    """What is known of a candidate before anything is built.

    Attributes:
        id: the candidate's identity; two choice sets that make one network share it.
        label: the neck for people.
        neck: zoo family.
        graph_json: the neck graph.
        facts: `params`, `macs`, `neck_params`, `neck_macs` and any other columns of the row known now.
        candidate: the evaluator's own handle, passed back to it as it is.
        tokens: counts of what the candidate's graph consists of, for a model of candidates; may be empty.
    """

    id: str
    label: str
    neck: str
    graph_json: str
    facts: Mapping[str, Any]
    candidate: Any = field(default=None, compare=False)
    tokens: Mapping[str, float] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Facts:
    """The part of `Described` that samplers need: small, because they keep it of thousands of candidates.

    Attributes:
        id: the candidate's identity; choice sets that make one network share it.
        costs: every number known, e.g. ``params``, ``neck_macs``, ``latency_ms``; what is not known is NaN or missing.
        tokens: counts of features of its graph, named ``"group:feature"`` (see `fpn_bench.graph.graph_tokens`).
    """

    id: str
    costs: Mapping[str, float]
    tokens: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Observed:
    """One candidate with the AP that its trials say.

    Attributes:
        choices: its choice set, which need not be of the space.
        facts: as known now, measured latency included.
        ap: mean over its seeds; larger is better.
        ap_sd: uncertainty of `ap` beyond the noise of full trainings, e.g. of one stopped early and extrapolated.
        seeds: trainings behind `ap`.
    """

    choices: Choices
    facts: Facts
    ap: float
    ap_sd: float = 0.0
    seeds: int = 1


@dataclass(frozen=True)
class History:
    """A search so far, as samplers see it.

    Attributes:
        observed: assessed candidates, oldest first; their AP is finite.
        pending: choice sets and facts of those being assessed by other workers right now.
        taken: ids never to be proposed again: assessed, running, rejected, failed.
    """

    observed: Sequence[Observed]
    pending: Sequence[tuple[Choices, Facts]] = ()
    taken: AbstractSet[str] = frozenset()


# --------------------------------------------------------------------------------------------------------------
# Trials


@dataclass(frozen=True, slots=True)
class TrialRow:
    """A finished trial, as decisions need it.

    Attributes:
        trial: its number.
        status: what became of it.
        seed: of its training.
        choices: what was proposed.
        source: ``"sampled"``, ``"published"``, ``"enqueued"``, ``"confirmed"``.
        reason: why it is not complete.
        candidate: id; empty where the choices could not be built.
        label: the neck for people.
        continues: the stopped trial that it took up again.
        paid: in whole trainings.
        epochs: that its training has come to, earlier trials that it continues included.
        ap: at the last of them; NaN where there is none.
        curve: (epochs, AP), ascending.
        costs: the known numbers of `COSTS`, finite.
        predicted: the ends of a predicted latency's interval in ms; empty where none was predicted.
        interrupted: it was not assessed to the end, by no fault of its own: it counts for nothing.
        queued_again: a later trial stands for it.
    """

    trial: int
    status: Status
    seed: int
    choices: Choices
    source: str = "sampled"
    reason: str = ""
    candidate: str = ""
    label: str = ""
    continues: int | None = None
    paid: float = 0.0
    epochs: int = 0
    ap: float = math.nan
    curve: tuple[tuple[int, float], ...] = ()
    costs: Mapping[str, float] = field(default_factory=dict)
    predicted: tuple[float, ...] = ()
    interrupted: bool = False
    queued_again: bool = False

    @property
    def name(self) -> str:
        """What two trials of one network share: the candidate's id, or the choices where they could not be built."""
        return self.candidate or choices_key(self.choices)

    def value(self, column: str) -> float:
        """An objective or a bounded fact; NaN where it is not known."""
        return self.ap if column == "ap" else self.costs.get(column, math.nan)

    def values(self, columns: Sequence[str]) -> tuple[float, ...]:
        """Several of them."""
        return tuple(self.value(column) for column in columns)

    @classmethod
    def from_columns(cls, columns: Columns) -> TrialRow:
        """The typed part of a stored row.

        Raises:
            KeyError, TypeError, ValueError: it is damaged.
        """
        ends = [columns.get(f"latency_predicted_{end}_ms") for end in ("low", "high")]
        predicted = tuple(float(end) for end in ends if end is not None and is_known(end))
        choices = columns["choices"]
        return cls(
            trial=int(columns["trial"]),
            status=_STATUSES[columns["status"]],
            seed=int(columns["seed"]),
            choices={} if choices is None else {sys.intern(key): value for key, value in choices.items()},
            source=sys.intern(str(columns.get("source", "sampled"))),
            reason=str(columns.get("reason") or ""),
            candidate=str(columns.get("candidate") or ""),
            label=str(columns.get("neck_label") or ""),
            continues=None if columns.get("continues") is None else int(columns["continues"]),
            paid=float(columns.get("paid") or 0),
            epochs=int(columns.get("epochs") or 0),
            ap=float(columns["ap"]) if is_known(columns.get("ap")) else math.nan,
            curve=tuple(sorted(curve_of(columns).items())),
            costs=known_costs(columns),
            predicted=predicted,
            interrupted=bool(columns.get("interrupted")),
            queued_again=bool(columns.get("queued_again")),
        )


_STATUSES = {str(status): status for status in Status}


def is_known(value: Any) -> bool:
    """Whether this is a figure at all."""
    return value is not None and not math.isnan(float(value))


def known_costs(columns: Columns) -> dict[str, float]:
    """The costs that a row, or what is known of a candidate, has."""
    return {
        name: float(columns[name]) for name in COSTS if is_known(columns.get(name)) and math.isfinite(columns[name])
    }


def curve_of(columns: Columns) -> dict[int, float]:
    """AP by epoch, as far as it was taken."""
    curve = {int(epoch): float(ap) for epoch, ap in columns.get("ap_curve") or ()}
    if is_known(columns.get("ap")) and columns.get("epochs"):
        curve[int(columns["epochs"])] = float(columns["ap"])
    return curve


def interruption(reason: str, *, queued: bool) -> dict[str, Any]:
    """What the row of a trial says that was not assessed to the end, by no fault of its candidate."""
    reason = f"interrupted: {reason}" + ("; queued again" if queued else "")
    return {"status": Status.FAILED.value, "reason": reason, "interrupted": True, "queued_again": queued, "paid": 0.0}
