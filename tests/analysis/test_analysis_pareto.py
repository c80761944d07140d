"""The Pareto front against its definition, pair by pair."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tables import OBJECTIVES, UNTRAINED, realistic_table, row

from fpn_bench.analysis import empty_table, front, make_table, pareto_mask
from fpn_bench.errors import InputError, ProtocolError, UnknownNameError

# A coarse grid makes ties and duplicates common; the floats bring tiny and huge values.
VALUE = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 2.0, 3.0, float("inf"), float("-inf"), float("nan")]), st.floats(width=64)
)


def by_definition(values: np.ndarray, directions: list[str]) -> list[bool]:
    def at_least_as_good(a: float, b: float, direction: str) -> bool:
        return a >= b if direction == "maximize" else a <= b

    def dominates(p: np.ndarray, q: np.ndarray) -> bool:
        return all(map(at_least_as_good, p, q, directions)) and any(a != b for a, b in zip(p, q, strict=True))

    known = [p for p in values if not np.isnan(p).any()]
    return [not np.isnan(q).any() and not any(dominates(p, q) for p in known) for q in values]


@given(st.data(), st.integers(1, 5), st.integers(0, 24))
def test_mask_is_the_definition(data: st.DataObject, objectives: int, points: int) -> None:
    values = data.draw(hnp.arrays(np.float64, (points, objectives), elements=VALUE))
    directions = data.draw(
        st.lists(st.sampled_from(["minimize", "maximize"]), min_size=objectives, max_size=objectives)
    )
    assert pareto_mask(values, directions).tolist() == by_definition(values, directions)


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_mask_on_many_points(objectives: int) -> None:
    values = np.random.default_rng(0).integers(0, 40, (400, objectives)).astype(float)
    directions = ["maximize", *["minimize"] * (objectives - 1)]
    assert pareto_mask(values, directions).tolist() == by_definition(values, directions)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(InputError, match=r"got 1 for shape \(3, 2\)"):
        pareto_mask(np.zeros((3, 2)), ["minimize"])
    with pytest.raises(UnknownNameError):
        pareto_mask(np.zeros((3, 1)), ["down"])


def test_front_takes_complete_rows_only() -> None:
    best = {"ap": 99.0, "macs": 1}
    table = make_table(
        [
            row(0, ap=20.0, macs=100),
            row(1, ap=22.0, macs=200),
            row(2, ap=19.0, macs=150),
            row(3, **best, status="rejected", reason="latency_ms 30 > 24"),
            row(4, **best, status="failed", reason="loss became NaN"),
            row(5, **best, status="repeat"),
            row(6, **best, status="running"),
            row(7, macs=1, **UNTRAINED),
        ]
    )
    assert front(table, OBJECTIVES)["trial"].tolist() == [1, 0]


def test_front_collapses_seeds_and_repeats() -> None:
    same = {"candidate": "x", "macs": 100}
    table = make_table(
        [
            row(0, **same, seed=0, ap=30.0),
            row(0, **same, seed=1, ap=10.0),
            row(1, **same, seed=0, ap=30.0, status="repeat"),
            row(2, **same, seed=0, ap=30.0),
            row(3, ap=21.0, macs=100),
        ]
    )
    on_front = front(table, OBJECTIVES)
    assert on_front["trial"].tolist() == [3]  # the mean of 30 and 10 is 20: a lucky seed is no front member
    alone = front(table[table["candidate"] == "x"], OBJECTIVES)
    assert alone[["ap", "seeds"]].to_numpy().tolist() == [[20.0, 2]]


def test_front_of_nothing_is_empty() -> None:
    assert len(front(empty_table(), OBJECTIVES)) == 0
    assert len(front(make_table([row(0, status="failed", **UNTRAINED)]), OBJECTIVES)) == 0


def test_front_refuses_two_protocols() -> None:
    table = make_table([row(0), row(1, protocol="other", ap=30.0)])
    with pytest.raises(ProtocolError):
        front(table, OBJECTIVES)
    assert front(table, OBJECTIVES, mix_protocols=True)["trial"].tolist() == [1]


def test_front_of_a_search_is_mutually_non_dominated() -> None:
    on_front = front(realistic_table(200), OBJECTIVES)
    assert len(on_front) > 3
    for (_, a), (_, b) in itertools.permutations(on_front.iterrows(), 2):
        assert not (a["ap"] >= b["ap"] and a["macs"] <= b["macs"] and (a["ap"], a["macs"]) != (b["ap"], b["macs"]))
