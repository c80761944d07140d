"""Choice sets as Optuna's parameters, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from fpn_bench.search.space import ChoiceDimension, Choices, ChoiceSpace, Dimension, FreeDimension


def distributions(dimension: Dimension) -> dict[str, BaseDistribution]:
    """A searched key as Optuna's parameters and their distributions: one, or one a gene of a free space.

    Lists, which Optuna refuses as choices, become their JSON text.
    """
    if isinstance(dimension, FreeDimension):
        genes = dimension.space.genes
        return {f"{dimension.key}.{gene}": CategoricalDistribution(values) for gene, values in genes.items()}
    if isinstance(dimension, ChoiceDimension):
        return {dimension.key: CategoricalDistribution([_encode(v) for v in dimension.values])}
    low, high, step, log = dimension.low, dimension.high, dimension.step, dimension.log
    if dimension.whole:
        return {dimension.key: IntDistribution(int(low), int(high), log=log, step=int(step or 1))}
    return {dimension.key: FloatDistribution(low, high, log=log, step=step)}


def parameters(dimension: Dimension, value: Any) -> dict[str, Any]:
    """A value of a searched key as Optuna's parameters.

    Raises:
        InputError: it is no genome of the free space that the key has.
    """
    if isinstance(dimension, FreeDimension):
        genes = dimension.space.decompose(dimension.space.parse(value))
        return {f"{dimension.key}.{gene}": v for gene, v in genes.items()}
    return {dimension.key: _encode(value)}


def encode(space: ChoiceSpace, choices: Mapping[str, Any]) -> dict[str, Any]:
    """A choice set of the space as Optuna's parameters."""
    known = {key: value for key, value in choices.items() if key in space.dimensions}
    return {name: v for key, value in known.items() for name, v in parameters(space.dimensions[key], value).items()}


def decode(space: ChoiceSpace, params: Mapping[str, Any]) -> Choices | None:
    """The choice set of a trial's parameters; None when it was not asked to the end."""
    try:
        return _ask(space, lambda name, _: params[name])
    except KeyError:
        return None


def suggest(space: ChoiceSpace, trial: optuna.Trial) -> Choices:
    """The choice set a trial proposes, each key asked only when its condition holds."""

    def suggested(name: str, wanted: BaseDistribution) -> Any:
        match wanted:
            case CategoricalDistribution():
                return trial.suggest_categorical(name, wanted.choices)
            case IntDistribution():
                return trial.suggest_int(name, wanted.low, wanted.high, step=wanted.step, log=wanted.log)
            case FloatDistribution():
                return trial.suggest_float(name, wanted.low, wanted.high, step=wanted.step, log=wanted.log)
        raise TypeError(f"expected a categorical, whole or float distribution, got {wanted}")

    return _ask(space, suggested)


def _ask(space: ChoiceSpace, parameter: Callable[[str, BaseDistribution], Any]) -> Choices:
    """The choice set that a source of parameters answers."""
    return space.answered(
        lambda d: _decode(d, {name: parameter(name, wanted) for name, wanted in distributions(d).items()})
    )


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
