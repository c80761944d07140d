"""One contract for every sampler that a space file can name, our own and Optuna's."""

from __future__ import annotations

import random
import warnings

import optuna
import pytest
from optuna.trial import TrialState
from test_search_known_cost import CONDITIONAL, FREE, PLAIN, World

from fpn_bench.search.samplers import SAMPLERS, ProposingSampler, create_sampler
from fpn_bench.search.samplers.parameters import encode, suggest
from fpn_bench.search.space import Constraint, RangeDimension, SamplerConfig, choices_key

BOUND = Constraint("params <= 6000000", "params", 6e6, True)
STEPPED = {**CONDITIONAL, "gain": RangeDimension("gain", 0.5, 2.5, 0.5, False, {})}
BLOCKS = {"plain": PLAIN, "conditional": STEPPED, "free": FREE}


@pytest.fixture(params=sorted(SAMPLERS))
def kind(request):
    return request.param


def world_of(kind: str, block: str = "plain", **options) -> World:
    world = World(BLOCKS[block], **options)
    world.space.sampler = SamplerConfig(kind=kind, startup_trials=3, population=4)
    return world


def study_of(world: World, seed: int = 0, study: optuna.Study | None = None) -> optuna.Study | ProposingSampler:
    """What is asked: a sampler of our own, or a study in memory, which may be one that is there with a new sampler."""
    sampler = create_sampler(world.space, trials=12, seed=seed, candidates=world)
    if isinstance(sampler, ProposingSampler):
        return sampler
    if study is None:
        return optuna.create_study(directions=[o.direction for o in world.space.objectives], sampler=sampler)
    study.sampler = sampler
    return study


def search(world: World, study: optuna.Study | ProposingSampler, count: int) -> list[dict]:
    """Ask and tell as a worker does: infeasible is pruned, broken fails."""
    if isinstance(study, ProposingSampler):
        return world.search(study, count)
    asked = []
    for _ in range(count):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial = study.ask()
            choices = suggest(world.space, trial)
        asked.append(choices)
        facts = world.look_up(choices)
        if facts is None:
            study.tell(trial, state=TrialState.FAIL)
            continue
        violations = {c.text: c.violation(facts.costs[c.name]) for c in world.space.constraints}
        for text, value in violations.items():
            trial.set_constraint(text, value)
        world.taken.add(facts.id)
        if any(value > 0 for value in violations.values()):
            study.tell(trial, state=TrialState.PRUNED)
            continue
        if facts.id not in {o.facts.id for o in world.observed}:
            world.assess(choices)
        study.tell(trial, [world.ap(choices), facts.costs["latency_ms"]])
    return asked


@pytest.mark.parametrize("block", BLOCKS)
def test_what_it_proposes_is_of_the_space(kind, block):
    world = world_of(kind, block)
    asked = search(world, study_of(world), 10)
    assert all(world.space.contains(choices) for choices in asked)
    assert len({choices_key(choices) for choices in asked}) > 1


def test_the_seed_decides(kind):
    runs = []
    for seed in (1, 1, 2):
        world = world_of(kind)
        runs.append(search(world, study_of(world, seed), 9))
    assert runs[0] == runs[1]
    if kind != "brute_force":  # which has an order of its own where it may choose
        assert runs[0] != runs[2]


@pytest.mark.parametrize("kind", sorted({*SAMPLERS} - {"known_cost", "evolution"}))
def test_given_choices_stay_as_they_are(kind):
    world = world_of(kind)
    study = study_of(world)
    rng = random.Random(3)
    given = [world.space.sample(rng) for _ in range(3)]
    for choices in given:
        study.enqueue_trial(encode(world.space, choices))
    assert search(world, study, 3) == given
    assert world.space.contains(search(world, study, 1)[0])


def test_it_goes_on_with_a_study_that_another_began(kind):
    world = world_of("random")
    study = study_of(world)
    search(world, study, 6)
    world.space.sampler = SamplerConfig(kind=kind, startup_trials=3, population=4)
    asked = search(world, study_of(world, 5, study), 6)
    assert all(world.space.contains(choices) for choices in asked)


def test_rejected_and_failed_candidates_are_survived(kind):
    world = world_of(kind, constraints=[BOUND], wrong=lambda choices: choices["k1"] == "b")
    asked = search(world, study_of(world), 14)
    assert all(world.space.contains(choices) for choices in asked)
    assert world.observed


def test_a_sampler_of_our_own_says_what_it_lacks():
    world = world_of("known_cost")
    with pytest.raises(TypeError, match="'known_cost' expects a context"):
        create_sampler(world.space, trials=3, seed=0)


def test_memory_of_the_pool_is_bounded_in_a_large_space(monkeypatch):
    """What was looked up and cannot be proposed is forgotten in the end."""
    from fpn_bench.search.samplers import pool

    monkeypatch.setattr(pool, "_REMEMBERED", 200)
    monkeypatch.setattr(pool, "_SLACK", 8)
    monkeypatch.setattr(pool, "WHOLE", 10)
    world = world_of("known_cost")
    sampler = create_sampler(world.space, trials=60, seed=0, candidates=world)
    sampler._pool._at_most, sampler._pool._look_ups = 40, 16
    for _ in range(60):
        world.assess(sampler.propose(world.history()))
    assert len({o.facts.id for o in world.observed}) == 60
    kept = sampler._pool
    assert len(kept._seen) <= 200
    assert len(kept) <= 40 + 16 * 4 + 8
    assert len(kept.members) == len(kept.batch) == len(kept.scores) <= len(kept) + 8 + 1
    assert not {kept.members[row][1].id for row in kept.open_rows} & (world.taken - {world.observed[-1].facts.id})
