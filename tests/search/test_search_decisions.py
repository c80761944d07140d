from __future__ import annotations

import math
import time

import numpy as np
import pytest
from search_evaluator import PROTOCOL, InstantEvaluator, space

from fpn_bench.analysis import front_probability
from fpn_bench.analysis.noise import pooled_scatter, prior_scatter
from fpn_bench.errors import SpaceError, TrialError
from fpn_bench.search import run_study
from fpn_bench.search.records import Status, TrialRow
from fpn_bench.search.replicates import Replicates, near_front, undecided
from fpn_bench.search.scheduler import Scheduler
from fpn_bench.search.state import StudyState
from fpn_bench.search.storage import Request, StoredTrial

SMALL = {"family": {"choices": ["fpn", "pafpn"]}, "channels": {"choices": [32, 48, 64, 96]}, "out_levels": [3, 4, 5]}


class Noisy(InstantEvaluator):
    """AP that scatters from seed to seed far more than candidates differ."""

    def train(self, described, seed, epochs, on_progress):
        ap = super().train(described, seed, epochs, on_progress)["ap"]
        return {"ap": ap + 10 * (hash((described.id, seed)) % 1000) / 1000}


# -- further seeds ----------------------------------------------------------------------------------------------


def test_a_stated_part_of_the_budget_goes_into_further_seeds(tmp_path):
    searched = space(budget={"trials": 40, "confirm": 0.5})
    study, _ = run_study(searched, Noisy(searched), PROTOCOL, tmp_path / "s")
    table = study.table()
    confirmed = table[table.source == "confirmed"]
    assert 15 <= len(confirmed) <= 20
    assert (confirmed.status == "complete").all()
    assert not table[table.status == "complete"].duplicated(["candidate", "seed"]).any()
    first = table[(table.status == "complete") & (table.source != "confirmed")]
    assert confirmed.candidate.isin(first.candidate).all()
    front = study.front()
    assert front.front_probability.between(0, 1).all()
    assert front.seeds.max() > 1


@pytest.mark.parametrize("seed", range(20))
def test_who_is_near_the_front_is_whoever_has_a_chance_of_it(seed):
    rng = np.random.default_rng(seed)
    values = np.column_stack([rng.normal(20, 3, 60), rng.uniform(1, 2, (60, 1 + seed % 2))])
    sd = rng.choice([0.5, 1.0, 1.5], 60)
    spread = np.zeros_like(values)
    spread[:, 0] = sd
    chance = front_probability(values, ["maximize", *["minimize"] * (values.shape[1] - 1)], sd=spread)
    near = near_front(values, sd)
    assert set(np.flatnonzero(chance > 0.01)) <= set(near) < set(range(60))
    assert near.tolist() == sorted(near)


def test_what_seeds_say_is_added_up_as_numpy_does():
    rng, replicates, aps = np.random.default_rng(0), Replicates("ap", ["macs"]), {"a": [], "b": [], "c": []}
    assert math.isnan(replicates.pooled_sd()[0])
    for trial, name in enumerate("abacabbb"):
        aps[name].append(rng.normal(20, 2))
        row = TrialRow(trial, Status.COMPLETE, trial, {}, candidate=name, ap=aps[name][-1])
        replicates.add(row, row.ap, [7.0])
        if trial == 1:
            assert replicates.pooled_sd()[0] == prior_scatter("ap").sd
    assert replicates.counts.tolist() == [3, 4, 1]
    assert replicates.values.tolist() == [[pytest.approx(np.mean(of)), 7.0] for of in aps.values()]
    assert replicates.pooled_sd()[0] == pytest.approx(pooled_scatter(aps.values(), prior_scatter("ap")).sd)
    assert [row.candidate for row in replicates.first] == ["a", "b", "c"]


def test_a_row_that_is_stored_again_is_no_training_more():
    searched = space(budget={"trials": 4, "confirm": 0.5}, training={"epochs": 8}, rungs={"epochs": [2]})
    state = StudyState()
    scheduler = Scheduler(searched, state, seed=0)
    row = TrialRow(0, Status.COMPLETE, 0, {}, candidate="a", ap=7.0, epochs=8, paid=1.0, curve=((2, 3.0), (8, 7.0)))
    stopped = TrialRow(1, Status.STOPPED, 0, {}, candidate="b", curve=((2, 1.0),))  # damaged: it says no epochs
    for revision in (1, 2):
        for one in (row, stopped):
            state.apply([StoredTrial(one.trial, revision, "finished", "", "", Request(), one, "")])
    assert scheduler._replicates.counts.tolist() == [1]
    assert scheduler.extrapolation.trained == 1
    assert math.isnan(scheduler.expected_ap(stopped)[0])
    assert state.paid == 1


