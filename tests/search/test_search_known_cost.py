"""The known-cost sampler: its score against brute force, its process against the textbook, what it may propose."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats
from scipy.optimize import check_grad

from fpn_bench.analysis.hypervolume import hypervolume
from fpn_bench.analysis.rows import Objective
from fpn_bench.graph import count_tokens
from fpn_bench.search.records import Facts, History, Observed
from fpn_bench.search.samplers.base import ProposingSampler, crossover
from fpn_bench.search.samplers.evolution import EvolutionSampler
from fpn_bench.search.samplers.gp import Encoder, GaussianProcess, Kernel, _unlikeliness
from fpn_bench.search.samplers.improvement import expected_hypervolume_improvement, expected_improvement, winsorised
from fpn_bench.search.samplers.known_cost import KnownCostSampler
from fpn_bench.search.space import (
    ChoiceDimension,
    Choices,
    ChoiceSpace,
    Constraint,
    FreeDimension,
    RangeDimension,
    choices_key,
)
from fpn_bench.zoo.merging_cells import MergingCells
from fpn_bench.zoo.pyramid_dags import PyramidDags

AP, LATENCY, PARAMS = (
    Objective("ap", "maximize"),
    Objective("latency_ms", "minimize"),
    Objective("params", "minimize"),
)
WORDS = ("a", "b", "c", "d")
PLAIN = {f"k{i}": ChoiceDimension(f"k{i}", WORDS, {}) for i in range(4)}
CONDITIONAL = {
    "family": ChoiceDimension("family", ("fpn", "pafpn"), {}),
    "merge": ChoiceDimension("merge", ("sum", "max"), {}),
    "repeats": RangeDimension("repeats", 1, 4, 1, False, {"family": ("pafpn",)}),
    "gain": RangeDimension("gain", 0.1, 10.0, None, True, {}),
}
FREE = {
    "cell": FreeDimension("cell", MergingCells((3, 4, 5)), {}),
    "dag": FreeDimension("dag", PyramidDags(3), {}),
    "width": ChoiceDimension("width", (32, 64), {}),
}
BLOCKS = {"plain": PLAIN, "conditional": CONDITIONAL, "free": FREE}


class World:
    """A made-up truth: words late in the alphabet are better and dearer, and so is all that is long."""

    def __init__(
        self, dimensions=PLAIN, objectives=(AP, LATENCY), *, constraints=(), hidden=(), wrong=lambda c: False
    ) -> None:
        self.space = ChoiceSpace(dimensions, objectives, constraints=constraints)
        self.observed: list[Observed] = []
        self.pending: list[tuple[Choices, Facts]] = []
        self.taken: set[str] = set()
        self.hidden, self.wrong = hidden, wrong

    def look_up(self, choices: Choices) -> Facts | None:
        if self.wrong(choices):
            return None
        text = choices_key(choices)
        size = sum(WORDS.index(v) for v in choices.values() if v in WORDS) + len(text) / 50
        costs = {"params": 1e6 * (1 + size), "latency_ms": 5 + size + hash_of(text)}
        return Facts(text, {k: v for k, v in costs.items() if k not in self.hidden}, count_tokens({"x": text[:9]}, []))

    def ap(self, choices: Choices) -> float:
        text = choices_key(choices)
        return 20 + 3 * sum(WORDS.index(v) for v in choices.values() if v in WORDS) ** 0.5 + hash_of(text[::-1])

    def history(self) -> History:
        return History(self.observed, self.pending, self.taken)

    def assess(self, choices: Choices) -> None:
        facts = self.look_up(choices)
        assert facts is not None
        self.taken.add(facts.id)
        self.observed.append(Observed(choices, facts, self.ap(choices)))

    def search(self, sampler: ProposingSampler, count: int) -> list[Choices]:
        """As a worker does, with the table's answers."""
        asked = []
        for _ in range(count):
            choices = sampler.propose(self.history()) or self.space.sample(sampler.rng)
            assert self.space.contains(choices)
            asked.append(choices)
            if self.look_up(choices) is not None and choices_key(choices) not in self.taken:
                self.assess(choices)
        return asked


def hash_of(text: str) -> float:
    """From 0 to 1, the same on every machine."""
    return random.Random(text).random()


def sampler(world: World, seed: int = 0, **options) -> KnownCostSampler:
    return KnownCostSampler(world.space, world, seed=seed, **{"look_ups": 16, **options})


# -- the score -----------------------------------------------------------------------------------------------------


