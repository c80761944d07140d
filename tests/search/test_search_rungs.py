from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy.stats import norm
from search_evaluator import PROTOCOL, InstantEvaluator, space

from fpn_bench.errors import SpaceError
from fpn_bench.search import run_study
from fpn_bench.search.rungs import RULES, Extrapolation, Points, Rung, nondominated, reach, to_promote


def at(*standings: dict) -> Rung:
    """A rung from what `standing` says of each candidate."""
    columns = {name: [one[name] for one in standings] for name in standing(0, 0, 0)}
    costs = np.array(columns.pop("costs"), dtype=float).reshape(len(standings), -1)
    return Rung(costs=costs, **{name: np.array(column) for name, column in columns.items()})


def standing(trial, ap, *costs, final=None, sd=0.5, promoted=False) -> dict:
    final = ap if final is None else final
    return {"trials": trial, "ap": ap, "costs": costs, "final_ap": final, "final_sd": sd, "promoted": promoted}


def finished(*points) -> np.ndarray:
    """AP and cost of each."""
    return np.array(points, dtype=float).reshape(len(points), -1) if points else np.empty((0, 2))


# -- the rules --------------------------------------------------------------------------------------------------


def test_nondominated_scores_peel_front_by_front():
    rung = at(standing(0, 5, 1), standing(1, 9, 3), standing(2, 4, 2), standing(3, 8, 4), standing(4, 3, 5))
    scores = nondominated(rung, finished())
    # fronts: {0, 1}, {2, 3} (4 < 5 at cost 2; 8 < 9 at cost 4), {4}
    assert min(scores[0], scores[1]) > max(scores[2], scores[3]) > scores[4]


def test_nondominated_prefers_the_lonely_of_a_front():
    rung = at(*(standing(i, ap, cost) for i, (ap, cost) in enumerate([(1, 1), (2, 2), (2.1, 2.1), (6, 6), (9, 9)])))
    scores = nondominated(rung, finished())
    assert min(scores[0], scores[4]) > scores[3] > max(scores[1], scores[2])


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_an_ap_that_is_no_number_goes_nowhere(rule):
    assert rule(at(standing(0, math.nan, 1), standing(1, 2, 1)), finished())[0] == -math.inf


def test_reach_is_the_hypervolume_expected_at_the_own_cost():
    there = finished((10, 1), (14, 5), (20, 9))
    one = at(standing(0, 0, 6.0, final=15.0, sd=2.0))
    rng = random.Random(0)
    draws = [rng.gauss(15.0, 2.0) for _ in range(200_000)]
    # From its cost to the next front member's, and beyond that one to the reference, a twentieth past the worst cost.
    added = [max(0.0, ap - 14.0) * (9.0 - 6.0) + max(0.0, ap - 20.0) * (9.45 - 9.0) for ap in draws]
    assert reach(one, there)[0] == pytest.approx(sum(added) / len(added), rel=0.02)


def test_what_is_dominated_among_the_finished_changes_nothing():
    rung = at(standing(0, 9, 2), standing(1, 12, 6), standing(2, 15, 8))
    front = finished((10, 1), (14, 5), (20, 9))
    more = np.vstack([front, finished((9, 2), (13, 6), (14, 5), (3, 9))])
    assert reach(rung, more).tolist() == reach(rung, front).tolist()


def test_reach_gives_up_what_has_less_than_one_chance_in_twenty():
    rung = at(*(standing(i, 0, 2, final=10.0 - z, sd=1.0) for i, z in enumerate((norm.ppf(0.94), norm.ppf(0.96)))))
    scores = reach(rung, finished((10, 1)))
    assert scores[0] > -math.inf
    assert scores[1] == -math.inf


def test_reach_without_anything_finished_is_the_whole_volume():
    scores = reach(at(standing(0, 3, 1, sd=0), standing(1, 5, 9, sd=0)), finished())
    assert scores == pytest.approx([3 * (9.45 - 1), 5 * (9.45 - 9)])


def test_dearer_rivals_leave_a_chance():
    assert reach(at(standing(0, 5, 1.0)), finished((50, 1.1)))[0] > 0
    assert reach(at(standing(0, 5, 1.0)), finished((50, 1.0))).tolist() == [-math.inf]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 9, 10])
