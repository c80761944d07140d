"""What proposes candidates: our own samplers and Optuna's, set up for a space.

Optuna's default for several objectives is TPE one key at a time, which finds no better fronts than random search on
tabulated accuracy-latency data; multivariate TPE with groups (one joint model for each set of keys asked together)
does.
"""

from __future__ import annotations

import copy
import random
import warnings
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import (
    BaseSampler,
    BruteForceSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial

from fpn_bench.search.candidates import Candidates
from fpn_bench.search.evolution import EvolutionSampler
from fpn_bench.search.known_cost import KnownCostSampler
from fpn_bench.search.parameters import distributions
from fpn_bench.search.space import ChoiceSpace


def create_sampler(
    space: ChoiceSpace, *, trials: int, seed: int, candidates: Candidates | None = None, alone: bool = True
) -> BaseSampler:
    """The sampler a space asks for.

    Args:
        space: its `sampler` block says which.
        trials: the budget, from which unset sizes are derived.
        seed: of the proposals.
        candidates: what our own samplers are told of the search; Optuna's read it in the study.
        alone: no other worker proposes at the same time.
    """
    config = space.sampler
    startup = config.startup_trials or min(max(trials // 3, 4), 10)
    population = config.population or min(max(trials // 5, 4), 50)
    told: tuple[Any, ...] = () if candidates is None else (space, candidates.look_up, candidates.history)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match config.kind:
            case "known_cost":
                return KnownCostSampler(*told, seed=seed, startup_trials=config.startup_trials)
            case "evolution":
                return EvolutionSampler(*told, seed=seed, population=population)
            case "tpe":
                return TPESampler(
                    multivariate=True, group=True, n_startup_trials=startup, constant_liar=not alone, seed=seed
                )
            case "nsga2":
                return _Nsga2(space, population_size=population, seed=seed)
            case "nsga3":
                return NSGAIIISampler(population_size=population, seed=seed)
            case "gp":
                return GPSampler(seed=seed, n_startup_trials=startup)
            case "random":
                return RandomSampler(seed=seed)
            case "brute_force":
                return BruteForceSampler(seed=seed)


class _Nsga2(NSGAIISampler):
    """NSGA-II over all keys, conditional ones too.

    Optuna itself crosses over only what every trial was asked, which leaves the genes of a genome that only some
    families know to chance. Here a parent that was not asked a key carries along that of another parent, asleep until
    a child is asked it. What no parent was asked is drawn at random.

    A trial from outside the space has no parameters, so nothing to pass on, and is no parent.
    """

    def __init__(self, space: ChoiceSpace, *, population_size: int, seed: int) -> None:
        super().__init__(population_size=population_size, seed=seed)
        asked = (d for d in space.dimensions.values() if d.size > 1)
        self._names = {name: wanted for d in asked for name, wanted in distributions(d).items()}
        self._donors = random.Random(seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._names)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        parents = self.get_parent_population(study, self.get_trial_generation(study, trial))
        carried = parents[0].params if parents else {}  # all carry the same keys
        return super().sample_relative(study, trial, {k: v for k, v in search_space.items() if k in carried})

    def get_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        return [t for t in super().get_population(study, generation) if t.params]

    def select_parent(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        chosen = {t.number for t in super().select_parent(study, generation)}
        return [t for t in study.get_trials(deepcopy=False) if t.number in chosen]  # awake: as stored and read later

    def get_parent_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        parents = super().get_parent_population(study, generation)
        if len(parents) < 2:  # crossing over takes two
            return []
        return [self._complete(parent, parents) for parent in parents]

    def _complete(self, parent: FrozenTrial, others: list[FrozenTrial]) -> FrozenTrial:
        completed = copy.copy(parent)
        for donor in self._donors.sample(others, len(others)):
            if completed.params.keys() >= self._names.keys():
                break
            completed.params = {**donor.params, **completed.params}  # a key's genes come from one donor, all or none
        return completed