def test_expected_improvement_by_hand():
    found = expected_improvement(np.array([1.0, 0.0, 3.0]), np.array([1.0, 2.0, 1e-9]), np.array([1.0, 0.0, 1.0]))
    assert_allclose(found, [1 / math.sqrt(2 * math.pi), 2 / math.sqrt(2 * math.pi), 2.0])


def improvement(costs, mean, sd, front_costs, front_ap, reference):
    """With plain lists."""
    rows = np.array(costs, dtype=float).reshape(len(mean), -1)
    front = np.array(front_costs, dtype=float).reshape(len(front_ap), rows.shape[1])
    aps = (np.array(v, dtype=float) for v in (mean, sd, front_ap))
    means, sds, reached = aps
    return expected_hypervolume_improvement(rows, means, sds, front, reached, np.array(reference, dtype=float))


def test_hypervolume_improvement_by_hand():
    """Steps of AP 10 from cost 2 and 30 from cost 6, reference 10; candidates that are sure of their AP."""
    front = ([2, 6, 7], [10, 30, 5])  # the last is dominated
    sure = [1e-9] * 6
    costs, ap = [1, 4, 4, 8, 12, 2], [20, 20, 40, 40, 50, 10]
    #  1 at 20: 1..2 over 0, 2..6 over 10;  4 at 20: 4..6 over 10;  at 40 also 6..10 over 30;  8 at 40;  beyond;  equal
    wanted = [20 + 40, 20, 60 + 40, 20, 0, 0]
    assert_allclose(improvement(costs, ap, sure, *front, [10]), wanted, atol=1e-6)


def test_without_costs_it_is_expected_improvement():
    found = improvement([], [1.0, 2.0], [1.0, 0.5], [], [1.5, 0.2], [])
    assert_allclose(found, expected_improvement(np.array([1.0, 2.0]), np.array([1.0, 0.5]), np.array([1.5, 1.5])))


def test_the_first_candidate_adds_its_whole_box():
    assert_allclose(improvement([[2, 3]], [5.0], [1e-9], [], [], [10, 10]), [8 * 7 * 5])


@pytest.mark.parametrize("costs", [1, 2, 3])
def test_hypervolume_improvement_against_brute_force(costs):
    """Mean of the hypervolume that each of many drawn APs adds."""
    rng = np.random.default_rng(costs)
    front, reached = rng.uniform(0, 1, (7, costs)), rng.uniform(5, 30, 7)
    new, mean, sd = rng.uniform(0, 1, (4, costs)), rng.uniform(5, 35, 4), rng.uniform(0.5, 5, 4)
    directions, reference = ["minimize"] * costs + ["maximize"], [1.0] * costs + [0.0]
    before = hypervolume(np.column_stack([front, reached]), directions, reference)
    wanted = []
    draws = stats.norm.ppf((np.arange(2000) + 0.5) / 2000)
    for row, m, s in zip(new, mean, sd, strict=True):
        added = []
        for y in m + s * draws:
            points = np.vstack([np.column_stack([front, reached]), [*row, y]])
            added.append(hypervolume(points, directions, reference) - before)
        wanted.append(np.mean(added))
    found = improvement(new, mean, sd, front, reached, [1.0] * costs)
    assert_allclose(found, wanted, rtol=2e-3, atol=5e-4)


def test_a_front_too_fine_to_be_exact_is_nearly_so():
    """400 members and two costs: quantiles of 31 a cost stand for them."""
    rng = np.random.default_rng(0)
    front = rng.uniform(0, 1, (400, 2))
    reached = 20 + 10 * front.sum(1) + rng.normal(0, 1, 400)
    new, mean = rng.uniform(0, 0.8, (50, 2)), np.full(50, 40.0)
    sure = np.full(50, 1e-9)
    directions, reference = ["minimize", "minimize", "maximize"], [1.0, 1.0, 0.0]
    points = np.column_stack([front, reached])
    before = hypervolume(points, directions, reference)
    wanted = [hypervolume(np.vstack([points, [*row, 40.0]]), directions, reference) - before for row in new]
    assert_allclose(improvement(new, mean, sure, front, reached, [1.0, 1.0]), wanted, rtol=0.1)


def test_only_what_is_far_below_is_winsorised():
    assert_allclose(winsorised(np.array([1.0, 30, 32, 34, 36, 38])), [30.5 - 2.5, 30, 32, 34, 36, 38])
    assert_allclose(winsorised(np.array([3.0])), [3.0])
    assert_allclose(winsorised(np.array([3.0, 3.0])), [3.0, 3.0])


# -- the process ---------------------------------------------------------------------------------------------------


