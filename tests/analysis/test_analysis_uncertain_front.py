from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm
from tables import row as make_row

from fpn_bench.analysis import Objective, front_probability, make_table, pareto_mask, pooled_sd, with_front_probability
from fpn_bench.metrics import Metric, register, unregister

OBJECTIVES = [{"name": "ap", "direction": "maximize"}, {"name": "macs", "direction": "minimize"}]


def test_two_at_one_cost_share_the_front_by_the_chance_of_the_better():
    # Only the higher of two at one cost is on the front: P(a > b) of two normal draws.
    chance = front_probability([[10, 1], [11, 1]], ["maximize", "minimize"], sd=[[1, 0], [1, 0]], draws=20_000)
    expected = norm.cdf(1 / math.sqrt(2))
    assert chance == pytest.approx([1 - expected, expected], abs=0.01)


def test_exact_figures_give_the_front_itself():
    rng = np.random.default_rng(0)
    values = rng.random((40, 3))
    directions = ["maximize", "minimize", "minimize"]
    assert (front_probability(values, directions, sd=0.0, draws=3) == pareto_mask(values, directions)).all()


def test_what_is_out_of_reach_has_no_chance_and_changes_nothing():
    near = front_probability([[10, 1], [11, 1]], ["maximize", "minimize"], sd=[[1, 0], [1, 0]], seed=3)
    values = [[10, 1], [11, 1], [-50, 2], [math.nan, 1]]
    sd = [[1, 0], [1, 0], [1, 0], [1, 0]]
    assert list(front_probability(values, ["maximize", "minimize"], sd=sd, seed=3)) == [*near, 0.0, 0.0]


@pytest.mark.parametrize("n", [0, 1])
def test_none_and_one(n):
    values = np.ones((n, 2))
    assert list(front_probability(values, ["maximize", "minimize"], sd=1.0)) == [1.0] * n


def test_pooled_sd_is_the_root_mean_square_within():
    assert pooled_sd([[1, 3], [10, 10, 13], [7]]) == pytest.approx(math.sqrt((2 + 6) / 3))
    assert math.isnan(pooled_sd([[1], []]))
    assert pooled_sd([[1, 3, math.nan], [math.nan, 7]]) == pytest.approx(math.sqrt(2))


def test_without_second_seeds_the_tables_spread_is_taken():
    """Two at one cost, 1 AP apart, with 1.05 AP of noise each: less sure than without shrinkage, surer than a coin."""
    rows = [make_row(trial=0, candidate="a", ap=10.0, macs=5), make_row(trial=1, candidate="b", ap=9.0, macs=5)]
    chance = with_front_probability(make_table(rows), OBJECTIVES).front_probability
    assert 0.55 < chance[0] < norm.cdf(1 / (1.05 * math.sqrt(2)))
    assert chance.sum() == pytest.approx(1)


def test_more_seeds_make_a_table_surer():
    def chance(seeds: int) -> float:
        rows = [make_row(trial=t, candidate="a", seed=t, ap=10 + 0.5 * (-1) ** t, macs=5) for t in range(seeds)]
        rows += [make_row(trial=90 + t, candidate="b", seed=t, ap=11 + 0.5 * (-1) ** t, macs=5) for t in range(seeds)]
        rows += [make_row(trial=99, candidate="c", ap=1.0, macs=9)]
        found = with_front_probability(make_table(rows), OBJECTIVES).set_index("candidate").front_probability
        assert found["c"] == 0.0
        return found["b"]

    assert 0.5 < chance(2) < chance(8) < 1


@pytest.mark.parametrize("objective", ["energy_j", "train_s"])
def test_of_what_nobody_knows_the_scatter_the_chance_is_not_known(objective):
    objectives = [OBJECTIVES[0], {"name": objective, "direction": "minimize"}]
    rows = [make_row(trial=t, candidate=name, ap=10.0, **{objective: 5.0 + t}) for t, name in enumerate("ab")]
    assert with_front_probability(make_table(rows), objectives).front_probability.isna().all()
    again = [make_row(trial=9, candidate="a", seed=1, ap=10.0, **{objective: 5.4})]
    known = with_front_probability(make_table(rows + again), objectives).front_probability
    assert ((known > 0.02) & (known <= 1)).all()


def test_ap_like_objectives_scatter_as_ap_does():
    objectives = [{"name": "ap50", "direction": "maximize"}, OBJECTIVES[1]]
    rows = [make_row(trial=t, candidate=name, ap50=30.0 + t, macs=5) for t, name in enumerate("ab")]
    chance = with_front_probability(make_table(rows), objectives).front_probability
    assert 0.2 < chance[0] < 0.5 < chance[1] < 0.8


def test_what_is_counted_needs_no_seeds():
    objectives = [{"name": "params", "direction": "minimize"}, OBJECTIVES[1]]
    rows = [make_row(trial=t, candidate=name, params=10 + t, macs=5 + t) for t, name in enumerate("ab")]
    assert list(with_front_probability(make_table(rows), objectives).front_probability) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "direction", "sd", "seeds"),
    [("ap50", "maximize", 1.8, 1), ("ap75", "maximize", 2.1, 2), ("loss", "minimize", 0.3, 2)],
)
def test_chances_of_any_trained_objective_are_what_comes_true(name, direction, sd, seeds):
    """Studies are drawn whose truth is known: as many necks are truly on the front as the chances add up to."""
    loss = Metric("loss", "Loss", "minimize", "trained", noise="seeds")
    rng = np.random.default_rng(5)
    objectives, directions = [Objective(name, direction), Objective("macs", "minimize")], [direction, "minimize"]
    expected, true, sure, kept = 0.0, 0, 0, 0
    register(loss)
    try:
        for _ in range(60):
            macs = np.arange(1, 9)
            truth = 30 + rng.normal(0, 2.5 * sd, 8)
            rows = [
                make_row(trial=8 * seed + i, candidate=f"c{i}", seed=seed, macs=int(macs[i]))
                | {name: truth[i] + rng.normal(0, sd)}
                for seed in range(seeds)
                for i in range(8)
            ]
            chance = with_front_probability(make_table(rows), objectives).front_probability.to_numpy()
            on_front = pareto_mask(np.column_stack([truth, macs]), directions)
            expected, true = expected + chance.sum(), true + on_front.sum()
            likely = (chance > 0.8) & (macs > 1)  # the cheapest is on it for certain
            sure, kept = sure + likely.sum(), kept + on_front[likely].sum()
    finally:
        unregister("loss")
    assert expected == pytest.approx(true, rel=0.1)
    assert sure > 20
    assert 0.78 < kept / sure <= 1


def test_what_is_the_same_in_all_seeds_and_not_known_beforehand_says_nothing():
    register(Metric("loss", "Loss", "minimize", "trained", noise="seeds"))
    try:
        rows = [make_row(trial=t, candidate="ab"[t % 2], seed=t // 2, macs=5) | {"loss": 1.0 + t % 2} for t in range(4)]
        objectives = [Objective("loss", "minimize"), Objective("macs", "minimize")]
        assert with_front_probability(make_table(rows), objectives).front_probability.isna().all()
        rows[0]["loss"] = 1.2
        assert with_front_probability(make_table(rows), objectives).front_probability.between(0, 1).all()
    finally:
        unregister("loss")
