"""One worker of a study: the loop that begins a trial, assesses it, stores its row and tells Optuna.

Any number of workers run this loop on one study, each for itself: there is nothing between them but the study. What a
worker begins is its own while it lives (`fpn_bench.search.leases`); what it knows of the others' work, it reads
(`fpn_bench.search.state`). A worker that dies loses the trial under way and no more: another finds it, and queues its
candidate again (`fpn_bench.search.recovery`). What ends is stored and told by `fpn_bench.search.recorder`.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from fpn_bench.search.database import DATABASE_ERRORS, retry_on_database_error
from fpn_bench.search.leases import Leases
from fpn_bench.search.opening import OpenStudy
from fpn_bench.search.proposals import create_proposer
from fpn_bench.search.recorder import TrialRecorder
from fpn_bench.search.records import Columns, Evaluator, Event, EventKind, RunResult, RunStatus, Status, TrialRow
from fpn_bench.search.records import interruption as interruption_of
from fpn_bench.search.recovery import recover_orphans
from fpn_bench.search.sampler_context import StudyContext
from fpn_bench.search.scheduler import MAX_FAILED_IN_A_ROW, Progress, Scheduler
from fpn_bench.search.signals import Interrupts
from fpn_bench.search.space import Choices, ChoiceSpace
from fpn_bench.search.state import StudyState, is_feasible
from fpn_bench.search.storage import Request
from fpn_bench.search.trial import INFRASTRUCTURE_ERRORS, TrialContext, TrialRun, unseen_neighbour

_log = logging.getLogger(__name__)

_POLL_S = 0.3
_RECOVER_EVERY_S = 5.0
"""Seconds between two looks for trials whose worker is gone."""


class Worker:
    """A worker of one study.

    Args:
        study: opened.
        space: what is searched.
        evaluator: what describes, times and trains candidates.
        budget: whole trainings to pay for in all, earlier runs included; the space's own by default, and of listed
            candidates whatever is queued.
        seed: of the trainings. The candidates asked first are asked for each seed the study is run with.
        columns: columns equal in every row (protocol, data set, machine ...).
        shared: complete rows of other studies of this protocol, by candidate and seed: what was trained there is not
            trained again.
        number: which of several this is; part of the sampler's seed.
        on_event: display; its time counts as the search's overhead.
    """

    def __init__(
        self,
        study: OpenStudy,
        space: ChoiceSpace,
        evaluator: Evaluator,
        *,
        budget: float | None = None,
        seed: int = 0,
        columns: Mapping[str, Any] | None = None,
        shared: Mapping[tuple[str, int], Columns] | None = None,
        number: int = 0,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        """See the class."""
        storage = study.storage
        self._space, self._trials_store, self._seed, self._number = space, storage, seed, number
        self._is_file = study.database.is_file
        self._columns, self._on_event = dict(columns or {}), on_event
        self._state = StudyState()
        self._scheduler = Scheduler(
            space, self._state, seed=seed, budget=budget, seeds=getattr(evaluator, "seeds", None)
        )
        self._candidates = StudyContext(space, evaluator, self._scheduler)
        self._leases = Leases(storage.engine, storage.study)
        self._recorder = TrialRecorder(study, space, self._state, self._leases)
        self._interrupts = Interrupts()
        self._context = TrialContext(
            space, evaluator, storage, self._leases, self._scheduler, self._interrupts, shared or {}, self._emit
        )
        self._progress = Progress([], exhausted=space.listed)
        self._counts: Counter[str] = Counter()
        self._recovered_at = -math.inf
        self._started_at = self._last_row_at = time.perf_counter()

    def run(self) -> RunResult:
        """Work until the study's budget is spent. Another worker, or another run, goes on from there."""
        with self._interrupts:
            try:
                self._retry_on_database_error(self._start)
                self._emit("start", data=started(self._space))
                self._last_row_at = time.perf_counter()
                status, message = self._loop()
                if len(self._progress.failed) >= MAX_FAILED_IN_A_ROW:
                    self._retry_on_database_error(self._take_back_failures)
                self._retry_on_database_error(self._recorder.catch_up)
            finally:
                self._leases.leave()
            result = RunResult(status, message, self._state.paid, dict(self._counts))
            self._emit("end", data={"status": status, "message": message})
            return result

    def _start(self) -> None:
        self._leases.beat()
        self._refresh()
        rows = len(self._state.rows)
        # Rows so far, so that a resumed study does not draw its first proposals again.
        seed = (self._space.sampler.seed * 1_000_003 + rows + 7919 * self._number) % 2**32
        self._proposer = create_proposer(
            self._space,
            self._candidates,
            self._state,
            trials=math.ceil(self._scheduler.budget),
            seed=seed,
            worker=self._leases.worker,
            alone=not self._leases.others(),
        )
        self._rng = random.Random(f"{self._space.sampler.seed} {rows} {self._number}")
        self._leases.start()

    def _loop(self) -> tuple[RunStatus, str]:
        while True:
            try:
                self._refresh()
                self._recover_if_due()
                self._progress.elapsed_s = time.perf_counter() - self._started_at
                self._progress.interrupted = self._interrupts.pending
                ended = self._scheduler.ended(self._progress)
                if ended is not None:
                    return ended
                begun = self._begin_next()
                if begun is None:
                    self._wait(_POLL_S)
                else:
                    self._run_trial(*begun)
            except KeyboardInterrupt:
                return self._interrupted()
            except DATABASE_ERRORS:
                if self._is_file:
                    raise
                try:
                    self._wait(1.0)
                    self._retry_on_database_error(self._refresh)
                except KeyboardInterrupt:
                    return self._interrupted()

    def _interrupted(self) -> tuple[RunStatus, str]:
        self._progress.interrupted = True
        ended = self._scheduler.ended(self._progress)
        assert ended is not None
        return ended

    # -- what is next ---------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        self._state.apply(self._trials_store.changes(self._state.revision))

    def _recover_if_due(self) -> None:
        """Now and then, see to the trials of workers that are gone."""
        if time.perf_counter() - self._recovered_at <= _RECOVER_EVERY_S:
            return
        self._recovered_at = time.perf_counter()
        if recover_orphans(self._trials_store, self._state, self._leases, self._space, seed=self._seed):
            self._recorder.must_catch_up = True
            self._leases.forget_dead()
        if self._recorder.must_catch_up:
            self._recorder.catch_up()

    def _begin_next(self) -> tuple[int, Request] | None:
        """A trial that is now running and this worker's; None while there is nothing to do but to wait for others.

        In one transaction with what it is decided by, so that no two workers spend the same rest of the budget.
        """
        if self._scheduler.is_spent:
            return None
        state, owner = self._state, self._leases.worker
        with self._trials_store.transaction() as transaction:
            state.apply(transaction.changes(state.revision))
            self._recorder.mark_told(transaction)
            begun = self._decide()
            if begun is None:
                found = None
            elif isinstance(begun, Request):
                found = transaction.begin_new(begun, owner), begun
            else:
                transaction.begin(begun, owner)
                found = begun, (state.queued.get(begun) or state.running[begun]).request
        self._recorder.forget_told()
        return found

    def _decide(self) -> int | Request | None:
        """A trial that waits, what to begin anew, or nothing."""
        state = self._state
        for trial in state.running.values():  # begun in a transaction whose answer was lost with the database
            if trial.owner == self._leases.worker:
                return trial.trial
        if self._scheduler.is_spent:
            return None
        if state.queued:
            return min(state.queued)
        wanted = self._scheduler.next_request(exhausted=self._progress.exhausted)
        return Request() if wanted is None and not self._progress.exhausted else wanted

    # -- one trial ------------------------------------------------------------------------------------------------

    def _run_trial(self, trial: int, request: Request) -> None:
        self._leases.doing(f"trial {trial}")
        choices = request.choices
        if choices is None:
            choices = self._proposer.propose(trial)
        else:
            self._proposer.propose_given(trial, choices)
        seed = self._seed if request.seed is None else request.seed
        request = Request(choices, request.source, seed, request.attempt, request.continues)
        row: dict[str, Any] = {
            **self._columns,
            "trial": trial,
            "status": Status.RUNNING.value,
            "reason": "",
            "source": request.source,
            "seed": seed,
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "choices": choices,
            "continues": request.continues,
            "attempt": request.attempt,
            "paid": 0.0,
            "sampler_attrs": self._proposer.attributes(trial),
        }
        try:
            TrialRun(self._context, row, request).run()
        except KeyboardInterrupt:
            self._finish(trial, row | interruption_of("stopped by the user", queued=True), again=request)
            raise
        except INFRASTRUCTURE_ERRORS as error:
            self._finish(trial, row | interruption_of(str(error), queued=True), again=request)
            raise
        self._finish(trial, row)
        self._count(row)

    def _count(self, row: dict[str, Any]) -> None:
        """What this worker's own luck says of the search."""
        progress, status = self._progress, row["status"]
        if status in (Status.COMPLETE, Status.STOPPED):
            progress.failed, progress.unusable = [], 0
        elif status == Status.FAILED and row["paid"]:
            progress.failed, progress.unusable = [*progress.failed, TrialRow.from_columns(row)], 0
        elif status != Status.REPEAT:
            progress.unusable += 1
        if status == Status.REPEAT and row["source"] == "sampled" and row["continues"] is None:
            self._enqueue_neighbour(row["choices"])

    def _enqueue_neighbour(self, choices: Choices) -> None:
        """Queue an unseen neighbour of what was known."""
        self._refresh()
        if self._state.queued:
            return
        neighbour = unseen_neighbour(choices, self._space, self._is_new, self._rng)
        self._progress.exhausted = neighbour is None
        if neighbour is not None:
            with self._trials_store.transaction() as transaction:
                transaction.enqueue(Request(neighbour))

    def _is_new(self, choices: Choices) -> bool:
        if self._state.is_seen(choices, self._seed):
            return False
        described = self._candidates.describe(choices)
        new = (
            described is not None
            and self._state.known(described.id, self._seed) is None
            and is_feasible(self._space.constraints, described.facts)
        )
        if not new:
            self._state.mark_seen(choices, self._seed)
        return new

    # -- storing --------------------------------------------------------------------------------------------------

    def _finish(self, trial: int, row: dict[str, Any], again: Request | None = None) -> None:
        """Store a row, and with ``again`` queue its candidate in the same transaction; then tell Optuna."""
        # From row to row, so that storing and telling, which come after this line, stand in the next trial's figure.
        at = time.perf_counter()
        row["total_s"] = at - self._last_row_at
        row["overhead_s"] = row["total_s"] - self._context.evaluator_s
        self._last_row_at, self._context.evaluator_s = at, 0.0
        # What was paid for is not lost to a database that is away for a while.
        if not self._retry_on_database_error(lambda: self._recorder.store(trial, row, again)):
            _log.warning("trial %d was ended by another worker meanwhile; what it found is dropped", trial)
            return
        self._recorder.tell(row)
        self._counts[row["status"]] += 1
        if self._on_event is not None:
            paid = self._state.paid + row["paid"]
            label = row.get("neck_label", "")
            self._on_event(Event("trial", trial, paid, self._scheduler.budget, label, row))

    def _take_back_failures(self) -> None:
        """Failures in a row are no property of their candidates: nothing is paid, and they are queued again."""
        with self._trials_store.transaction() as transaction:
            for row in self._progress.failed:
                kept = self._trials_store.columns(row.trial)
                transaction.finish(row.trial, {**kept, **interruption_of(row.reason, queued=True)}, told=True)
                transaction.enqueue(Request(row.choices, row.source, row.seed, continues=row.continues))
        self._refresh()

    # -- helpers --------------------------------------------------------------------------------------------------

    def _wait(self, seconds: float) -> None:
        with self._interrupts.allowed():
            time.sleep(seconds)

    def _retry_on_database_error(self, call: Callable[[], Any]) -> Any:
        return retry_on_database_error(call, self._wait, is_file=self._is_file)

    def _emit(self, kind: EventKind, trial: int = -1, label: str = "", data: Mapping[str, Any] | None = None) -> None:
        if self._on_event is not None:
            self._on_event(Event(kind, trial, self._state.paid, self._scheduler.budget, label, data or {}))


def started(space: ChoiceSpace) -> dict[str, Any]:
    """What the event ``"start"`` carries: the objectives, as in a study's metadata."""
    return {"objectives": [{"name": o.name, "direction": o.direction} for o in space.objectives]}