@pytest.mark.parametrize(
    ("necks", "wanted"),
    [  # (AP, cost, seeds, published)
        ([], []),
        ([(20.0, 5, 1, False)], [0]),  # picked by its luck
        ([(20.0, 5, 2, False)], []),  # nothing to hold it against
        ([(19.5, 5, 2, False), (20.0, 9, 2, True)], [1, 0]),  # a published one is held against any searched one
        ([(20.0, 5, 2, False), (12.0, 5, 1, True)], []),
        ([(20.0, 5, 3, False), (19.0, 5, 1, True)], [1, 0]),
        ([(20.0, 5, 3, False), (19.0, 6, 1, True)], []),  # dearer: it is not what it is held against
        ([(20.0, 5, 400, False), (20.0, 5, 400, True)], []),  # the same
        ([(20.0, 9, 4, False), (19.9, 5, 4, False), (19.0, 5, 2, True)], [2, 1]),  # the cheaper of two alike is taken
    ],
)
def test_what_would_be_taken_gets_seeds_until_it_is_decided(necks, wanted):
    values = np.array([[ap, cost] for ap, cost, _, _ in necks]).reshape(-1, 2)
    counts = np.array([float(seeds) for *_, seeds, _ in necks])
    published = np.array([of for *_, of in necks], dtype=bool)
    assert undecided(values, counts, 1.6 / np.sqrt(counts), published) == wanted


def test_the_lucky_winner_is_trained_again_before_it_is_taken(tmp_path):
    """Its one figure is so far ahead that its place on the front is as good as certain."""
    searched = space(budget={"trials": 20, "confirm": 0.3})

    class Lucky(InstantEvaluator):
        def train(self, described, seed, epochs, on_progress):
            ap = super().train(described, seed, epochs, on_progress)["ap"]
            return {"ap": ap + 30 * (seed == 0 and described.id == winner)}

    first, _ = run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "first", budget=6)
    winner = first.table().candidate[3]
    table = run_study(searched, Lucky(searched), PROTOCOL, tmp_path / "s", share=False)[0].table()
    again = table[table.source == "confirmed"]
    assert again.candidate.iloc[0] == winner
    assert table[table.source != "confirmed"].trial.max() < again.trial.min()  # once it is known who contends


def test_no_candidate_is_trained_more_often_than_the_plan_says(tmp_path):
    searched = space(neck={**SMALL, "channels": 32}, enqueue="none", budget={"trials": 30, "confirm": 0.9, "seeds": 3})
    study, _ = run_study(searched, Noisy(searched), PROTOCOL, tmp_path / "s")
    table = study.table()
    assert table[table.status == "complete"].groupby("candidate").size().max() <= 3


def test_where_candidates_differ_far_beyond_the_noise_little_is_contested(tmp_path):
    searched = space(budget={"trials": 40, "confirm": 0.5})
    evaluator = InstantEvaluator(searched)
    evaluator.train, plain = (lambda d, seed, e, p: {"ap": 30 * plain(d, 0, e, p)["ap"]}), evaluator.train
    study, _ = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    table = study.table()
    assert (table.source == "confirmed").sum() <= 12
    assert (table.status == "complete").sum() == 40  # the rest went into new candidates


def test_a_further_seed_that_fails_is_not_tried_for_ever(tmp_path):
    searched = space(budget={"trials": 12, "confirm": 0.5})

    class Failing(Noisy):
        def train(self, described, seed, epochs, on_progress):
            if seed % 2:
                raise TrialError("diverged")
            return super().train(described, seed, epochs, on_progress)

    study, result = run_study(searched, Failing(searched), PROTOCOL, tmp_path / "s")
    confirmed = study.table().query("source == 'confirmed'")
    assert result.status == "finished"
    assert not confirmed.duplicated(["candidate", "seed"]).any()
    assert set(confirmed.status) == {"complete", "failed"}


# -- the end ----------------------------------------------------------------------------------------------------


def test_a_front_that_no_longer_grows_ends_the_search(tmp_path):
    searched = space(budget={"trials": 64, "until": "hypervolume-plateau", "patience": 0.25})
    evaluator = InstantEvaluator(searched)
    evaluator.train, plain = (lambda d, s, e, p: {**plain(d, s, e, p), "ap": 20.0}), evaluator.train
    study, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    assert result.status == "plateau"
    assert 16 < result.paid < 64
    again = run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s")[1]
    assert (again.status, again.paid) == ("plateau", result.paid)  # the same command ends where it ended
    assert len(study.table())


