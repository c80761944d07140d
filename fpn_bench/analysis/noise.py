"""How the figures of one candidate scatter: the one place that every interval and verdict asks.

- AP, its parts and whatever else is trained scatter from seed to seed. All candidates are taken to scatter alike, so
  that the standard deviation is pooled over those with several seeds, together with what is known beforehand
  (`fpn_bench.metrics.Metric.prior_sd`). No lucky pair of equal APs makes it zero, and a second seed never makes an
  interval wider for want of degrees of freedom.
- Latency scatters by the 95 % interval that was measured with it.
- What is counted is exact.
- Any other column scatters by its own pooled replicates. Without any its scatter is NaN: not known, which is neither 0
  nor a chance of 100 %.

Which of them a column is says `fpn_bench.metrics.Metric.noise`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtri, stdtrit

from fpn_bench.metrics import metric_of

NAN = float("nan")
Floats = npt.NDArray[np.float64]

PRIOR_FREEDOM = 10
"""What is known of seeds beforehand is as good as so many degrees of freedom. They say that a study's own standard
deviation is within 0.7 and 1.8 of the prior's (95 %), which is wider than the tables that priors are from."""
_TRAINING = ["protocol", "candidate", "seed"]


@dataclass(frozen=True, slots=True)
class Scatter:
    """How figures that are taken to scatter alike do so.

    Without arguments: nothing is known of it.

    Attributes:
        sd: standard deviation of one figure, in the column's unit.
        freedom: its degrees of freedom, what was known beforehand among them.
        replicates: those of them that were seen in replicates.
    """

    sd: float = NAN
    freedom: int = 0
    replicates: int = 0

    def half_width(self, *counts: npt.ArrayLike, confidence: float = 0.95) -> Floats:
        """Half of the interval of a mean of so many figures, or of a difference of two means; arrays broadcast.

        NaN where the scatter is not known or a count is 0.
        """
        behind = [np.asarray(n, dtype=np.float64) for n in counts]
        shares = sum((1 / np.where(n > 0, n, np.nan) for n in behind), np.zeros(()))
        upper = stdtrit(self.freedom, (1 + confidence) / 2) if self.freedom else NAN
        return np.asarray(upper * self.sd * np.sqrt(shares), dtype=np.float64)


def simultaneous_factor(count: int, freedom: float, confidence: float = 0.95) -> float:
    """How many standard errors of a difference bound the differences of all pairs of ``count`` means at once.

    Tukey's range (Tukey 1953; for unequal numbers Kramer 1956, which is then on the safe side): it allows for one of
    the pair being the best of all.
    """
    if count < 2:
        return NAN
    return _range_factor(min(count, 1_000), float(freedom), confidence)


@lru_cache(maxsize=256)
def _range_factor(count: int, freedom: float, confidence: float) -> float:
    # Bonferroni's bound over all pairs is some 6 % wider, and does not take seconds for many.
    if count > 60:
        tail = (1 - confidence) / (count * (count - 1))
        return float(-stdtrit(freedom, tail))
    from scipy.stats import studentized_range  # a second to import, and seldom needed

    return float(studentized_range.ppf(confidence, count, freedom)) / 2**0.5


def prior_scatter(column: str) -> Scatter:
    """What is known of a column before any candidate has two seeds."""
    sd = metric_of(column).prior_sd
    return Scatter() if np.isnan(sd) else Scatter(sd, PRIOR_FREEDOM)


def pooled_scatter(samples: Iterable[npt.ArrayLike], prior: Scatter | None = None) -> Scatter:
    """The scatter within samples, pooled over them and over the prior. A NaN in a sample is no value."""
    known = [values[~np.isnan(values)] for values in (np.asarray(s, dtype=np.float64) for s in samples)]
    several = [values for values in known if len(values) > 1]
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in several)
    return _combined(squares, sum(len(values) - 1 for values in several), prior or Scatter())


def pooled_sd(samples: Iterable[npt.ArrayLike]) -> float:
    """The standard deviation within samples that are taken to scatter alike; NaN where none has two values.

    A NaN in a sample is no value.
    """
    return pooled_scatter(samples).sd


def scatter_within(rows: pd.DataFrame, groups: Sequence[str], column: str) -> Scatter:
    """The scatter of a column within the rows that are equal in the columns ``groups``, and its prior."""
    of = rows.dropna(subset=[column]).groupby(list(groups), sort=False)[column].agg(["var", "count"])
    of = of[of["count"] > 1]
    freedom = of["count"].to_numpy(dtype=np.float64) - 1
    squares = float((of["var"].to_numpy(dtype=np.float64) * freedom).sum())
    return _combined(squares, int(freedom.sum()), prior_scatter(column))


