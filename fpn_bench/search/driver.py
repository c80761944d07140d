"""The loop of a search: ask, look up, check, measure, train, tell. It knows nothing of torch.

The way of one candidate::

    ask -> choices -> describe (cheap facts, milliseconds)
      cannot be built?             "failed", nothing paid
      known in this study?         tell what is stored, status "repeat", nothing paid; next an unseen neighbour
      breaks a bound on them?      "rejected", told as infeasible
      -> latency, if wanted; breaks a bound on it? "rejected"
      -> train -> "complete"; anything raised on the way: "failed", and the study goes on,
                  but for faults of machine or data: queued again, and raised

Everything about a trial is one JSON attribute of it, written before the trial is told: killed at any point, a study
has each trial either whole or not at all, and `recover` puts right the one that was under way.
"""

from __future__ import annotations

import math
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Literal, Protocol

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from fpn_bench.errors import CacheError, DataError, FpnBenchError, SpaceError
from fpn_bench.search.dimensions import CHEAP_FACTS, Choices, ChoiceSpace, Constraint, choices_key, number_text
from fpn_bench.search.samplers import create_sampler, decode, encode, suggest
from fpn_bench.search.store import now

ROW = "row"
"""Trial attribute: the trial's row of the table, as JSON."""
_CHOICES, _SOURCE, _RETRIES = "choices", "source", "retries"

EXCUSED = "excused"
"""Study attribute: numbers of the trials that failed in a row too long to be the candidates' fault."""
_FAULTS = (CacheError, DataError, OSError)
"""Of the machine or the data (disk full, image gone): no property of the candidate."""

MAX_RETRIES = 3
"""How often a candidate is queued again whose trial took the process down (out of memory, a batch system's limit)."""
MAX_FAILED_IN_A_ROW = 8
"""So many failures in a row are no property of the candidates: they are taken back and the search stops."""
MAX_UNUSABLE_IN_A_ROW = 300
"""Rejections and choices that cannot be built cost milliseconds, but a sampler that finds nothing else must end."""
_LOOKED_AT = 2_000
_LISTED_AT_MOST = 1_000

OnProgress = Callable[[Mapping[str, Any]], None]


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
    """

    id: str
    label: str
    neck: str
    graph_json: str
    facts: Mapping[str, Any]
    candidate: Any = field(default=None, compare=False)


class Evaluator(Protocol):
    """What the driver asks of the rest of the house. Columns returned are those of the table."""

    def describe(self, choices: Mapping[str, Any]) -> Described:
        """The cheap facts, in milliseconds. Raises GraphError when the choices do not fit together."""
        ...

    def predict(self, described: Described) -> Mapping[str, Any]:
        """Predicted latency, without building: ``latency_predicted_ms`` with ``_low_`` and ``_high_``; empty where it
        is not known. Asked only when a constraint bounds latency."""
        ...

    def measure(self, described: Described) -> Mapping[str, Any]:
        """Latency columns, ``latency_ms`` among them. Asked only when an objective or constraint needs it."""
        ...

    def train(self, described: Described, seed: int, on_progress: OnProgress) -> Mapping[str, Any]:
        """The short training: ``ap`` and other columns. ``on_progress`` takes whatever the display is to show.

        CacheError, DataError and OSError are taken for faults of the machine or the data and end the run; anything
        else that is raised is the candidate's.
        """
        ...


EventKind = Literal["start", "describe", "measure", "train", "progress", "trial", "end"]


@dataclass(frozen=True)
class Event:
    """Something to show: a study or phase begins, progress within one, a trial's row is stored, the end.

    Attributes:
        kind: ``"trial"`` carries the finished row in `data`; ``"progress"`` what the evaluator reported.
        trial: number of the trial, -1 outside one.
        paid: candidates paid for so far.
        budget: candidates to pay for.
        label: the neck for people, once it is known.
        data: see `kind`.
    """

    kind: EventKind
    trial: int
    paid: int
    budget: int
    label: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


Status = Literal["finished", "exhausted", "infeasible", "failing", "interrupted"]


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        status: budget spent; every candidate known; nothing feasible found; too many failures in a row; Ctrl-C.
        message: the same for people.
        paid: candidates paid for in the study, earlier runs included.
        counts: rows of this run by status.
    """

    status: Status
    message: str
    paid: int
    counts: Mapping[str, int]


