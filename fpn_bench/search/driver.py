"""The loop of a search: ask, look up, check, measure, train, tell. It knows nothing of torch.

The way of one candidate::

    ask -> choices -> describe (cheap facts, milliseconds)
      cannot be built?             "failed", nothing paid
      known in this study?         tell what is stored, status "repeat", nothing paid; next an unseen neighbour
      breaks a bound on them?      "rejected", told as infeasible
      trained in another study?    its AP is taken from there, nothing paid
      -> latency, if wanted; breaks a bound on it? "rejected"
      -> train to the first rung; not worth more for now? "stopped", and another trial may take it up again
      -> ... -> train to the end -> "complete"; anything raised on the way: "failed", and the study goes on,
                but for faults of machine or data: queued again, and raised

Any number of *workers* run this loop on one study, each for itself: there is nothing between them but the study. What
a worker asks, it claims (`fpn_bench.search.claims`); what it knows of the others' work, it reads (`ledger`). A worker
that dies loses the trial under way and no more: another finds it, and queues its candidate again.

Everything about a trial is one JSON attribute of it, written before the trial is told: killed at any point, a study
has each trial either whole or not at all.
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Any, Literal, Protocol

import numpy as np
import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from fpn_bench.errors import CacheError, DataError, FpnBenchError, SpaceError, TrialError
from fpn_bench.search.candidates import Candidates
from fpn_bench.search.claims import Claims
from fpn_bench.search.decisions import Decisions
from fpn_bench.search.ledger import (
    DETECTIONS,
    EXCUSED,
    ROW,
    Ledger,
    Row,
    curve_of,
    interruption,
    known_number,
    name_of,
    stored_rows,
)
from fpn_bench.search.parameters import decode, encode, suggest
from fpn_bench.search.records import Described
from fpn_bench.search.samplers import create_sampler
from fpn_bench.search.space import CHEAP_FACTS, Choices, ChoiceSpace, Constraint, choices_key, number_text
from fpn_bench.search.store import is_file, now, together

_log = logging.getLogger(__name__)

_CHOICES, _SOURCE, _RETRIES, _SEED, _CONTINUES = "choices", "source", "retries", "seed", "continues"

_FAULTS = (CacheError, DataError, OSError)
"""Of the machine or the data (disk full, image gone): no property of the candidate."""
_LOST = (StorageInternalError, SQLAlchemyError)
"""What a database raises that is away."""

TRAINED = ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l", "epochs")
"""Columns that a training gives: what another study of the protocol need not find out again."""

MAX_FAILED_IN_A_ROW = 8
"""So many failures in a row are no property of the candidates: they are taken back and the search stops."""
MAX_UNUSABLE_IN_A_ROW = 300
"""Rejections and choices that cannot be built cost milliseconds, but a sampler that finds nothing else must end."""
STORAGE_PATIENCE_S = 300.0
"""So long a worker waits for a database server that is away."""
_AT_ONCE = 64
"""So many workers may begin a trial at one moment without spending more than there is."""
_TURN = -1
"""Claimed like a trial by who begins one of the last."""
_POLL_S = 0.3
_CARE_S = 5.0
"""Seconds between two looks for trials whose worker is gone."""
_LOOKED_AT = 2_000
_LISTED_AT_MOST = 1_000

OnProgress = Callable[[Mapping[str, Any]], None]


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

    def train(self, described: Described, seed: int, epochs: int, on_progress: OnProgress) -> Mapping[str, Any]:
        """Train up to ``epochs`` of the whole training, from where an earlier call left it; ``ap`` and other columns.

        Among them may be ``ap_curve``, pairs of (epochs, AP), ``epochs_trained``, what this call really trained, and
        of a whole training `ledger.DETECTIONS`.
        ``on_progress`` takes whatever the display is to show.

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


Status = Literal["finished", "plateau", "out_of_time", "exhausted", "infeasible", "failing", "interrupted"]


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

    status: Status
    message: str
    paid: float
    counts: Mapping[str, int]


