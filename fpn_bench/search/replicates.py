"""Candidates that were trained to their end, with what their seeds say, and which of them may be on the front."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from fpn_bench.analysis import pareto_mask
from fpn_bench.analysis.choice import MARGIN_AP, TOLERANCE_AP
from fpn_bench.analysis.noise import prior_scatter
from fpn_bench.metrics import metric_of
from fpn_bench.search.records import TrialRow
from fpn_bench.search.rungs import Points

SEED_SPREAD = 0.05
"""Standard deviation over seeds, as a share of the median, of a metric whose spread no earlier table tells."""
_GUESS_FREEDOM = 2
"""Degrees of freedom that this guess counts for."""
_MOST_NEAR = 200
"""So many candidates, those nearest to the front, are looked at for one that needs a seed."""
_EPSILON = 1e-9


def near_front(values: npt.NDArray[np.float64], sd: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Places of the candidates that may be on the front, at most `_MOST_NEAR`, ascending.

    A candidate's chance is at most that of its AP to exceed the AP of one member of the front of means that costs no
    more; it is left out where that is under a thousandth.

    Args:
        values: [n, 1 + costs], mean AP and costs, less is better.
        sd: [n], of the means.
    """
    ap, costs = values[:, 0], values[:, 1:]
    away = np.full(len(values), math.inf)
    for member in np.flatnonzero(pareto_mask(values, ["maximize", *["minimize"] * costs.shape[1]])):
        dearer = np.flatnonzero((costs[member] <= costs).all(axis=1))
        spread = np.maximum(np.hypot(sd[dearer], sd[member]), _EPSILON)
        away[dearer] = np.minimum(away[dearer], np.where(dearer == member, 0.0, (ap[dearer] - ap[member]) / spread))
    near = np.flatnonzero(away > ndtri(0.001))
    return np.sort(near[np.argsort(-away[near], kind="stable")[:_MOST_NEAR]])


class Replicates:
    """Candidates trained to the end, with what their seeds say.

    Args:
        merit: what is learned, AP as a rule.
        costs: the other objectives; those that come from the training scatter too, the others are known.

    Attributes:
        first: the first row of each.
        noisy: places of AP and of the other trained objectives among the values.
    """

    def __init__(self, merit: str, costs: Sequence[str]) -> None:
        """See the class."""
        self.first: list[TrialRow] = []
        self.noisy = [0, *(i for i, name in enumerate(costs, start=1) if metric_of(name).known == "trained")]
        self._priors = [prior_scatter((merit, *costs)[place]) for place in self.noisy]
        self._means = Points(len(costs))
        self._counts, self._squares = array("d"), np.zeros(len(self.noisy))

    def add(self, row: TrialRow, ap: float, costs: Sequence[float]) -> None:
        """One training more."""
        place = self._means.place(row.name)
        if place is None:
            self.first.append(row)
            self._counts.append(1.0)
            self._means.put(row.name, row.trial, ap, costs)
            return
        self._counts[place] += 1
        means, values = list(self._means.row(place)), (ap, *costs)
        for at, noisy in enumerate(self.noisy):
            away = values[noisy] - means[noisy]
            means[noisy] += away / self._counts[place]
            self._squares[at] += away * (values[noisy] - means[noisy])  # Welford 1962
        self._means.put(row.name, row.trial, means[0], means[1:])

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """[candidates, 1 + costs], the mean AP first."""
        return self._means.values

    @property
    def counts(self) -> npt.NDArray[np.float64]:
        """[candidates], trainings of each."""
        return np.array(self._counts)

    def pooled_sd(self) -> npt.NDArray[np.float64]:
        """Standard deviations between seeds of one candidate, of what is `noisy`; NaN without candidates.

        Pooled with what earlier tables tell (`fpn_bench.analysis.noise.prior_scatter`) or, of other metrics, with a
        guess: one lucky pair of equal figures never makes it zero.
        """
        if not self.first:
            return np.full(len(self.noisy), math.nan)
        guess = SEED_SPREAD * np.abs(np.median(self.values[:, self.noisy], axis=0))
        freedom = np.array([prior.freedom or _GUESS_FREEDOM for prior in self._priors])
        prior_sd = np.array([p.sd if p.freedom else g for p, g in zip(self._priors, guess, strict=True)])
        replicates = float((self.counts - 1).sum())
        return np.asarray(np.sqrt((freedom * prior_sd**2 + self._squares) / (freedom + replicates)))


def undecided(
    values: npt.NDArray[np.float64],
    counts: npt.NDArray[np.float64],
    sd: npt.NDArray[np.float64],
    published: npt.NDArray[np.bool_],
    tolerance: npt.ArrayLike = 0.0,
) -> list[int]:
    """Places of the neck that would be taken and of the one it is held against, fewest seeds first, while another
    seed may change which of the two is better; see `fpn_bench.analysis.choose`. Empty once that is decided.

    A neck that would be taken after a single seed was picked by its luck and is undecided for that alone.

    Args:
        values: [n, 1 + costs], mean AP and costs, less is better.
        counts: [n], trainings of each.
        sd: [n], of the mean APs.
        published: [n], whether a neck is a published one.
        tolerance: [costs], shares that measurements of one cost differ by.
    """
    ap, costs = values[:, 0], values[:, 1:]
    if not len(ap):
        return []
    good = np.flatnonzero(ap >= ap.max() - TOLERANCE_AP)
    taken = int(good[np.lexsort((-ap[good], *costs[good].T[::-1]))[0]]) if costs.shape[1] else int(ap.argmax())
    most = costs[taken] + np.asarray(tolerance) * np.abs(costs[taken])
    possible = ~published if published[taken] else published & (costs <= most).all(axis=1)
    lucky = [taken] if counts[taken] < 2 else []
    if not possible.any():
        return lucky
    rival = int(np.where(possible, ap, -math.inf).argmax())
    difference, error = abs(ap[taken] - ap[rival]), math.hypot(sd[taken], sd[rival])
    half = float(ndtri(0.975)) * error
    if difference > half or difference + half <= MARGIN_AP:
        return lucky
    return sorted((taken, rival), key=lambda place: counts[place])
