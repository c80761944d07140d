"""What is expected of candidates that were not assessed: a Gaussian process over choices, graphs and costs.

Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning", chapters 2 and 5. The kernel is a sum of fixed
ones, each at most 1, whose weights (with the noise) are the hyperparameters: all see the candidates at a different
scale, and the evidence decides which of them tell something. So there are no length scales to search, and the
gradient is exact and cheap. The parts:

- *choices*: the share of searched parameters on which two candidates agree, and its square: one-hot coded choices, and
  all pairs of them. A number of a range is a point on a quarter of a circle, so that near values nearly agree. Genomes
  count gene by gene.
- *graph tokens*: of each group of tokens the Tanimoto similarity of the counts (Ralaivola et al. 2005, "Graph Kernels
  for Chemical Informatics"); with Weisfeiler-Lehman tokens one group a round, as in Ru et al. 2021, "Interpretable
  Neural Architecture Search via Bayesian Optimisation with Weisfeiler-Lehman Kernels".
- *costs*: Gaussians of three widths over the standardised logarithms of all that is known before training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import CategoricalDistribution
from scipy import linalg, optimize, sparse

from fpn_bench.errors import InputError
from fpn_bench.search.records import Facts
from fpn_bench.search.samplers.base import Floats
from fpn_bench.search.samplers.parameters import distributions, parameters
from fpn_bench.search.space import COSTS, ChoiceSpace, Dimension, RangeDimension

Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

COST_WIDTHS = (0.3, 1.0, 3.0)
"""Widths of the kernels over costs, in standard deviations."""
_MUTE = 1e-4
"""Share of the variance below which a part is left out of a prediction."""
_JITTER = 1e-6
_PRIOR_SD = 1.5
"""Of the logarithms of the weights: within a factor of 20 of an even share, mostly."""
_NOISE = 0.01
"""Variance of one full training that is expected beforehand, as a share of the variance of all that was observed."""
_ABSENT, _LOW, _HIGH = "\0not asked", "\0low", "\0high"


# -- candidates as numbers -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, slots=True)
class Encoded:
    """One candidate.

    Attributes:
        choices: (columns,) one-hot choices.
        tokens: group -> (numbers of the tokens, counts).
        costs: (costs,) of `Encoder.costs`, NaN where not known.
    """

    choices: Singles
    tokens: Mapping[str, tuple[Ints, Singles]]
    costs: Floats


@dataclass(frozen=True, eq=False, slots=True)
class Tokens:
    """Counts of one group of tokens in n candidates.

    Attributes:
        counts: (n, tokens).
        squares: (n,) sum of the squared counts.
    """

    counts: sparse.csr_array
    squares: Singles


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """n candidates.

    Attributes:
        choices: (n, columns).
        tokens: group -> counts.
        costs: (n, costs) of `Encoder.costs`, NaN where not known.
    """

    choices: Singles
    tokens: Mapping[str, Tokens]
    costs: Floats

    def __len__(self) -> int:
        return len(self.choices)

    def take(self, rows: Ints) -> Batch:
        """Some of the candidates, in the order given."""
        tokens = {g: Tokens(sparse.csr_array(t.counts[rows]), t.squares[rows]) for g, t in self.tokens.items()}
        return Batch(self.choices[rows], tokens, self.costs[rows])


class Encoder:
    """Makes numbers of the candidates of a space, and of others as far as they have something in common with it.

    Attributes:
        parameters: count of the searched ones; those of a genome are its genes.
        costs: names of the numbers known of a candidate: `COSTS`, and what else the space is searched for or bounds.
    """

    def __init__(self, space: ChoiceSpace) -> None:
        self._dimensions = {key: (d, distributions(d)) for key, d in space.dimensions.items()}
        found = {name: wanted for _, own in self._dimensions.values() for name, wanted in own.items()}
        self.parameters = len(found)
        wanted_costs = (*COSTS, *(o.name for o in space.costs), *(c.name for c in space.constraints))
        self.costs = tuple(dict.fromkeys(wanted_costs))
        self._columns: dict[tuple[str, str], int] = {}
        for name, wanted in found.items():
            words = map(repr, wanted.choices) if isinstance(wanted, CategoricalDistribution) else (_LOW, _HIGH)
            for word in (*words, _ABSENT):
                self._columns[name, word] = len(self._columns)
        self._tokens: dict[str, dict[str, int]] = {}

    def encode(self, choices: Mapping[str, Any], facts: Facts) -> Encoded:
        """One candidate; what the space does not know of it is left out."""
        row = np.zeros(len(self._columns), dtype=np.float32)
        for key, (dimension, own) in self._dimensions.items():
            points = _points(dimension, choices[key]) if key in choices else [(name, _ABSENT, 1.0) for name in own]
            for name, word, share in points:
                if (name, word) in self._columns:
                    row[self._columns[name, word]] = share
        grouped: dict[str, dict[int, float]] = {}
        for token, count in facts.tokens.items():
            group = token.partition(":")[0]
            numbers = self._tokens.setdefault(group, {})
            grouped.setdefault(group, {})[numbers.setdefault(token, len(numbers))] = count
        tokens = {
            group: (np.fromiter(counts, np.int64), np.fromiter(counts.values(), np.float32))
            for group, counts in grouped.items()
        }
        costs = np.array([facts.costs.get(name, math.nan) for name in self.costs], dtype=np.float64)
        return Encoded(row, tokens, np.where((costs >= 0) & (costs < math.inf), costs, math.nan))

    @property
    def groups(self) -> int:
        """Groups of tokens met so far."""
        return len(self._tokens)

    def batch(self, candidates: Sequence[Encoded], behind: Batch | None = None) -> Batch:
        """Several candidates side by side, behind those of an earlier batch of this encoder."""
        new = Batch(
            np.array([c.choices for c in candidates], np.float32).reshape(-1, len(self._columns)),
            {group: self._counts(group, candidates) for group in self._tokens},
            np.array([c.costs for c in candidates], np.float64).reshape(-1, len(self.costs)),
        )
        if behind is None:
            return new
        return Batch(
            np.concatenate([behind.choices, new.choices]),
            {group: _stacked(behind.tokens.get(group), tokens, len(behind)) for group, tokens in new.tokens.items()},
            np.concatenate([behind.costs, new.costs]),
        )

    def _counts(self, group: str, candidates: Sequence[Encoded]) -> Tokens:
        nothing = np.empty(0, np.int64), np.empty(0, np.float32)
        rows = [c.tokens.get(group, nothing) for c in candidates]
        ends = np.cumsum([0, *(len(numbers) for numbers, _ in rows)])
        numbers = np.concatenate([nothing[0], *(numbers for numbers, _ in rows)])
        counts = np.concatenate([nothing[1], *(counts for _, counts in rows)])
        shape = (len(candidates), len(self._tokens[group]))
        squares = np.array([counts @ counts for _, counts in rows], dtype=np.float32)
        return Tokens(sparse.csr_array((counts, numbers, ends), shape=shape), squares)


def _stacked(old: Tokens | None, new: Tokens, count: int) -> Tokens:
    """The counts of ``count`` earlier candidates, who may have known fewer tokens or none, above those of new ones."""
    if old is None:
        old = Tokens(sparse.csr_array(np.empty((count, 0), np.float32)), np.zeros(count, np.float32))
    both = [_widened(old.counts, new.counts.shape[1]), new.counts]
    return Tokens(sparse.vstack(both, format="csr"), np.concatenate([old.squares, new.squares]))


def _widened(counts: sparse.csr_array, width: int) -> sparse.csr_array:
    """With columns for tokens that were met later."""
    if counts.shape[1] >= width:
        return counts
    return sparse.csr_array((counts.data, counts.indices, counts.indptr), shape=(counts.shape[0], width))


def _points(dimension: Dimension, value: Any) -> list[tuple[str, str, float]]:
    """(parameter, word, share) of a value; the shares of a parameter have length 1."""
    if isinstance(dimension, RangeDimension):
        if not dimension.contains(value):
            return []
        low, high, at = (math.log(v) if dimension.log else v for v in (dimension.low, dimension.high, value))
        angle = math.pi / 2 * (at - low) / (high - low)
        return [(dimension.key, _LOW, math.cos(angle)), (dimension.key, _HIGH, math.sin(angle))]
    try:
        return [(name, repr(word), 1.0) for name, word in parameters(dimension, value).items()]
    except InputError:  # of another alphabet
        return []


# -- kernels -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, slots=True)
class Kernel:
    """The parts of the kernel, between candidates of one encoder.

    Attributes:
        parameters: see `Encoder.parameters`.
        least: (costs,) what is below counts as this: of a cost that can be next to nothing the logarithm says too much.
        centre, spread: (costs,) mean and standard deviation of the logarithms, over what may be proposed.
    """

    parameters: int
    least: Floats
    centre: Floats
    spread: Floats

    @classmethod
    def of(cls, encoder: Encoder, pool: Batch) -> Kernel:
        """With costs standardised over a pool; one that is not known of all of it is mute."""
        costs = np.where(np.isfinite(pool.costs).all(axis=0), pool.costs, 1.0)
        least = np.maximum(costs.max(axis=0), 1e-9) / 1000
        logs = np.log(np.maximum(costs, least))
        spread = logs.std(axis=0)
        return cls(encoder.parameters, least, logs.mean(axis=0), np.where(spread > 1e-9, spread, np.inf))

    def parts(self, one: Batch, other: Batch) -> Singles:
        """(parts, len(one), len(other)). Costs that are not known are taken for average."""
        return np.stack([part() for part in self._parts(one, other)])

    def between(self, one: Batch, other: Batch, weights: Floats) -> Singles:
        """(len(one), len(other)): the parts' weighted sum; those that weigh next to nothing are not computed."""
        total = np.zeros((len(one), len(other)), dtype=np.float32)
        for weight, part in zip(weights, self._parts(one, other), strict=True):
            if weight > _MUTE * weights.sum():
                total += np.float32(weight) * part()
        return total

    def selves(self, batch: Batch, weights: Floats) -> Singles:
        """(len(batch),): the weighted sum of each candidate with itself."""
        agree = (batch.choices**2).sum(1) / np.float32(max(self.parameters, 1))
        found = [agree, agree * agree]
        found += [(tokens.squares > 0).astype(np.float32) for tokens in batch.tokens.values()]
        found += [np.ones(len(batch), np.float32)] * len(COST_WIDTHS)
        return np.asarray(weights.astype(np.float32) @ np.stack(found))

    def _parts(self, one: Batch, other: Batch) -> list[Callable[[], Singles]]:
        """Cheapest with the smaller batch as the other."""
        agree = one.choices @ other.choices.T / np.float32(max(self.parameters, 1))
        a, b = self.costs(one), self.costs(other)
        apart = (a * a).sum(1)[:, None] + (b * b).sum(1) - np.float32(2) * (a @ b.T)
        apart = np.maximum(apart, 0, out=apart) / np.float32(-max(a.shape[1], 1))
        return [
            lambda: agree,
            lambda: agree * agree,
            *(partial(_tanimoto, one.tokens[group], tokens) for group, tokens in other.tokens.items()),
            *(partial(np.exp, apart * np.float32(1 / width**2)) for width in COST_WIDTHS),
        ]

    def costs(self, batch: Batch) -> Singles:
        """(len(batch), costs): standardised logarithms of those known of the whole pool, 0 where not known."""
        heard = np.isfinite(self.spread)
        logs = np.log(np.maximum(batch.costs[:, heard], self.least[heard]))
        costs = (logs - self.centre[heard]) / self.spread[heard]
        return np.asarray(np.nan_to_num(costs), dtype=np.float32)