def test_at_most_the_share_goes_on_and_nobody_twice(rule, n):
    rng = random.Random(n)
    standings = [standing(i, rng.uniform(5, 20), rng.uniform(1, 9), promoted=i % 4 == 0) for i in range(n)]
    rung = at(*standings) if n else Points(1).rung(2, Extrapolation(8, 1))
    chosen = to_promote(rung, finished(), rule=rule, keep=1 / 3)
    assert len(set(chosen)) == len(chosen) <= n // 3
    assert not {i for i in chosen if standings[i]["promoted"]}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_ties_and_no_costs_are_fine(rule):
    rung = at(*(standing(i, 5.0, sd=0.0) for i in range(6)))
    assert len(to_promote(rung, finished((5.0,)), rule=rule, keep=0.5)) in (0, 3)


def test_a_later_point_of_a_key_takes_its_place():
    points = Points(1)
    for key, trial, ap, promoted in (("a", 0, 5.0, False), ("b", 1, 6.0, False), ("a", 2, 7.0, True)):
        points.put(key, trial, ap, [10.0 * trial], promoted=promoted)
    rung = points.rung(8, Extrapolation(8, 1))
    assert (rung.trials.tolist(), rung.ap.tolist(), rung.promoted.tolist()) == ([2, 1], [7.0, 6.0], [True, False])
    assert rung.costs.tolist() == [[20.0], [10.0]]
    assert (rung.final_ap.tolist(), rung.final_sd.tolist()) == ([7.0, 6.0], [0.0, 0.0])


# -- extrapolation ----------------------------------------------------------------------------------------------


def extrapolation(*trained, costs=0) -> Extrapolation:
    learned = Extrapolation(8, costs)
    for curve, its in trained:
        learned.add(curve, its)
    return learned


def of_one(learned: Extrapolation, epochs, ap, *costs) -> tuple[float, float]:
    mean, sd = learned(epochs, [ap], [costs])
    return float(mean[0]), float(sd[0])


def test_extrapolation_recovers_a_plane_and_its_scatter():
    rng = random.Random(1)
    trained = []
    for _ in range(400):
        low, macs = rng.uniform(2, 12), rng.uniform(1e6, 1e8)
        trained.append(({2: low, 8: 6 + 0.8 * low + 0.5 * math.log(macs) + rng.gauss(0, 0.7)}, (macs,)))
    extrapolate = extrapolation(*trained, costs=1)
    mean, sd = of_one(extrapolate, 2, 10.0, 3e7)
    assert mean == pytest.approx(14.0 + 0.5 * math.log(3e7), abs=0.2)
    assert sd == pytest.approx(0.7, rel=0.1)
    assert of_one(extrapolate, 8, 10.0, 3e7) == (10.0, 0.0)


def test_extrapolation_of_many_is_that_of_each():
    learned = extrapolation(*(({2: 1.0 * i, 8: 2.0 * i + i % 3}, (5.0 + i,)) for i in range(9)), costs=1)
    mean, sd = learned(2, [3.0, 7.0], [[6.0], [9.0]])
    assert list(zip(mean, sd, strict=True)) == [of_one(learned, 2, 3.0, 6.0), of_one(learned, 2, 7.0, 9.0)]


def test_extrapolation_of_few_is_cautious():
    assert of_one(extrapolation(), 2, 5.0) == (5.0, 1.0)
    mean, sd = of_one(extrapolation(({2: 5.0, 8: 15.0}, (7.0,)), costs=1), 2, 7.0, 1.0)
    assert mean == 17.0  # as much further as the one that is known
    assert sd == pytest.approx(3.75)


def test_a_cost_that_is_the_same_for_all_says_nothing():
    learned = extrapolation(*(({2: 1.0 * i, 8: 2.0 * i}, (5.0,)) for i in range(6)), costs=1)
    assert of_one(learned, 2, 2.5, 5.0) == of_one(learned, 2, 2.5, 50.0)


def test_curves_that_did_not_pass_the_rung_or_did_not_end_are_left_out():
    curves = [{2: 5.0, 8: 9.0}, {8: 30.0}, {2: 100.0}, {2: 5.0, 8: math.nan}]
    learned = extrapolation(*((curve, ()) for curve in curves))
    assert of_one(learned, 2, 5.0)[0] == 9.0
    assert learned.trained == 2


# -- through the driver -----------------------------------------------------------------------------------------


class Rising(InstantEvaluator):
    """AP rises towards its end; a later call goes on where the last one stopped, which `epochs` logs."""

    def __init__(self, searched):
        super().__init__(searched)
        self.reached: dict[str, int] = {}
        self.epochs = 0

    def train(self, described, seed, epochs, on_progress):
        final = super().train(described, seed, epochs, on_progress)["ap"]
        before = self.reached.get(f"{described.id} {seed}", 0)
        self.reached[f"{described.id} {seed}"] = epochs
        self.epochs += epochs - before
        at = {e: final * (e / 8) ** 0.3 for e in (1, 2, 4, 8)}
        curve = [[e, at[e]] for e in at if e <= epochs]
        return {"ap": at[epochs], "ap_curve": curve, "epochs_trained": epochs - before}


