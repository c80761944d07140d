"""How sure a figure is: means over seeds with their interval, and verdicts between two sets of seeds.

How AP scatters is pooled over all candidates, with what is known beforehand (`fpn_bench.analysis.noise`): one seed of a
candidate has an interval too. Where nothing is known of how a figure scatters, its interval is NaN and the verdict
"unclear".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtr, stdtrit

from fpn_bench.analysis.noise import NAN, Scatter, scatter_within
from fpn_bench.errors import InputError
from fpn_bench.metrics import Direction, metrics

Floats = npt.NDArray[np.float64]
Verdict = Literal["better", "worse", "same", "unclear"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with the interval it lies in, and the number of values behind it."""

    value: float
    low: float
    high: float
    sd: float
    count: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two sets of values say about each other.

    Attributes:
        verdict: how a stands to b.
        difference: mean(a) - mean(b), or what is expected of it, with its interval ``low``..``high``.
        ratio: mean(a) / mean(b), with the interval ``ratio_low``..``ratio_high`` of the ratio of geometric means;
            NaN unless every value is positive.
    """

    verdict: Verdict
    difference: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    count_a: int
    count_b: int


def mean_interval(values: npt.ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Mean and Student t interval; NaN values are left out. One value: interval NaN; none: all NaN."""
    sample = _sample(values)
    if len(sample) < 2:
        return Interval(float(sample[0]) if len(sample) else NAN, NAN, NAN, NAN, len(sample))
    mean, sd = float(sample.mean()), float(sample.std(ddof=1))
    half = float(stdtrit(len(sample) - 1, _upper(confidence))) * sd / len(sample) ** 0.5
    return Interval(mean, mean - half, mean + half, sd, len(sample))


def compare(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    direction: Direction = "maximize",
    confidence: float = 0.95,
    margin: float = 0.0,
    typical_sd: float = NAN,
    typical_freedom: int = 0,
) -> Comparison:
    """How ``a`` stands to ``b``: "better", "worse", "same" or "unclear".

    The interval of the difference of means decides: "same" when it lies within +-``margin`` (the difference that would
    not matter, in the values' own unit), else "better" or "worse" when it leaves out zero, else "unclear". NaN values
    are left out.

    Where it is known how such values scatter (``typical_sd`` with its degrees of freedom, see
    `fpn_bench.analysis.noise`), Student's interval by that is taken whatever the number of values: more of them never
    widen it. Else it is Welch's (Welch 1947), from the values' own spread; fewer than two on either side are then
    "unclear", and two equal sets without spread are the "same".
    """
    x, y = _sample(a), _sample(b)
    difference, low, high = _welch(x, y, confidence)
    if min(len(x), len(y)) > 0 and typical_freedom > 0:
        known = Estimates.of_means(x.mean(), len(x), y.mean(), len(y), Scatter(typical_sd, typical_freedom))
        low, high = (float(end) for end in known.interval(confidence))
    positive = bool(len(x) and len(y) and (x > 0).all() and (y > 0).all())
    ratio = float(x.mean() / y.mean()) if positive else NAN
    _, log_low, log_high = _welch(np.log(x), np.log(y), confidence) if positive else (NAN, NAN, NAN)
    verdict = verdict_of(low, high, margin, direction)
    return Comparison(
        verdict, difference, low, high, ratio, float(np.exp(log_low)), float(np.exp(log_high)), len(x), len(y)
    )


def compare_means(
    means: tuple[float, float],
    counts: tuple[int, int],
    half_width: float,
    *,
    direction: Direction = "maximize",
    margin: float = 0.0,
) -> Comparison:
    """How the first of two means stands to the second, where half of their difference's interval is known.

    Ratios are NaN; so are the ends where the half is.
    """
    difference = means[0] - means[1]
    low, high = difference - half_width, difference + half_width
    return Comparison(verdict_of(low, high, margin, direction), difference, low, high, NAN, NAN, NAN, *counts)


def compare_drawn(
    drawn: npt.NDArray[np.float64],
    counts: tuple[int, int],
    *,
    direction: Direction = "maximize",
    confidence: float = 0.95,
    margin: float = 0.0,
) -> Comparison:
    """How the first of two picked candidates stands to the second, by draws of both true values.

    The difference is the expected one, less than the measured one where luck had a part in the pick. Ratios are NaN.

    Args:
        drawn: (draws, 2) of `fpn_bench.analysis.noise.Truths.draw`.
        counts: values behind each.
        direction, confidence, margin: as of `compare`.
    """
    apart = drawn[:, 0] - drawn[:, 1]
    low, high = (float(end) for end in np.quantile(apart, [1 - _upper(confidence), _upper(confidence)]))
    verdict = verdict_of(low, high, margin, direction)
    return Comparison(verdict, float(apart.mean()), low, high, NAN, NAN, NAN, *counts)


