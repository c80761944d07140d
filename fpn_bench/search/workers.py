"""Several workers on one study: processes of this machine, or tasks of a Ray cluster.

Nothing is handed to a worker but where the study is and what makes its evaluator: each runs the whole loop of
`fpn_bench.search.driver` for itself, and what it finds goes into the study. Who starts them only watches: it shows what
comes in, starts anew what died, and passes Ctrl-C on.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Protocol

import optuna

from fpn_bench.errors import FpnBenchError, InputError
from fpn_bench.host import usable_cores
from fpn_bench.search import driver, store
from fpn_bench.search.claims import Claims
from fpn_bench.search.driver import Evaluator, Event, RunResult
from fpn_bench.search.ledger import Ledger, Row
from fpn_bench.search.space import ChoiceSpace

_log = logging.getLogger(__name__)

MAX_DEATHS = 20
"""So many deaths of workers without a trial finished in between are no accident."""
_POLL_S = 0.3
_LAST_WORDS_S = 120.0
"""So long workers have to finish what they must when they are stopped."""


@dataclass(frozen=True)
class Job:
    """What a worker is given; it travels between processes and machines.

    Attributes:
        target: database file or URL of the study.
        study: its name.
        space: what is searched.
        prepare: makes the evaluator of the worker of a number, and the columns equal in all its rows.
        budget: see `driver.run`.
        seed: see `driver.run`.
        shared: see `driver.run`.
    """

    target: str
    study: str
    space: ChoiceSpace
    prepare: Callable[[int], tuple[Evaluator, Mapping[str, Any]]]
    budget: float | None = None
    seed: int = 0
    shared: Mapping[tuple[str, int], Row] = field(default_factory=dict)


def work(job: Job, number: int, on_event: Callable[[Event], None] | None = None) -> RunResult:
    """Be one worker, to the end.

    Raises:
        InputError: the study is not there, or the evaluator cannot be made.
    """
    evaluator, columns = job.prepare(number)
    study = _opened(job, patience_s=driver.STORAGE_PATIENCE_S)  # it was there: a server may be away for a while
    with store.storage_errors(job.target):
        return driver.run(
            job.space,
            study,
            evaluator,
            budget=job.budget,
            seed=job.seed,
            columns=columns,
            shared=job.shared,
            worker=number,
            on_event=on_event,
        )


def _opened(job: Job, *, patience_s: float = 0.0) -> optuna.Study:
    storage = store.open_storage(job.target, patience_s=patience_s)
    return optuna.load_study(study_name=job.study, storage=storage)


class Handle(Protocol):
    """A worker that was started."""

    def ended(self) -> RunResult | BaseException | None:
        """How it ended: its result, what it raised, or EOFError where it died; None while it works."""
        ...

    def stop(self) -> None:
        """Ask it to stop; what it is at is queued again."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


class Executor(Protocol):
    """Where workers run."""

    def start(self, job: Job, number: int) -> Handle:
        """Start the worker of a number."""
        ...


# --------------------------------------------------------------------------------------------------------------
# Processes of this machine


