"""Several workers on one study: who does what, and what becomes of it when one of them dies."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import pytest
import sqlalchemy as sa
from search_evaluator import (
    PROTOCOL,
    InstantEvaluator,
    Prepare,
    Training,
    begin_and_die,
    check_study,
    queued_in,
    space,
)
from services import postgres_fixture  # noqa: F401

from fpn_bench.errors import FpnBenchError, InputError
from fpn_bench.search import leases as leases_module
from fpn_bench.search import run_study
from fpn_bench.search.database import open_database
from fpn_bench.search.leases import BEAT_S, LEASE_S, Leases
from fpn_bench.search.recovery import recover_orphans
from fpn_bench.search.scheduler import Scheduler
from fpn_bench.search.signals import Interrupts
from fpn_bench.search.state import StudyState
from fpn_bench.search.storage import FINISHED, QUEUED, Request, StudyStorage, create_study, create_tables
from fpn_bench.search.trial import TrialContext, TrialRun

# --------------------------------------------------------------------------------------------------------------
# Leases, on each database


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def target(request, tmp_path):
    return request.getfixturevalue("postgres").url() if request.param == "postgresql" else tmp_path / "study.db"


@pytest.fixture
def storage(target, tmp_path) -> StudyStorage:
    engine = open_database(target).engine
    create_tables(engine)
    return create_study(engine, f"leases {tmp_path}")


CHOICES = {"family": "fpn", "channels": 48, "out_levels": [3, 4, 5], "merge": "sum", "repeats": 1}


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def leases(storage) -> Iterator[Callable[..., Leases]]:
    """Makes workers that are heard of when a test says so; ``dead`` is one whose process is gone."""
    made: list[Leases] = []

    def make(kind: str = "here", clock: Callable[[], float] = time.monotonic) -> Leases:
        worker = Leases(storage.engine, storage.study, clock=clock)
        if kind == "elsewhere":
            worker.worker = f"another machine|1|{len(made)}"
        if kind == "dead":
            with subprocess.Popen([sys.executable, "-c", ""]) as process:
                pass
            here, _, own = worker.worker.rsplit("|", 2)
            worker.worker = f"{here}|{process.pid}|{own}"
        worker.beat()
        made.append(worker)
        return worker

    yield make
    for worker in made:
        worker.leave()


def begin(storage: StudyStorage, worker: Leases) -> int:
    with storage.transaction() as transaction:
        return transaction.begin_new(Request(CHOICES, seed=3), worker.worker)


def recovered(storage: StudyStorage, worker: Leases) -> list[int]:
    """The trials that a worker finds left behind."""
    state = StudyState()
    state.apply(storage.changes())
    return recover_orphans(storage, state, worker, space(), seed=0)


@pytest.mark.parametrize("gone", ["dead", "left"])
def test_the_trial_of_a_worker_that_is_gone_is_queued_again(storage, leases, gone):
    one, other = leases("dead" if gone == "dead" else "here"), leases()
    trial = begin(storage, one)
    if gone == "left":
        one.leave()
    assert recovered(storage, other) == [trial]
    (ended, queued) = storage.changes()
    assert (ended.state, ended.row.interrupted, ended.row.queued_again) == (FINISHED, True, True)
    assert (queued.state, queued.request) == (QUEUED, Request(CHOICES, seed=3, attempt=2))
    assert recovered(storage, other) == []


def test_a_living_workers_trial_is_left_alone(storage, leases):
    one, other = leases(), leases()
    begin(storage, one)
    assert one.worker in other.others()
    assert recovered(storage, other) == []
    other.forget_dead()
    assert one.worker in other.others()


@pytest.mark.parametrize("kind", ["here", "elsewhere"])
def test_a_worker_lives_by_its_beat_and_its_process_proves_its_death_only(storage, leases, kind):
    clock = Clock()
    one, other = leases(kind), leases(clock=clock)
    trial = begin(storage, one)
    for _ in range(5):
        one.beat()
        assert one.worker in other.others()  # heard of since the last look, however long ago that was
        clock.now += 10 * LEASE_S
    one.beat()
    other.others()
    clock.now += LEASE_S - 1
    assert other.lives(one.worker)
    clock.now += 2
    assert not other.lives(one.worker)  # its process may be there: the number may be another's by now
    assert recovered(storage, other) == [trial]
    other.forget_dead()
    assert one.worker not in {worker for worker, _, _ in other._announced()}


def test_a_step_of_the_system_clock_kills_nobody(storage, leases, monkeypatch):
    one, other = leases(), leases()
    begin(storage, one)
    for step in (3600.0, -3600.0):
        real, created = time.time, psutil.Process.create_time
        monkeypatch.setattr(time, "time", lambda real=real, step=step: real() + step)
        monkeypatch.setattr(psutil.Process, "create_time", lambda p, c=created, step=step: c(p) + step)
        assert one.worker in other.others()
        assert recovered(storage, other) == []


def test_a_beat_tells_what_a_worker_does_and_brings_back_one_taken_for_dead(storage, leases, monkeypatch):
    monkeypatch.setattr(leases_module, "BEAT_S", 0.05)
    other, one = leases(), Leases(storage.engine, storage.study).start()
    one.doing("trial 12")
    table = leases_module._workers
    with storage.engine.begin() as connection:
        connection.execute(table.delete().where(table.c.worker == one.worker))
    wait_for(lambda: other.others().get(one.worker) == "trial 12")
    one.leave()
    assert one.worker not in other.others()


def test_an_outage_takes_nobodys_lease(storage, leases, monkeypatch):
    clock = Clock()
    one, other = leases("elsewhere"), leases(clock=clock)
    assert other.lives(one.worker)
    clock.now += 2 * LEASE_S
    with monkeypatch.context() as away:  # the database does not answer the beat of who looks
        away.setattr(
            storage.engine, "begin", lambda: (_ for _ in ()).throw(sa.exc.OperationalError("", {}, Exception()))
        )
        with pytest.raises(sa.exc.OperationalError):
            other.beat()
    assert other.lives(one.worker)
    clock.now += LEASE_S + BEAT_S + 1
    assert not other.lives(one.worker)


def test_a_study_is_no_other_ones(storage, leases):
    one = leases()
    second = Leases(storage.engine, "another study")
    second.beat()
    try:
        assert one.worker not in second.others()
        begin(storage, one)
        assert not StudyStorage(storage.engine, "another study").changes()
    finally:
        second.leave()


def test_of_many_that_begin_one_queued_trial_one_has_it(storage):
    with storage.transaction() as transaction:
        for _ in range(20):
            transaction.enqueue(Request())
    begun: list[tuple[int, str]] = []

    def work(worker: str) -> None:
        while True:
            with storage.transaction() as transaction:
                queued = [t.trial for t in transaction.changes(-1) if t.state == QUEUED]
                if not queued:
                    return
                transaction.begin(queued[0], worker)
            begun.append((queued[0], worker))

    threads = [threading.Thread(target=work, args=(f"worker {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(trial for trial, _ in begun) == list(range(20))
    assert {t.trial: t.owner for t in storage.changes()} == dict(begun)


# --------------------------------------------------------------------------------------------------------------
# Whole studies


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.02)


@contextmanager
def meanwhile(action: Callable[[], None]) -> Iterator[None]:
    """Something done beside; what it raises is raised here."""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(action)
        yield
        done.result()


def test_a_killed_workers_candidate_is_trained_by_another(tmp_path):
    searched = space(budget={"trials": 6}, sampler={"kind": "random"})
    prepare = Prepare(searched, 0.3, tmp_path / "log")
    killed: list[Training] = []

    def kill() -> None:
        wait_for(prepare.under_way)
        killed.append(prepare.under_way()[0])
        os.kill(killed[0].pid, signal.SIGKILL)

    with meanwhile(kill):
        study, result = run_study(
            searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", workers=2, prepare=prepare
        )
    check_study(study, prepare)
    table = study.table()
    assert (result.status, result.paid) == ("finished", 6)  # no more, although two are asked at once
    assert (table.status == "complete").sum() == 6
    assert table.machine_label.nunique() > 1
    assert not (table.status == "failed").any()  # what was queued again has come to its end
    (lost,) = table[table.reason.str.startswith("interrupted")].itertuples()
    assert lost.reason == "interrupted: the process ended in mid-trial; queued again"
    again = table[(table.candidate == killed[0].candidate) & (table.status == "complete")]
    assert list(again.attempt) == [2]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_stopped_workers_leave_a_study_that_goes_on(tmp_path, number):
    searched = space(budget={"trials": 6}, sampler={"kind": "random"})
    prepare = Prepare(searched, 0.5, tmp_path / "log")

    def stop() -> None:
        wait_for(prepare.under_way)
        os.kill(os.getpid(), number)

    with meanwhile(stop):
        study, result = run_study(
            searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", workers=2, prepare=prepare
        )
    assert result.status == "interrupted"
    assert "the same command goes on" in result.message
    assert queued_in(study)
    assert not (study.table().status == "running").any()
    assert not any(map(_is_there, {t.pid for t in prepare.trainings()}))
    evaluator, _ = prepare(0)
    study, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    assert (result.status, result.paid) == ("finished", 6)
    check_study(study, prepare)


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_second_process_joins_by_the_database_alone(tmp_path):
    searched = space(budget={"trials": 8}, sampler={"kind": "random"})
    prepare = Prepare(searched, 0.2, tmp_path / "log")
    joining = f"""
