"""One trial, from what it is to assess to its row. The order of the steps is the order of the methods::

    describe (cheap facts, milliseconds)
      cannot be built?             "failed", nothing paid
      known in this study?         "repeat", nothing paid: the study has one answer for a network and a seed
      breaks a bound on them?      "rejected"
    lease the work                 from here on no other worker takes this network and seed
      another is at it?            "repeat"
      trained in another study?    its AP is taken from there, nothing paid
    latency, if wanted             breaks a bound on it? "rejected"
    train to the first rung        not worth more for now? "stopped", and another trial may take it up again
    -> ... -> train to the end     "complete"

Whatever a candidate raises on the way makes it "failed", and the study goes on; a fault of machine or data is raised.
Nothing is stored here: the row is, whole, when the trial is over (`fpn_bench.search.recorder`).
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fpn_bench.errors import CacheError, DataError, FpnBenchError
from fpn_bench.metrics import computed, metric_of, metrics
from fpn_bench.search.database import DATABASE_ERRORS
from fpn_bench.search.leases import Leases
from fpn_bench.search.records import (
    DETECTIONS,
    Columns,
    Described,
    Evaluator,
    EventKind,
    Status,
    TrialRow,
    curve_of,
    is_known,
)
from fpn_bench.search.recovery import recover_orphans
from fpn_bench.search.scheduler import Scheduler
from fpn_bench.search.signals import Interrupts, TrialTimeout
from fpn_bench.search.space import Choices, ChoiceSpace, Constraint, choices_key, number_text
from fpn_bench.search.state import constraint_values
from fpn_bench.search.storage import Request, StudyStorage

_logger = logging.getLogger(__name__)
INFRASTRUCTURE_ERRORS = (CacheError, DataError, OSError)
"""Of the machine or the data (disk full, image gone): no property of the candidate."""

Emit = Callable[[EventKind, int, str, Mapping[str, Any]], None]


@dataclass
class TrialContext:
    """What a worker lends to each of its trials.

    Attributes:
        space, evaluator: of the search.
        storage, leases: of the study.
        scheduler: with what is known of the study.
        interrupts: Ctrl-C and time limits.
        shared: complete rows of other studies of this protocol, by candidate and seed.
        emit: shows an event.
        evaluator_s: seconds that the evaluator has worked since the last row.
    """

    space: ChoiceSpace
    evaluator: Evaluator
    storage: StudyStorage
    leases: Leases
    scheduler: Scheduler
    interrupts: Interrupts
    shared: Mapping[tuple[str, int], Columns]
    emit: Emit
    evaluator_s: float = field(default=0.0)

    def call(self, call: Callable[[], Any]) -> Any:
        """Let the evaluator work: here alone Ctrl-C takes effect at once, and the time is not the search's."""
        start = time.perf_counter()
        try:
            with self.interrupts.allowed(self.space.budget.trial_minutes):
                return call()
        finally:
            self.evaluator_s += time.perf_counter() - start