def run(
    space: ChoiceSpace,
    study: optuna.Study,
    evaluator: Evaluator,
    *,
    budget: float | None = None,
    seed: int = 0,
    columns: Mapping[str, Any] | None = None,
    shared: Mapping[tuple[str, int], Row] | None = None,
    worker: int = 0,
    on_event: Callable[[Event], None] | None = None,
) -> RunResult:
    """Be a worker of a study until its budget is spent. Call it again on the same study to go on.

    Args:
        space: what is searched.
        study: opened by `store.open_study`, and begun (`begin`); its sampler is set here.
        evaluator: what describes, times and trains candidates.
        budget: whole trainings to pay for in all, earlier runs included; the space's own by default, and of listed
            candidates whatever is queued.
        seed: of the trainings. The candidates asked first are asked for each seed the study is run with.
        columns: columns equal in every row (protocol, data set, machine ...).
        shared: complete rows of other studies of this protocol, by candidate and seed: what was trained there is not
            trained again.
        worker: which of several this is; part of the sampler's seed.
        on_event: display; its time counts as the driver's overhead.
    """
    return _Worker(space, study, evaluator, budget, seed, columns or {}, shared or {}, worker, on_event).run()


def begin(study: optuna.Study, space: ChoiceSpace, *, seed: int = 0) -> None:
    """Queue what is to be asked first, as far as it was not; to be called by one process, before there are workers."""
    # With its seed, for another seed is another measurement. What waits is trained with this run's; what was
    # queued again stands there once more, further down.
    there = {
        (choices_key(trial.user_attrs.get(_CHOICES, {})), (row or trial.user_attrs).get("seed", seed))
        for trial, row in stored_rows(study)
        if row is None or not row.get("queued_again")
    }
    for wanted in space.enqueued():
        its = seed + wanted.repeat
        if (choices_key(wanted.choices), its) not in there:
            _enqueue(study, space, wanted.choices, wanted.source, seed=its if space.listed else None)


def spendable(space: ChoiceSpace, given: float | None, ledger: Ledger) -> float:
    """Whole trainings that may be paid for in all: what was given, else the space's own.

    Of listed candidates, whose list may have changed since some were paid for, whatever is queued.
    """
    if given is not None:
        return float(given)
    if space.listed:
        return ledger.paid + len(ledger.running) + len(ledger.waiting)
    return float(space.budget.trials)


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


def recover(
    study: optuna.Study, space: ChoiceSpace, claims: Claims, *, seed: int = 0, left: Collection[int] = ()
) -> list[int]:
    """Put right the trials whose worker is gone.

    A trial whose row was stored is told what its row says. Any other is told as failed, with the reason, and its
    choices are queued again, as often as the budget's ``retries`` allow.

    Args:
        study: any number of workers may be at work on it.
        space: of the study.
        claims: of the process that does this.
        seed: of the trainings that were asked without one of their own.
        left: trials that nobody had claimed at an earlier look either. Any other that is not claimed is put right only
            where nobody else is at work, for it may have just begun.

    Returns:
        The running trials that nobody has claimed; to be ``left`` at the next look.
    """
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    if not running:
        return []
    holders, others = claims.holders([trial.number for trial in running]), claims.others()
    unclaimed = [trial.number for trial in running if trial.number not in holders]
    for frozen in running:
        holder = holders.get(frozen.number)
        if holder in others or (holder is None and others and frozen.number not in left):
            continue
        if claims.take_trial(frozen.number):  # it alone of all that found it
            frozen = study._storage.get_trial(frozen._trial_id)  # its worker may have ended it and left just now
            if not frozen.state.is_finished():
                put_right(study, space, frozen, seed=seed)
            claims.free_unit(frozen.number)
    return unclaimed


def put_right(
    study: optuna.Study, space: ChoiceSpace, frozen: FrozenTrial, reason: str | None = None, *, seed: int = 0
) -> None:
    """End a trial that its worker will not end."""
    sampler, study.sampler = study.sampler, optuna.samplers.RandomSampler()  # a Trial asks it on being made
    try:
        trial = optuna.Trial(study, frozen._trial_id)
        row = frozen.user_attrs.get(ROW)
        if row is None:
            row = _killed_row(frozen, space, reason or "the process ended in mid-trial", seed)
            if row.get("queued_again"):
                attributes = frozen.user_attrs
                _enqueue(
                    study,
                    space,
                    row["choices"],
                    row["source"],
                    retries=attributes.get(_RETRIES, 0) + 1,
                    seed=attributes.get(_SEED),
                    continues=attributes.get(_CONTINUES),
                )
            trial.set_user_attr(ROW, row)
        first = _first_row(study, row) if row["status"] == "repeat" else None
        _tell(study, trial, space, row, first, told=frozen.constraints)
    except UpdateFinishedTrialError:  # ended meanwhile
        pass
    finally:
        study.sampler = sampler


