"""Ctrl-C and time limits, also on systems without an alarm signal."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import threading
import time

import pytest
from search_evaluator import PROTOCOL, InstantEvaluator, space

from fpn_bench.search import run_study
from fpn_bench.search.executors import LocalExecutor
from fpn_bench.search.signals import Interrupts, TrialTimeout

ALARM = ("SIGALRM", "setitimer", "ITIMER_REAL", "alarm")


def busy(seconds: float) -> None:
    """Work that is no sleep in the system."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


@pytest.mark.parametrize("without", [ALARM, (*ALARM, "pthread_kill")], ids=["no alarm", "no pthread_kill either"])
def test_a_step_that_takes_too_long_is_ended_without_an_alarm(monkeypatch, without):
    for name in without:
        monkeypatch.delattr(signal, name, raising=False)
    interrupts = Interrupts()
    with interrupts:
        with pytest.raises(TrialTimeout, match=r"timed out after 0\.002 minutes"), interrupts.allowed(0.002):
            busy(30)
        with interrupts.allowed(0.002):
            pass
        busy(0.3)  # outside of what is allowed nothing is ended
        assert not interrupts.pending


def test_what_outlasts_every_exception_does_not_outlast_the_time_limit():
    def stubborn() -> None:
        while True:
            with contextlib.suppress(Exception):
                time.sleep(30)

    interrupts = Interrupts()
    with interrupts, pytest.raises(TrialTimeout), interrupts.allowed(0.002):
        stubborn()


def test_ctrl_c_waits_until_it_is_allowed():
    interrupts = Interrupts()
    with interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        busy(0.05)
        assert interrupts.pending
        with pytest.raises(KeyboardInterrupt), interrupts.allowed():
            pytest.fail("was allowed to go on")


def test_ctrl_c_within_a_time_limit_is_ctrl_c():
    interrupts = Interrupts()
    threading.Timer(0.1, _thread.interrupt_main).start()
    with interrupts, pytest.raises(KeyboardInterrupt), interrupts.allowed(1.0):
        busy(30)
    assert interrupts.pending


def test_a_search_runs_where_there_is_no_alarm_and_no_affinity(tmp_path, monkeypatch):
    for name in ALARM:
        monkeypatch.delattr(signal, name, raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert LocalExecutor(2)._threads >= 1
    searched = space(budget={"trials": 2, "trial_minutes": 0.005}, sampler={"kind": "random"})

    class Hanging(InstantEvaluator):
        def train(self, described, seed, epochs, on_progress):
            if not self.trained:
                self.trained.append(described.id)
                time.sleep(30)
            return super().train(described, seed, epochs, on_progress)

    study, result = run_study(searched, Hanging(searched), PROTOCOL, tmp_path / "s")
    assert result.status == "finished"
    assert study.table().reason[0] == "timed out after 0.005 minutes"