class LocalExecutor:
    """Each worker a process.

    Args:
        threads: CPU threads of each; None shares the cores evenly.
        workers: how many there will be.
    """

    def __init__(self, workers: int, threads: int | None = None) -> None:
        """See the class."""
        self._threads = threads or max(1, usable_cores() // workers)

    def start(self, job: Job, number: int) -> Handle:
        """See `Executor`."""
        context = multiprocessing.get_context("spawn")  # a fork would carry torch's threads along, dead
        theirs, ours = context.Pipe()
        process = context.Process(target=_process, args=(job, number, theirs), name=f"fpn_bench worker {number}")
        with _environment(OMP_NUM_THREADS=str(self._threads), MKL_NUM_THREADS=str(self._threads)):
            process.start()
        theirs.close()
        return _Process(process, ours)


def _process(job: Job, number: int, pipe: Connection) -> None:
    outcome: RunResult | BaseException
    try:
        outcome = work(job, number)
    except KeyboardInterrupt:
        return
    except Exception as error:
        # By its text: errors with arguments of their own do not travel.
        known = isinstance(error, FpnBenchError)
        kind = InputError if isinstance(error, InputError) else FpnBenchError
        outcome = kind(str(error) if known else f"{type(error).__name__}: {error}")
    pipe.send(outcome)


class _Process:
    def __init__(self, process: Any, pipe: Connection) -> None:
        self._process, self._pipe = process, pipe
        self._outcome: RunResult | BaseException | None = None

    def ended(self) -> RunResult | BaseException | None:
        if self._outcome is None and (self._pipe.poll() or not self._process.is_alive()):
            try:
                self._outcome = self._pipe.recv() if self._pipe.poll() else EOFError()
            except (EOFError, OSError):
                self._outcome = EOFError()
            self._process.join()
        return self._outcome

    def stop(self) -> None:
        if self._process.is_alive():
            os.kill(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# --------------------------------------------------------------------------------------------------------------
# Tasks of a Ray cluster


class RayExecutor:
    """Each worker a task of a Ray cluster, which places it, and starts it anew where its node is lost.

    Joins the cluster that the environment variable ``RAY_ADDRESS`` or this machine's Ray names; where there is none, a
    local one is started.

    Args:
        gpus: of each worker; a fraction shares one.
        cpus: of each worker.
        address: of the cluster.

    Raises:
        InputError: Ray is not installed, or the cluster does not answer.
    """

    def __init__(self, *, gpus: float = 0.0, cpus: float = 1.0, address: str | None = None) -> None:
        """See the class."""
        try:
            import ray
        except ImportError:
            raise InputError('the executor ray wants Ray: `pip install "fpn-bench[ray]"`') from None
        self._ray = ray
        if not ray.is_initialized():
            try:
                ray.init(address=address or os.environ.get("RAY_ADDRESS") or None, log_to_driver=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise InputError(f"the Ray cluster at {address} does not answer: {error}") from error
        # Its end is no failure of its own: Ray runs it again where a node was lost.
        self._work = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=MAX_DEATHS)(work)

    def start(self, job: Job, number: int) -> Handle:
        """See `Executor`."""
        return _RayTask(self._ray, self._work.remote(job, number))


class _RayTask:
    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray, self._reference = ray, reference

    def ended(self) -> RunResult | BaseException | None:
        ready, _ = self._ray.wait([self._reference], timeout=0)
        if not ready:
            return None
        try:
            result: RunResult = self._ray.get(self._reference)
            return result
        except self._ray.exceptions.TaskCancelledError:
            return KeyboardInterrupt()
        except self._ray.exceptions.RayTaskError as error:
            return FpnBenchError(str(error.cause))
        except self._ray.exceptions.RayError:
            return EOFError()

    def stop(self) -> None:
        self._ray.cancel(self._reference, force=False)

    def kill(self) -> None:
        self._ray.cancel(self._reference, force=True)


# --------------------------------------------------------------------------------------------------------------
# Watching over them


def oversee(
    job: Job, executor: Executor, workers: int, *, on_event: Callable[[Event], None] | None = None
) -> RunResult:
    """Start so many workers, and see them through.

    Raises:
        FpnBenchError: what a worker raised: a fault of the machine or the data. The others were stopped.
    """
    return _Overseer(job, executor, workers, _opened(job), on_event).run()


class _Overseer:
    def __init__(
        self,
        job: Job,
        executor: Executor,
        workers: int,
        study: optuna.Study,
        on_event: Callable[[Event], None] | None,
    ) -> None:
        self.job, self.executor, self.study, self.on_event = job, executor, study, on_event
        self.ledger = Ledger(study)
        self.handles: dict[int, Handle] = {}
        self.results: list[RunResult] = []
        self.deaths = 0
        self.workers = workers
        self.interrupts = driver.Interrupts()
        self.is_file = store.is_file(study)

    def run(self) -> RunResult:
        self.ledger.refresh()
        self._emit("start", -1, driver.started(self.job.space))
        claims = Claims(self.study)
        try:
            with self.interrupts:
                self.handles = {number: self.executor.start(self.job, number) for number in range(self.workers)}
                try:
                    while self.handles:
                        self._look(claims)
                        self._wait(_POLL_S)
                    self._show()
                except KeyboardInterrupt:
                    self._stop()
                    self.results.append(self._interrupted())
        finally:
            for handle in self.handles.values():
                handle.kill()
            claims.leave()
        last = self.results[-1]
        counts: Counter[str] = Counter()
        for result in self.results:
            counts.update(result.counts)
        result = RunResult(last.status, last.message, self.ledger.paid, dict(counts))
        self._emit("end", -1, {"status": result.status, "message": result.message})
        return result

    def _look(self, claims: Claims) -> None:
        self._show()
        self._emit("progress", -1, {"phase": "workers", "doing": sorted(self._outlast(claims.others).values())})
        for number, handle in list(self.handles.items()):
            outcome = handle.ended()
            if outcome is None:
                continue
            del self.handles[number]
            if isinstance(outcome, RunResult):
                self.results.append(outcome)
            elif isinstance(outcome, EOFError):
                self._died(number, claims)
            else:
                self._stop()
                raise outcome

    def _died(self, number: int, claims: Claims) -> None:
        """Queue again what it was at, and start it anew."""
        self.deaths += 1
        if self.deaths > MAX_DEATHS:
            self._stop()
            raise FpnBenchError(f"{self.deaths} workers died and no trial was finished in between")
        _log.warning("worker %d died and is started anew", number)
        self._outlast(lambda: driver.recover(self.study, self.job.space, claims, seed=self.job.seed))
        self.handles[number] = self.executor.start(self.job, number)

    def _show(self) -> None:
        """What has come in."""
        self._outlast(self.ledger.refresh)
        for row in self.ledger.fresh:
            if not row.get("interrupted"):
                self.deaths = 0
            self._emit("trial", row["trial"], row)

    def _wait(self, seconds: float) -> None:
        with self.interrupts.allowed():
            time.sleep(seconds)

    def _outlast(self, call: Callable[[], Any]) -> Any:
        return driver.outlast(call, self._wait, file=self.is_file)

    def _stop(self) -> None:
        for handle in self.handles.values():
            handle.stop()
        deadline = time.monotonic() + _LAST_WORDS_S
        while time.monotonic() < deadline and any(h.ended() is None for h in self.handles.values()):
            time.sleep(_POLL_S)

    def _interrupted(self) -> RunResult:
        with suppress(KeyboardInterrupt):  # the database is away, too, and is not waited for
            self._show()
        spent = f"{round(self.ledger.paid, 2):g} of {self._budget():g} trials"
        return RunResult(
            "interrupted", f"interrupted after {spent}; the same command goes on from there", self.ledger.paid, {}
        )

    def _budget(self) -> float:
        return driver.spendable(self.job.space, self.job.budget, self.ledger)

    def _emit(self, kind: driver.EventKind, trial: int, data: Mapping[str, Any] | None = None) -> None:
        if self.on_event is not None:
            label = str((data or {}).get("neck_label", ""))
            self.on_event(Event(kind, trial, self.ledger.paid, self._budget(), label, data or {}))