def _killed_row(trial: FrozenTrial, space: ChoiceSpace, reason: str, seed: int) -> dict[str, Any]:
    """The row of a trial of which nothing is stored but, where it came so far, its choices."""
    attributes = trial.user_attrs
    choices = attributes.get(_CHOICES) or decode(space, trial.params)
    kills = attributes.get(_RETRIES, 0) + 1
    again = choices is not None and kills <= space.budget.retries
    row = {
        "trial": trial.number,
        "source": attributes.get(_SOURCE, "sampled"),
        "choices": choices,
        "seed": attributes.get(_SEED, seed),
        "continues": attributes.get(_CONTINUES),
        "attempt": kills,
    }
    if choices is None:
        return row | interruption(reason, queued=False)
    row |= {"neck": space.family(choices), "neck_label": space.label(choices)}
    if again:
        return row | interruption(reason, queued=True)
    # Its own doing, as far as anyone can tell: it counts as known from here on.
    reason = f"interrupted: {reason}; not queued again: it ended so {kills} times"
    return row | {"status": "failed", "reason": reason, "paid": 0.0}


def constraint_values(constraints: tuple[Constraint, ...], row: Mapping[str, Any]) -> dict[str, float]:
    """Relative violation of each constraint (feasible <= 0), in the space's order; 0 where the fact is not known.

    A latency that is only predicted counts by the end of its interval that speaks for the candidate.
    """
    facts = {c.text: _fact(c, row) for c in constraints}
    return {c.text: c.violation(value) if (value := facts[c.text]) is not None else 0.0 for c in constraints}


def _fact(constraint: Constraint, row: Mapping[str, Any]) -> float | None:
    """What the row says of the constrained column; None where it says nothing."""
    value = row.get(constraint.name)
    if not known_number(value) and constraint.name == "latency_ms":
        value = row.get(f"latency_predicted_{'low' if constraint.at_most else 'high'}_ms")
    return float(value) if value is not None and known_number(value) else None


def outlast(call: Callable[[], Any], wait: Callable[[float], None] = time.sleep, *, file: bool = False) -> Any:
    """What a call on a study gives, after waiting for its database server if that is away for a while.

    A ``file`` is not away for a while: what it raises will not pass.
    """
    deadline = None
    while True:
        try:
            return call()
        except _LOST as error:
            if file or (deadline is not None and time.monotonic() > deadline):
                raise
            if deadline is None:
                deadline = time.monotonic() + STORAGE_PATIENCE_S
                cause = str(error.__cause__ or error).splitlines()[0]
                _log.warning("the study's database does not answer, waiting for it: %s", cause)
            wait(1.0)


def started(space: ChoiceSpace) -> dict[str, Any]:
    """What the event ``"start"`` carries: the objectives, as in a study's metadata."""
    return {"objectives": [{"name": o.name, "direction": o.direction} for o in space.objectives]}


