from __future__ import annotations

import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from search_evaluator import PROTOCOL, SPACE, InstantEvaluator, begin_and_die, queued_in, space

from fpn_bench.errors import (
    CacheError,
    DataError,
    GraphError,
    InputError,
    ProtocolError,
    SpaceError,
    TrialError,
    UnknownNameError,
)
from fpn_bench.search import Event, load_study, run_study
from fpn_bench.search.opening import exclusive
from fpn_bench.search.state import constraint_values
from fpn_bench.search.storage import Request
from fpn_bench.training.protocol import TrainingRecipe

HERE = Path(__file__).parents[1]
SMALL = {"family": "fpn", "channels": {"choices": [32, 64]}, "merge": {"choices": ["sum", "max"]}}


def paid(table):
    return table[table.status.isin(["complete", "failed"])]


# -- whole searches ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "random"])
def test_a_budget_is_spent_on_different_candidates(tmp_path, kind):
    searched = space(sampler={"kind": kind}, budget={"trials": 16})
    evaluator = InstantEvaluator(searched)
    study, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    assert (result.status, result.paid) == ("finished", 16)
    assert len(evaluator.trained) == len(set(evaluator.trained)) == 16
    assert evaluator.measured == evaluator.trained
    table = study.table()
    assert (table.status == "complete").sum() == 16
    assert set(table[table.status == "complete"].candidate) == set(evaluator.trained)
    assert list(table.source[:6]) == ["published"] * 6
    assert (table.protocol == PROTOCOL.id).all()
    assert len(study.front()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tpe", "nsga2"])
def test_two_hundred_trials(tmp_path, kind):
    wide = {**SPACE["neck"], "channels": {"range": [16, 256], "step": 8}, "norm": {"choices": ["none", "batch"]}}
    searched = space(neck=wide, sampler={"kind": kind}, budget={"trials": 200}, constraints=["params <= 1.6e6"])
    evaluator = InstantEvaluator(searched)
    study, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    assert (result.status, result.paid) == ("finished", 200)
    assert len(set(evaluator.trained)) == 200
    assert (study.table().query("status == 'complete'").params <= 1.6e6).all()


def test_a_space_that_is_used_up_stops_and_nothing_is_paid_twice(tmp_path):
    searched = space(neck=SMALL, enqueue="none")
    evaluator = InstantEvaluator(searched)
    study, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    assert result.status == "exhausted"
    assert result.paid == 4
    assert sorted(evaluator.trained) == sorted(set(evaluator.trained))
    repeats = study.table().query("status == 'repeat'")
    assert len(repeats)
    assert repeats.candidate.isin(evaluator.trained).all()
    assert repeats.ap.isna().all()  # a repeat is a pointer, not a second measurement
    assert result.counts["complete"] == 4


def test_a_repeat_tells_the_sampler_what_is_stored(tmp_path):
    searched = space(neck=SMALL, enqueue="none")
    study, _ = run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s")
    trials = {t.number: t for t in study._study.trials}
    table = study.table()
    for _, row in table[table.status == "repeat"].iterrows():
        first = table[(table.candidate == row.candidate) & (table.status == "complete")].iloc[0]
        assert trials[row.trial].values == trials[first.trial].values


def test_two_spellings_of_one_network_are_one_candidate(tmp_path):
    same = [{"family": "fpn", "channels": 32, "out_levels": [3, 4, 5], "down": d} for d in ("conv", "max_pool")]
    searched = space(enqueue=same, budget={"trials": 1})  # `down` is not read in a single pass
    evaluator = InstantEvaluator(searched)
    run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    _, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s", budget=2)
    assert result.counts["repeat"] >= 1
    assert len(evaluator.trained) == len(set(evaluator.trained)) == 2


def test_another_seed_is_another_measurement(tmp_path):
    searched = space(neck=SMALL, enqueue="none")
    evaluator = InstantEvaluator(searched)
    run_study(searched, evaluator, PROTOCOL, tmp_path / "s", budget=2)
    study, _ = run_study(searched, evaluator, PROTOCOL, tmp_path / "s", budget=6, seed=1)
    assert sorted(study.table().query("status == 'complete'").seed) == [0, 0, 1, 1, 1, 1]


def test_another_seed_trains_the_published_necks_too(tmp_path):
    searched = space()
    evaluator = InstantEvaluator(searched)
    for seed, budget in ((0, 7), (1, 14), (0, 14)):  # the last finds all there
        study, _ = run_study(searched, evaluator, PROTOCOL, tmp_path / "s", budget=budget, seed=seed)
    published = study.table().query("source == 'published'")
    assert (published.status == "complete").all()
    assert list(published.seed) == [0] * 6 + [1] * 6
    assert list(published.candidate[published.seed == 0]) == list(published.candidate[published.seed == 1])


@pytest.mark.parametrize(
    "objectives", [{"ap": "maximise"}, {"ap": "maximise", "macs": "minimise", "params": "minimise"}]
)
def test_latency_is_measured_only_when_it_is_asked_for(tmp_path, objectives):
    searched = space(objectives=objectives, budget={"trials": 5})
    evaluator = InstantEvaluator(searched)
    study, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    assert result.status == "finished"
    assert evaluator.measured == []
    assert study.table().latency_ms.isna().all()


def test_events_tell_the_display_what_happens(tmp_path):
    seen: list[Event] = []
    searched = space(budget={"trials": 2})
    run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", on_event=seen.append)
    one = ["describe", "measure", "train", "progress", "trial"]
    assert [e.kind for e in seen] == ["start", *one, *one, "end"]
    assert [e.paid for e in seen if e.kind == "trial"] == [1, 2]
    assert seen[5].data["ap"] > 0
    assert seen[-1].data["status"] == "finished"


def test_every_second_is_accounted_for(tmp_path):
    searched = space(budget={"trials": 4})
    start = time.perf_counter()
    study, _ = run_study(searched, InstantEvaluator(searched, train_s=0.05), PROTOCOL, tmp_path / "s")
    elapsed = time.perf_counter() - start
    table = study.table()
    assert (table.overhead_s > 0).all()
    assert (table.total_s - table.overhead_s >= 0.05).all()
    assert table.total_s.sum() <= elapsed


# -- constraints ------------------------------------------------------------------------------------------------


def test_what_is_predicted_to_break_a_bound_is_not_measured(tmp_path):
    searched = space(constraints=["latency_ms <= 3"])
    evaluator = InstantEvaluator(searched)
    _, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    table = load_study(tmp_path / "s").table()
    predicted = table[(table.status == "rejected") & table.latency_ms.isna()]
    assert len(predicted)
    assert (predicted.latency_predicted_low_ms > 3).all()
    assert predicted.reason.str.contains("latency_ms predicted at .* breaks latency_ms <= 3").all()
    assert not set(predicted.candidate) & set(evaluator.measured)
    measured = table.dropna(subset=["latency_ms"])
    assert not (measured.latency_predicted_low_ms > 3).any()
    assert (measured[measured.status == "rejected"].reason.str.contains("latency_ms predicted") == False).all()  # noqa: E712
    assert result.paid == len(measured[measured.status != "repeat"])  # what was only predicted is free
    without = space(constraints=["latency_ms <= 3"], latency={"predict": False})
    evaluator = InstantEvaluator(without)
    run_study(without, evaluator, PROTOCOL, tmp_path / "without")
    assert not evaluator.predicted


def test_over_a_cheap_bound_is_rejected_before_anything_is_paid(tmp_path):
    searched = space(constraints=["params <= 1.25e6", "latency_ms <= 1000"])
    evaluator = InstantEvaluator(searched)
    study, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    table = study.table()
    rejected = table[table.status == "rejected"]
    assert result.paid == 16
    assert len(rejected)
    assert (rejected.params > 1.25e6).all()
    assert rejected.reason.str.contains("breaks params <= 1250000").all()
    assert rejected.ap.isna().all()
    assert rejected.latency_ms.isna().all()
    assert (table[table.status == "complete"].params <= 1.25e6).all()
    assert not set(rejected.candidate) & set(evaluator.measured)
    for trial in study._study.trials:
        assert set(trial.constraints) == {"params <= 1250000", "latency_ms <= 1000"}
        row = table[table.trial == trial.number].iloc[0]
        if row.status == "rejected":
            assert trial.state is optuna.trial.TrialState.PRUNED
            assert trial.constraints["params <= 1250000"] == pytest.approx(row.params / 1.25e6 - 1)


def test_over_the_latency_bound_is_rejected_before_training(tmp_path):
    searched = space(constraints=["latency_ms <= 3"], latency={"predict": False})
    evaluator = InstantEvaluator(searched)
    study, _ = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    rejected = study.table().query("status == 'rejected'")
    assert len(rejected)
    assert (rejected.latency_ms > 3).all()
    assert not set(rejected.candidate) & set(evaluator.trained)


def test_violations_are_relative_and_unknown_facts_neutral():
    searched = space(constraints=["params <= 1000", "latency_ms <= 10", "macs >= 5"])
    values = constraint_values(searched.constraints, {"params": 1500, "latency_ms": math.nan, "macs": 4})
    assert values == {"params <= 1000": 0.5, "latency_ms <= 10": 0.0, "macs >= 5": pytest.approx(0.2)}


def test_bounds_that_differ_in_the_seventh_digit_are_two_bounds(tmp_path):
    near, nearer = (space(constraints=[f"params <= {bound}"]) for bound in (1234567, 1234568))
    assert near.fingerprint != nearer.fingerprint
    assert space(constraints=["params <= 5e6", "latency_ms >= 0.1"]).identity["constraints"] == [
        "params <= 5000000",
        "latency_ms >= 0.1",
    ]
    study, _ = run_study(near, InstantEvaluator(near), PROTOCOL, tmp_path / "s", budget=8)
    rejected = study.table().query("status == 'rejected'")
    assert list(rejected.reason) == [f"params {p:.0f} breaks params <= 1234567" for p in rejected.params]
    assert len(rejected)


def test_a_small_space_without_a_feasible_point_is_refused_before_anything_is_paid(tmp_path):
    searched = space(constraints=["params <= 1e3"])
    evaluator = InstantEvaluator(searched)
    with pytest.raises(
        SpaceError, match=r"none of its 128 candidates has params <= 1000; the nearest is fpn 32ch P3-P5"
    ):
        run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    assert evaluator.measured == evaluator.trained == []
    loosened = space(constraints=["params <= 9e9"], budget={"trials": 2})
    _, result = run_study(loosened, InstantEvaluator(loosened), PROTOCOL, tmp_path / "s")
    assert (result.status, result.paid) == ("finished", 2)


def test_a_budget_without_a_feasible_candidate_says_so(tmp_path):
    searched = space(constraints=["latency_ms <= 0.1"], budget={"trials": 8}, latency={"predict": False})
    _, result = run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s")
    assert result.status == "infeasible"
    assert "no candidate of 8 paid for is within the bounds; the nearest is" in result.message


# -- failures ---------------------------------------------------------------------------------------------------


def test_a_failing_candidate_is_a_row_and_the_study_goes_on(tmp_path):
    searched = space()
    evaluator = InstantEvaluator(searched)
    evaluator.fails_on = {
        "top_only": TrialError("loss is not finite at step 3"),
        "channel_mapper": RuntimeError("boom"),
    }
    study, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    assert result.status == "finished"
    failed = study.table().query("status == 'failed'").set_index("neck")
    assert failed.reason.to_dict() == {
        "top_only": "loss is not finite at step 3",
        "channel_mapper": "RuntimeError: boom",
    }
    assert failed.params.notna().all()
    assert result.counts == {"failed": 2, "complete": 14} | (
        {"repeat": result.counts["repeat"]} if "repeat" in result.counts else {}
    )


def test_choices_that_do_not_fit_together_are_failed_rows_and_cost_nothing(tmp_path):
    searched = space(enqueue=[{"family": "fpn", "channels": 32, "out_levels": [1, 2]}], budget={"trials": 2})
    study, result = run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s")
    assert (result.paid, result.counts["failed"], result.counts["complete"]) == (2, 1, 2)
    assert "P1, P2 asked for" in study.table().reason[0]


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "random"])
def test_choices_that_cannot_be_built_fail_once_and_the_rest_of_the_space_is_trained(tmp_path, kind):
    class Picky(InstantEvaluator):
        def describe(self, choices):
            if choices["merge"] == "max" or choices["channels"] > 64:
                raise GraphError(None, "these do not go together")
            return super().describe(choices)

    neck = {**SMALL, "channels": {"choices": [32, 64, 96, 128]}}
    searched = space(neck=neck, enqueue="none", sampler={"kind": kind}, budget={"trials": 50})
    evaluator = Picky(searched)
    for _ in range(2):  # a second run knows what the first found
        study, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
        assert (result.status, result.paid) == ("exhausted", 2)
    table = study.table()
    failed = table[table.status == "failed"]
    columns = ["choice.merge", "choice.channels"]
    assert len(failed)
    assert not failed[columns].duplicated().any()
    again = [t for t in study._study.trials if t.user_attrs["row"]["status"] == "repeat"]
    assert all(t.state is not optuna.trial.TrialState.FAIL for t in again)  # samplers learn of it


