"""Hypervolume against hand-drawn rectangles and dice."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tables import OBJECTIVES, UNTRAINED, realistic_table, row

from fpn_bench.analysis import (
    empty_table,
    front,
    hypervolume,
    hypervolume_over_trials,
    make_table,
    objective_values,
    parse_objectives,
    reference_point,
)
from fpn_bench.errors import InputError


def test_two_rectangles_by_hand() -> None:
    # Maximise y, minimise x, reference (x=10, y=0): 6 x 5 for (4, 5), and 2 x 2 more for (2, 2).
    assert hypervolume([[4, 5], [2, 2], [9, 1], [4, 5]], ["minimize", "maximize"], [10, 0]) == 6 * 5 + 2 * 2


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_dice_agree(objectives: int) -> None:
    rng = np.random.default_rng(objectives)
    points = rng.random((12, objectives))
    dice = rng.random((200_000, objectives))
    covered = np.zeros(len(dice), dtype=bool)
    for point in points:
        covered |= (dice >= point).all(axis=1)
    assert hypervolume(points, ["minimize"] * objectives, [1.0] * objectives) == pytest.approx(
        covered.mean(), abs=0.005
    )


def test_what_does_not_count() -> None:
    down = ["minimize", "minimize"]
    assert hypervolume(np.empty((0, 2)), down, [1, 1]) == 0
    assert hypervolume([[2, 0], [0, 2], [1, 0.5]], down, [1, 1]) == 0
    assert hypervolume([[math.nan, 0], [-math.inf, 0], [0.5, 0.5]], down, [1, 1]) == 0.25
    with pytest.raises(InputError, match="reference of 3"):
        hypervolume([[0, 0]], down, [1, 1, 1])


def test_reference_is_the_worst_that_finished() -> None:
    table = make_table(
        [row(0, ap=20.0, macs=100), row(1, ap=25.0, macs=300), row(2, status="rejected", macs=999, **UNTRAINED)]
    )
    assert reference_point(table, OBJECTIVES) == (20.0, 300.0)
    assert all(math.isnan(v) for v in reference_point(empty_table(), OBJECTIVES))


def test_over_trials_by_hand() -> None:
    table = make_table(
        [
            row(0, ap=20.0, macs=100),
            row(1, status="rejected", reason="too slow", **UNTRAINED),
            row(2, ap=24.0, macs=200, seed=0),
            row(2, ap=26.0, macs=200, seed=1),
            row(3, ap=10.0, macs=300),
            row(4, status="running", **UNTRAINED),
        ]
    )
    curve = hypervolume_over_trials(table, OBJECTIVES)
    assert curve["trial"].tolist() == [0, 1, 2, 3]
    assert curve["step"].tolist() == [1, 2, 3, 4]
    # reference (10, 300): 10 x 200; then 15 x 100 of (25, 200), of which 10 x 100 are covered already
    assert curve["hypervolume"].tolist() == [2000.0, 2000.0, 2500.0, 2500.0]


@pytest.mark.parametrize("costs", [["macs"], ["macs", "latency_ms"], ["macs", "latency_ms", "params"], []])
def test_curve_rises_to_the_front_s_own_volume(costs: list[str]) -> None:
    objectives = parse_objectives([OBJECTIVES[0], *({"name": c, "direction": "minimize"} for c in costs)])
    table = realistic_table(80, seeds=2)
    curve = hypervolume_over_trials(table, objectives)["hypervolume"].to_numpy()
    assert (np.diff(curve) >= 0).all()
    values = objective_values(front(table, objectives), objectives)
    whole = hypervolume(values, [o.direction for o in objectives], reference_point(table, objectives))
    assert curve[-1] == pytest.approx(whole)


def test_a_given_reference_is_used_and_nothing_is_no_curve() -> None:
    table = make_table([row(0, ap=20.0, macs=100)])
    assert hypervolume_over_trials(table, OBJECTIVES)["hypervolume"].tolist() == [0.0]
    assert hypervolume_over_trials(table, OBJECTIVES, reference=(0, 200))["hypervolume"].tolist() == [2000.0]
    assert len(hypervolume_over_trials(empty_table(), OBJECTIVES)) == 0
