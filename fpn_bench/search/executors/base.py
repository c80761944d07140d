"""What a worker is given, what it does, and what every executor offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from fpn_bench.analysis.rows import numeric_columns
from fpn_bench.errors import InputError
from fpn_bench.search.database import STORAGE_PATIENCE_S, open_database, storage_errors
from fpn_bench.search.opening import OpenStudy, open_existing
from fpn_bench.search.records import Columns, Evaluator, Event, RunResult
from fpn_bench.search.space import ChoiceSpace
from fpn_bench.search.worker import Worker

MAX_DEATHS = 20
"""So many deaths of workers without a trial finished in between are no accident."""


@dataclass(frozen=True)
class Job:
    """What a worker is given; it travels between processes and machines.

    Attributes:
        target: database file or URL of the study.
        study: its name.
        space: what is searched.
        prepare: makes the evaluator of the worker of a number, and the columns equal in all its rows.
        budget: see `fpn_bench.search.worker.Worker`.
        seed: see `fpn_bench.search.worker.Worker`.
        shared: see `fpn_bench.search.worker.Worker`.
    """

    target: str
    study: str
    space: ChoiceSpace
    prepare: Callable[[int], tuple[Evaluator, Mapping[str, Any]]]
    budget: float | None = None
    seed: int = 0
    shared: Mapping[tuple[str, int], Columns] = field(default_factory=dict)


def run_worker_job(job: Job, number: int, on_event: Callable[[Event], None] | None = None) -> RunResult:
    """Be one worker, to the end.

    Raises:
        InputError: the study is not there, the evaluator cannot be made, or a metric is not registered in this process.
    """
    unknown = [name for name in job.space.judged_by if name not in numeric_columns()]
    if unknown:
        raise InputError(
            f"expected the metric {unknown[0]!r} of the space in each worker's process, got none there; register it "
            "where the script or the module of the evaluator is imported"
        )
    evaluator, columns = job.prepare(number)
    study = open_job_study(job, patience_s=STORAGE_PATIENCE_S)  # it was there: a server may be away for a while
    with storage_errors(job.target):
        return Worker(
            study,
            job.space,
            evaluator,
            budget=job.budget,
            seed=job.seed,
            columns=columns,
            shared=job.shared,
            number=number,
            on_event=on_event,
        ).run()


def open_job_study(job: Job, *, patience_s: float = 0.0) -> OpenStudy:
    """The study of a job, which is there."""
    return open_existing(open_database(job.target, patience_s=patience_s), job.study)


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