def encoded(world: World, count: int, seed: int = 0):
    rng = random.Random(seed)
    encoder = Encoder(world.space)
    found = [world.space.sample(rng) for _ in range(count)]
    batch = encoder.batch([encoder.encode(c, world.look_up(c)) for c in found])
    return encoder, found, batch


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_every_part_is_a_kernel(block):
    """Symmetric, positive semi-definite, 1 with itself."""
    encoder, _, batch = encoded(World(block), 40)
    kernel = Kernel.of(encoder, batch)
    parts = kernel.parts(batch, batch)
    for part in parts.astype(float):
        assert_allclose(part, part.T, atol=1e-5)
        assert_allclose(np.diag(part), 1.0, atol=1e-4)
        assert np.linalg.eigvalsh(part).min() > -1e-4
    weights = np.arange(1.0, 1 + len(parts))
    assert_allclose(kernel.between(batch, batch, weights), np.tensordot(weights, parts, 1), rtol=1e-4)
    assert_allclose(kernel.selves(batch, weights), weights.sum(), rtol=1e-5)


def test_parts_by_hand():
    world = World()
    encoder = Encoder(world.space)
    one = Facts("1", {"params": 1.0}, {"0:x": 2, "0:y": 1})
    other = Facts("2", {"params": math.e}, {"0:y": 1, "0:z": 1})
    batch = encoder.batch([
        encoder.encode(dict.fromkeys(PLAIN, "a"), one),
        encoder.encode({**dict.fromkeys(PLAIN, "a"), "k0": "b"}, other),
    ])  # fmt: skip
    parts = Kernel.of(encoder, batch).parts(batch, batch)[:, 0, 1]
    # 3 of 4 choices agree; x.y = 1, x.x = 5, y.y = 2; the costs are two standard deviations apart
    costs = [math.exp(-4 / width**2) for width in (0.3, 1, 3)]
    assert_allclose(parts, [3 / 4, 9 / 16, 1 / (5 + 2 - 1), *costs], rtol=1e-5, atol=1e-12)


def test_the_process_is_the_textbooks():
    rng = np.random.default_rng(0)
    rows, new = rng.normal(size=(12, 2)), rng.normal(size=(5, 2))

    def part(a, b, width):
        return np.exp(-((a[:, None] - b) ** 2).sum(2) / width)

    values, variances, seeds = rng.normal(30, 4, 12), rng.uniform(0, 2, 12), rng.integers(1, 4, 12).astype(float)
    process = GaussianProcess()
    grams = np.stack([part(rows, rows, w) for w in (1, 5)])
    process.condition(grams, values, variances, seeds, refit=True)
    weights = process.weights
    between = np.tensordot(weights, np.stack([part(new, rows, w) for w in (1, 5)]), 1)
    mean, sd = process.predict(between.astype(np.float32), np.full(5, weights.sum(), np.float32))
    centre, scale = values.mean(), values.std()
    covariance = np.tensordot(weights, grams, 1) + np.diag(process.noise / seeds + variances / scale**2 + 1e-6)
    inverse = np.linalg.inv(covariance)
    assert_allclose(mean, centre + scale * between @ inverse @ ((values - centre) / scale), rtol=1e-4)
    wanted = weights.sum() - np.einsum("pi,ij,pj->p", between, inverse, between)
    assert_allclose(sd, scale * np.sqrt(wanted), rtol=2e-2)


def test_likelihood_and_its_gradient():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(9, 2))
    grams = np.stack([np.exp(-((rows[:, None] - rows) ** 2).sum(2) / w) for w in (1, 5)])
    values, extra, noisy = rng.normal(size=9), rng.uniform(0.1, 1, 9), rng.uniform(0.3, 1, 9)
    prior = np.log([0.5, 0.5, 0.01])
    arguments = (prior, grams, values, extra, noisy)
    logs = np.array([-1.0, 0.3, -3.0])
    covariance = np.exp(-1.0) * grams[0] + np.exp(0.3) * grams[1] + np.diag(np.exp(-3.0) * noisy + extra)
    wanted = -stats.multivariate_normal(np.zeros(9), covariance).logpdf(values) - 4.5 * math.log(2 * math.pi)
    wanted += 0.5 * (((logs - prior) / 1.5) ** 2).sum()
    assert_allclose(_unlikeliness(logs, *arguments)[0], wanted)
    wrong = check_grad(lambda x: _unlikeliness(x, *arguments)[0], lambda x: _unlikeliness(x, *arguments)[1], logs)
    assert wrong < 1e-5


