"""Evolution: who counts as better, and what children are made of. What it may propose: test_search_known_cost.py."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from fpn_bench.analysis.pareto import _crowding, best_first
from fpn_bench.analysis.rows import Objective
from fpn_bench.search.records import Facts, History, Observed
from fpn_bench.search.samplers.evolution import EvolutionSampler
from fpn_bench.search.space import ChoiceDimension, ChoiceSpace, choices_key

DIRECTIONS = ["maximize", "minimize"]
OBJECTIVES = (Objective("ap", "maximize"), Objective("params", "minimize"))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_a_dominated_candidate_is_behind_those_that_dominate_it(rows):
    values = np.array(rows, dtype=float)
    order = list(best_first(values, DIRECTIONS))
    assert sorted(order) == list(range(len(rows)))
    for place, i in enumerate(order):
        for j in order[place + 1 :]:
            assert not (rows[j] != rows[i] and rows[j][0] >= rows[i][0] and rows[j][1] <= rows[i][1])


def test_what_is_not_known_is_last():
    assert list(best_first(np.array([[np.nan, 1.0], [1.0, 5.0], [2.0, 4.0]]), DIRECTIONS)) == [2, 1, 0]


def test_crowding_by_hand():
    """Ends are free; the second stands between 0 and 4 of 10 in both objectives, the third between 1 and 10."""
    room = _crowding(np.array([[0.0, 0.0], [1.0, 1.0], [4.0, 4.0], [10.0, 10.0]]))
    assert_allclose(room, [np.inf, 0.8, 1.8, np.inf])


def search(seed: int, crossing: float) -> tuple[ChoiceSpace, list[Observed]]:
    space = ChoiceSpace({f"k{i}": ChoiceDimension(f"k{i}", tuple(range(4)), {}) for i in range(5)}, OBJECTIVES)
    observed: list[Observed] = []
    context = SimpleNamespace(
        look_up=lambda choices: Facts(choices_key(choices), {"params": 1.0 + sum(choices.values())}),
        history=lambda: History(observed, taken={o.facts.id for o in observed}),
    )
    sampler = EvolutionSampler(space, context, seed=seed, population=6, crossing=crossing)
    for _ in range(60):
        choices = sampler.propose(context.history())
        assert choices is not None
        observed.append(Observed(choices, context.look_up(choices), float(sum(v * v for v in choices.values()))))
    return space, observed


def test_a_child_without_crossing_is_one_change_from_its_parent():
    _, observed = search(0, 0.0)
    for i, child in enumerate(observed[6:], start=6):
        assert any(sum(child.choices[k] != p.choices[k] for k in p.choices) == 1 for p in observed[:i])


def test_it_finds_more_than_chance():
    """Mean over seeds of the best of 60, against as many draws; 45 is the most there is, once in 1,024."""

    def drawn(space: ChoiceSpace, seed: int) -> int:
        rng = random.Random(seed)
        return max(sum(v * v for v in space.sample(rng).values()) for _ in range(60))

    found, chance = [], []
    for seed in range(5):
        space, observed = search(seed, 0.5)
        found.append(max(o.ap for o in observed))
        chance.append(drawn(space, seed))
    assert np.mean(found) > np.mean(chance) + 3
