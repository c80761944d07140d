from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from fpn_bench.analysis import Retrained, agreement, kendall_tau, longest, proxy_trust, retrained_of
from fpn_bench.analysis.proxy import cost_bands
from fpn_bench.errors import InputError

SCORES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=30)


@given(SCORES)
@settings(max_examples=200, deadline=None)
def test_tau_is_scipy_s_ties_and_all(scores) -> None:
    x, y = np.array(scores, dtype=float).T
    ours, theirs = kendall_tau(x, y), float(kendalltau(x, y).statistic)
    assert ours == pytest.approx(theirs, abs=1e-12, nan_ok=True)


def test_within_bands_only_pairs_of_a_band_count() -> None:
    x, y = [1, 2, 3, 4], [2, 1, 4, 3]
    assert kendall_tau(x, y) == pytest.approx(2 / 6)  # four pairs agree, two do not
    assert kendall_tau(x, y, [0, 0, 1, 1]) == -1  # the two that do not are all there is
    assert math.isnan(kendall_tau(x, y, [0, 1, 2, 3]))
    with pytest.raises(InputError, match="expected as many x as y and bands, got 4, 3 and 4"):
        kendall_tau(x, y[:3])


def test_bands_are_equal_in_size_and_keep_ties_together() -> None:
    assert cost_bands([3, 1, 2, 6, 5, 4]).tolist() == [1, 0, 0, 2, 2, 1]
    assert cost_bands([1, 1, 1, 1, 2, 3]).tolist() == [0, 0, 0, 0, 2, 2]
    assert cost_bands([]).tolist() == []


def test_few_candidates_say_nothing_and_what_is_no_number_is_left_out() -> None:
    assert math.isnan(agreement([1, 2, 3, 4], [1, 2, 3, 4]).tau)
    found = agreement([1, 2, 3, 4, 5, math.nan], [1, 2, 3, 4, 5, 6])
    assert (found.tau, found.low, found.high, found.candidates) == (1, 1, 1, 5)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Bivariate normal: tau is 2 / pi arcsin(rho) (Greiner's relation)."""
    rng, rho, covered = np.random.default_rng(0), 0.7, 0
    truth = 2 / math.pi * math.asin(rho)
    for repeat in range(40):
        x = rng.standard_normal(40)
        y = rho * x + math.sqrt(1 - rho**2) * rng.standard_normal(40)
        found = agreement(x, y, seed=repeat)
        covered += found.low <= truth <= found.high
    assert covered >= 34  # of 40 at 95 %: fewer happens once in a hundred


def made_up(n: int, seeds: int, noise: float, *, cost_matters: bool = False) -> list[Retrained]:
    rng = np.random.default_rng(1)
    cost = rng.permutation(n).astype(float)
    quality = cost / 10 if cost_matters else rng.standard_normal(n)
    return [
        Retrained(
            f"c{i}",
            f"neck {i}",
            cost[i],
            {seed: float(quality[i] + noise * rng.standard_normal()) for seed in range(seeds)},
            {0: float(quality[i])},
        )
        for i in range(n)
    ]


def test_without_noise_all_rankings_agree() -> None:
    trust = proxy_trust(made_up(24, 2, 0.0))
    assert [found.tau for _, found in trust.told()] == [1, 1, 1, 1]
    assert (trust.whole.candidates, trust.top.candidates) == (24, 6)


def test_that_larger_is_better_does_not_make_a_proxy_good() -> None:
    """Quality follows cost alone, and the short training sees nothing but cost and noise."""
    trust = proxy_trust(made_up(60, 2, 0.7, cost_matters=True))
    assert trust.whole.tau > 0.6
    assert trust.bands.tau < trust.whole.tau - 0.15
    assert trust.top.tau < trust.whole.tau - 0.2


def test_one_seed_cannot_choose_and_rank() -> None:
    trust = proxy_trust(made_up(24, 1, 0.5))
    assert (trust.top, trust.seeds) == (None, None)
    assert not math.isnan(trust.whole.tau)


def test_a_quarter_of_few_is_no_top() -> None:
    assert proxy_trust(made_up(16, 2, 0.5)).top is None
    assert proxy_trust(made_up(20, 2, 0.5)).top.candidates == 5


def test_a_seed_by_which_all_are_tied_says_nothing() -> None:
    drawn = [replace(r, short={0: r.short[0], 1: 3.0}) for r in made_up(24, 2, 0.0)]
    trust = proxy_trust(drawn)
    assert trust.top.tau == 1  # chosen by seed 1, which ties all, and ranked by seed 0
    assert math.isnan(trust.seeds.tau)


def test_of_several_the_longest_that_enough_had_is_told() -> None:
    short = {"times": 2, "candidates": [{}] * 30}
    long, begun = {"times": 4, "candidates": [{}] * 9}, {"times": 8, "candidates": [{}] * 2}
    assert longest({"2": short, "4": long, "8": begun}) == long
    assert longest({"8": begun, "16": {"times": 16, "candidates": []}}) == begun
    assert longest({}) is longest(None) is None


def test_nothing_trained_longer() -> None:
    trust = proxy_trust([])
    assert (trust.whole.candidates, math.isnan(trust.whole.tau), trust.top) == (0, True, None)


def test_what_is_kept_with_a_study_is_read() -> None:
    row = {"candidate": "a", "label": "fpn", "macs": 10, "short": {"0": 1, "1": 2.5}, "long": {"0": 3}}
    assert retrained_of({"cost": "macs", "candidates": [row]}) == [
        Retrained("a", "fpn", 10.0, {0: 1.0, 1: 2.5}, {0: 3.0})
    ]