def test_more_seeds_and_less_doubt_are_believed_more():
    gram = np.eye(3)[None]
    values = np.array([10.0, 20.0, 30.0])
    ask = np.eye(3, dtype=np.float32)

    def spread(variances, seeds):
        process = GaussianProcess()
        process.weights, process.noise = np.array([1.0]), 0.5
        process.condition(gram, values, np.array(variances), np.array(seeds), refit=False)
        return process.predict(ask, np.ones(3, np.float32))[1]

    plain = spread([0.0, 0, 0], [1.0, 1, 1])
    assert spread([0.0, 0, 0], [1.0, 1, 5])[2] < plain[2]
    assert spread([0.0, 0, 30], [1.0, 1, 1])[2] > plain[2]


def test_numbers_of_a_range_are_near_each_other():
    encoder = Encoder(ChoiceSpace({"r": RangeDimension("r", 1, 4, 1, False, {})}, [AP]))
    batch = encoder.batch([encoder.encode({"r": v}, Facts(str(v), {})) for v in (1, 2, 4)])
    agree = Kernel.of(encoder, batch).parts(batch, batch)[0]
    assert_allclose(agree[0], [1.0, math.cos(math.pi / 6), 0.0], atol=1e-6)


# -- what it proposes ----------------------------------------------------------------------------------------------

SAMPLERS: dict[str, Callable] = {
    "known_cost": sampler,
    "evolution": lambda world, seed=0: EvolutionSampler(world.space, world, seed=seed, population=5),
}


@pytest.fixture(params=SAMPLERS.values(), ids=SAMPLERS)
def create(request):
    return request.param


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_it_never_repeats_and_keeps_its_seed(create, block):
    runs = []
    for seed in (1, 1, 2):
        world = World(block)
        asked = world.search(create(world, seed), 25)
        assert len({choices_key(c) for c in asked}) == 25
        runs.append(asked)
    assert runs[0] == runs[1] != runs[2]


def test_a_small_space_is_searched_to_its_end_and_then_at_random(create):
    world = World({"x": ChoiceDimension("x", WORDS, {}), "y": RangeDimension("y", 1, 3, 1, False, {"x": ("a",)})})
    asked = world.search(create(world), world.space.size)
    assert len({choices_key(c) for c in asked}) == world.space.size == 6
    assert world.space.contains(world.search(create(world), 1)[0])


def test_bounds_are_never_broken(create):
    bound = Constraint("params <= 6000000", "params", 6e6, True)
    world = World(constraints=[bound])
    world.search(create(world), 30)
    assert all(o.facts.costs["params"] <= 6e6 for o in world.observed)


def test_what_cannot_be_built_is_not_proposed(create):
    world = World(wrong=lambda choices: choices["k0"] == "a")
    assert all(c["k0"] != "a" for c in world.search(create(world), 30))


def test_it_finds_the_front_of_a_made_up_world():
    """Against the same count of random ones, over whole tables of 256."""
    shares = []
    for seed in range(3):
        world = World()
        everything = list(world.space.enumerate())

        def volume(found, world=world):
            points = [(world.ap(c), world.look_up(c).costs["latency_ms"]) for c in found]
            return hypervolume(points, ["maximize", "minimize"], (0.0, 30.0))

        found = volume(world.search(sampler(world, seed), 25)) / volume(everything)
        shares.append(found)
        assert found > volume(random.Random(seed).sample(everything, 25)) / volume(everything)
    assert np.mean(shares) > 0.97


def test_pending_candidates_are_not_asked_again_and_change_the_next():
    world = World()
    world.search(sampler(world), 12)
    first = sampler(world, 5).propose(world.history())
    again = sampler(world, 5).propose(world.history())
    assert first == again
    world.pending.append((first, world.look_up(first)))
    world.taken.add(choices_key(first))
    batch = []
    for _ in range(5):
        choices = sampler(world, 5).propose(world.history())
        batch.append(choices_key(choices))
        world.pending.append((choices, world.look_up(choices)))
        world.taken.add(choices_key(choices))
    assert len({*batch, choices_key(first)}) == 6


def test_what_is_being_assessed_is_counted_as_expected():
    """Two networks, alike in all that is known: with one being assessed, the other adds less than a third would."""
    dimensions = {"x": ChoiceDimension("x", tuple("abcdef"), {})}
    world = World(dimensions, (AP,))
    facts = {v: Facts(v, {}, {f"0:{v if v in 'abc' else 'twin' if v in 'de' else 'f'}": 1}) for v in "abcdef"}
    world.look_up = lambda choices: facts[choices["x"]]
    for word, ap in (("a", 10.0), ("b", 11.0), ("c", 12.0)):
        world.observed.append(Observed({"x": word}, facts[word], ap))
        world.taken.add(word)
    world.pending.append(({"x": "d"}, facts["d"]))
    world.taken.add("d")
    assert {sampler(world, seed, startup_trials=1).propose(world.history())["x"] for seed in range(5)} == {"f"}