def verdict_of(low: float, high: float, margin: float, direction: Direction = "maximize") -> Verdict:
    """What the interval of a difference says, as `compare` does; NaN ends are "unclear"."""
    same, better = low >= -margin and high <= margin, (low > 0) == (direction == "maximize")
    return str(_decided(same, low > 0 or high < 0, better))  # type: ignore[return-value]  # one of the four


def _decided(same: npt.ArrayLike, apart: npt.ArrayLike, better: npt.ArrayLike) -> npt.NDArray[np.object_]:
    """The rule of every verdict: "same" goes first; arrays broadcast."""
    words = np.where(better, "better", "worse")
    return np.where(same, "same", np.where(apart, words, "unclear")).astype(object)


@dataclass(frozen=True)
class Estimates:
    """Differences with their standard errors and degrees of freedom; NaN where they are not known."""

    value: Floats
    error: Floats
    freedom: Floats

    @classmethod
    def of_means(
        cls, a: npt.ArrayLike, count_a: npt.ArrayLike, b: npt.ArrayLike, count_b: npt.ArrayLike, scatter: Scatter
    ) -> Estimates:
        """Means ``a`` less means ``b`` of so many figures that scatter alike; arrays broadcast."""
        shares = [1 / np.where(np.asarray(n) > 0, n, np.nan) for n in (count_a, count_b)]
        value = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
        freedom = np.full(value.shape, scatter.freedom or np.nan, dtype=np.float64)
        return cls(value, np.asarray((scatter.sd or np.nan) * np.sqrt(shares[0] + shares[1])), freedom)

    def interval(self, confidence: float) -> tuple[Floats, Floats]:
        """PooledTables ends of each, for it alone."""
        half = np.asarray(stdtrit(self.freedom, _upper(confidence)) * self.error, dtype=np.float64)
        return self.value - half, self.value + half

    def decided(self, tested: npt.NDArray[np.bool_], margin: float, limit: float, confidence: float) -> Decided:
        """Verdicts of a list, of which any wrong "better" or "worse" is as unlikely as of one, and any wrong "same".

        Args:
            tested: which are tests at all; the others are "unclear" here, without a p-value.
            margin: within which a difference is the "same".
            limit: beyond which it is "better" (above 0) or "worse".
            confidence: of the list.
        """
        differs = holm(np.where(tested, self._p_beyond(limit), np.nan))
        same = holm(np.where(tested, self._p_within(margin), np.nan))
        alpha = 1 - confidence
        return Decided(_decided(same <= alpha, differs <= alpha, self.value > 0), differs, same)

    def _p_beyond(self, limit: float) -> Floats:
        """The least 1 - confidence whose interval lies beyond +-``limit`` as a whole."""
        room = np.abs(self.value) - limit
        return self._p(room, room > 0)

    def _p_within(self, limit: float) -> Floats:
        """The least 1 - confidence whose interval lies within +-``limit`` as a whole."""
        room = limit - np.abs(self.value)
        return self._p(room, room >= 0)

    def _p(self, room: Floats, exact: npt.NDArray[np.bool_]) -> Floats:
        """``exact`` decides where nothing spreads."""
        with np.errstate(divide="ignore", invalid="ignore"):
            tail = 2 * stdtr(self.freedom, -room / self.error)
        p = np.where(self.error == 0, np.where(exact, 0.0, 1.0), np.minimum(tail, 1.0))
        return np.asarray(np.where(np.isnan(self.value), np.nan, p), dtype=np.float64)


@dataclass(frozen=True)
class Decided:
    """Verdicts of a list, with the p-values that they follow from, adjusted for its length.

    Attributes:
        verdict: "better", "worse", "same" or "unclear" of each, where more is better.
        p_differs: of no difference.
        p_same: of a difference beyond the margin.
    """

    verdict: npt.NDArray[np.object_]
    p_differs: Floats
    p_same: Floats


