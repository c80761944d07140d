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
        costs: how many known objectives each has.

    Attributes:
        first: the first row of each.
    """

    def __init__(self, costs: int) -> None:
        """See the class."""
        self.first: list[TrialRow] = []
        self._means = Points(costs)
        self._counts, self._squares = array("d"), array("d")

    def add(self, row: TrialRow, costs: Sequence[float]) -> None:
        """One training more."""
        place = self._means.place(row.name)
        if place is None:
            self.first.append(row)
            self._counts.append(1.0)
            self._squares.append(0.0)
            self._means.put(row.name, row.trial, row.ap, costs)
            return
        self._counts[place] += 1
        before, *first_costs = self._means.row(place)
        away = row.ap - before
        mean = before + away / self._counts[place]
        self._squares[place] += away * (row.ap - mean)  # Welford 1962
        self._means.put(row.name, row.trial, mean, first_costs)

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """[candidates, 1 + costs], the mean AP first."""
        return self._means.values

    @property
    def counts(self) -> npt.NDArray[np.float64]:
        """[candidates], trainings of each."""
        return np.array(self._counts)

    def pooled_sd(self) -> float:
        """Standard deviation between seeds of one candidate; a guess while none has two, NaN without candidates."""
        if not self.first:
            return math.nan
        freedom = float((self.counts - 1).sum())
        if freedom:
            return math.sqrt(float(np.sum(self._squares)) / freedom)
        return SEED_SPREAD * float(np.median(self.values[:, 0]))