@pytest.mark.parametrize("hidden", [("latency_ms",), ("latency_ms", "params")])
def test_a_latency_nobody_knows_decides_nothing(hidden):
    world = World(hidden=hidden)
    assert len({choices_key(c) for c in world.search(sampler(world), 12)}) == 12


def test_an_unknown_latency_is_predicted_from_the_known():
    """Latency is measured of what was assessed; the bound holds against predictions from then on."""
    world = World(constraints=[Constraint("latency_ms <= 11", "latency_ms", 11.0, True)])
    bare, world.hidden = world.look_up, ("latency_ms",)

    def measured(choices):
        world.hidden = ()
        facts = bare(choices)
        world.hidden = ("latency_ms",)
        return facts

    rng = random.Random(0)
    for choices in (world.space.sample(rng) for _ in range(40)):
        world.taken.add(choices_key(choices))
        world.observed.append(Observed(choices, measured(choices), world.ap(choices)))
    proposed = sampler(world).propose(world.history())
    assert measured(proposed).costs["latency_ms"] < 12.5


@pytest.mark.parametrize(
    "objectives", [(AP,), (LATENCY,), (AP, PARAMS), (AP, LATENCY, PARAMS), (LATENCY, PARAMS)], ids=len
)
def test_any_objectives_will_do(objectives):
    world = World(objectives=objectives)
    assert len({choices_key(c) for c in world.search(sampler(world), 15)}) == 15


def test_costs_alone_are_looked_up_not_searched():
    world = World(objectives=(LATENCY,))
    asked = world.search(sampler(world, startup_trials=1), 3)
    fastest = min(world.space.enumerate(), key=lambda c: world.look_up(c).costs["latency_ms"])
    assert fastest in asked


@pytest.mark.parametrize("ap", [0.0, 25.0])
def test_ties_and_a_single_observation(ap):
    world = World()
    world.ap = lambda choices: ap
    assert len({choices_key(c) for c in world.search(sampler(world, startup_trials=1), 12)}) == 12


def test_one_cost_for_all_and_no_facts_at_all():
    world = World()
    world.look_up = lambda choices: Facts(choices_key(choices), {"latency_ms": 7.0, "params": 0.0})
    assert len({choices_key(c) for c in world.search(sampler(world), 10)}) == 10
    world = World()
    world.look_up = lambda choices: Facts(choices_key(choices), {"latency_ms": math.nan})
    assert len({choices_key(c) for c in world.search(sampler(world), 10)}) == 10


def test_what_is_not_of_the_space_is_learned_from_too(create):
    world = World(FREE)
    stranger = {"family": "top_only", "cell": "no cell at all"}
    for i in range(6):
        world.observed.append(Observed(stranger, Facts(f"s{i}", {"latency_ms": 5.0 + i}), 20.0 + i))
    assert len({choices_key(c) for c in world.search(create(world), 10)}) == 10


def test_tokens_and_costs_that_the_pool_lacks_are_no_matter():
    world = World()
    for i in range(6):
        facts = Facts(f"s{i}", {"latency_ms": 5.0 + i, "macs": 1e9}, {"late:x": i + 1})
        world.observed.append(Observed({}, facts, 20.0 + i, ap_sd=float(i % 2)))
    assert len({choices_key(c) for c in world.search(sampler(world), 6)}) == 6


def test_many_observations_are_thinned_to_the_best_the_last_and_some():
    world = World({f"k{i}": ChoiceDimension(f"k{i}", WORDS, {}) for i in range(8)})
    proposer = sampler(world)
    rng = random.Random(0)
    for _ in range(600):
        world.assess(world.space.sample(rng))
    assert choices_key(proposer.propose(world.history())) not in world.taken
    learned = proposer._training_set.update(world.observed)
    assert 80 < len(learned) <= 160
    kept = {id(o) for o in learned}
    best = max(world.observed, key=lambda o: o.ap)
    assert all(id(o) in kept for o in (best, *world.observed[-40:]))
    world.observed[3] = Observed(world.observed[3].choices, world.observed[3].facts, 99.0)  # went on to the end
    assert any(o.ap == 99.0 for o in proposer._training_set.update(world.observed))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_a_child_of_two_is_of_the_space(block, seed):
    space, rng = World(block).space, random.Random(seed)
    one, other = space.sample(rng), space.sample(rng)
    child = crossover(space, one, other, rng)
    assert space.contains(child)
    plain = [k for k in child if not isinstance(space.dimensions[k], FreeDimension)]
    assert all(child[k] in [p[k] for p in (one, other) if k in p] for k in plain)