def holm(p_values: npt.ArrayLike) -> Floats:
    """p-values adjusted by Holm's step-down (Holm 1979): those below alpha are false with a chance of alpha in all.

    NaN stands for no test: it stays, and counts for nothing.
    """
    given = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(given.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(given))
    order = tested[np.argsort(given[tested], kind="stable")]
    steps = given[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def bootstrap_difference(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    statistic: Callable[..., npt.NDArray[np.float64]] = np.median,
    resamples: int = 9_999,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """``statistic(a) - statistic(b)`` with its percentile bootstrap interval (Efron 1979), for many skewed values
    such as times; `compare` is for a handful of seeds.

    Args:
        statistic: takes (..., n) and ``axis``, e.g. `numpy.median`.

    Returns:
        ``sd`` is the bootstrap's standard error, ``count`` the smaller sample's size; NaN with fewer than two values
        on either side.
    """
    x, y = _sample(a), _sample(b)
    if min(len(x), len(y)) < 2:
        value = float(statistic(x, axis=-1) - statistic(y, axis=-1)) if len(x) and len(y) else NAN
        return Interval(value, NAN, NAN, NAN, min(len(x), len(y)))
    rng = np.random.default_rng(seed)
    drawn = statistic(rng.choice(x, (resamples, len(x))), axis=-1) - statistic(
        rng.choice(y, (resamples, len(y))), axis=-1
    )
    low, high = np.quantile(drawn, [1 - _upper(confidence), _upper(confidence)])
    value = float(statistic(x, axis=-1) - statistic(y, axis=-1))
    return Interval(value, float(low), float(high), float(drawn.std(ddof=1)), min(len(x), len(y)))


def by_candidate(table: pd.DataFrame, *, confidence: float = 0.95) -> pd.DataFrame:
    """One row a candidate, of its complete rows, in the order the candidates first finished.

    Trained metrics hold the mean over the candidate's seeds, ``train_s``, ``total_s`` and ``overhead_s`` the sum (what
    it cost, the earlier pieces of a training in pieces among it), every other column the first row's value. Added:
    ``seeds`` (how many), ``ap_sd`` (of its own seeds; NaN with one), ``ap_low`` and ``ap_high`` (t interval of the
    mean by the scatter pooled over the table, `fpn_bench.analysis.noise`). A seed that stands twice counts once.
    """
    done = table[table["status"] == "complete"].drop_duplicates(["protocol", "candidate", "seed"])
    groups = done.groupby(["protocol", "candidate"], sort=False)
    how = {name: "first" for name in table.columns if name not in ("protocol", "candidate")}
    how |= {metric.name: "mean" for metric in metrics() if metric.noise == "seeds" and metric.name in table.columns}
    candidates = groups.agg(how).reset_index()[list(table.columns)]
    seconds = ["train_s", "total_s", "overhead_s"]
    pieces = pd.concat([done, table[table["status"] == "continued"]])
    spent = pieces.groupby(["protocol", "candidate"])[seconds].sum(min_count=1)
    names = pd.MultiIndex.from_frame(candidates[["protocol", "candidate"]])
    candidates[seconds] = spent.reindex(names).to_numpy(dtype=np.float64)
    count = groups["ap"].count().to_numpy(dtype=np.float64)
    sd = groups["ap"].std(ddof=1).to_numpy(dtype=np.float64)
    half = scatter_within(done, ["protocol", "candidate"], "ap").half_width(count, confidence=confidence)
    mean = candidates["ap"].to_numpy(dtype=np.float64)
    return candidates.assign(
        seeds=groups.size().to_numpy(dtype=np.int64), ap_sd=sd, ap_low=mean - half, ap_high=mean + half
    )


def welch_error(
    square_a: npt.ArrayLike, count_a: npt.ArrayLike, square_b: npt.ArrayLike, count_b: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Standard error of a difference of two means, and its degrees of freedom (Welch 1947, Satterthwaite 1946).

    Args:
        square_a, square_b: squared standard errors of the means (variance / count); arrays broadcast.
        count_a, count_b: values behind each mean; fewer than two give NaN.

    Returns:
        Error and freedom, which is infinite where nothing spreads.
    """
    a, b = np.asarray(square_a, dtype=np.float64), np.asarray(square_b, dtype=np.float64)
    n, m = np.asarray(count_a, dtype=np.float64), np.asarray(count_b, dtype=np.float64)
    known = np.minimum(n, m) >= 2
    with np.errstate(divide="ignore", invalid="ignore"):
        # On shares of the variance: squares of tiny variances would underflow.
        share = np.where(a + b == 0, np.nan, a / (a + b))
        freedom = 1 / (share**2 / (n - 1) + (1 - share) ** 2 / (m - 1))
        freedom = np.where(a + b == 0, np.inf, freedom)
    return np.where(known, np.sqrt(a + b), np.nan), np.where(known, freedom, np.nan)


def _welch(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], confidence: float) -> tuple[float, float, float]:
    if not len(x) or not len(y):
        return NAN, NAN, NAN
    difference = float(x.mean() - y.mean())
    if min(len(x), len(y)) < 2:
        return difference, NAN, NAN
    error, freedom = welch_error(x.var(ddof=1) / len(x), len(x), y.var(ddof=1) / len(y), len(y))
    half = float(stdtrit(freedom, _upper(confidence)) * error)
    return difference, difference - half, difference + half


def _sample(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64).ravel()
    return sample[~np.isnan(sample)]


def _upper(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise InputError(f"expected confidence to be a share between 0 and 1, e.g. 0.95, got {confidence}")
    return (1 + confidence) / 2
