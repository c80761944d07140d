"""Choice sets as Optuna's parameters, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from fpn_bench.search.space import ChoiceDimension, Choices, ChoiceSpace, Dimension, FreeDimension, RangeDimension


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