def seed_scatter(table: pd.DataFrame, column: str = "ap") -> Scatter:
    """How a column scatters from seed to seed of one candidate. A seed that stands twice counts once."""
    done = table[table["status"] == "complete"].drop_duplicates(_TRAINING)
    return scatter_within(done, _TRAINING[:2], column)


def _combined(squares: float, replicates: int, prior: Scatter) -> Scatter:
    freedom = prior.freedom + replicates
    if not freedom:
        return Scatter()
    known = prior.freedom * prior.sd**2 if prior.freedom else 0.0
    return Scatter(float(np.sqrt((known + squares) / freedom)), freedom, replicates)


def standard_errors(candidates: pd.DataFrame, column: str, scatter: Scatter) -> Floats:
    """How far each candidate's figure is from its truth (standard deviation); NaN where that is not known.

    Args:
        candidates: `fpn_bench.analysis.by_candidate`.
        column: of the figure.
        scatter: of the column, for what is neither exact nor has an interval of its own (`seed_scatter`).
    """
    metric = metric_of(column)
    if metric.noise == "none":
        return np.zeros(len(candidates))
    if metric.noise == "interval":
        low, high = (candidates[end].to_numpy(dtype=np.float64, na_value=np.nan) for end in metric.interval)
        return np.asarray((high - low) / (2 * ndtri(0.975)))
    # Replicates that are all alike are copies and tell nothing.
    sd = scatter.sd if scatter.sd > 0 else NAN
    if metric.noise == "seeds":
        return np.asarray(sd / np.sqrt(np.maximum(candidates["seeds"].to_numpy(dtype=np.float64), 1)))
    return np.full(len(candidates), sd)  # one figure of each, not a mean


_SWEEPS, _BURN_IN, _PER_SWEEP = 250, 60, 4
DRAWS = _SWEEPS * _PER_SWEEP
"""How many draws `Truths.draw` gives."""
_WIDTHS = np.array([1.0, 2.0, 4.0])
"""How far true values may spread, in standard deviations of one figure. The tables have 2.7 (`curves`) to 3.5."""
_MASSES = np.array([2.0, 8.0])
"""How readily true values cluster, as a Dirichlet process's concentration: less is more readily. More of it makes
statements about equals false too often, less shrinks what is truly ahead too far (`results/README.md`)."""