def test_a_sampler_that_finds_nothing_buildable_ends(tmp_path, monkeypatch):
    class Broken(InstantEvaluator):
        def describe(self, choices):
            raise GraphError(None, "nothing goes together")

    monkeypatch.setattr(importlib.import_module("fpn_bench.search.scheduler"), "MAX_UNUSABLE_IN_A_ROW", 20)
    searched = space(neck={**SPACE["neck"], "channels": {"range": [16, 512]}})
    _, result = run_study(searched, Broken(searched), PROTOCOL, tmp_path / "s")
    assert (result.status, result.paid) == ("infeasible", 0)
    assert "20 candidates in a row were rejected or cannot be built" in result.message


def test_an_objective_that_is_no_number_fails_the_candidate(tmp_path):
    class Undefined(InstantEvaluator):
        def train(self, *args):
            return {**super().train(*args), "ap": math.nan}

    searched = space(budget={"trials": 3})
    study, result = run_study(searched, Undefined(searched), PROTOCOL, tmp_path / "s")
    assert result.status == "failing"
    assert (study.table().reason == "ap is nan, no number").all()


def test_failures_in_a_row_end_the_study(tmp_path):
    searched = space(budget={"trials": 50})
    evaluator = InstantEvaluator(searched)
    evaluator.fails_on = dict.fromkeys(["fpn", "pafpn", "top_only", "channel_mapper"], TrialError("no device"))
    study, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    assert result.status == "failing"
    assert result.counts["failed"] == 8
    assert "no device; once that is mended, the same command tries them again" in result.message
    assert result.paid == 0
    assert set(study.table().query("status == 'failed'").reason) == {"interrupted: no device; queued again"}

    failed = list(evaluator.trained)
    evaluator.fails_on, evaluator.trained = {}, []
    study, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s", budget=10)
    assert (result.status, result.paid) == ("finished", 10)
    assert evaluator.trained[:8] == failed
    table = study.table()
    assert list(table[table.status == "complete"].source[:6]) == ["published"] * 6


