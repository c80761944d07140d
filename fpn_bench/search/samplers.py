"""What proposes candidates: Optuna's samplers, set up for a space.

Optuna's default for several objectives is TPE one key at a time, which finds no better fronts than random search on
tabulated accuracy-latency data; multivariate TPE with groups (one joint model for each set of keys asked together)
does.
"""

from __future__ import annotations

import copy
import json
import random
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
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

from fpn_bench.errors import UnknownNameError
from fpn_bench.search.dimensions import ChoiceDimension, Choices, ChoiceSpace, Dimension, FreeDimension, RangeDimension


def create_sampler(space: ChoiceSpace, *, trials: int, finished: int = 0) -> BaseSampler:
    """The sampler a space asks for.

    Args:
        space: its `sampler` block says which.
        trials: the budget, from which unset sizes are derived.
        finished: trials already in the study; part of the seed, so that a resumed study does not draw its first
            proposals again.
    """
    config = space.sampler
    seed = (config.seed * 1_000_003 + finished) % 2**32
    startup = config.startup_trials or min(max(trials // 3, 4), 10)
    population = config.population or min(max(trials // 5, 4), 50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match config.kind:
            case "random":
                return RandomSampler(seed=seed)
            case "brute_force":
                return BruteForceSampler(seed=seed)
            case "gp":
                return GPSampler(seed=seed, n_startup_trials=startup)
            case "nsga2":
                return _Nsga2(space, population_size=population, seed=seed)
            case "nsga3":
                return NSGAIIISampler(population_size=population, seed=seed)
            case "tpe":
                return TPESampler(multivariate=True, group=True, n_startup_trials=startup, seed=seed)
            case other:
                raise UnknownNameError("sampler", other, ("random", "brute_force", "gp", "nsga2", "nsga3", "tpe"))


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


def distributions(dimension: Dimension) -> dict[str, BaseDistribution]:
    """A searched key as Optuna's parameters and their distributions: one, or one a gene of a free space.

    Lists, which Optuna refuses as choices, become their JSON text.
    """
    if isinstance(dimension, FreeDimension):
        return {
            f"{dimension.key}.{gene}": CategoricalDistribution(values) for gene, values in dimension.space.genes.items()
        }
    return {dimension.key: _distribution(dimension)}


def _distribution(dimension: ChoiceDimension | RangeDimension) -> BaseDistribution:
    if isinstance(dimension, ChoiceDimension):
        return CategoricalDistribution([_encode(v) for v in dimension.values])
    if dimension.whole:
        return IntDistribution(
            int(dimension.low), int(dimension.high), log=dimension.log, step=int(dimension.step or 1)
        )
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)


def encode(space: ChoiceSpace, choices: Mapping[str, Any]) -> dict[str, Any]:
    """A choice set of the space as Optuna parameters."""
    params: dict[str, Any] = {}
    for key, value in choices.items():
        dimension = space.dimensions.get(key)
        if isinstance(dimension, FreeDimension):
            genes = dimension.space.decompose(dimension.space.parse(value))
            params |= {f"{key}.{gene}": v for gene, v in genes.items()}
        elif dimension is not None:
            params[key] = _encode(value)
    return params


def decode(space: ChoiceSpace, params: Mapping[str, Any]) -> Choices | None:
    """The choice set of a trial's parameters; None when it was not asked to the end."""
    choices: Choices = {}
    for key, dimension in space.dimensions.items():
        if space.is_asked(key, choices):
            if not params.keys() >= distributions(dimension).keys():
                return None
            choices[key] = _decode(dimension, params)
    return choices


def suggest(space: ChoiceSpace, trial: optuna.Trial) -> Choices:
    """The choice set a trial proposes, each key asked only when its condition holds."""
    choices: Choices = {}
    for key, dimension in space.dimensions.items():
        if space.is_asked(key, choices):
            asked = {name: _suggest(trial, name, wanted) for name, wanted in distributions(dimension).items()}
            choices[key] = _decode(dimension, asked)
    return choices


def _suggest(trial: optuna.Trial, name: str, wanted: BaseDistribution) -> Any:
    match wanted:
        case CategoricalDistribution():
            return trial.suggest_categorical(name, wanted.choices)
        case IntDistribution():
            return trial.suggest_int(name, wanted.low, wanted.high, step=wanted.step, log=wanted.log)
        case FloatDistribution():
            return trial.suggest_float(name, wanted.low, wanted.high, step=wanted.step, log=wanted.log)
    raise TypeError(f"{wanted} came; a categorical, whole or float distribution is wanted")


def _encode(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, tuple)) else value


def _decode(dimension: Dimension, params: Mapping[str, Any]) -> Any:
    """The value of a key, from the parameters of `distributions`."""
    if isinstance(dimension, FreeDimension):
        genes = {gene: params[f"{dimension.key}.{gene}"] for gene in dimension.space.genes}
        return dimension.space.text(dimension.space.compose(genes))
    value = params[dimension.key]
    if isinstance(dimension, ChoiceDimension):
        return next(
            v for v in dimension.values if _encode(v) == value and isinstance(v, bool) == isinstance(value, bool)
        )
    return value