class Truths:
    """What the true values of candidates may be, given their noisy means: a Bayesian shrinkage of all of them at once.

    The best of many was picked by its luck among others. Its true value is less, and by how much the others tell: where
    all spread as far as the noise alone makes them, the best is as good as the rest; one that stands out by far keeps
    what it has. The distribution of true values may have any shape: it is a mixture on a grid, whose weights have a
    Dirichlet prior around a normal distribution of unknown width (a finite Dirichlet process mixture; Ferguson
    1973, Ishwaran and Zarepour 2002), sampled by Gibbs sweeps together with the noise. Every statement about picked
    candidates, costs and fronts is read off the same draws, so that no further correction for their number is needed
    (Efron 2011, Tweedie's formula and selection bias; Gelman, Hill and Yajima 2012).

    Args:
        means: of all candidates, at least one, without NaN.
        counts: figures behind each mean.
        scatter: of one figure; its sd above 0.
        seed: of the draws.
    """

    def __init__(self, means: npt.ArrayLike, counts: npt.ArrayLike, scatter: Scatter, *, seed: int = 0) -> None:
        """See the class."""
        order = np.lexsort((np.asarray(counts), np.asarray(means)))  # the caller's order does not count
        self._means = np.asarray(means, dtype=np.float64)[order]
        self._counts = np.asarray(counts, dtype=np.float64)[order]
        self._seed, self.scatter = seed, scatter
        low, high = self._means[0] - 3 * scatter.sd, self._means[-1] + 3 * scatter.sd
        self._step = max(scatter.sd / 4, (high - low) / 120)
        self._grid = np.arange(low, high + self._step, self._step)

    @cached_property
    def _chain(self) -> tuple[Floats, Floats]:
        """(sweeps, grid) weights and (sweeps,) variances of one figure."""
        rng = np.random.default_rng(self._seed)
        grid, step, scatter = self._grid, self._step, self.scatter
        # Means within an eighth of the noise are told apart by nothing: they are counted.
        bins = np.round(self._means / (step / 2)) * (step / 2)
        several, members = np.unique(np.column_stack([bins, self._counts]), axis=0, return_counts=True)
        squares = (several[:, :1] - grid) ** 2
        centre = np.median(self._means)
        shapes = np.exp(-0.5 * ((grid - centre) / (_WIDTHS[:, None] * scatter.sd)) ** 2) + 1e-6
        shapes /= shapes.sum(axis=1, keepdims=True)
        prior = (_MASSES[:, None, None] * shapes).reshape(-1, len(grid))
        log_prior = _log_gamma(prior)
        log_total = _log_gamma(prior.sum(axis=1)) - _log_gamma(prior.sum(axis=1) + len(self._means))
        weights = np.full(len(grid), 1 / len(grid))
        kept, variances = [], scatter.sd**2 * scatter.freedom / rng.chisquare(scatter.freedom, _BURN_IN + _SWEEPS)
        for sweep, variance in enumerate(variances):
            share = _shares(squares, variance / several[:, 1:] + step**2, weights)
            held = rng.multinomial(members, share).sum(axis=0)
            filled = np.flatnonzero(held)
            fits = (
                log_total + _log_gamma(prior[:, filled] + held[filled]).sum(axis=1) - log_prior[:, filled].sum(axis=1)
            )
            fits = np.exp(fits - fits.max())
            weights = rng.dirichlet(prior[rng.choice(len(prior), p=fits / fits.sum())] + held)
            if sweep >= _BURN_IN:
                kept.append(weights)
        return np.array(kept), variances[_BURN_IN:]

    def draw(self, means: npt.ArrayLike, counts: npt.ArrayLike) -> Floats:
        """(`DRAWS`, candidates): true values of some of the candidates, which may be drawn for what the others were.

        Draws of one call belong together; those of equal candidates are independent.
        """
        x, n = np.asarray(means, dtype=np.float64), np.asarray(counts, dtype=np.float64)
        rng = np.random.default_rng(self._seed + 1)
        weights, variances = self._chain
        drawn = np.empty((_SWEEPS, _PER_SWEEP, len(x)))
        squares = (x[:, None] - self._grid) ** 2
        at_once = max(1, 200_000 // max(1, squares.size))  # what fits into the cache of a processor
        for first in range(0, _SWEEPS, at_once):
            some = slice(first, first + at_once)
            variance = variances[some, None, None]
            share = _shares(squares, variance / n[:, None] + self._step**2, weights[some, None, :])
            up_to = np.cumsum(share, axis=-1)[:, None]
            chosen = (up_to < rng.random((len(share), _PER_SWEEP, len(x), 1))).sum(axis=-1)
            at = self._grid[np.minimum(chosen, len(self._grid) - 1)]
            known = 1 / self._step**2 + n / variance
            mean = (at / self._step**2 + x * n / variance) / known
            drawn[some] = mean + rng.standard_normal(mean.shape) / np.sqrt(known)
        return drawn.reshape(DRAWS, len(x))


def _shares(squares: Floats, variance: Floats, weights: Floats) -> Floats:
    """(..., candidates, grid): how likely each candidate is to lie at each point of the grid."""
    log = -0.5 * squares / variance
    share = np.exp(log - log.max(axis=-1, keepdims=True)) * weights + 1e-300
    return np.asarray(share / share.sum(axis=-1, keepdims=True))


def _log_gamma(values: Floats) -> Floats:
    from scipy.special import gammaln

    return np.asarray(gammaln(values))


def truths_of(candidates: pd.DataFrame, column: str, scatter: Scatter) -> Truths | None:
    """The `Truths` of a column of `fpn_bench.analysis.by_candidate`; None where its scatter is not known."""
    known = candidates[candidates[column].notna()]
    counts = np.maximum(known["seeds"].to_numpy(dtype=np.int64), 1)
    return cached_truths(known[column].to_numpy(dtype=np.float64), counts, scatter)


def cached_truths(means: Floats, counts: npt.NDArray[np.int64], scatter: Scatter) -> Truths | None:
    """The `Truths` of these figures, which several sections of one report ask for; None where nothing is known."""
    if not len(means) or not scatter.sd > 0:
        return None
    order = np.lexsort((counts, means))
    return _remembered(tuple(means[order].tolist()), tuple(counts[order].tolist()), scatter)


@lru_cache(maxsize=4)
def _remembered(means: tuple[float, ...], counts: tuple[int, ...], scatter: Scatter) -> Truths:
    return Truths(means, counts, scatter)