def run(
    space: ChoiceSpace,
    study: optuna.Study,
    evaluator: Evaluator,
    *,
    budget: int | None = None,
    seed: int = 0,
    columns: Mapping[str, Any] | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> RunResult:
    """Search until the budget is spent. Call it again on the same study to go on.

    Args:
        space: what is searched.
        study: opened by `store.open_study`; its sampler is set here.
        evaluator: what describes, times and trains candidates.
        budget: candidates to pay for in all, earlier runs included; the space's own by default.
        seed: of the trainings. The candidates asked first are asked for each seed the study is run with.
        columns: columns equal in every row (protocol, data set, machine ...).
        on_event: display; its time counts as the driver's overhead.
    """
    return _Driver(
        space, study, evaluator, space.budget.trials if budget is None else budget, seed, columns or {}, on_event
    ).run()


def check_feasible(space: ChoiceSpace, evaluator: Evaluator) -> None:
    """Refuse a space small enough to be listed of which no candidate is within the bounds on params and MACs.

    To be called before a study is opened, so that a refused space leaves nothing behind.

    Raises:
        SpaceError: none is; names the nearest.
    """
    bounds = tuple(c for c in space.constraints if c.name in CHEAP_FACTS)
    if not bounds or space.size is None or space.size > _LISTED_AT_MOST:
        return
    nearest = (math.inf, "")
    for choices in space.enumerate():
        try:
            described = evaluator.describe(choices)
        except FpnBenchError:
            continue
        violations = constraint_values(bounds, described.facts)
        if all(v <= 0 for v in violations.values()):
            return
        broken = [f"{c.name} {number_text(described.facts[c.name])}" for c in bounds if violations[c.text] > 0]
        nearest = min(nearest, (max(violations.values()), f"{described.label} with {', '.join(broken)}"))
    wanted = " and ".join(c.text for c in bounds)
    raise SpaceError(
        f"{space.source}: none of its {space.size} candidates has {wanted}; the nearest is {nearest[1]}: "
        "loosen the constraint or widen the choices"
    )


def recover(study: optuna.Study, space: ChoiceSpace) -> int:
    """Put right the trials a killed driver left running; only to be called by a study's sole driver.

    A trial whose row was stored is told what its row says. Any other is told as failed, with the reason, and its
    choices are queued again, at most `MAX_RETRIES` times.

    Returns:
        How many there were.
    """
    left = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    study.sampler = optuna.samplers.RandomSampler()  # a Trial asks its sampler on being made; this one writes nothing
    for frozen in left:
        trial = optuna.Trial(study, frozen._trial_id)
        row = frozen.user_attrs.get(ROW)
        if row is None:
            row = _killed_row(frozen, space)
            if row["queued_again"]:
                _enqueue(study, space, row["choices"], row["source"], frozen.user_attrs.get(_RETRIES, 0) + 1)
            trial.set_user_attr(ROW, row)
        _tell(study, trial, space, row, told=frozen.constraints)
    return len(left)


def _killed_row(trial: FrozenTrial, space: ChoiceSpace) -> dict[str, Any]:
    """The row of a trial of which nothing is stored but, where it came so far, its choices."""
    attributes = trial.user_attrs
    choices = attributes.get(_CHOICES) or decode(space, trial.params)
    kills = attributes.get(_RETRIES, 0) + 1
    reason = "the process ended in mid-trial"
    known = {}
    if choices is not None:
        known = {"neck": space.family(choices), "neck_label": space.label(choices)}
        if kills > MAX_RETRIES:
            reason += f"; not queued again: it took the process down {kills} times"
    return {
        "trial": trial.number,
        "source": attributes.get(_SOURCE, "sampled"),
        "choices": choices,
        **known,
        **_interruption(reason, queued=choices is not None and kills <= MAX_RETRIES),
    }


def stored_rows(study: optuna.Study) -> Iterator[tuple[FrozenTrial, Mapping[str, Any] | None]]:
    """Each trial, in order, with its row of the table; None before it has one."""
    excused = set(study.user_attrs.get(EXCUSED, ()))
    for trial in study.get_trials(deepcopy=False):
        row = trial.user_attrs.get(ROW)
        if row is not None and trial.number in excused:
            row = {**row, **_interruption(row["reason"], queued=True)}
        yield trial, row


def _interruption(reason: str, *, queued: bool) -> dict[str, Any]:
    """What a row says whose candidate was not assessed to the end, by no fault of its own."""
    reason = f"interrupted: {reason}" + ("; queued again" if queued else "")
    return {"status": "failed", "reason": reason, "interrupted": True, "queued_again": queued, "paid": False}


def constraint_values(constraints: tuple[Constraint, ...], row: Mapping[str, Any]) -> dict[str, float]:
    """Relative violation of each constraint (feasible <= 0), in the space's order; 0 where the fact is not known.

    A latency that is only predicted counts by the end of its interval that speaks for the candidate.
    """
    facts = {c.text: _fact(c, row) for c in constraints}
    return {c.text: c.violation(value) if (value := facts[c.text]) is not None else 0.0 for c in constraints}


def _fact(constraint: Constraint, row: Mapping[str, Any]) -> float | None:
    """What the row says of the constrained column; None where it says nothing."""
    value = row.get(constraint.name)
    if not _known(value) and constraint.name == "latency_ms":
        value = row.get(f"latency_predicted_{'low' if constraint.at_most else 'high'}_ms")
    return float(value) if value is not None and _known(value) else None


class _Driver:
    def __init__(
        self,
        space: ChoiceSpace,
        study: optuna.Study,
        evaluator: Evaluator,
        budget: int,
        seed: int,
        columns: Mapping[str, Any],
        on_event: Callable[[Event], None] | None,
    ) -> None:
        self.space, self.study, self.evaluator = space, study, evaluator
        self.budget, self.seed, self.columns = budget, seed, dict(columns)
        self.on_event = on_event
        self.known: dict[str, Mapping[str, Any]] = {}  # `_name` of a row -> the first of that name
        self.seen: set[str] = set()  # choice sets that need not be described again
        self.paid = 0
        self.completed = 0
        self.nearest: tuple[float, str] = (math.inf, "")  # the least violation, and whose
        self.counts: Counter[str] = Counter()
        self.interrupts = _Interrupts()
        self.last_failure = ""
        self.last_row_at = 0.0
        self.evaluator_s = 0.0

    def run(self) -> RunResult:
        with self.interrupts:
            rows = list(stored_rows(self.study))
            for _, row in rows:
                self._remember(row)
            self.study.sampler = create_sampler(self.space, trials=self.budget, finished=len(rows))
            self.rng = random.Random(f"{self.space.sampler.seed} {len(rows)}")
            self._emit("start", -1)
            # With its seed, for another seed is another measurement. What waits is trained with this run's; what was
            # queued again stands there once more, further down.
            there = {
                (choices_key(trial.user_attrs.get(_CHOICES, {})), (row or {}).get("seed", self.seed))
                for trial, row in rows
                if row is None or not row.get("queued_again")
            }
            for wanted in self.space.enqueued():
                if (choices_key(wanted.choices), self.seed) not in there:
                    _enqueue(self.study, self.space, wanted.choices, wanted.source, 0)
            status, message = self._loop()
            result = RunResult(status, message, self.paid, dict(self.counts))
            self._emit("end", -1, data={"status": status, "message": message})
            return result

    def _loop(self) -> tuple[Status, str]:
        failed: list[dict[str, Any]] = []
        unusable = 0
        self.last_row_at = time.perf_counter()
        while self.paid < self.budget:
            if self.interrupts.pending:
                return "interrupted", self._interrupted_message()
            trial = self.study.ask()
            row = self._new_row(trial)
            try:
                self._fill(row)
            except KeyboardInterrupt:
                self._queue_again(trial, row, "stopped by the user")
                return "interrupted", self._interrupted_message()
            except _FAULTS as error:
                self._queue_again(trial, row, str(error))
                raise
            self._finish(trial, row)
            if row["status"] == "complete":
                failed, unusable = [], 0
            elif row["status"] == "failed" and row["paid"]:
                failed, unusable = [*failed, row], 0
            elif row["status"] != "repeat":
                unusable += 1
            if len(failed) >= MAX_FAILED_IN_A_ROW:
                self._excuse(failed)
                return "failing", (
                    f"stopped: {len(failed)} candidates in a row failed, the last one: {row['reason']}; once that is "
                    "mended, the same command tries them again"
                )
            if unusable >= MAX_UNUSABLE_IN_A_ROW:
                return "infeasible", (
                    f"stopped: {unusable} candidates in a row were rejected or cannot be built{self._nearest_miss()}"
                )
            if row["status"] == "repeat" and not self._queued():
                neighbour = self._unseen(row["choices"])
                if neighbour is None:
                    return "exhausted", (
                        f"every candidate within the bounds is known after {self.paid} of {self.budget} trials: "
                        "nothing is left to search in this space"
                    )
                _enqueue(self.study, self.space, neighbour, "sampled", 0)
        if not self.completed and self.nearest[1]:
            return "infeasible", f"no candidate of {self.paid} paid for is within the bounds{self._nearest_miss()}"
        if not self.completed:
            return "failing", f"none of {self.paid} trials completed; the last failed: {self.last_failure}"
        return "finished", f"{self.paid} of {self.budget} trials"

    # -- one trial ----------------------------------------------------------------------------------------------

    def _new_row(self, trial: optuna.Trial) -> dict[str, Any]:
        attributes = trial.user_attrs
        given: Choices | None = attributes.get(_CHOICES)
        # Also an enqueued candidate is suggested, so that the sampler learns of it; one from outside the space has
        # no place there and is recorded without parameters.
        choices = suggest(self.space, trial) if given is None or self.space.contains(given) else given
        return {
            **self.columns,
            "trial": trial.number,
            "status": "running",
            "reason": "",
            "source": attributes.get(_SOURCE, "sampled"),
            "seed": self.seed,
            "started_at": now(),
            "choices": choices,
            "paid": False,
        }

    def _fill(self, row: dict[str, Any]) -> None:
        """Complete a row, whatever becomes of its candidate."""
        try:
            self._assess(row["trial"], row["choices"], row)
        except _FAULTS:
            raise
        except Exception as error:  # whatever one candidate does must not end the study
            row["status"] = "failed"
            row["reason"] = str(error) if isinstance(error, FpnBenchError) else f"{type(error).__name__}: {error}"

    def _assess(self, number: int, choices: Choices, row: dict[str, Any]) -> None:
        self._emit("describe", number)
        if self._repeats(row):  # known not to be buildable
            return
        described = self._paying(lambda: self.evaluator.describe(choices))
        row |= described.facts
        row |= {
            "candidate": described.id,
            "neck": described.neck,
            "neck_label": described.label,
            "graph": described.graph_json,
        }
        if self._repeats(row):
            return
        if self._rejected(row):
            return
        if self.space.predicts_latency:
            row |= self._paying(lambda: self.evaluator.predict(described))
            if self._rejected(row):
                return
        if self.space.needs_latency:
            self._emit("measure", number, described.label)
            row["paid"] = True
            row |= self._paying(lambda: self.evaluator.measure(described))
            if self._rejected(row):
                return
        self._emit("train", number, described.label)

        def progress(data: Mapping[str, Any]) -> None:
            self._emit("progress", number, described.label, data)

        row["paid"] = True
        row |= self._paying(lambda: self.evaluator.train(described, self.seed, progress))
        for objective in self.space.objectives:
            if not _known(row.get(objective.name)):
                row["status"], row["reason"] = "failed", f"{objective.name} is {row.get(objective.name)}, no number"
                return
        row["status"] = "complete"

    def _repeats(self, row: dict[str, Any]) -> bool:
        first = self.known.get(_name(row))
        if first is not None:
            row["status"], row["reason"] = "repeat", f"same network as trial {first['trial']}"
        return first is not None

    def _rejected(self, row: dict[str, Any]) -> bool:
        violations = constraint_values(self.space.constraints, row)
        broken = [c for c in self.space.constraints if violations[c.text] > 0]
        if broken:
            row["status"] = "rejected"
            row["reason"] = "; ".join(f"{_said(c, row)} breaks {c.text}" for c in broken)
        return bool(broken)

    def _paying(self, call: Callable[[], Any]) -> Any:
        """Let the evaluator work: here alone Ctrl-C takes effect at once, and the time is not the driver's."""
        start = time.perf_counter()
        try:
            with self.interrupts.allowed():
                return call()
        finally:
            self.evaluator_s += time.perf_counter() - start

    def _finish(self, trial: optuna.Trial, row: dict[str, Any]) -> None:
        # From row to row, so that storing and telling, which come after this line, stand in the next trial's figure.
        at = time.perf_counter()
        row["total_s"] = at - self.last_row_at
        row["overhead_s"] = row["total_s"] - self.evaluator_s
        self.last_row_at, self.evaluator_s = at, 0.0
        row = {k: v.item() if isinstance(v, np.generic) else v for k, v in row.items()}
        trial.set_user_attr(ROW, row)
        _tell(self.study, trial, self.space, row, self.known.get(_name(row)))
        self._remember(row)
        self.counts[row["status"]] += 1
        self._emit("trial", trial.number, row.get("neck_label", ""), row)

    def _queue_again(self, trial: optuna.Trial, row: dict[str, Any], reason: str) -> None:
        retries = trial.user_attrs.get(_RETRIES, 0)
        _enqueue(self.study, self.space, row["choices"], row["source"], retries)
        self._finish(trial, {**row, **_interruption(reason, queued=True)})

    def _excuse(self, rows: list[dict[str, Any]]) -> None:
        """Take back failures that are no property of their candidates: nothing paid, and queued again."""
        for row in rows:
            _enqueue(self.study, self.space, row["choices"], row["source"], 0)
        # A told trial is final in Optuna, so that the mark stands beside it: `stored_rows` reads both.
        numbers = self.study.user_attrs.get(EXCUSED, [])
        self.study.set_user_attr(EXCUSED, [*numbers, *(row["trial"] for row in rows)])
        self.paid -= len(rows)

    def _remember(self, row: Mapping[str, Any] | None) -> None:
        if row is None or row.get("interrupted"):
            return
        self.paid += bool(row.get("paid"))
        self.completed += row["status"] == "complete"
        if row["status"] == "failed":
            self.last_failure = row["reason"]
        if row["status"] == "rejected":
            miss = max(constraint_values(self.space.constraints, row).values())
            self.nearest = min(self.nearest, (miss, f"{row['neck_label']}: {row['reason']}"))
        if row["seed"] == self.seed:
            self.seen.add(choices_key(row["choices"]))
            if row["status"] != "repeat":
                self.known.setdefault(_name(row), row)

    # -- finding what is left -----------------------------------------------------------------------------------

    def _queued(self) -> bool:
        return bool(self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def _unseen(self, choices: Choices) -> Choices | None:
        """The nearest choice set that is a new network within the bounds; None when there is none.

        Breadth first over single changes, from a choice set of the space; exact in a space of up to `_LOOKED_AT`.
        """
        start = choices if self.space.contains(choices) else self.space.sample(self.rng)
        queue, reached = [start], {choices_key(start)}
        for current in queue:
            if self._is_new(current):
                return current
            if len(queue) < _LOOKED_AT:
                for neighbour in self.space.neighbours(current, self.rng):
                    key = choices_key(neighbour)
                    if key not in reached:
                        reached.add(key)
                        queue.append(neighbour)
        return None

    def _is_new(self, choices: Choices) -> bool:
        key = choices_key(choices)
        if key in self.seen:
            return False
        try:
            described = self.evaluator.describe(choices)
        except FpnBenchError:
            new = False
        else:
            violations = constraint_values(self.space.constraints, described.facts)
            new = described.id not in self.known and all(v <= 0 for v in violations.values())
        if not new:
            self.seen.add(key)
        return new

    def _nearest_miss(self) -> str:
        return f"; the nearest is {self.nearest[1]}" if self.nearest[1] else ""

    def _interrupted_message(self) -> str:
        return f"interrupted after {self.paid} of {self.budget} trials; the same command goes on from there"

    def _emit(self, kind: EventKind, trial: int, label: str = "", data: Mapping[str, Any] | None = None) -> None:
        if self.on_event is not None:
            self.on_event(Event(kind, trial, self.paid, self.budget, label, data or {}))


def _tell(
    study: optuna.Study,
    trial: optuna.Trial,
    space: ChoiceSpace,
    row: Mapping[str, Any],
    first: Mapping[str, Any] | None = None,
    told: Collection[str] = (),
) -> None:
    """Tell Optuna what a row says, less the constraints already ``told``.

    A repeat says what the ``first`` row of its candidate said.

    Rejected is PRUNED with its constraints, of which samplers learn; FAIL is ignored by them and would be proposed
    again, so a repeat of a failed candidate is PRUNED as well.
    """
    said = row
    if row["status"] == "repeat":
        said = first or _first_row(study, row)
    for text, value in constraint_values(space.constraints, said).items():
        if text not in told:
            trial.set_constraint(text, value)
    if said["status"] == "complete":
        study.tell(trial, [float(said[o.name]) for o in space.objectives])
    elif said["status"] == "rejected" or row["status"] == "repeat":
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, state=TrialState.FAIL)


def _said(constraint: Constraint, row: Mapping[str, Any]) -> str:
    """The broken fact, for people."""
    if _known(row.get(constraint.name)):
        return f"{constraint.name} {number_text(row[constraint.name])}"
    predicted, low, high = (row[f"latency_predicted_{end}ms"] for end in ("", "low_", "high_"))
    return f"{constraint.name} predicted at {predicted:.3g} (95 % {low:.3g} to {high:.3g})"


def _first_row(study: optuna.Study, repeat: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row that a repeat repeats."""
    counted = (r for _, r in stored_rows(study) if r and not r.get("interrupted") and r["status"] != "repeat")
    return next(r for r in counted if (_name(r), r["seed"]) == (_name(repeat), repeat["seed"]))


def _name(row: Mapping[str, Any]) -> str:
    """What two rows of one network share: the candidate's id, or the choices where they could not be built."""
    return str(row.get("candidate") or choices_key(row["choices"]))


def _enqueue(study: optuna.Study, space: ChoiceSpace, choices: Choices, source: str, retries: int) -> None:
    params = encode(space, choices) if space.contains(choices) else {}
    study.enqueue_trial(params, user_attrs={_CHOICES: choices, _SOURCE: source, _RETRIES: retries})


def _known(value: Any) -> bool:
    return value is not None and not math.isnan(float(value))


class _Interrupts:
    """Ctrl-C and SIGTERM take effect only where `allowed`; elsewhere they wait, so no commit is cut in two."""

    def __init__(self) -> None:
        self.pending = False
        self._allowed = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        if self.pending:
            raise KeyboardInterrupt
        self._allowed = True
        try:
            yield
        finally:
            self._allowed = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.pending = True
        if self._allowed:
            raise KeyboardInterrupt
