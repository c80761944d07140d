"""A study run from beginning to end: its folder held, its database opened, its workers started."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from fpn_bench.errors import FpnBenchError, InputError, SpaceError
from fpn_bench.metrics import metric_of
from fpn_bench.redact import redact_text
from fpn_bench.search import opening
from fpn_bench.search.database import (
    DATABASE,
    DATABASE_ERRORS,
    Database,
    describe_damage,
    open_database,
    redacted,
    storage_errors,
    study_names,
)
from fpn_bench.search.executors import Executor, Job, LocalExecutor, oversee
from fpn_bench.search.leases import Leases
from fpn_bench.search.records import Columns, Evaluator, Event, RunResult, Status
from fpn_bench.search.recovery import queue_opening_trials, recover_orphans
from fpn_bench.search.space import ChoiceSpace, number_text
from fpn_bench.search.state import StudyState, constraint_values
from fpn_bench.search.storage import StudyStorage
from fpn_bench.search.study import Study, study_in
from fpn_bench.search.worker import Worker
from fpn_bench.training.protocol import Protocol

_log = logging.getLogger(__name__)

_LISTED_AT_MOST = 1_000


def run_study(
    space: ChoiceSpace,
    evaluator: Evaluator,
    protocol: Protocol,
    folder: str | Path,
    *,
    storage: str | None = None,
    name: str | None = None,
    budget: float | None = None,
    seed: int = 0,
    columns: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    samples: Callable[[], Mapping[str, Any] | None] | None = None,
    share: bool = True,
    workers: int = 1,
    executor: Executor | None = None,
    prepare: Callable[[int], tuple[Evaluator, Mapping[str, Any]]] | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> tuple[Study, RunResult]:
    """Begin a study, or go on with the one in ``folder``, until its budget is spent.

    Trials that are under way when this begins, and whose worker is gone, are queued again. The folder is held against a
    second search; further workers join a study by `fpn_bench.search.api.join`.

    Args:
        space: what is searched.
        evaluator: describes, times and trains candidates.
        protocol: what the AP is taken under.
        folder: where the study lives, e.g. ``results/quickstart``.
        storage: URL of a database server instead of ``folder/study.db``.
        name: of the study; the folder's by default.
        budget: whole trainings to pay for in all; the space's by default.
        seed: of the trainings.
        columns: table columns equal in every row (protocol, data set, machine, versions ...).
        share: take over what other studies in the same storage, or in the folders beside this one, have trained under
            this protocol.
        workers: how many; several need ``prepare``.
        executor: where they run; None is this process for one, processes of this machine for several.
        prepare: makes the evaluator of the worker of a number, and its columns; must be picklable.
        metadata: ``machine``, ``versions``, ``notes``, ``warnings``, ``commands``, as `opening.open_study` takes them.
        samples: makes the images that `Study.samples` shows, see `fpn_bench.detection.samples.sample_images`; called
            where the study has none yet.
        on_event: called with what happens, for display.

    Returns:
        The study and how the run ended.

    Raises:
        ProtocolError: the folder holds a study of another protocol or space; nothing was changed.
        SpaceError: no candidate can be built, or none is within the bounds; nothing was written.
        InputError: another search is at work in the folder, or the folder or storage cannot be opened.
    """
    space.check()
    folder = Path(folder)
    name = name or folder.resolve().name
    target: str | Path = storage or folder / DATABASE
    with ExitStack() as stack:
        stack.enter_context(opening.lock_study_folder(folder))
        stack.enter_context(storage_errors(target))
        check_feasible(space, evaluator)
        opened = opening.open_study(target, space, protocol, name=name, metadata=metadata or {})
        opening.write_companions(folder, space, protocol)
        opening.add_run(opened.optuna, samples, {"space": space.text, "budget": budget, "seed": seed})
        _recover_and_queue(opened.storage, space, seed)
        shared = {"protocol": protocol.id, "study": name, **(columns or {})}
        known = shared_rows(target, folder, name, protocol.id, seed) if share else {}
        if executor is None and workers == 1:
            worker = Worker(
                opened, space, evaluator, budget=budget, seed=seed, columns=shared, shared=known, on_event=on_event
            )
            result = worker.run()
        else:
            if prepare is None:
                raise InputError(f"workers={workers} needs prepare=, which makes the evaluator of each")
            given = partial(_with_columns, prepare, shared)
            job = Job(str(target), name, space, given, budget, seed, known)
            result = oversee(job, executor or LocalExecutor(workers), workers, on_event=on_event)
    return Study(opened.optuna, opened.storage, folder), result


def _with_columns(
    prepare: Callable[[int], tuple[Evaluator, Mapping[str, Any]]], columns: Mapping[str, Any], number: int
) -> tuple[Evaluator, Mapping[str, Any]]:
    evaluator, own = prepare(number)
    return evaluator, {**columns, **own}


def shared_rows(
    target: str | Path, folder: Path, name: str, protocol: str, seed: int
) -> dict[tuple[str, int], Mapping[str, Any]]:
    """Complete rows of other studies of a protocol, by candidate and seed.

    Looked for in the same storage, and in the databases of the folders beside ``folder``. One that cannot be read is
    passed over: a search can do without.

    Args:
        target: the storage of the study that asks.
        folder: of that study.
        name: of that study, which is left out.
        protocol: id; rows of another do not compare.
        seed: rows with a lower one are none of this run's.
    """
    found: dict[tuple[str, int], Columns] = {}
    beside = sorted(p for p in folder.resolve().parent.glob(f"*/{DATABASE}") if p.parent != folder.resolve())
    for place in dict.fromkeys([target, *beside]):
        try:
            with describe_damage(redacted(place), DATABASE_ERRORS):
                database = open_database(place, read_only=True)
                names = study_names(database)
        except FpnBenchError as error:
            _log.info("%s is passed over: %s", redacted(place), redact_text(str(error)))
            continue
        for other in names:
            if place == target and other == name:
                continue
            try:
                found = {**_trained(database, other, protocol, seed), **found}
            except FpnBenchError as error:
                _log.info("study %r in %s is passed over: %s", other, redacted(place), redact_text(str(error)))
    return found


def _trained(database: Database, name: str, protocol: str, seed: int) -> dict[tuple[str, int], Columns]:
    """The complete rows of a study, by candidate and seed; none where it is of another protocol, or not of ours."""
    study = study_in(database, name, None, protocol=protocol)
    if study is None:
        return {}
    rows = (row for row in study.rows() if row["status"] == Status.COMPLETE and row["seed"] >= seed)
    found: dict[tuple[str, int], Columns] = {}
    for row in rows:
        found.setdefault((row["candidate"], row["seed"]), {**row, "study": name})
    return found


def _recover_and_queue(storage: StudyStorage, space: ChoiceSpace, seed: int) -> None:
    """See to what earlier workers left, and queue what is to be asked first."""
    state, leases = StudyState(), Leases(storage.engine, storage.study)
    leases.beat()
    try:
        state.apply(storage.changes())
        recover_orphans(storage, state, leases, space, seed=seed)
        queue_opening_trials(storage, space, seed=seed)
    finally:
        leases.leave()


def check_feasible(space: ChoiceSpace, evaluator: Evaluator) -> None:
    """Refuse a space small enough to be listed of which no candidate is within the bounds on params and MACs.

    To be called before a study is opened, so that a refused space leaves nothing behind.

    Raises:
        SpaceError: none is; names the nearest.
    """
    bounds = tuple(c for c in space.constraints if metric_of(c.name).known == "static")
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