class TrialRun:
    """A trial of this worker.

    Args:
        context: see `TrialContext`.
        row: the columns known so far, ``trial``, ``seed``, ``choices``, ``source`` and ``continues`` among them; it is
            completed here.
        request: what the trial is to assess, choices included.
    """

    def __init__(self, context: TrialContext, row: dict[str, Any], request: Request) -> None:
        """See the class."""
        self._context, self.row, self._request = context, row, request
        self._space, self._state = context.space, context.scheduler.state

    def run(self) -> None:
        """Complete the row, whatever becomes of its candidate.

        Raises:
            KeyboardInterrupt: Ctrl-C.
            CacheError, DataError, OSError: a fault of the machine or the data.
        """
        try:
            self._assess()
        except (*INFRASTRUCTURE_ERRORS, *DATABASE_ERRORS):
            raise
        except TrialTimeout as error:
            self._end(Status.FAILED, str(error))
        except Exception as error:  # whatever one candidate does must not end the study
            _logger.debug("trial %s failed", self.row["trial"], exc_info=True)
            reason = str(error) if isinstance(error, FpnBenchError) else f"{type(error).__name__}: {error}"
            self._end(Status.FAILED, reason)

    def _assess(self) -> None:
        described = self._describe()
        if described is None or self._is_rejected() or not self._lease_work():
            return
        before = self._state.rows.get(self._request.continues) if self._request.continues is not None else None
        if before is not None:
            kept = self._context.storage.columns(before.trial)
            measured = {metric.name for metric in metrics("measured")}
            self.row |= {n: value for n, value in kept.items() if n.startswith("latency_") or n in measured}
        shared = self._shared(described)
        if shared is not None:
            trained = (
                *(metric.name for metric in metrics("trained")),
                "epochs",
                "ap_curve",
                "val_loss_curve",
                DETECTIONS,
            )
            taken = {name: shared[name] for name in trained if shared.get(name) is not None}
            self.row |= taken | {"shared_from": shared["study"]}  # latency is measured anew, on this study's device
        if not self._measure(described):
            return
        if shared is None:
            self._train(described, before)
        elif not self._has_invalid_objective():
            self.row["status"], self.row["paid"] = Status.COMPLETE.value, 0.0

    def _shared(self, described: Described) -> Columns | None:
        """What another study trained, where it has all that this one is judged by."""
        shared = self._context.shared.get((described.id, self.row["seed"]))
        trained = (metric_of(o.name) for o in self._space.objectives)
        wanted = (m.name for m in trained if m.known == "trained" and m.compute is None)
        return shared if shared is not None and all(shared.get(name) is not None for name in wanted) else None

    # -- what costs nothing ---------------------------------------------------------------------------------------

    def _describe(self) -> Described | None:
        """The cheap facts; None for what is known already."""
        self._emit("describe", "")
        if self._is_repeat():  # known not to be buildable
            return None
        described: Described = self._context.call(lambda: self._context.evaluator.describe(self.row["choices"]))
        self.row |= described.facts
        self.row |= {
            "candidate": described.id,
            "neck": described.neck,
            "neck_label": described.label,
            "graph": described.graph_json,
        }
        return None if self._is_repeat() else described

    def _is_repeat(self) -> bool:
        name, seed = self._name, self.row["seed"]
        last = self._state.known(name, seed)
        if last is None or last.trial == self._request.continues:
            return False
        self._end(Status.REPEAT, f"same network as trial {self._state.first(last).trial}")
        return True

    def _is_rejected(self) -> bool:
        violations = constraint_values(self._space.constraints, self.row)
        broken = [c for c in self._space.constraints if violations[c.text] > 0]
        if broken:
            self._end(Status.REJECTED, "; ".join(f"{describe_violation(c, self.row)} breaks {c.text}" for c in broken))
        return bool(broken)

    def _lease_work(self) -> bool:
        """Make the candidate this worker's; what another has finished meanwhile, or is at, is a repeat."""
        text = f"{self._name} {self.row['seed']} {self._request.continues}"
        work_key = hashlib.sha256(text.encode()).hexdigest()
        storage, state = self._context.storage, self._state
        while True:
            with storage.transaction() as transaction:
                state.apply(transaction.changes(state.revision))
                if self._is_repeat():
                    return False
                at_work = next(
                    (t for t in state.running.values() if t.work_key == work_key and t.trial != self.row["trial"]), None
                )
                if at_work is None:
                    transaction.assign_work(self.row["trial"], self._request, work_key)
                    return True
            if self._context.leases.lives(at_work.owner):
                self._end(Status.REPEAT, f"same network as trial {at_work.trial}")
                return False
            recover_orphans(storage, state, self._context.leases, self._space, seed=self._context.scheduler.seed)

    # -- what is paid ---------------------------------------------------------------------------------------------

    def _measure(self, described: Described) -> bool:
        """What is measured; latency is predicted first where a bound may decide by that alone. False where a bound is
        broken, or the device does not tell."""
        if self._space.predicts_latency and not is_known(self.row.get("latency_ms")):
            self.row |= self._context.call(lambda: self._context.evaluator.predict(described))
            if self._is_rejected():
                return False
        if not self._unmeasured():
            return True
        self._emit("measure", described.label)
        self.row["paid"] = self._context.scheduler.min_cost
        self.row |= self._context.call(lambda: self._context.evaluator.measure(described))
        self.row |= computed(self.row, "measured")
        if missing := self._unmeasured():
            self._end(Status.FAILED, f"expected a measured {missing[0]}, which this device or evaluator does not give")
            return False
        return not self._is_rejected()

    def _unmeasured(self) -> list[str]:
        return [name for name in self._space.measured if not is_known(self.row.get(name))]

    def _train(self, described: Described, before: TrialRow | None) -> None:
        """Rung by rung, as far as it is worth it."""
        row, full, scheduler = self.row, self._space.full_epochs, self._context.scheduler
        reached = start = 0 if before is None else before.epochs
        row["ap_curve"] = [] if before is None else [list(pair) for pair in before.curve]
        self._emit("train", described.label)

        def progress(data: Mapping[str, Any]) -> None:
            self._context.emit("progress", row["trial"], described.label, data)

        trained = 0
        for target in scheduler.rung_targets(row["source"], reached):
            if target < reached:  # its checkpoint was further along
                continue
            row["paid"] = (target - start) / full
            train = partial(self._context.evaluator.train, described, row["seed"], target, progress)
            result = self._context.call(train)
            trained += int(result.get("epochs_trained", target - reached))
            result = {"epochs": target, **result}
            curve = {**curve_of(row), **curve_of(result)}
            train_s = float(row.get("train_s") or 0) + float(result.get("train_s") or 0)
            row |= {**result, "train_s": train_s, "epochs_trained": trained, "paid": trained / full}
            reached = int(result["epochs"])
            if self._has_invalid_objective():
                return
            row["ap_curve"] = [list(pair) for pair in sorted(curve.items())]
            if reached < full and target in curve and not scheduler.may_continue(TrialRow.from_columns(row), target):
                self._end(Status.STOPPED, f"after {reached} of {full} epochs others were worth more")
                return
        row["status"] = Status.COMPLETE.value

    def _has_invalid_objective(self) -> bool:
        """Whether an objective is no number, which is a failure. Metrics computed of what was trained are added."""
        self.row |= computed(self.row, "trained")
        for objective in self._space.objectives:
            if not is_known(self.row.get(objective.name)):
                self._end(Status.FAILED, f"{objective.name} is {self.row.get(objective.name)}, no number")
                return True
        return False

    # -- helpers --------------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return str(self.row.get("candidate") or choices_key(self.row["choices"]))

    def _end(self, status: Status, reason: str) -> None:
        self.row["status"], self.row["reason"] = status.value, reason

    def _emit(self, kind: EventKind, label: str) -> None:
        self._context.emit(kind, self.row["trial"], label, {})


def describe_violation(constraint: Constraint, row: Columns) -> str:
    """The broken fact, for people."""
    if is_known(row.get(constraint.name)):
        return f"{constraint.name} {number_text(row[constraint.name])}"
    predicted, low, high = (row[f"latency_predicted_{end}ms"] for end in ("", "low_", "high_"))
    return f"{constraint.name} predicted at {predicted:.3g} (95 % {low:.3g} to {high:.3g})"


def unseen_neighbour(
    choices: Choices, space: ChoiceSpace, is_new: Callable[[Choices], bool], rng: Any, at_most: int = 2_000
) -> Choices | None:
    """The nearest choice set that is a new network within the bounds; None when there is none.

    Breadth first over single changes, from a choice set of the space; exact in a space of up to ``at_most``.
    """
    start = choices if space.contains(choices) else space.sample(rng)
    queue, reached = [start], {choices_key(start)}
    for current in queue:
        if is_new(current):
            return current
        if len(queue) < at_most:
            for neighbour in space.neighbours(current, rng):
                key = choices_key(neighbour)
                if key not in reached:
                    reached.add(key)
                    queue.append(neighbour)
    return None
