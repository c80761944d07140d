"""Any interleaving of workers, deaths, silences, clock steps and outages of the database leaves a study whole.

Real workers are driven step by step, in one process, on one database: each step begins a trial and assesses it, and may
end in the death of the worker at any of the points where what is stored changes.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from search_evaluator import PROTOCOL, InstantEvaluator, space

from fpn_bench.search.leases import LEASE_S
from fpn_bench.search.opening import OpenStudy, open_study
from fpn_bench.search.records import Status
from fpn_bench.search.recovery import queue_opening_trials
from fpn_bench.search.storage import FINISHED, QUEUED, RUNNING
from fpn_bench.search.worker import Worker

BUDGET = 5
DEATHS = ("begun", "described", "in training", "trained", "stored", "told")


class Died(BaseException):
    """The process is gone."""


class Mortal(InstantEvaluator):
    """Its AP rises with the epochs; dies when it is told to."""

    die_at = ""

    def describe(self, choices):
        if self.die_at == "begun":
            raise Died
        described = super().describe(choices)
        if self.die_at == "described":
            raise Died
        return described

    def train(self, described, seed, epochs, on_progress):
        if self.die_at == "in training":
            raise Died
        found = super().train(described, seed, epochs, on_progress)
        if self.die_at == "trained":
            raise Died
        ap = found["ap"] * (epochs / 8) ** 0.3
        return {**found, "ap": ap, "ap_curve": [[epochs, ap]]}


class Interleavings(RuleBasedStateMachine):
    """Workers of one study."""

    folder: Path
    studies = 0

    @initialize(rungs=st.booleans(), confirm=st.sampled_from([0.0, 0.4]))
    def begin_study(self, rungs: bool, confirm: float) -> None:
        type(self).studies += 1
        self.space = space(
            neck={"family": "fpn", "channels": {"choices": [32, 48, 64, 80]}, "merge": {"choices": ["sum", "max"]}},
            sampler={"kind": "random"},
            objectives={"ap": "maximise", "macs": "minimise"},
            budget={"trials": BUDGET, "confirm": confirm, "retries": 2},
            training={"epochs": 8},
            rungs={"epochs": [2] if rungs else [], "keep": 0.5},
            enqueue=[{"family": "fpn", "channels": 32}],
        )
        self.now = 0.0
        self.step_s = 0.0
        self.workers: list[tuple[Worker, Mortal]] = []
        self.stored: dict[int, Any] = {}
        name = f"study {self.studies}"
        self.study: OpenStudy = open_study(self.folder / "study.db", self.space, PROTOCOL, name=name, metadata={})
        self.storage = self.study.storage
        queue_opening_trials(self.storage, self.space, seed=0)

    def new_worker(self) -> tuple[Worker, Mortal]:
        evaluator = Mortal(self.space)
        worker = Worker(self.study, self.space, evaluator, number=len(self.workers))
        worker._is_file = worker._recorder._is_file = False  # outlasts an outage
        worker._leases._clock = lambda: self.now
        worker._leases._answers_since = self.now
        worker._leases.start = lambda: worker._leases  # its counter rises when a rule says so
        worker._wait = lambda seconds: None
        worker._start()
        return worker, evaluator

    # -- what may happen ------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.workers) < 4)
    @rule()
    def a_worker_joins(self) -> None:
        self.workers.append(self.new_worker())

    @precondition(lambda self: self.workers)
    @rule(which=st.integers(0, 3), death=st.sampled_from(["", "", "", *DEATHS]))
    def a_worker_takes_a_step(self, which: int, death: str) -> None:
        worker, evaluator = self.workers[which % len(self.workers)]
        if self.step(worker, evaluator, death):
            del self.workers[which % len(self.workers)]

    def step(self, worker: Worker, evaluator: Mortal, death: str = "") -> bool:
        """Whether the worker died."""
        evaluator.die_at = death
        tell, store = worker._recorder._mirror.tell, worker._recorder.store

        def told(*arguments: Any) -> None:
            tell(*arguments)
            if death == "told":
                raise Died

        def kept(*arguments: Any) -> bool:
            found = store(*arguments)
            if death == "stored":
                raise Died
            return found

        worker._recorder._mirror.tell, worker._recorder.store = told, kept
        try:
            worker._refresh()
            worker._recover_if_due()
            begun = worker._begin_next()
            if begun is not None:
                worker._run_trial(*begun)
        except Died:
            return True
        finally:
            worker._recorder._mirror.tell, worker._recorder.store = tell, store
        return False

    @precondition(lambda self: self.workers)
    @rule(which=st.integers(0, 3))
    def a_worker_is_heard_of(self, which: int) -> None:
        self.workers[which % len(self.workers)][0]._leases.beat()

    @rule(seconds=st.sampled_from([1.0, LEASE_S / 2, 2 * LEASE_S]))
    def time_passes(self, seconds: float) -> None:
        """Who is not heard of in between is taken for dead, and may well go on afterwards."""
        for worker, _ in self.workers:
            worker._leases.others()
            worker._recovered_at = -1e9
        self.now += seconds

    @rule(step_s=st.sampled_from([-3600.0, 3600.0]))
    def the_system_clock_is_stepped(self, step_s: float) -> None:
        self.step_s += step_s
        time.time = lambda: REAL_TIME() + self.step_s  # type: ignore[assignment]

    @precondition(lambda self: self.workers)
    @rule(which=st.integers(0, 3), calls=st.integers(1, 3))
    def the_database_is_away_as_a_worker_stores(self, which: int, calls: int) -> None:
        worker, evaluator = self.workers[which % len(self.workers)]
        left, store = [calls], worker._recorder.store

        def away(*arguments: Any) -> bool:
            stored = store(*arguments) if left[0] == 2 else True  # once its answer alone is lost
            if left[0]:
                left[0] -= 1
                raise sa.exc.OperationalError("", {}, Exception("away"))
            return stored if left[0] else store(*arguments)

        worker._recorder.store = away
        try:
            assert not self.step(worker, evaluator)
        finally:
            worker._recorder.store = store

    # -- what holds at every moment -------------------------------------------------------------------------------

    @invariant()
    def nothing_is_lost_or_done_twice(self) -> None:
        if not hasattr(self, "storage"):
            return
        trials = sorted(self.storage.changes(), key=lambda trial: trial.trial)
        assert [trial.trial for trial in trials] == list(range(len(trials)))
        assert {trial.state for trial in trials} <= {QUEUED, RUNNING, FINISHED}
        for trial in trials:  # what is stored stays
            if trial.state == FINISHED:
                assert trial.row == self.stored.setdefault(trial.trial, trial.row)
        assert set(self.stored) == {trial.trial for trial in trials if trial.state == FINISHED}
        complete = Counter(row.key for row in self.stored.values() if row.status is Status.COMPLETE)
        assert max(complete.values(), default=0) <= 1
        leased = Counter(trial.work_key for trial in trials if trial.state == RUNNING and trial.work_key)
        assert max(leased.values(), default=0) <= 1
        queued = {row.trial for row in self.stored.values() if row.queued_again}
        assert len(trials) >= len(queued)

    def teardown(self) -> None:
        time.time = REAL_TIME
        if not hasattr(self, "storage"):
            return
        self.now += 10 * LEASE_S
        last, evaluator = self.new_worker()
        for _, beat, _ in last._leases._announced():  # all others are silent from now on
            assert beat >= 0
        last._leases.others()
        self.now += 2 * LEASE_S
        for _ in range(200):
            last._leases.beat()
            last._recovered_at = -1e9
            assert not self.step(last, evaluator)
            if (ended := last._scheduler.ended(last._progress)) is not None:
                break
        assert ended is not None
        assert ended[0] in ("finished", "exhausted")
        last._recorder.catch_up()
        self.nothing_is_lost_or_done_twice()
        assert all(trial.state == FINISHED for trial in self.storage.changes())
        told = Counter(trial.user_attrs["trial"] for trial in self.study.optuna.get_trials(deepcopy=False))
        assert told == Counter(list(self.stored))
        assert BUDGET <= last._state.paid < BUDGET + 1 or ended[0] == "exhausted"


REAL_TIME = time.time


@pytest.mark.parametrize("examples", [12, pytest.param(150, marks=pytest.mark.slow)])
def test_any_interleaving_leaves_a_whole_study(examples):
    with tempfile.TemporaryDirectory() as folder:
        Interleavings.folder = Path(folder)
        run_state_machine_as_test(
            Interleavings,
            settings=settings(
                max_examples=examples,
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                derandomize=examples < 50,
            ),
        )
