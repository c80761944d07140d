from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm
from tables import row as make_row

from fpn_bench.analysis import front_probability, make_table, pareto_mask, pooled_sd, with_front_probability

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


def test_a_table_without_second_seeds_knows_no_chance():
    table = make_table(
        [make_row(trial=0, candidate="a", ap=10.0, macs=5), make_row(trial=1, candidate="b", ap=9.0, macs=9)]
    )
    assert with_front_probability(table, OBJECTIVES).front_probability.isna().all()


def test_more_seeds_make_a_table_surer():
    rows = [make_row(trial=t, candidate="a", seed=t, ap=10 + (-1) ** t, macs=5) for t in range(8)]
    rows += [
        make_row(trial=8, candidate="b", seed=0, ap=10.6, macs=5),
        make_row(trial=9, candidate="c", ap=1.0, macs=9),
    ]
    found = with_front_probability(make_table(rows), OBJECTIVES).set_index("candidate").front_probability
    sd = pooled_sd([[11, 9, 11, 9, 11, 9, 11, 9]])
    expected = norm.cdf((10.6 - 10) / (sd * math.sqrt(1 + 1 / 8)))
    assert found["b"] == pytest.approx(expected, abs=0.04)
    assert found["a"] == pytest.approx(1 - expected, abs=0.04)
    assert found["c"] == 0.0
