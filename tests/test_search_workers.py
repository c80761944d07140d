"""Several workers on one study: who does what, and what becomes of it when one of them dies."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState
from search_evaluator import PROTOCOL, InstantEvaluator, Prepare, Training, check_study, space
from services import postgres_fixture  # noqa: F401

from fpn_bench.errors import FpnBenchError, InputError
from fpn_bench.search import claims as claims_module
from fpn_bench.search import driver, run_study, store
from fpn_bench.search.claims import Claims

# --------------------------------------------------------------------------------------------------------------
# Claims, on each database


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def target(request, tmp_path):
    return request.getfixturevalue("postgres").url() if request.param == "postgresql" else tmp_path / "study.db"


@pytest.fixture
def open_study(target, tmp_path) -> Callable[[], optuna.Study]:
    """The same study, through another connection each time."""
    name = f"claims {tmp_path}"

    def opened() -> optuna.Study:
        study = optuna.create_study(
            storage=store.open_storage(target), study_name=name, directions=["maximize"], load_if_exists=True
        )
        claims_module.create_tables(study)
        return study

    return opened


@pytest.fixture
def claims(open_study) -> Iterator[Callable[..., Claims]]:
    """Makes workers; ``elsewhere`` one whose process cannot be looked at, ``dead`` one whose process is gone."""
    made: list[Claims] = []

    def make(kind: str = "here") -> Claims:
        worker = Claims(open_study())
        made.append(worker)
        if kind == "here":
            return worker
        here, _, _, own = worker.worker.rsplit("|", 3)
        with subprocess.Popen([sys.executable, "-c", ""]) as process:
            pass
        name = f"another machine|1|1|{own}" if kind == "elsewhere" else f"{here}|{process.pid}|1|{own}"
        worker._left.set()  # no sign of life comes from it
        worker._thread.join()
        with worker._engine.begin() as connection:
            renamed = claims_module._workers.update().where(claims_module._workers.c.worker == worker.worker)
            connection.execute(renamed.values(worker=name))
        worker.worker = name
        return worker

    yield make
    for worker in made:
        worker.leave()


def test_a_trial_is_one_workers(claims):
    one, other = claims(), claims()
    assert one.take_trial(7)
    assert not other.take_trial(7)
    assert one.take_trial(7)  # still its own
    assert one.holder(7) == one.worker
    assert other.holders([6, 7]) == {7: one.worker}
    one.give_back(7)
    assert other.take_trial(7)


def test_of_many_that_pop_one_queued_trial_one_has_it(claims):
    workers = [claims() for _ in range(4)]
    taken: list[int] = []

    def pop(worker: Claims) -> None:
        taken.extend(trial for trial in range(20) if worker.take_trial(trial))

    threads = [threading.Thread(target=pop, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(20))


def test_what_is_assessed_is_one_trials(claims):
    one, other = claims(), claims()
    assert one.take_trial(1)
    assert other.take_trial(2)
    assert one.take_unit(1, "a network") is None
    assert other.take_unit(2, "a network") == 1
    assert other.take_unit(2, "another") is None
    one.free_unit(1)
    assert other.take_unit(2, "a network") is None
    assert not other.take_trial(1)  # the trial itself is done with, and nobody's any more


@pytest.mark.parametrize("gone", ["dead", "left"])
def test_what_a_gone_worker_held_is_anyones(claims, gone):
    one, other = claims("dead" if gone == "dead" else "here"), claims()
    assert one.take_trial(1)
    assert one.take_unit(1, "a network") is None
    if gone == "left":
        one.leave()
    assert not other.lives(one.worker)
    assert other.take_trial(2)
    assert other.take_unit(2, "a network") is None
    assert other.take_trial(1)


def test_a_worker_elsewhere_lives_by_its_beat(claims, monkeypatch):
    monkeypatch.setattr(claims_module, "LEASE_S", 0.2)
    far, here = claims("elsewhere"), claims()
    assert far.take_trial(1)
    beat = claims_module._workers.update().where(claims_module._workers.c.worker == far.worker)
    for _ in range(5):
        with far._engine.begin() as connection:
            connection.execute(beat.values(beat=claims_module._workers.c.beat + 1))
        assert not here.take_trial(1)  # heard of since the last look, however long ago that was
        time.sleep(0.1)
    wait_for(lambda: here.take_trial(1))


def test_a_beat_tells_what_a_worker_does_and_brings_back_one_taken_for_dead(claims, monkeypatch):
    monkeypatch.setattr(claims_module, "BEAT_S", 0.05)
    one, other = claims(), claims()
    one.doing("trial 12")
    with other._engine.begin() as connection:
        connection.execute(claims_module._workers.delete().where(claims_module._workers.c.worker == one.worker))
    wait_for(lambda: other.others().get(one.worker) == "trial 12")


def test_a_study_is_no_other_ones(claims, target):
    one = claims()
    study = optuna.create_study(storage=store.open_storage(target), study_name=f"second {one.worker}")
    second = Claims(study)
    try:
        assert one.take_trial(1)
        assert second.take_trial(1)
        assert one.worker not in second.others()
    finally:
        second.leave()


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
    raised: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()
    if raised:
        raise raised[0]


def test_a_killed_workers_candidate_is_trained_by_another(tmp_path):
    searched = space(budget={"trials": 10}, sampler={"kind": "random"})
    prepare = Prepare(searched, 0.3, tmp_path / "log")
    killed: list[Training] = []

    def kill() -> None:
        wait_for(prepare.under_way)
        killed.append(prepare.under_way()[0])
        os.kill(killed[0].pid, signal.SIGKILL)

    with meanwhile(kill):
        study, result = run_study(
            searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", workers=3, prepare=prepare
        )
    check_study(study, prepare)
    table = study.table()
    assert (result.status, result.paid) == ("finished", 10)  # no more, although three are asked at once
    assert (table.status == "complete").sum() == 10
    assert table.machine_label.nunique() > 1
    (lost,) = table[table.status == "failed"].itertuples()
    assert lost.reason == "interrupted: the process ended in mid-trial; queued again"
    again = table[(table.candidate == killed[0].candidate) & (table.status == "complete")]
    assert list(again.attempt) == [2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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
    queued = [t for t in study._study.trials if t.state is TrialState.WAITING]
    assert queued
    assert not [t for t in study._study.trials if t.state is TrialState.RUNNING]
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


def test_a_second_process_joins_by_the_claims_alone(tmp_path):
    searched = space(budget={"trials": 8}, sampler={"kind": "random"})
    prepare = Prepare(searched, 0.2, tmp_path / "log")
    joining = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from pathlib import Path
from search_evaluator import PROTOCOL, Prepare, space
from fpn_bench.search.workers import Job, work
searched = space(budget={{"trials": 8}}, sampler={{"kind": "random"}})
job = Job({str(tmp_path / "s" / "study.db")!r}, "s", searched, Prepare(searched, 0.2, Path({str(prepare.log)!r})))
print(work(job, 1).status)
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


def test_a_candidate_whose_workers_die_is_given_up_after_its_retries(tmp_path, open_study):
    searched = space(budget={"trials": 4, "retries": 2}, neck={"family": "fpn", "channels": {"choices": [32, 48]}})
    study, own = open_study(), Claims(open_study())
    driver._enqueue(study, searched, {"channels": 48}, "sampled", seed=3)
    try:
        for attempt in range(3):
            (queued,) = study.get_trials(states=[TrialState.WAITING])
            assert (queued.user_attrs["seed"], queued.user_attrs["retries"]) == (3, attempt)
            study._storage.set_trial_state_values(queued._trial_id, TrialState.RUNNING)  # by one that dies at once
            driver.recover(study, searched, own)
    finally:
        own.leave()
    assert not study.get_trials(states=[TrialState.WAITING])
    rows = [trial.user_attrs["row"] for trial in study.trials]
    assert [row.get("queued_again", False) for row in rows] == [True, True, False]
    assert rows[-1]["reason"] == "interrupted: the process ended in mid-trial; not queued again: it ended so 3 times"


def test_a_trial_that_has_just_begun_is_not_taken_for_left_behind(open_study):
    searched, study = space(), open_study()
    own, other = Claims(open_study()), Claims(open_study())
    try:
        begun, left, held = (study.ask() for _ in range(3))
        other.take_trial(held.number)
        unclaimed = driver.recover(study, searched, own)
        assert unclaimed == [begun.number, left.number]
        other.take_trial(begun.number)
        assert driver.recover(study, searched, own, left=unclaimed) == [left.number]
        assert [t.state for t in study.trials] == [TrialState.RUNNING, TrialState.FAIL, TrialState.RUNNING]
        other.leave()
        driver.recover(study, searched, own)
        assert [t.state for t in study.trials] == [TrialState.FAIL] * 3
    finally:
        own.leave()
        other.leave()


def test_a_stopped_training_that_a_killed_worker_took_up_is_taken_up_again(tmp_path):
    searched = space(budget={"trials": 11}, rungs={"epochs": [2], "keep": 0.1}, sampler={"kind": "random"})
    study, _ = run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", budget=9)
    stopped = study.table()[lambda t: t.status == "stopped"].iloc[0]
    storage = study._study._storage
    driver._enqueue(study._study, searched, study._study.trials[stopped.trial].user_attrs["row"]["choices"], "sampled",
                    continues=int(stopped.trial))  # fmt: skip
    (queued,) = study._study.get_trials(states=[TrialState.WAITING])
    storage.set_trial_state_values(queued._trial_id, TrialState.RUNNING)  # by a worker that dies at once
    evaluator = InstantEvaluator(searched)
    study, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    table = study.table()
    assert result.status == "finished"
    assert table.status[queued.number] == "failed"
    assert table.status[stopped.trial] == "continued"
    again = table[(table.candidate == stopped.candidate) & (table.trial > queued.number)]
    assert list(again.status) == ["complete"]
    assert again.paid.iloc[0] == pytest.approx(1 - stopped.paid)  # of the rest alone


def test_a_database_that_fails_in_mid_run_is_one_clear_error_and_loses_no_row(tmp_path):
    searched = space(budget={"trials": 5}, sampler={"kind": "random"})
    engine = sa.create_engine(f"sqlite:///{tmp_path}/s/study.db")

    def on_event(event):
        if event.kind == "train" and event.trial == 2:
            with engine.begin() as connection:
                connection.execute(sa.text("ALTER TABLE trial_user_attributes RENAME TO gone"))

    with pytest.raises(FpnBenchError, match=r"study\.db cannot be written: .*what finished is safe"):
        run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", on_event=on_event)
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE gone RENAME TO trial_user_attributes"))
    study, result = run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s")
    table = study.table()
    assert (result.status, result.paid) == ("finished", 5)
    assert list(table.status[:3]) == ["complete", "complete", "failed"]
    assert table.reason[2] == "interrupted: the process ended in mid-trial; queued again"
