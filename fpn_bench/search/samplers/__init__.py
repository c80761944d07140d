"""What proposes candidates: our own samplers and Optuna's, by the names that a space file calls them.

A sampler is a line in `SAMPLERS`, by whose names a space file is checked.

`base` is what our own share; `known_cost` (its pool of candidates, `gp`, its model, and `improvement`, its score) and
`evolution` are our own, `nsga2` is Optuna's made fit for conditions, `parameters` translates choice sets.

Optuna's default for several objectives is TPE one key at a time, which finds no better fronts than random search on
tabulated accuracy-latency data; multivariate TPE with groups (one joint model for each set of keys asked together)
does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, BruteForceSampler, GPSampler, NSGAIIISampler, RandomSampler, TPESampler

from fpn_bench.search.samplers.base import ProposingSampler, SamplerContext, SamplerSetup
from fpn_bench.search.samplers.evolution import EvolutionSampler
from fpn_bench.search.samplers.known_cost import KnownCostSampler
from fpn_bench.search.samplers.nsga2 import ConditionalNsga2
from fpn_bench.search.space import ChoiceSpace

SAMPLERS: dict[str, Callable[[SamplerSetup], BaseSampler | ProposingSampler]] = {
    "known_cost": lambda s: KnownCostSampler(
        s.space, s.given_context, seed=s.seed, startup_trials=s.space.sampler.startup_trials or 4
    ),
    "evolution": lambda s: EvolutionSampler(s.space, s.given_context, seed=s.seed, population=s.population),
    "tpe": lambda s: TPESampler(
        multivariate=True, group=True, n_startup_trials=s.startup_trials, constant_liar=not s.alone, seed=s.seed
    ),
    "nsga2": lambda s: ConditionalNsga2(s.space, population_size=s.population, seed=s.seed),
    "nsga3": lambda s: NSGAIIISampler(population_size=s.population, seed=s.seed),
    "gp": lambda s: GPSampler(seed=s.seed, n_startup_trials=s.startup_trials),
    "random": lambda s: RandomSampler(seed=s.seed),
    "brute_force": lambda s: BruteForceSampler(seed=s.seed),
}


def create_sampler(
    space: ChoiceSpace, *, trials: int, seed: int, candidates: SamplerContext | None = None, alone: bool = True
) -> BaseSampler | ProposingSampler:
    """The sampler a space asks for; see `SamplerSetup`, where ``candidates`` is the context."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return SAMPLERS[space.sampler.kind](SamplerSetup(space, trials, seed, candidates, alone))


__all__ = ["SAMPLERS", "ProposingSampler", "SamplerContext", "SamplerSetup", "create_sampler"]