def test_a_front_that_grows_is_searched_to_the_end(tmp_path):
    searched = space(budget={"trials": 24, "until": "hypervolume-plateau"})
    evaluator = InstantEvaluator(searched)
    count = iter(range(1000))
    evaluator.train, plain = (lambda d, s, e, p: {**plain(d, s, e, p), "ap": 1.2 ** next(count)}), evaluator.train
    assert run_study(searched, evaluator, PROTOCOL, tmp_path / "s")[1].status == "finished"


def test_hours_end_a_run_and_the_next_one_goes_on(tmp_path):
    searched = space(budget={"trials": 12, "hours": 0.4 / 3600})
    evaluator = InstantEvaluator(searched, train_s=0.1)
    paid = []
    for _ in range(12):
        _, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
        paid.append(result.paid)
        if result.status == "finished":
            break
        assert result.status == "out_of_time"
    assert paid[-1] == 12
    assert len(paid) > 1


def test_a_trial_that_takes_too_long_is_ended_with_its_reason(tmp_path):
    searched = space(enqueue="none", budget={"trials": 3, "trial_minutes": 0.3 / 60})

    class Hanging(InstantEvaluator):
        def train(self, described, seed, epochs, on_progress):
            if not self.trained:
                self.trained.append(described.id)
                time.sleep(30)
            return super().train(described, seed, epochs, on_progress)

    started = time.monotonic()
    study, _ = run_study(searched, Hanging(searched), PROTOCOL, tmp_path / "s")
    assert time.monotonic() - started < 25
    table = study.table()
    assert list(table.status) == ["failed", "complete", "complete"]
    assert table.reason[0] == "timed out after 0.005 minutes"


# -- what others trained ----------------------------------------------------------------------------------------


def test_what_another_study_of_the_protocol_trained_is_not_trained_again(tmp_path):
    first = space(neck=SMALL, enqueue="none", budget={"trials": 8}, objectives={"ap": "maximise", "macs": "minimise"})
    one = InstantEvaluator(first)
    run_study(first, one, PROTOCOL, tmp_path / "first")
    wide = {**SMALL, "channels": {"choices": [32, 48, 64, 80, 96]}}
    second = space(neck=wide, enqueue="none", budget={"trials": 20})
    other = InstantEvaluator(second)
    study, result = run_study(second, other, PROTOCOL, tmp_path / "second", seed=0)
    table = study.table()
    taken = table[table.shared_from != ""]
    assert len(taken) == 8
    assert (taken.shared_from == "first").all()
    assert (taken.paid == 0).all()
    assert (taken.status == "complete").all()
    assert taken.latency_ms.notna().all()  # which the other study did not judge by, so it is measured here
    assert not set(one.trained) & set(other.trained)
    assert (result.status, result.paid, len(other.trained)) == ("exhausted", 2, 2)


def test_other_seeds_other_protocols_and_the_unwilling_share_nothing(tmp_path):
    searched = space(neck=SMALL, enqueue="none", budget={"trials": 8})
    run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "first")
    other = PROTOCOL.model_copy(update={"dataset_hash": "1" * 64})
    for i, (protocol, options) in enumerate([(other, {}), (PROTOCOL, {"seed": 1}), (PROTOCOL, {"share": False})]):
        evaluator = InstantEvaluator(searched)
        study, _ = run_study(searched, evaluator, protocol, tmp_path / f"other{i}", budget=2, **options)
        assert len(evaluator.trained) == 2
        assert (study.table().shared_from == "").all()


def test_a_torn_database_beside_the_study_is_passed_over(tmp_path):
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "study.db").write_bytes(b"SQLite format 3\0" + b"torn" * 400)
    searched = space(budget={"trials": 2})
    assert run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s")[1].paid == 2


# -- the plan ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"budget": {"until": "bored"}}, "budget.until: expected 'hypervolume-plateau', got bored"),
        ({"budget": {"confirm": 1.0}}, "budget.confirm"),
        ({"budget": {"hours": 0}}, "budget.hours"),
        ({"sampler": {"kind": "knowncost"}}, "sampler.kind"),
        ({"rungs": {"rule": "asha"}}, "rungs.rule"),
        ({"rungs": {"epoch": [1]}}, "unknown key 'epoch': did you mean 'epochs'?"),
    ],
)
def test_a_wrong_plan_is_refused_in_one_line(plan, said):
    with pytest.raises(SpaceError) as refused:
        space(training={"epochs": 8}, **plan)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
