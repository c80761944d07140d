"""Intervals and verdicts against scipy, and their edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tables import UNTRAINED, row

from fpn_bench.analysis import (
    Scatter,
    Truths,
    bootstrap_difference,
    by_candidate,
    compare,
    empty_table,
    make_table,
    mean_interval,
    seed_scatter,
)
from fpn_bench.analysis.noise import simultaneous_factor
from fpn_bench.errors import InputError

SEEDS = st.lists(st.floats(0.5, 60), min_size=2, max_size=8, unique=True)


@given(SEEDS)
def test_mean_interval_is_scipy_s(values: list[float]) -> None:
    interval = mean_interval(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx((low, high))
    assert (interval.value, interval.count) == (pytest.approx(np.mean(values)), len(values))


def test_mean_interval_edges() -> None:
    one = mean_interval([20.0, math.nan])
    assert (one.value, one.count) == (20.0, 1)
    assert all(math.isnan(v) for v in (one.low, one.high, one.sd))
    none = mean_interval([])
    assert (math.isnan(none.value), none.count) == (True, 0)
    with pytest.raises(InputError, match=r"0\.95"):
        mean_interval([1, 2], confidence=95)


@given(SEEDS, SEEDS)
def test_welch_is_scipy_s(a: list[float], b: list[float]) -> None:
    comparison = compare(a, b)
    truth = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (comparison.low, comparison.high) == pytest.approx((truth.low, truth.high), rel=1e-6, abs=1e-9)
    mirrored = compare(b, a)
    assert mirrored.difference == pytest.approx(-comparison.difference)
    opposite = {"better": "worse", "worse": "better"}
    assert mirrored.verdict == opposite.get(comparison.verdict, comparison.verdict)


@pytest.mark.parametrize(
    ("a", "b", "options", "verdict"),
    [
        ([20.1, 20.6, 21.0], [16.0, 15.7, 16.4], {}, "better"),
        ([16.0, 15.7, 16.4], [20.1, 20.6, 21.0], {}, "worse"),
        ([8.0, 8.1, 8.05], [9.0, 9.1, 9.2], {"direction": "minimize"}, "better"),
        ([20.1, 20.6, 21.0], [20.3, 20.5, 20.9], {}, "unclear"),
        ([20.50, 20.52, 20.51], [20.53, 20.52, 20.50], {"margin": 0.5}, "same"),
        ([20.50, 20.51], [20.40, 20.41], {"margin": 0.5}, "same"),
        ([20.0, 20.0], [20.0, 20.0], {}, "same"),
        ([21.0, 21.0], [20.0, 20.0], {}, "better"),
        ([30.0], [10.0, 11.0, 12.0], {}, "unclear"),
        ([30.0], [10.0], {"margin": 100.0}, "unclear"),
        ([], [10.0, 11.0], {}, "unclear"),
        ([math.nan, 30.0], [10.0, 10.1], {}, "unclear"),
    ],
)
def test_verdicts(a: list[float], b: list[float], options: dict[str, object], verdict: str) -> None:
    assert compare(a, b, **options).verdict == verdict  # type: ignore[arg-type]


def test_ratio() -> None:
    comparison = compare([8.0, 8.2, 8.1], [4.0, 4.1, 4.05])
    assert comparison.ratio == pytest.approx(2.0)
    assert comparison.ratio_low < 2.0 < comparison.ratio_high
    assert math.isnan(compare([0.0, 1.0], [1.0, 2.0]).ratio)


def test_one_seed_still_tells_the_difference() -> None:
    comparison = compare([30.0], [10.0])
    assert comparison.difference == 20.0
    assert math.isnan(comparison.low)


def test_bootstrap() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(10, 1, 200), rng.normal(9, 1, 300)
    drawn = bootstrap_difference(a, b, statistic=np.mean)
    welch = compare(a, b)
    assert drawn.value == pytest.approx(welch.difference)
    assert (drawn.low, drawn.high) == pytest.approx((welch.low, welch.high), abs=0.03)
    assert drawn == bootstrap_difference(a, b, statistic=np.mean)
    assert math.isnan(bootstrap_difference([1.0], [2.0, 3.0]).low)
    assert math.isnan(bootstrap_difference([], [2.0]).value)


def test_by_candidate() -> None:
    table = make_table(
        [
            row(0, candidate="x", seed=0, ap=20.0, train_s=40.0),
            row(1, candidate="y", seed=0, ap=18.0),
            row(0, candidate="x", seed=1, ap=22.0, train_s=44.0),
            row(5, candidate="x", seed=1, ap=99.0),
            row(2, candidate="z", status="failed", **UNTRAINED),
        ]
    )
    candidates = by_candidate(table).set_index("candidate")
    assert candidates.index.tolist() == ["x", "y"]
    x, y = candidates.loc["x"], candidates.loc["y"]
    assert (x["ap"], x["seeds"], x["train_s"]) == (21.0, 2, 84.0)
    # x's own variance is 2 with 1 degree of freedom, the prior's 1.05^2 with 10.
    half = stats.t.ppf(0.975, 11) * ((10 * 1.05**2 + 2) / 11) ** 0.5
    assert (x["ap_low"], x["ap_high"]) == pytest.approx((21 - half / 2**0.5, 21 + half / 2**0.5))
    assert (y["ap_low"], y["ap_high"]) == pytest.approx((18 - half, 18 + half))
    assert (x["ap_sd"], math.isnan(y["ap_sd"])) == (pytest.approx(2**0.5), True)
    assert len(by_candidate(empty_table())) == 0


def test_one_value_is_judged_by_how_such_values_are_known_to_scatter() -> None:
    # Student's t with 10 degrees of freedom at 0.975 is 2.228; the error of 1 against 4 values is sd * sqrt(1 + 1/4).
    half = 2.228139 * 0.8 * (1 + 1 / 4) ** 0.5
    found = compare([25.0], [20.0, 21.0, 19.0, 20.0], typical_sd=0.8, typical_freedom=10)
    assert (found.low, found.high) == (pytest.approx(5.0 - half), pytest.approx(5.0 + half))
    assert found.verdict == "better"
    assert compare([21.0], [20.0], typical_sd=0.8, typical_freedom=10).verdict == "unclear"
    assert compare([], [20.0], typical_sd=0.8, typical_freedom=10).verdict == "unclear"


def test_what_a_candidate_cost_counts_the_earlier_pieces_of_its_training() -> None:
    rows = [
        row(0, status="continued", train_s=4.0, total_s=5.0, ap=9.0),
        row(0, train_s=10.0, total_s=12.0) | {"trial": 1},
        row(0, seed=1, train_s=20.0, total_s=21.0) | {"trial": 2},
        row(0, seed=1, train_s=20.0, total_s=21.0) | {"trial": 3},  # the same training again
    ]
    (candidate,) = by_candidate(make_table(rows)).to_dict("records")
    assert (candidate["train_s"], candidate["total_s"]) == (34.0, 38.0)
    assert candidate["ap"] == 20.0


def test_the_known_scatter_is_taken_whatever_their_own() -> None:
    """By hand: 1.5 +- t(40) 0.7 sqrt(1 / 3 + 1 / 2)."""
    found = compare([3.0, 5.0, 7.0], [3.0, 4.0], typical_sd=0.7, typical_freedom=40)
    half = 2.0210754 * 0.7 * (5 / 6) ** 0.5
    assert (found.difference, found.low, found.high) == pytest.approx((1.5, 1.5 - half, 1.5 + half), rel=1e-6)
    assert found.verdict == "better"


@given(st.lists(st.integers(150, 250).map(lambda v: v / 10), min_size=2, max_size=5))
def test_more_seeds_never_give_wider_intervals(values: list[float]) -> None:
    """With the scatter known, each further seed of either narrows the difference's interval."""
    known = {"typical_sd": 1.0, "typical_freedom": 11}
    widths = [(c := compare(values[:n], values[:n], **known)).high - c.low for n in range(1, len(values) + 1)]  # type: ignore[arg-type]
    assert widths == sorted(widths, reverse=True)