def _tanimoto(one: Tokens, other: Tokens) -> Singles:
    """a.b / (a.a + b.b - a.b), 0 where both are empty."""
    used, rows = np.unique(other.counts.indices, return_inverse=True)  # the others add nothing to the products
    dense = np.zeros((len(used), len(other.squares)), dtype=np.float32)
    dense[rows, np.repeat(np.arange(len(other.squares)), np.diff(other.counts.indptr))] = other.counts.data
    product = np.asarray(_widened(one.counts, other.counts.shape[1])[:, used] @ dense, dtype=np.float32)
    total = one.squares[:, None] + other.squares - product
    return np.asarray(np.divide(product, total, out=np.zeros_like(product), where=total > 0))


# -- the process ---------------------------------------------------------------------------------------------------


class GaussianProcess:
    """A process with a kernel that is a weighted sum of given ones, on values of any unit.

    Values are standardised. Weights and noise have log-normal priors, an even share of the variance and 1 % noise, so
    that a handful of values says no more than it can.
    """

    def __init__(self) -> None:
        """Without weights: the first `condition` fits them."""
        self.weights: Floats | None = None
        """Of the parts, of standardised values."""
        self.noise = _NOISE
        """Variance of one full training, of standardised values."""

    def condition(self, parts: npt.ArrayLike, values: Floats, variances: Floats, seeds: Floats, *, refit: bool) -> None:
        """Learn from n values.

        Args:
            parts: (parts, n, n) kernels between the candidates.
            values: (n,) observed.
            variances: (n,) of each value, beyond that of a full training's noise.
            seeds: (n,) full trainings behind each value.
            refit: fit weights and noise too, else the last ones are kept where there are some.
        """
        grams = np.asarray(parts, dtype=np.float64)
        self._centre, self._scale = float(values.mean()), float(values.std()) or 1.0
        scaled, extra = (values - self._centre) / self._scale, variances / self._scale**2 + _JITTER
        weights = self.weights
        if refit or weights is None or len(weights) != len(grams):
            weights, self.noise = _fit(grams, scaled, extra, 1 / seeds)
        self.weights = weights
        covariance = np.tensordot(weights, grams, 1) + np.diag(self.noise / seeds + extra)
        self._factor = _factor(covariance)
        self._answer = linalg.cho_solve((self._factor, True), scaled, check_finite=False)

    def predict(self, between: Singles, selves: Singles) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the noiseless values of p candidates.

        Args:
            between: (p, n) kernel, its parts weighted, between them and those learned from.
            selves: (p,) of each with itself.
        """
        mean = between @ self._answer.astype(np.float32)
        seen = linalg.solve_triangular(self._factor.astype(np.float32), between.T, lower=True, check_finite=False)
        variance = np.maximum(selves - (seen**2).sum(0), _JITTER)
        return self._centre + self._scale * mean.astype(np.float64), self._scale * np.sqrt(variance, dtype=np.float64)


def _fit(grams: Floats, values: Floats, extra: Floats, noisy: Floats) -> tuple[Floats, float]:
    """The weights and the noise that make the values likeliest, with their priors; see `_unlikeliness`."""
    prior = np.log([1 / len(grams)] * len(grams) + [_NOISE])
    bounds = [(centre - 8, centre + 8) for centre in prior.tolist()]
    arguments = (prior, grams, values, extra, noisy)
    logs, _, _ = optimize.fmin_l_bfgs_b(_unlikeliness, prior, args=arguments, bounds=bounds, maxiter=40)
    *weights, noise = np.exp(np.asarray(logs, dtype=np.float64)).tolist()
    return np.array(weights), noise


def _unlikeliness(
    logs: Floats, prior: Floats, grams: Floats, values: Floats, extra: Floats, noisy: Floats
) -> tuple[float, Floats]:
    """Negative logarithm of posterior density (up to a constant), and its gradient.

    Rasmussen and Williams 2006, equations 5.8 and 5.9.

    Args:
        logs, prior: (parts + 1,) logarithms of the weights and of the noise, and what is expected of them beforehand.
        grams: (parts, n, n).
        values: (n,), standardised.
        extra: (n,) variance known beforehand.
        noisy: (n,) factor on the noise of each value.
    """
    weights = np.exp(logs)
    n = len(values)
    covariance = np.tensordot(weights[:-1], grams, 1) + np.diag(weights[-1] * noisy + extra)
    factor = _factor(covariance)
    inverse = linalg.cho_solve((factor, True), np.eye(n), check_finite=False)
    answer = inverse @ values
    loss = 0.5 * values @ answer + np.log(np.diag(factor)).sum()
    slope = inverse - np.outer(answer, answer)
    gradient = 0.5 * weights * np.append(np.tensordot(grams, slope, 2), np.diag(slope) @ noisy)
    away = (logs - prior) / _PRIOR_SD
    return float(loss + 0.5 * away @ away), gradient + away / _PRIOR_SD


def _factor(covariance: Floats) -> Floats:
    """Lower Cholesky factor; of what rounding made indefinite, with as much on the diagonal as it takes."""
    jitter = 0.0
    while True:
        try:
            lower: Floats = linalg.cholesky(
                covariance + jitter * np.eye(len(covariance)), lower=True, check_finite=False
            )
            return lower
        except linalg.LinAlgError:
            if jitter > 1.0:  # no rounding
                raise
            jitter = max(10 * jitter, _JITTER)
