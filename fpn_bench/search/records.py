"""What is known of a candidate and of a trial: the few shapes that the whole package shares.

A candidate is `Described` before anything of it is built. A trial of it ends in columns of the table, a plain dict that
is stored whole; `TrialRow` is its typed part, as small as decisions allow, because a worker holds one for each trial
of the study. Samplers of our own learn from `Observed`: a candidate with the AP that all its trials together say.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol

from fpn_bench.analysis.rows import Objective
from fpn_bench.metrics import computed, metrics
from fpn_bench.search.space import Choices, choices_key

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
        facts: `params`, `macs`, `neck_params`, `neck_macs` and any other columns of the row known now; what static
            metrics compute is added.
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

    def __post_init__(self) -> None:
        """Compute what only needs the graph and the facts."""
        known = {**self.facts, "candidate": self.id, "neck": self.neck, "graph": self.graph_json}
        object.__setattr__(self, "facts", {**self.facts, **computed(known, "static")})


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
    """One candidate with the AP that its trials say; or whatever objective the space has to learn in its place.

    Attributes:
        choices: its choice set, which need not be of the space.
        facts: as known now, measured latency included.
        ap: mean over its seeds, less where less is better turned round: larger is better.
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


OnProgress = Callable[[Mapping[str, Any]], None]


class Evaluator(Protocol):
    """What a search asks of the rest of the package. Columns returned are those of the table."""

    def describe(self, choices: Mapping[str, Any]) -> Described:
        """The cheap facts, in milliseconds. Raises GraphError when the choices do not fit together."""
        ...

    def predict(self, described: Described) -> Mapping[str, Any]:
        """Predicted latency, without building: ``latency_predicted_ms`` with ``_low_`` and ``_high_``; empty where it
        is not known. Asked only when a constraint bounds latency."""
        ...

    def measure(self, described: Described) -> Mapping[str, Any]:
        """What is measured on the device, ``latency_ms`` and its columns among it. Asked only when an objective or a
        constraint needs a measured metric."""
        ...

    def train(self, described: Described, seed: int, epochs: int, on_progress: OnProgress) -> Mapping[str, Any]:
        """Train up to ``epochs`` of the whole training, from where an earlier call left it; ``ap`` and other columns.

        Among them may be ``ap_curve`` and ``val_loss_curve``, pairs of (epochs, AP or loss), ``epochs_trained``, what
        this call really trained, and of a whole training `DETECTIONS`.
        ``on_progress`` takes whatever the display is to show.

        CacheError, DataError and OSError are taken for faults of the machine or the data and end the run; anything
        else that is raised is the candidate's.
        """
        ...


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
        costs: the known values of all metrics but AP, finite.
        predicted: the ends of a predicted latency's interval in ms; empty where none was predicted.
        interrupted: it was not assessed to the end, by no fault of its own: it counts for nothing.
        queued_again: a later trial stands for it.
        sampler_attrs: what Optuna's sampler noted about it, e.g. its generation.
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
    sampler_attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int]:
        """Candidate and seed: what is trained once."""
        return self.name, self.seed

    @property
    def facts(self) -> dict[str, float]:
        """What constraints bound."""
        names = ("latency_predicted_low_ms", "latency_predicted_high_ms")
        return {**self.costs, **dict(zip(names, self.predicted, strict=False))}

    @property
    def name(self) -> str:
        """What two trials of one network share: the candidate's id, or the choices where they could not be built."""
        return self.candidate or choices_key(self.choices)

    def value(self, column: str) -> float:
        """An objective or a bounded fact; NaN where it is not known."""
        return self.ap if column == "ap" else self.costs.get(column, math.nan)

    def merit(self, learned: Objective | None) -> float:
        """What its training came to, more is better: AP, or the objective that stands in its place."""
        if learned is None:
            return self.ap
        return self.value(learned.name) if learned.maximize else -self.value(learned.name)

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
        choices = columns.get("choices")
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
            sampler_attrs=columns.get("sampler_attrs") or _NOTHING,
        )


_STATUSES = {str(status): status for status in Status}
_NOTHING: Mapping[str, Any] = {}
_SUMMARY = (
    "trial", "status", "seed", "choices", "source", "reason", "candidate", "neck_label", "continues", "paid", "epochs",
    "ap_curve", "latency_predicted_low_ms", "latency_predicted_high_ms", "interrupted", "queued_again", "sampler_attrs",
)  # fmt: skip


def summary_of(columns: Columns) -> Columns:
    """The part of a stored row that `TrialRow` reads: small, where the row has a graph and detections."""
    names = (*_SUMMARY, *(metric.name for metric in metrics()))
    return {name: columns[name] for name in names if columns.get(name) is not None}


def is_known(value: Any) -> bool:
    """Whether this is a figure at all."""
    return value is not None and not math.isnan(float(value))


def known_costs(columns: Columns) -> dict[str, float]:
    """The metrics but AP that a row, or what is known of a candidate, has."""
    names = (metric.name for metric in metrics() if metric.name != "ap")
    return {
        name: float(columns[name]) for name in names if is_known(columns.get(name)) and math.isfinite(columns[name])
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


# --------------------------------------------------------------------------------------------------------------
# Runs

EventKind = Literal["start", "describe", "measure", "train", "progress", "trial", "end"]
RunStatus = Literal["finished", "plateau", "out_of_time", "exhausted", "infeasible", "failing", "interrupted"]


@dataclass(frozen=True)
class Event:
    """Something to show: a study or phase begins, progress within one, a trial's row is stored, the end.

    Attributes:
        kind: ``"trial"`` carries the finished row in `data`; ``"progress"`` what the evaluator reported.
        trial: number of the trial, -1 outside one.
        paid: what was paid for so far, in whole trainings.
        budget: what may be paid for.
        label: the neck for people, once it is known.
        data: see `kind`.
    """

    kind: EventKind
    trial: int
    paid: float
    budget: float
    label: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        status: budget spent; the front no longer grows; the hours are over; every candidate known; nothing feasible
            found; too many failures in a row; Ctrl-C.
        message: the same for people.
        paid: what the study has paid for, earlier runs included, in whole trainings.
        counts: rows of this worker by status.
    """

    status: RunStatus
    message: str
    paid: float
    counts: Mapping[str, int]
