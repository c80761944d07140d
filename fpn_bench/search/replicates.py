"""Candidates that were trained to their end, with what their seeds say, and which of them may be on the front."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from fpn_bench.analysis import pareto_mask
from fpn_bench.search.records import TrialRow
from fpn_bench.search.rungs import Points

SEED_SPREAD = 0.05
"""What the AP of two seeds is taken to differ by (standard deviation, as a share) before any candidate has two."""
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
        trained: of each objective beside AP, whether it comes from the training; else it is a known cost.

    Attributes:
        first: the first row of each.
        noisy: places of AP and of the other trained objectives among the values.
    """

    def __init__(self, trained: Sequence[bool]) -> None:
        """See the class."""
        self.first: list[TrialRow] = []
        self.noisy = [0, *(i for i, of in enumerate(trained, start=1) if of)]
        self._means = Points(len(trained))
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
        """Standard deviations between seeds of one candidate, of what is `noisy`; a guess while none has two, NaN
        without candidates."""
        if not self.first:
            return np.full(len(self.noisy), math.nan)
        freedom = float((self.counts - 1).sum())
        if freedom:
            return np.sqrt(self._squares / freedom)
        return SEED_SPREAD * np.abs(np.median(self.values[:, self.noisy], axis=0))
