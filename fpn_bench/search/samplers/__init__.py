"""What proposes candidates: our own samplers and Optuna's, by the names that a space file calls them.

A sampler is a function from `SamplerSetup` to an Optuna sampler, and a line in `SAMPLERS`. `base` is what our own
share, `known_cost` (its pool of candidates, `gp`, its model, and `improvement`, its score) and `evolution` are our own,
`optuna` sets up Optuna's, `parameters` translates choice sets.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler

from fpn_bench.search.samplers import evolution, known_cost, optuna
from fpn_bench.search.samplers.base import ProposingSampler, SamplerContext
from fpn_bench.search.samplers.setup import SamplerSetup
from fpn_bench.search.space import ChoiceSpace

SAMPLERS: Mapping[str, Callable[[SamplerSetup], BaseSampler]] = {
    "known_cost": known_cost.create,
    "evolution": evolution.create,
    "tpe": optuna.tpe,
    "nsga2": optuna.nsga2,
    "nsga3": optuna.nsga3,
    "gp": optuna.gp,
    "random": optuna.uniform,
    "brute_force": optuna.brute_force,
}


def create_sampler(
    space: ChoiceSpace, *, trials: int, seed: int, candidates: SamplerContext | None = None, alone: bool = True
) -> BaseSampler:
    """The sampler a space asks for; see `SamplerSetup`, where ``candidates`` is the context."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return SAMPLERS[space.sampler.kind](SamplerSetup(space, trials, seed, candidates, alone))


__all__ = ["SAMPLERS", "ProposingSampler", "SamplerContext", "SamplerSetup", "create_sampler"]
