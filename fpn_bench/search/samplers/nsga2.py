"""Optuna's NSGA-II, made fit for keys that are asked under a condition."""

from __future__ import annotations

import copy
import random
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import NSGAIISampler
from optuna.trial import FrozenTrial

from fpn_bench.search.samplers.parameters import distributions
from fpn_bench.search.space import ChoiceSpace


class ConditionalNsga2(NSGAIISampler):
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