def test_failures_with_a_success_among_them_are_the_candidates_own(tmp_path):
    searched = space(budget={"trials": 20})
    evaluator = InstantEvaluator(searched)
    evaluator.fails_on = dict.fromkeys(["fpn", "top_only", "channel_mapper"], TrialError("diverged"))
    study, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s", budget=6)
    assert result.paid == 6
    assert result.counts == {"failed": 5, "complete": 1}
    assert set(study.table().reason) == {"diverged", ""}


@pytest.mark.parametrize("fault", [CacheError("no space left"), DataError("image gone"), OSError("image gone")])
def test_a_fault_of_machine_or_data_is_raised_and_the_candidate_queued_again(tmp_path, fault):
    searched = space(neck=SMALL, enqueue="none")
    evaluator = InstantEvaluator(searched)
    evaluator.fails_on = {"fpn": fault}
    with pytest.raises(type(fault), match=str(fault)):
        run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    evaluator.fails_on = {}
    study, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    assert result.paid == 4
    table = study.table()
    assert table.reason[0] == f"interrupted: {fault}; queued again"
    assert table.candidate[1] == table.candidate[0]


# -- resume -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tpe", "nsga2"])
def test_a_study_goes_on_where_it_stopped(tmp_path, kind):
    searched = space(sampler={"kind": kind})
    evaluator = InstantEvaluator(searched)
    first, _ = run_study(searched, evaluator, PROTOCOL, tmp_path / "s", budget=9, metadata={"commands": ["one"]})
    before = first.table()
    study, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s", budget=20, metadata={"commands": ["two"]})
    assert result.paid == 20
    assert len(evaluator.trained) == len(set(evaluator.trained)) == 20
    assert study.table().iloc[: len(before)][["trial", "candidate", "ap"]].equals(before[["trial", "candidate", "ap"]])
    assert study.metadata()["commands"] == ["one", "two"]
    _, again = run_study(searched, evaluator, PROTOCOL, tmp_path / "s", budget=20)
    assert (again.status, again.counts) == ("finished", {})