class _Worker:
    def __init__(
        self,
        space: ChoiceSpace,
        study: optuna.Study,
        evaluator: Evaluator,
        budget: float | None,
        seed: int,
        columns: Mapping[str, Any],
        shared: Mapping[tuple[str, int], Row],
        worker: int,
        on_event: Callable[[Event], None] | None,
    ) -> None:
        self.space, self.study, self.evaluator = space, study, evaluator
        self.given = budget
        self.budget = float(space.budget.trials if budget is None else budget)
        self.seed, self.columns, self.shared = seed, dict(columns), shared
        self.worker, self.on_event = worker, on_event
        self.ledger = Ledger(study)
        self.decisions = Decisions(space, self.ledger, seed=seed, budget=self.budget)
        self.candidates = Candidates(space, evaluator, self.ledger, self.decisions, seed)
        self.counts: Counter[str] = Counter()
        self.interrupts = Interrupts()
        self.failed: list[dict[str, Any]] = []  # in a row
        self.unusable = 0  # in a row
        self.exhausted = space.listed
        self.unclaimed: list[int] = []
        self.at_work: int | None = None
        self.cared_at = -math.inf
        self.started_at = self.last_row_at = time.perf_counter()
        self.evaluator_s = 0.0

    def run(self) -> RunResult:
        with self.interrupts:
            file = is_file(self.study)
            self.claims: Claims = outlast(lambda: Claims(self.study), self._wait, file=file)
            try:
                outlast(self._begin, self._wait, file=file)
                self._emit("start", -1, data=started(self.space))
                self.last_row_at = time.perf_counter()
                status, message = self._loop()
            finally:
                self.claims.leave()
            result = RunResult(status, message, self.ledger.paid, dict(self.counts))
            self._emit("end", -1, data={"status": status, "message": message})
            return result

    def _begin(self) -> None:
        self.ledger.refresh()
        rows = len(self.ledger.rows)
        self.study.sampler = create_sampler(
            self.space,
            trials=math.ceil(self.budget),
            # Rows so far, so that a resumed study does not draw its first proposals again.
            seed=(self.space.sampler.seed * 1_000_003 + rows + 7919 * self.worker) % 2**32,
            candidates=self.candidates,
            alone=not self.claims.others(),
        )
        self.rng = random.Random(f"{self.space.sampler.seed} {rows} {self.worker}")

    def _loop(self) -> tuple[Status, str]:
        while True:
            try:
                self.ledger.refresh()
                self._care()
                self.budget = spendable(self.space, self.given, self.ledger)
                ended = self._ended()
                if ended is not None:
                    return ended
                trial = self._next()
                if trial is None:
                    self._wait(_POLL_S)
                else:
                    self._one(trial)
            except KeyboardInterrupt:
                return "interrupted", self._interrupted_message()
            except _LOST as error:
                self.at_work = None
                try:
                    self._outlast(error)
                except KeyboardInterrupt:
                    return "interrupted", self._interrupted_message()

    def _one(self, trial: optuna.Trial) -> None:
        row = self._new_row(trial)
        self.claims.doing(f"trial {trial.number}")
        self.at_work = trial.number
        try:
            self._fill(trial, row)
        except KeyboardInterrupt:
            self._queue_again(trial, row, "stopped by the user")
            raise
        except _FAULTS as error:
            self._queue_again(trial, row, str(error))
            raise
        self._finish(trial, row)
        if row["status"] in ("complete", "stopped"):
            self.failed, self.unusable = [], 0
        elif row["status"] == "failed" and row["paid"]:
            self.failed, self.unusable = [*self.failed, row], 0
        elif row["status"] != "repeat":
            self.unusable += 1
        if row["status"] == "repeat" and row["source"] == "sampled" and row["continues"] is None:
            self._instead(row["choices"])

    def _instead(self, choices: Choices) -> None:
        """Queue an unseen neighbour of what was known."""
        self.ledger.refresh()
        if not self.ledger.waiting:
            neighbour = self._unseen(choices)
            self.exhausted = neighbour is None
            if neighbour is not None:
                _enqueue(self.study, self.space, neighbour, "sampled")

    # -- when to end ----------------------------------------------------------------------------------------------

    def _ended(self) -> tuple[Status, str] | None:
        if self.interrupts.pending:
            return "interrupted", self._interrupted_message()
        if len(self.failed) >= MAX_FAILED_IN_A_ROW:
            self._excuse(self.failed)
            return "failing", (
                f"stopped: {len(self.failed)} candidates in a row failed, the last one: {self.failed[-1]['reason']}; "
                "once that is mended, the same command tries them again"
            )
        if self.unusable >= MAX_UNUSABLE_IN_A_ROW:
            return "infeasible", (
                f"stopped: {self.unusable} candidates in a row were rejected or cannot be built{self._nearest_miss()}"
            )
        hours = self.space.budget.hours
        if hours is not None and time.perf_counter() - self.started_at >= 3600 * hours:
            return "out_of_time", f"{hours:g} hours are over after {self._spent()}"
        if self.ledger.running:
            return None  # by others: what they find may change everything below
        if self.ledger.paid >= self.budget - 1e-9:
            if not self.ledger.completed and self._nearest_miss():
                return (
                    "infeasible",
                    f"no candidate of {self._paid()} paid for is within the bounds{self._nearest_miss()}",
                )
            if not self.ledger.completed and self.ledger.stopped():
                return "finished", f"{self._spent()}, and none of them came to its end: give it more"
            if not self.ledger.completed:
                return "failing", f"none of {self._paid()} trials completed; the last failed: {self._last_failure()}"
            return "finished", self._spent()
        if self.decisions.plateau():
            return "plateau", f"the front has hardly grown of late; stopped after {self._spent()}"
        if self.exhausted and not self.ledger.waiting and self.decisions.promotion(anyway=True) is None:
            return "exhausted", (
                f"every candidate within the bounds is known after {self._spent()}: "
                "nothing is left to search in this space"
            )
        return None

    def _paid(self) -> str:
        return f"{round(self.ledger.paid, 2):g}"

    def _spent(self) -> str:
        return f"{self._paid()} of {self.budget:g} trials"

    # -- what is next ---------------------------------------------------------------------------------------------

    def _next(self) -> optuna.Trial | None:
        """A trial that is this worker's; None while there is nothing to do but to wait for the others."""
        rest = self._rest()
        if rest <= 1e-9:
            return None
        if rest > _AT_ONCE * self.decisions.least:
            trial_id = self._begun()
        elif not self.claims.take_trial(_TURN):
            return None
        else:  # the last ones begin one after the other, so that no two spend the same rest
            try:
                self.ledger.refresh()
                trial_id = self._begun() if self._rest() > 1e-9 else None
            finally:
                self.claims.give_back(_TURN)
        return None if trial_id is None else optuna.Trial(self.study, trial_id)

    def _rest(self) -> float:
        """What is left of the budget when those under way have come to where they are looked at next."""
        promised = sum(self.decisions.promised(trial.user_attrs) for trial in self.ledger.running)
        return self.budget - self.ledger.paid - promised

    def _begun(self) -> int | None:
        """A queued trial, or a new one, that is now running and this worker's."""
        storage = self.study._storage
        if not self.ledger.waiting and self._queue_more():
            self.ledger.refresh()
        for frozen in self.ledger.waiting:
            if self.claims.take_trial(frozen.number):
                try:
                    storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING)
                except UpdateFinishedTrialError:
                    continue
                return frozen._trial_id
        if self.exhausted:
            return None
        trial_id = storage.create_new_trial(self.study._study_id)
        number = storage.get_trial_number_from_id(trial_id)
        return trial_id if self.claims.take_trial(number) else None  # else: taken for left behind

    def _queue_more(self) -> bool:
        """Queue what is worth more than a new candidate."""
        # A new candidate that the rest of the budget cannot bring to its end is worth less than one half there.
        last = self.ledger.paid + 1 > self.budget
        stopped = self.decisions.promotion(anyway=self.exhausted or last)
        if stopped is not None:
            _enqueue(
                self.study,
                self.space,
                stopped["choices"],
                stopped["source"],
                seed=stopped["seed"],
                continues=stopped["trial"],
            )
            return True
        contested = self.decisions.confirmation()
        if contested is not None:
            row, seed = contested
            _enqueue(self.study, self.space, row["choices"], "confirmed", seed=seed)
            return True
        return False

    def _care(self) -> None:
        """Now and then, see to the trials of workers that are gone."""
        if self.ledger.running and time.perf_counter() - self.cared_at > _CARE_S:
            self.cared_at = time.perf_counter()
            self.unclaimed = recover(self.study, self.space, self.claims, seed=self.seed, left=self.unclaimed)
            self.ledger.refresh()

    def _wait(self, seconds: float) -> None:
        with self.interrupts.allowed():
            time.sleep(seconds)

    def _outlast(self, error: BaseException) -> None:
        """Wait for a database that is away; raise what it raised when it stays away."""
        if is_file(self.study):
            raise error
        self._wait(1.0)
        outlast(self._drop_lost, self._wait)

    def _drop_lost(self) -> None:
        """What this worker had just begun when the database went is nobody's; queue it again."""
        self.ledger.refresh()
        for frozen in self.ledger.running:
            if frozen.number != self.at_work and self.claims.holder(frozen.number) == self.claims.worker:
                put_right(self.study, self.space, frozen, "the database went away", seed=self.seed)
                self.claims.free_unit(frozen.number)

    # -- one trial ----------------------------------------------------------------------------------------------

    def _new_row(self, trial: optuna.Trial) -> dict[str, Any]:
        attributes = trial.user_attrs
        given: Choices | None = attributes.get(_CHOICES)
        # Also an enqueued candidate is suggested, so that the sampler learns of it; one from outside the space has
        # no place there and is recorded without parameters.
        if given is None or self.space.contains(given):
            with together(self.study):
                choices = suggest(self.space, trial)
        else:
            choices = given
        seed = attributes.get(_SEED)
        return {
            **self.columns,
            "trial": trial.number,
            "status": "running",
            "reason": "",
            "source": attributes.get(_SOURCE, "sampled"),
            "seed": self.seed if seed is None else seed,
            "started_at": now(),
            "choices": choices,
            "continues": attributes.get(_CONTINUES),
            "attempt": attributes.get(_RETRIES, 0) + 1,
            "paid": 0.0,
        }

    def _fill(self, trial: optuna.Trial, row: dict[str, Any]) -> None:
        """Complete a row, whatever becomes of its candidate."""
        try:
            self._assess(trial, row["choices"], row)
        except (*_FAULTS, *_LOST):
            raise
        except Exception as error:  # whatever one candidate does must not end the study
            row["status"] = "failed"
            row["reason"] = str(error) if isinstance(error, FpnBenchError) else f"{type(error).__name__}: {error}"

    def _assess(self, trial: optuna.Trial, choices: Choices, row: dict[str, Any]) -> None:
        number = trial.number
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
        if self._claimed_elsewhere(row):
            return
        before = self.ledger.rows.get(row["continues"], {})
        row |= {name: value for name, value in before.items() if name.startswith(("latency_", "energy_"))}
        shared = self.shared.get((described.id, row["seed"]))
        if shared is not None:
            row |= _taken_over(shared)
        if self.space.predicts_latency and not known_number(row.get("latency_ms")):
            row |= self._paying(lambda: self.evaluator.predict(described))
            if self._rejected(row):
                return
        if self.space.needs_latency and not known_number(row.get("latency_ms")):
            self._emit("measure", number, described.label)
            row["paid"] = self.decisions.least
            row |= self._paying(lambda: self.evaluator.measure(described))
            if self._rejected(row):
                return
        if shared is None:
            self._train(described, row, before)
        elif not self._valueless(row):
            row["status"], row["paid"] = "complete", 0.0

    def _train(self, described: Described, row: dict[str, Any], before: Row) -> None:
        """Rung by rung, as far as it is worth it."""
        number, full = row["trial"], self.space.full_epochs
        reached = start = int(before.get("epochs", 0))
        row["ap_curve"] = [list(pair) for pair in curve_of(before).items()] if before else []
        self._emit("train", number, described.label)

        def progress(data: Mapping[str, Any]) -> None:
            self._emit("progress", number, described.label, data)

        trained = 0
        for target in self.decisions.targets(row["source"], reached):
            if target < reached:  # its checkpoint was further along
                continue
            row["paid"] = (target - start) / full
            result = self._paying(partial(self.evaluator.train, described, row["seed"], target, progress))
            trained += int(result.get("epochs_trained", target - reached))
            result = {"epochs": target, **result}
            curve = {**curve_of(row), **curve_of(result)}
            train_s = float(row.get("train_s") or 0) + float(result.get("train_s") or 0)
            row |= {**result, "train_s": train_s, "epochs_trained": trained, "paid": trained / full}
            reached = int(result["epochs"])
            if self._valueless(row):
                return
            row["ap_curve"] = [list(pair) for pair in sorted(curve.items())]
            if reached < full and target in curve and not self.decisions.goes_on(row, target):
                row["status"] = "stopped"
                row["reason"] = f"after {reached} of {full} epochs others were worth more"
                return
        row["status"] = "complete"

    def _valueless(self, row: dict[str, Any]) -> bool:
        """Whether an objective is no number, which is a failure."""
        for objective in self.space.objectives:
            if not known_number(row.get(objective.name)):
                row["status"], row["reason"] = "failed", f"{objective.name} is {row.get(objective.name)}, no number"
                return True
        return False

    def _repeats(self, row: dict[str, Any]) -> bool:
        last = self.ledger.known(name_of(row), row["seed"])
        if last is None or last["trial"] == row["continues"]:
            return False
        first = self.ledger.first(name_of(row), row["seed"]) or last
        row["status"], row["reason"] = "repeat", f"same network as trial {first['trial']}"
        return True

    def _claimed_elsewhere(self, row: dict[str, Any]) -> bool:
        """Make the candidate this worker's; what another has finished or is at is a repeat."""
        unit = f"{name_of(row)} {row['seed']} {row['continues']}"
        at_work = self.claims.take_unit(row["trial"], hashlib.sha256(unit.encode()).hexdigest())
        if at_work is not None:
            row["status"], row["reason"] = "repeat", f"same network as trial {at_work}"
            return True
        if self.ledger.running or self.unclaimed:  # others: one of them may have finished it just before
            self.ledger.refresh()
            return self._repeats(row)
        return False

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
            with self.interrupts.allowed(self.space.budget.trial_minutes):
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
        while True:  # what was paid for is not lost to a database that is away for a while
            try:
                with together(self.study):
                    trial.set_user_attr(ROW, row)
                    _tell(self.study, trial, self.space, row, self.ledger.first(name_of(row), row["seed"]))
            except UpdateFinishedTrialError:
                _log.warning("trial %d was ended by another worker meanwhile; what it found is dropped", trial.number)
            except _LOST as error:
                self._outlast(error)
                continue
            break
        self.counts[row["status"]] += 1
        if self.on_event is not None:
            paid = self.ledger.paid + row["paid"]
            self.on_event(Event("trial", trial.number, paid, self.budget, row.get("neck_label", ""), row))

    def _queue_again(self, trial: optuna.Trial, row: dict[str, Any], reason: str) -> None:
        _enqueue(
            self.study,
            self.space,
            row["choices"],
            row["source"],
            retries=trial.user_attrs.get(_RETRIES, 0),
            seed=trial.user_attrs.get(_SEED),
            continues=row["continues"],
        )
        self._finish(trial, {**row, **interruption(reason, queued=True)})
        self.claims.free_unit(trial.number)

    def _excuse(self, rows: list[dict[str, Any]]) -> None:
        """Take back failures that are no property of their candidates: nothing paid, and queued again."""
        for row in rows:
            # A told trial is final in Optuna, so that the mark stands beside it: `stored_rows` reads both. One mark a
            # trial, for another worker may be at this, too.
            self.study.set_user_attr(f"{EXCUSED} {row['trial']}", True)
            where = {"seed": row["seed"], "continues": row["continues"]}
            _enqueue(self.study, self.space, row["choices"], row["source"], **where)
            self.claims.free_unit(row["trial"])
        self.ledger.refresh()

    # -- finding what is left -----------------------------------------------------------------------------------

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
        key = (choices_key(choices), self.seed)
        if key in self.ledger.seen:
            return False
        described = self.candidates.describe(choices)
        if described is None:
            new = False
        else:
            violations = constraint_values(self.space.constraints, described.facts)
            new = self.ledger.known(described.id, self.seed) is None and all(v <= 0 for v in violations.values())
        if not new:
            self.ledger.seen.add(key)
        return new

    # -- what is said -------------------------------------------------------------------------------------------

    def _nearest_miss(self) -> str:
        """The least violation among what was rejected, and whose."""
        rejected = [row for row in self.ledger.rows.values() if row["status"] == "rejected"]
        if not rejected:
            return ""
        nearest = min(rejected, key=lambda row: max(constraint_values(self.space.constraints, row).values()))
        return f"; the nearest is {nearest['neck_label']}: {nearest['reason']}"

    def _last_failure(self) -> str:
        return next((r["reason"] for r in reversed(self.ledger.rows.values()) if r["status"] == "failed"), "none")

    def _interrupted_message(self) -> str:
        return f"interrupted after {self._spent()}; the same command goes on from there"

    def _emit(self, kind: EventKind, trial: int, label: str = "", data: Mapping[str, Any] | None = None) -> None:
        if self.on_event is not None:
            self.on_event(Event(kind, trial, self.ledger.paid, self.budget, label, data or {}))


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

    Rejected, and stopped at a rung, is PRUNED with its constraints, of which samplers learn; FAIL is ignored by them
    and would be proposed again, so a repeat of a failed candidate is PRUNED as well.
    """
    said = (first or row) if row["status"] == "repeat" else row
    for text, value in constraint_values(space.constraints, said).items():
        if text not in told:
            trial.set_constraint(text, value)
    if said["status"] == "complete":
        state, values = TrialState.COMPLETE, [float(said[o.name]) for o in space.objectives]
    else:
        pruned = said["status"] in ("rejected", "stopped") or row["status"] == "repeat"
        state, values = (TrialState.PRUNED if pruned else TrialState.FAIL), None
    # `study.tell` would read the trial twice more, to hand it to samplers of which none does anything with it.
    study._thread_local.cached_all_trials = None  # what samplers read once a trial
    study._storage.set_trial_state_values(trial._trial_id, state, values)


def _said(constraint: Constraint, row: Mapping[str, Any]) -> str:
    """The broken fact, for people."""
    if known_number(row.get(constraint.name)):
        return f"{constraint.name} {number_text(row[constraint.name])}"
    predicted, low, high = (row[f"latency_predicted_{end}ms"] for end in ("", "low_", "high_"))
    return f"{constraint.name} predicted at {predicted:.3g} (95 % {low:.3g} to {high:.3g})"


def _first_row(study: optuna.Study, repeat: Row) -> Row | None:
    """The row that a repeat repeats."""
    counted = (r for _, r in stored_rows(study) if r and not r.get("interrupted") and r["status"] != "repeat")
    alike = (r for r in counted if (name_of(r), r["seed"]) == (name_of(repeat), repeat["seed"]))
    return next(alike, None)


def _taken_over(shared: Row) -> dict[str, Any]:
    """Of another study's row what its training found; latency is measured anew, on this study's device."""
    taken = {name: shared[name] for name in (*TRAINED, "ap_curve", DETECTIONS) if shared.get(name) is not None}
    return taken | {"shared_from": shared["study"]}


def _enqueue(
    study: optuna.Study,
    space: ChoiceSpace,
    choices: Choices,
    source: str,
    *,
    retries: int = 0,
    seed: int | None = None,
    continues: int | None = None,
) -> None:
    params = encode(space, choices) if space.contains(choices) else {}
    attributes = {_CHOICES: choices, _SOURCE: source, _RETRIES: retries, _SEED: seed, _CONTINUES: continues}
    study.enqueue_trial(params, user_attrs={k: v for k, v in attributes.items() if v is not None})


class _TimedOut(TrialError):
    """A trial took longer than the budget allows."""


class Interrupts:
    """Ctrl-C, SIGTERM and the end of a trial's time take effect only where `allowed`; elsewhere they wait, so no commit
    is cut in two."""

    def __init__(self) -> None:
        self.pending = False
        self._allowed = False
        self._minutes: float | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._time_is_up)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def allowed(self, minutes: float | None = None) -> Iterator[None]:
        """Here alone; for at most so many minutes."""
        if self.pending:
            raise KeyboardInterrupt
        self._allowed, self._minutes = True, minutes
        if minutes is not None and self._before:
            signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
        try:
            yield
        finally:
            self._allowed = False
            if minutes is not None and self._before:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.pending = True
        if self._allowed:
            raise KeyboardInterrupt

    def _time_is_up(self, number: int, frame: FrameType | None) -> None:
        if self._allowed:
            raise _TimedOut(f"timed out after {self._minutes:g} minutes")