import sys
sys.path.insert(0, {os.path.dirname(os.path.dirname(__file__))!r})
from pathlib import Path
from search_evaluator import PROTOCOL, Prepare, space
from fpn_bench.search.executors import Job, run_worker_job
searched = space(budget={{"trials": 8}}, sampler={{"kind": "random"}})
job = Job({str(tmp_path / "s" / "study.db")!r}, "s", searched, Prepare(searched, 0.2, Path({str(prepare.log)!r})))
print(run_worker_job(job, 1).status)
"""
    evaluator, _ = prepare(0)
    run_study(searched, evaluator, PROTOCOL, tmp_path / "s", budget=1)
    with subprocess.Popen([sys.executable, "-c", joining], stdout=subprocess.PIPE, text=True) as process:
        wait_for(lambda: process.pid in {t.pid for t in prepare.trainings()})
        study, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
        output, _ = process.communicate(timeout=60)
    assert output.strip() == "finished"
    assert (result.status, result.paid) == ("finished", 8)
    check_study(study, prepare)


def test_a_worker_that_raises_stops_the_others_and_says_why(tmp_path):
    searched = space(budget={"trials": 6})
    with pytest.raises(FpnBenchError, match="no such image"):
        run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", workers=2, prepare=_without_images)
    with pytest.raises(InputError, match="prepare="):
        run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", workers=2)


def _without_images(number: int):
    raise InputError("no such image")


# --------------------------------------------------------------------------------------------------------------
# One worker, and what may become of it


def test_a_trial_that_hangs_is_failed_and_the_search_goes_on(tmp_path):
    searched = space(budget={"trials": 3, "trial_minutes": 0.005}, sampler={"kind": "random"})
    evaluator = InstantEvaluator(searched)
    train, calls = evaluator.train, itertools.count()

    def sometimes(*args, **kwargs):
        if next(calls) == 1:
            time.sleep(60)
        return train(*args, **kwargs)

    evaluator.train = sometimes
    study, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    table = study.table()
    assert result.status == "finished"
    assert list(table.status) == ["complete", "failed", "complete"]
    assert table.reason[1] == "timed out after 0.005 minutes"


def test_a_candidate_whose_workers_die_is_given_up_after_its_retries(storage, leases):
    searched = space(budget={"trials": 4, "retries": 2}, neck={"family": "fpn", "channels": {"choices": [32, 48]}})
    own, state = leases(), StudyState()
    with storage.transaction() as transaction:
        transaction.enqueue(Request(CHOICES, seed=3))
    for attempt in (1, 2, 3):
        (queued,) = (t for t in storage.changes() if t.state == QUEUED)
        assert (queued.request.seed, queued.request.attempt) == (3, attempt)
        with storage.transaction() as transaction:
            transaction.begin(queued.trial, "a worker that dies at once")
        state.apply(storage.changes(state.revision))
        assert recover_orphans(storage, state, own, searched, seed=0) == [queued.trial]
    rows = [trial.row for trial in storage.changes()]
    assert [row.queued_again for row in rows] == [True, True, False]
    assert rows[-1].reason == "interrupted: the process ended in mid-trial; not queued again: it ended so 3 times"


def test_orphans_met_on_the_way_to_a_further_seed_keep_the_seed_of_the_run(storage, leases):
    searched, own = space(), leases()
    evaluator = InstantEvaluator(searched)
    name, confirmed = evaluator.describe(CHOICES).id, Request(CHOICES, "confirmed", seed=7)
    work_key = hashlib.sha256(f"{name} 7 None".encode()).hexdigest()
    with storage.transaction() as transaction:
        held = transaction.begin_new(confirmed, "a worker that died")
        transaction.assign_work(held, confirmed, work_key)
        seedless = transaction.begin_new(Request(CHOICES), "a worker that died")
        here = transaction.begin_new(confirmed, own.worker)
    scheduler = Scheduler(searched, StudyState(), seed=0)
    row = {"trial": here, "seed": 7, "choices": CHOICES, "source": "confirmed", "continues": None, "paid": 0.0}
    TrialRun(
        TrialContext(searched, evaluator, storage, own, scheduler, Interrupts(), {}, lambda *_: None), row, confirmed
    ).run()
    assert row["status"] == "complete", row.get("reason")
    rows = {trial.trial: trial.row for trial in storage.changes() if trial.row is not None}
    assert {trial: rows[trial].seed for trial in (held, seedless)} == {held: 7, seedless: 0}


def test_a_stopped_training_that_a_killed_worker_took_up_is_taken_up_again(tmp_path):
    searched = space(budget={"trials": 11}, rungs={"epochs": [2], "keep": 0.1}, sampler={"kind": "random"})
    study, _ = run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", budget=9)
    stopped = study.table()[lambda t: t.status == "stopped"].iloc[0]
    row = study._trials_store.columns(int(stopped.trial))
    taken_up = begin_and_die(study, Request(row["choices"], continues=int(stopped.trial)))
    evaluator = InstantEvaluator(searched)
    study, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    table = study.table()
    assert result.status == "finished"
    assert table.reason[taken_up].startswith("interrupted")
    assert table.status[stopped.trial] == "continued"
    again = table[(table.candidate == stopped.candidate) & (table.trial > taken_up)]
    assert list(again.status) == ["complete"]
    assert again.paid.iloc[0] == pytest.approx(1 - stopped.paid)  # of the rest alone


def test_a_database_that_fails_in_mid_run_is_one_clear_error_and_loses_no_row(tmp_path):
    searched = space(budget={"trials": 5}, sampler={"kind": "random"})
    engine = sa.create_engine(f"sqlite:///{tmp_path}/s/study.db")

    def on_event(event):
        if event.kind == "train" and event.trial == 2:
            with engine.begin() as connection:
                connection.execute(sa.text("ALTER TABLE fpn_bench_trial RENAME TO gone"))

    with pytest.raises(FpnBenchError, match=r"study\.db cannot be written: .*what finished is safe"):
        run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", on_event=on_event)
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE gone RENAME TO fpn_bench_trial"))
    study, result = run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s")
    table = study.table()
    assert (result.status, result.paid) == ("finished", 5)
    assert list(table.status[:3]) == ["complete", "complete", "failed"]
    assert table.reason[2] == "interrupted: the process ended in mid-trial; queued again"
    study, _ = run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", budget=6)
    assert list(study.table().status[:3]) == ["complete", "complete", "continued"]  # its turn came
