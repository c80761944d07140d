"""Who starts several workers only watches: shows what comes in, starts anew what died, and passes Ctrl-C on."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from fpn_bench.errors import FpnBenchError
from fpn_bench.search.database import DATABASE_ERRORS, retry_on_database_error
from fpn_bench.search.executors.base import MAX_DEATHS, Executor, Handle, Job, open_job_study
from fpn_bench.search.leases import Leases
from fpn_bench.search.mirror import OptunaMirror
from fpn_bench.search.opening import OpenStudy
from fpn_bench.search.records import Event, EventKind, RunResult
from fpn_bench.search.recovery import recover_orphans
from fpn_bench.search.scheduler import Scheduler
from fpn_bench.search.signals import Interrupts
from fpn_bench.search.state import StudyState
from fpn_bench.search.storage import FINISHED, StoredTrial
from fpn_bench.search.worker import started

_log = logging.getLogger(__name__)

_POLL_S = 0.3
_LAST_WORDS_S = 120.0
"""So long workers have to finish what they must when they are stopped."""


def oversee(
    job: Job, executor: Executor, workers: int, *, on_event: Callable[[Event], None] | None = None
) -> RunResult:
    """Start so many workers, and see them through.

    Raises:
        FpnBenchError: what a worker raised: a fault of the machine or the data. The others were stopped.
    """
    return _Overseer(job, executor, workers, open_job_study(job), on_event).run()


class _Overseer:
    def __init__(
        self,
        job: Job,
        executor: Executor,
        workers: int,
        study: OpenStudy,
        on_event: Callable[[Event], None] | None,
    ) -> None:
        self._job, self._executor, self._on_event, self._workers = job, executor, on_event, workers
        self._trials_store, self._is_file = study.storage, study.database.is_file
        self._state = StudyState()
        self._scheduler = Scheduler(job.space, self._state, seed=job.seed, budget=job.budget)
        self._leases = Leases(study.storage.engine, study.storage.study)
        self._mirror = OptunaMirror(study.database, study.name, job.space)
        self._handles: dict[int, Handle] = {}
        self._results: list[RunResult] = []
        self._deaths = 0
        self._interrupts = Interrupts()

    def run(self) -> RunResult:
        self._refresh()
        self._state.listeners.append(self._emit_trial)
        self._emit("start", -1, started(self._job.space))
        self._leases.start()
        try:
            with self._interrupts:
                self._handles = {n: self._executor.start(self._job, n) for n in range(self._workers)}
                try:
                    while self._handles:
                        self._check_workers()
                        self._wait(_POLL_S)
                    self._retry_on_database_error(self._catch_up)
                except KeyboardInterrupt:
                    self._stop()
                    self._results.append(self._interrupted())
        finally:
            for handle in self._handles.values():
                handle.kill()
            self._leases.leave()
        last = self._results[-1]
        counts: Counter[str] = Counter()
        for result in self._results:
            counts.update(result.counts)
        result = RunResult(last.status, last.message, self._state.paid, dict(counts))
        self._emit("end", -1, {"status": result.status, "message": result.message})
        return result

    def _check_workers(self) -> None:
        self._retry_on_database_error(self._refresh)
        doing = sorted(self._retry_on_database_error(self._leases.others).values())
        self._emit("progress", -1, {"phase": "workers", "doing": doing})
        for number, handle in list(self._handles.items()):
            outcome = handle.ended()
            if outcome is None:
                continue
            del self._handles[number]
            if isinstance(outcome, RunResult):
                self._results.append(outcome)
            elif isinstance(outcome, EOFError):
                self._replace_worker(number)
            else:
                self._stop()
                raise outcome

    def _replace_worker(self, number: int) -> None:
        """Queue again what it was at, and start it anew."""
        self._deaths += 1
        if self._deaths > MAX_DEATHS:
            self._stop()
            raise FpnBenchError(f"{self._deaths} workers died and no trial was finished in between")
        _log.warning("worker %d died and is started anew", number)
        self._retry_on_database_error(self._recover)
        self._handles[number] = self._executor.start(self._job, number)

    def _recover(self) -> None:
        recover_orphans(self._trials_store, self._state, self._leases, self._job.space, seed=self._job.seed)
        self._leases.forget_dead()

    def _catch_up(self) -> None:
        """Read the last, and tell Optuna what workers that died did not."""
        self._refresh()
        self._mirror.catch_up(self._trials_store, self._leases, self._state.first)

    def _refresh(self) -> None:
        self._state.apply(self._trials_store.changes(self._state.revision))

    def _emit_trial(self, trial: StoredTrial) -> None:
        """What has come in."""
        if trial.state != FINISHED or trial.row is None:
            return
        if not trial.row.interrupted:
            self._deaths = 0
        self._emit("trial", trial.trial, self._trials_store.columns(trial.trial))

    def _wait(self, seconds: float) -> None:
        with self._interrupts.allowed():
            time.sleep(seconds)

    def _retry_on_database_error(self, call: Callable[[], Any]) -> Any:
        return retry_on_database_error(call, self._wait, is_file=self._is_file)

    def _stop(self) -> None:
        for handle in self._handles.values():
            handle.stop()
        deadline = time.monotonic() + _LAST_WORDS_S
        while time.monotonic() < deadline and any(h.ended() is None for h in self._handles.values()):
            time.sleep(_POLL_S)

    def _interrupted(self) -> RunResult:
        with suppress(KeyboardInterrupt, *DATABASE_ERRORS):  # the database is away, too, and is not waited for
            self._refresh()
        message = f"interrupted after {self._scheduler.spent()}; the same command goes on from there"
        return RunResult("interrupted", message, self._state.paid, {})

    def _emit(self, kind: EventKind, trial: int, data: Mapping[str, Any]) -> None:
        if self._on_event is not None:
            label = str(data.get("neck_label", ""))
            self._on_event(Event(kind, trial, self._state.paid, self._scheduler.budget, label, data))