@settings(max_examples=10, deadline=None)
@given(st.integers(100, 250).map(lambda v: v / 10), st.integers(1, 4))
def test_equal_seeds_do_not_make_the_spread_zero(ap: float, pairs: int) -> None:
    rows = [row(i, candidate=f"c{i}", seed=seed, ap=ap) for i in range(pairs) for seed in (0, 1)]
    scatter = seed_scatter(make_table(rows))
    assert scatter.sd == pytest.approx(1.05 * (10 / (10 + pairs)) ** 0.5)
    assert (scatter.freedom, scatter.replicates) == (10 + pairs, pairs)


def test_the_simultaneous_factor_is_tukeys() -> None:
    """Studentized range, 95 %: q(3, 10) is 3.877, q(10, 20) is 5.008 (tables of Harter 1960)."""
    assert simultaneous_factor(3, 10) == pytest.approx(3.877 / 2**0.5, abs=1e-3)
    assert simultaneous_factor(10, 20) == pytest.approx(5.008 / 2**0.5, abs=1e-3)
    assert simultaneous_factor(2, 10) == pytest.approx(stats.t.ppf(0.975, 10), abs=1e-6)
    assert 1 < simultaneous_factor(61, 50) / simultaneous_factor(60, 50) < 1.07
    assert math.isnan(simultaneous_factor(1, 10))


def test_true_values_of_equals_come_together_and_what_stands_out_stays() -> None:
    rng = np.random.default_rng(0)
    equal = 15 + rng.standard_normal(80)
    truths = Truths(equal, np.ones(80), Scatter(1.0, 50))
    best = truths.draw(equal[[equal.argmax()]], np.ones(1))
    assert best.mean() < equal.max() - 1
    apart = np.append(equal, 30.0)
    assert Truths(apart, np.ones(81), Scatter(1.0, 50)).draw([30.0], [1]).mean() == pytest.approx(30, abs=1.2)


def test_many_seeds_leave_nothing_to_shrink() -> None:
    means = [10.0, 12.0, 15.0]
    drawn = Truths(means, [400] * 3, Scatter(1.0, 1000)).draw(means, [400] * 3)
    assert drawn.mean(axis=0) == pytest.approx(means, abs=0.03)
    assert drawn.std(axis=0) == pytest.approx(0.05, abs=0.02)


def test_the_order_of_candidates_changes_no_draw() -> None:
    means, counts, scatter = [10.0, 12.0, 15.0], [1, 2, 1], Scatter(1.0, 20)
    one, other = Truths(means, counts, scatter), Truths(means[::-1], counts[::-1], scatter)
    assert (one.draw([12.0], [2]) == other.draw([12.0], [2])).all()