def test_a_repeat_killed_before_its_telling_says_what_the_finished_row_says_not_the_interrupted(tmp_path):
    searched = space(neck=SMALL, enqueue="none")
    evaluator = InstantEvaluator(searched)
    evaluator.fails_on = {"fpn": CacheError("no space left")}
    with pytest.raises(CacheError):
        run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    evaluator.fails_on = {}
    study, _ = run_study(searched, evaluator, PROTOCOL, tmp_path / "s", budget=1)
    done = study._study.trials[1]
    trial = begin_and_die(study)
    with study._trials_store.transaction() as transaction:
        transaction.finish(trial, {**study._trials_store.columns(1), "trial": trial, "status": "repeat", "paid": False})
    study, _ = run_study(searched, evaluator, PROTOCOL, tmp_path / "s", budget=1)
    assert study._study.trials[trial].values == done.values


SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from search_evaluator import PROTOCOL, InstantEvaluator, space
from pathlib import Path
from fpn_bench.search import run_study
searched = space(budget={{"trials": 8}})
evaluator = InstantEvaluator(searched, train_s=0.4, log=Path({log!r}))
_, result = run_study(searched, evaluator, PROTOCOL, {folder!r})
print(result.status, "|", result.message)
"""


def interrupt_in_training(tmp_path: Path, number: signal.Signals, after: int = 3) -> tuple[str, list[str]]:
    """Start a search in a process, signal it while it trains its `after`-th candidate; its output and trainings."""
    log = tmp_path / f"log-{number}"
    log.touch()
    script = SCRIPT.format(here=str(HERE), log=str(log), folder=str(tmp_path / "s"))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        while len(log.read_text().splitlines()) < after:
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, number)
        output, _ = process.communicate(timeout=60)
    return output, log.read_text().split()


def test_a_killed_search_loses_and_repeats_nothing(tmp_path):
    _, trained = interrupt_in_training(tmp_path, signal.SIGKILL)
    finished, cut = trained[:-1], trained[-1]
    left = load_study(tmp_path / "s").table()
    assert list(left[left.status == "complete"].candidate) == finished
    assert list(left.status) == ["complete", "complete", "running"]

    searched = space(budget={"trials": 8})
    evaluator = InstantEvaluator(searched)
    study, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    table = study.table()
    assert result.paid == 8
    assert table.status[2] == "continued"  # what was queued again has come to its end
    assert table.reason[2] == "interrupted: the process ended in mid-trial; queued again"
    assert not set(evaluator.trained) & set(finished)
    assert evaluator.trained.count(cut) == 1
    assert table[table.candidate == cut].source.iloc[0] == "published"
    assert (table.status == "complete").sum() == 8
    assert table[table.status == "complete"].candidate.is_unique


def test_a_candidate_that_takes_the_process_down_is_queued_again_three_times(tmp_path):
    searched = space(enqueue=[{"family": f, "channels": 32, "out_levels": [3, 4, 5]} for f in ("fpn", "pafpn")])
    evaluator = InstantEvaluator(searched)
    study, _ = run_study(searched, evaluator, PROTOCOL, tmp_path / "s", budget=1)
    last = "ended in mid-trial; not queued again: it ended so 4 times"
    for number, reason in enumerate([*["ended in mid-trial; queued again"] * 3, last], start=1):
        assert begin_and_die(study) == number
        study, _ = run_study(searched, evaluator, PROTOCOL, tmp_path / "s", budget=1)
        row = study.table().iloc[number]
        assert row.reason.endswith(reason)
        assert (row.neck, row.neck_label) == ("pafpn", "pafpn 32ch P3-P5")
    assert not queued_in(study)


def test_a_trial_killed_between_its_row_and_its_telling_is_not_lost(tmp_path):
    searched = space(constraints=["params <= 9e9"])
    study, _ = run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", budget=3)
    trial = begin_and_die(study, Request())
    with study._trials_store.transaction() as transaction:
        row = {**study._trials_store.columns(0), "trial": trial, "candidate": "f" * 12, "ap": 99.0, "paid": True}
        transaction.finish(trial, row)
    evaluator = InstantEvaluator(searched)
    study, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s", budget=4)
    assert (result.paid, evaluator.trained) == (4, [])
    (told,) = (t for t in study._study.trials if t.user_attrs["trial"] == trial)
    assert told.state is optuna.trial.TrialState.COMPLETE
    assert told.values[0] == 99.0


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(tmp_path, number):
    output, trained = interrupt_in_training(tmp_path, number)
    assert "interrupted | interrupted after 2 of 8 trials; the same command goes on from there" in output
    table = load_study(tmp_path / "s").table()
    assert list(table.status) == ["complete", "complete", "failed"]
    assert table.reason[2] == "interrupted: stopped by the user; queued again"
    assert table.neck_label[2] == "channel_mapper 64ch P3-P5"
    searched = space(budget={"trials": 8})
    evaluator = InstantEvaluator(searched)
    _, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    assert result.paid == 8
    assert len(evaluator.trained) == 6
    assert trained[-1] in evaluator.trained


# -- nothing is mixed -------------------------------------------------------------------------------------------


def test_another_protocol_or_space_is_refused_and_nothing_changes(tmp_path):
    searched = space()
    run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", budget=2)
    before = {p.name: p.read_bytes() for p in (tmp_path / "s").glob("*.[yj]*")}
    longer = PROTOCOL.model_copy(update={"training": TrainingRecipe(epochs=9, optimizer="adamw")})
    with pytest.raises(ProtocolError) as error:
        run_study(searched, InstantEvaluator(searched), longer, tmp_path / "s")
    for part in (PROTOCOL.id, longer.id, "training.epochs: 8 there, 9 here", "--name"):
        assert part in str(error.value)
    other = space(neck={**SPACE["neck"], "channels": {"choices": [32, 48]}})
    with pytest.raises(ProtocolError, match=r"neck\.channels\.choices: \[32, 48, 64, 96\] there, \[32, 48\] here"):
        run_study(other, InstantEvaluator(other), PROTOCOL, tmp_path / "s")
    one = space(objectives={"ap": "maximise"})
    with pytest.raises(ProtocolError, match=r'objectives: .*"latency_ms", "minimize".* there'):
        run_study(one, InstantEvaluator(one), PROTOCOL, tmp_path / "s")
    swapped = space(objectives={"latency_ms": "minimise", "ap": "maximise"})  # values would be told in another order
    with pytest.raises(ProtocolError, match=r'objectives: \[\["ap", .* there, \[\["latency_ms", .* here'):
        run_study(swapped, InstantEvaluator(swapped), PROTOCOL, tmp_path / "s")
    assert {p.name: p.read_bytes() for p in (tmp_path / "s").glob("*.[yj]*")} == before
    assert len(load_study(tmp_path / "s").table()) == 2


def test_a_second_driver_is_refused(tmp_path):
    searched = space()
    with exclusive(tmp_path / "s"), pytest.raises(InputError, match="another search is running"):
        run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s")


def test_a_killed_drivers_trial_is_recovered_behind_a_url_too(tmp_path):
    searched = space()
    url = f"sqlite:///{tmp_path}/elsewhere.db"
    study, _ = run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", storage=url, budget=1)
    begin_and_die(study)
    study, _ = run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", storage=url, budget=2)
    assert "interrupted" in study.table().reason[1]
    assert set(study.table().status[2:]) == {"complete"}
    with exclusive(tmp_path / "s"), pytest.raises(InputError, match="another search is running"):
        run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", storage=url)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    searched = space()
    for folder in ("file", "file/s"):
        with pytest.raises(InputError, match=f"study folder {tmp_path}/{folder} cannot be written: .* --results DIR"):
            run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / folder)


def test_another_machine_is_warned_of(tmp_path):
    searched = space()
    for machine, budget in (("one", 2), ("two", 3)):
        metadata = {"machine": {"id": machine}, "warnings": ["random weights"]}
        study, _ = run_study(
            searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", budget=budget, metadata=metadata
        )
    warnings = study.metadata()["warnings"]
    assert warnings[0] == "random weights"
    assert "continued on machine two, begun on one" in warnings[1]
    assert len(warnings) == 2


@pytest.mark.parametrize("judged", [{}, {"objectives": {"ap": "maximise"}, "constraints": ["latency_ms <= 1000"]}])
def test_another_latency_device_is_refused_where_latency_is_judged(tmp_path, judged):
    searched = space(budget={"trials": 1}, **judged)
    run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", metadata={"latency_device": "cpu"})
    with pytest.raises(ProtocolError, match=r"has latency measured on cpu, this run has cuda; .* another --name"):
        run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", metadata={"latency_device": "cuda"})


def test_another_latency_device_is_taken_where_latency_is_not_judged(tmp_path):
    searched = space(objectives={"ap": "maximise"}, budget={"trials": 1})
    for device in ("cpu", "cuda"):
        run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", metadata={"latency_device": device})


# -- reading ----------------------------------------------------------------------------------------------------


def test_load_by_folder_file_and_url_gives_one_table(tmp_path):
    searched = space(budget={"trials": 7})
    study, _ = run_study(
        searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", columns={"dataset": "made up", "epochs": 8}
    )
    database = tmp_path / "s" / "study.db"
    for target in (tmp_path / "s", str(database), f"sqlite:///{database}"):
        assert load_study(target).table().equals(study.table())
    assert load_study(database).path == tmp_path / "s"
    table = study.table()
    assert set(table.dataset) == {"made up"}
    assert table["choice.out_levels"][0] == "[3, 4, 5]"
    assert json.loads(table.graph[0])
    metadata = study.metadata()
    assert metadata["objectives"] == [
        {"name": "ap", "direction": "maximize"},
        {"name": "latency_ms", "direction": "minimize"},
    ]
    assert metadata["protocol"]["id"] == PROTOCOL.id
    assert json.loads((tmp_path / "s" / "protocol.json").read_text())["id"] == PROTOCOL.id
    assert (tmp_path / "s" / "space.yaml").read_text() == metadata["space"] == searched.text


def test_no_study_names_those_at_hand(tmp_path):
    with pytest.raises(InputError, match="none is at hand; `fpn-bench search` makes one"):
        load_study(tmp_path / "results" / "nothing")
    searched = space()
    run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "mine", budget=1)
    with pytest.raises(InputError, match=f"no study at .*/typo: at hand are {tmp_path}/mine"):
        load_study(tmp_path / "typo")
    with pytest.raises(InputError, match="at hand are"):
        load_study(tmp_path)
    with pytest.raises(UnknownNameError, match="unknown study 'yours'"):
        load_study(tmp_path / "mine", name="yours")
    (tmp_path / "other.db").write_text("this is no database at all, but it is long enough to be one" * 20)
    with pytest.raises(InputError, match=r"other\.db cannot be opened: .*not a database"):
        load_study(tmp_path / "other.db")


def test_the_database_is_in_wal_mode(tmp_path):
    import sqlite3

    searched = space()
    run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", budget=1)
    connection = sqlite3.connect(tmp_path / "s" / "study.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