WIDE = {
    "family": {"choices": ["fpn", "pafpn"]},
    "channels": {"range": [16, 128], "step": 8},
    "out_levels": [3, 4, 5],
    "merge": {"choices": ["sum", "fast_normalised", "concat", "max"]},
}


def stepped(**changes):
    rungs = {"epochs": [1, 2, 4], "keep": 1 / 3, **changes.pop("rungs", {})}
    return space(neck=WIDE, training={"epochs": 8}, rungs=rungs, enqueue="none", **changes)


@pytest.mark.parametrize("rule", ["reach", "nondominated"])
@pytest.mark.parametrize("kind", ["known_cost", "tpe", "random"])
def test_rungs_see_more_candidates_for_the_same_epochs(tmp_path, rule, kind):
    searched = stepped(rungs={"rule": rule}, sampler={"kind": kind}, budget={"trials": 8})
    evaluator = Rising(searched)
    study, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    table = study.table()
    assert result.status == "finished"
    assert 8 <= result.paid < 9  # the last trial may go beyond by what it is worth
    assert evaluator.epochs / 8 == pytest.approx(result.paid) == table.paid.sum()
    assert len(evaluator.reached) > 12  # of which 8 could have been trained whole
    assert set(table.status) <= {"complete", "stopped", "continued", "repeat"}
    complete = table[table.status == "complete"]
    assert len(complete) >= 2
    assert (complete.epochs == 8).all()
    assert study.front().candidate.isin(complete.candidate).all()


def test_a_stopped_training_goes_on_in_a_later_trial_and_is_paid_once(tmp_path):
    searched = stepped(sampler={"kind": "random"}, budget={"trials": 12})
    evaluator = Rising(searched)
    study, _ = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    table = study.table().set_index("trial")
    later = table[table.continues.notna()]
    assert len(later)
    for _, row in later.iterrows():
        before = table.loc[row.continues]
        assert (before.candidate, before.status) == (row.candidate, "continued")
        assert row.epochs_trained == row.epochs - before.epochs
        assert row.latency_ms == before.latency_ms
    assert len(evaluator.measured) == len(set(evaluator.measured))  # latency is not measured again
    assert (table.groupby("candidate").epochs_trained.sum() <= 8).all()


def test_a_study_goes_on_with_its_stopped_trainings(tmp_path):
    searched = stepped(sampler={"kind": "random"}, budget={"trials": 4})
    evaluator = Rising(searched)
    for budget in (4, 8, 12):
        study, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s", budget=budget)
        assert budget <= result.paid < budget + 1
    assert evaluator.epochs / 8 == pytest.approx(result.paid)
    assert study.table().continues.notna().any()


def test_published_necks_are_trained_in_one_go(tmp_path):
    searched = space(neck=WIDE, training={"epochs": 8}, rungs={"epochs": [1, 2, 4]}, budget={"trials": 9})
    study, _ = run_study(searched, Rising(searched), PROTOCOL, tmp_path / "s")
    assert (study.table().query("source == 'published'").status == "complete").all()


def test_a_space_that_is_used_up_takes_its_stopped_trainings_to_the_end(tmp_path):
    small = {**WIDE, "channels": {"choices": [16, 32]}}
    searched = space(neck=small, training={"epochs": 8}, rungs={"epochs": [1]}, enqueue="none", budget={"trials": 99})
    study, result = run_study(searched, Rising(searched), PROTOCOL, tmp_path / "s")
    assert result.status == "exhausted"
    left = study.table().query("status == 'stopped'")  # those with no chance are not worth it even then
    assert len(study.table().query("status == 'complete'")) + len(left) == 16


def test_a_single_objective_has_rungs_too(tmp_path):
    searched = stepped(objectives={"ap": "maximise"}, budget={"trials": 6})
    evaluator = Rising(searched)
    _, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    assert result.status == "finished"
    assert len(evaluator.reached) > 10


def test_rungs_beyond_the_training_are_refused():
    with pytest.raises(SpaceError, match=r"expected epochs below the 8 of a whole training, got \[1, 8\]"):
        stepped(rungs={"epochs": [1, 8]})
    with pytest.raises(SpaceError, match=r"ascending epochs"):
        stepped(rungs={"epochs": [4, 2]})
