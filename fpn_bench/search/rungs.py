"""Stopping trainings early under several objectives.

Optuna refuses to prune when there are several objectives, because it cannot say which of them decides. Here only one
moves: params, MACs and latency of a candidate are fixed before its training begins, so that a candidate stopped at a
*rung* (after so many epochs) is a point of known cost whose AP is uncertain. It goes on where, at that cost, it can
still enter the front.

As in ASHA (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", arXiv:1810.05934) there is no
barrier: each decision is made with what is known when a worker is free, and a training stopped early may go on much
later, from its checkpoint. Non-dominated sorting within a rung is the rule of Schmucker et al. 2021 ("Multi-objective
Asynchronous Successive Halving", arXiv:2106.12639).
"""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from fpn_bench.analysis.pareto import best_first, pareto_mask
from fpn_bench.search.samplers.improvement import expected_hypervolume_improvement

Floats = npt.NDArray[np.float64]

_PRIOR = 2.0
"""Trainings that a common rise is worth against what is observed."""
_FEW = 4
"""Fewer finished trainings than this say too little of how far an AP still rises."""


@dataclass(frozen=True)
class Rung:
    """The n candidates that have come to a rung.

    Attributes:
        trials: int [n], that brought each there.
        ap: [n], there.
        costs: [n, d], their known objectives, less is better.
        final_ap: [n], what the AP of each is expected to be at the end.
        final_sd: [n], how uncertain that is.
        promoted: bool [n], it was taken further already.
    """

    trials: npt.NDArray[np.int64]
    ap: Floats
    costs: Floats
    final_ap: Floats
    final_sd: Floats
    promoted: npt.NDArray[np.bool_]

    def select(self, wanted: npt.NDArray[np.bool_]) -> Rung:
        """Some of them."""
        return Rung(*(getattr(self, field.name)[wanted] for field in dataclasses.fields(self)))

    @staticmethod
    def merged(rungs: Sequence[Rung]) -> Rung:
        """Those of several."""
        return Rung(*(np.concatenate([getattr(r, field.name) for r in rungs]) for field in dataclasses.fields(Rung)))


class Points:
    """AP and costs of candidates, one row for each key; a later one of a key takes its place.

    Args:
        costs: how many each has.
    """

    def __init__(self, costs: int) -> None:
        """See the class."""
        self._width = 1 + costs
        self._at: dict[Hashable, int] = {}
        self._trials, self._values = array("q"), array("d")
        self._promoted = array("b")

    def put(self, key: Hashable, trial: int, ap: float, costs: Sequence[float], *, promoted: bool = False) -> None:
        """Add one, or replace it."""
        row = self._at.setdefault(key, len(self._at))
        if row == len(self._trials):
            self._trials.append(trial)
            self._promoted.append(promoted)
            self._values.extend((ap, *costs))
        else:
            self._trials[row], self._promoted[row] = trial, promoted
            self._values[row * self._width : (row + 1) * self._width] = array("d", (ap, *costs))

    def place(self, key: Hashable) -> int | None:
        """In which row a key stands; None where it does not."""
        return self._at.get(key)

    def row(self, place: int) -> tuple[float, ...]:
        """AP and costs of one."""
        return tuple(self._values[place * self._width : (place + 1) * self._width])

    @property
    def values(self) -> Floats:
        """[n, 1 + costs], AP first."""
        return np.array(self._values, dtype=np.float64).reshape(-1, self._width)

    def rung(self, epochs: int, extrapolate: Extrapolation) -> Rung:
        """Those at a rung, after so many epochs."""
        values = self.values
        ap, costs = values[:, 0], values[:, 1:]
        final = extrapolate(epochs, ap, costs)
        return Rung(np.array(self._trials, dtype=np.int64), ap, costs, *final, np.array(self._promoted, dtype=bool))


class Rule(Protocol):
    """Which candidates of a rung are worth more."""

    def __call__(self, rung: Rung, finished: Floats) -> Floats:
        """A score [n] for each, more is better; minus infinity for one that is not to go on.

        Args:
            rung: the candidates.
            finished: [m, 1 + d], AP and costs of those that were trained to the end.
        """
        ...


def nondominated(rung: Rung, finished: Floats) -> Floats:
    """By fronts peeled off one by one within the rung, within a front those with the most room around them first.

    The AP at the rung stands for the final one; what was trained to the end plays no part. Room is the crowding
    distance of NSGA-II (Deb et al. 2002).
    """
    values = np.column_stack([-rung.ap, rung.costs])
    scores = np.empty(len(values))
    scores[list(best_first(values, ["minimize"] * values.shape[1]))] = -np.arange(len(values))
    return np.where(np.isnan(values).any(axis=1), -math.inf, scores)


def reach(rung: Rung, finished: Floats) -> Floats:
    """By the hypervolume that each is expected to add once trained to the end, at its own cost.

    The AP at the end is taken as normal around what `Extrapolation` expects. What has less than one chance in twenty
    to exceed the best AP known at no higher cost is not to go on.
    """
    scores = np.full(len(rung.ap), -math.inf)
    waiting = ~rung.promoted & ~np.isnan(rung.final_ap)
    if not waiting.any():
        return scores
    costs, mean, sd = rung.costs[waiting], rung.final_ap[waiting], np.maximum(rung.final_sd[waiting], 1e-9)
    # Beyond the worst, so that the dearest still adds something.
    worst = np.vstack([rung.costs, finished[:, 1:]]).max(axis=0)
    reference = worst * np.where(worst < 0, 0.95, 1.05) + 1e-9
    front = finished[pareto_mask(finished, ["maximize", *["minimize"] * costs.shape[1]])]
    ap, there = front[:, 0], front[:, 1:]
    worth = expected_hypervolume_improvement(costs, mean, sd, there, ap, reference)
    below = (there[None, :, :] <= costs[:, None, :]).all(axis=2)
    height = np.where(below, ap, 0.0).max(axis=1, initial=0.0)
    scores[waiting] = np.where(ndtr((mean - height) / sd) >= 0.05, worth, -math.inf)
    return scores


RULES: dict[str, Rule] = {"reach": reach, "nondominated": nondominated}


def to_promote(rung: Rung, finished: Floats, *, rule: Rule, keep: float) -> list[int]:
    """The trials of a rung to be taken further, best first.

    At most the share ``keep`` of those that reached the rung goes on in all, whenever each of them arrived.
    """
    room = math.floor(keep * len(rung.trials)) - int(rung.promoted.sum())
    if room <= 0:
        return []
    scores = np.where(rung.promoted, -math.inf, rule(rung, finished))
    best = np.argsort(-scores, kind="stable")[:room]
    return [int(trial) for trial in rung.trials[best[scores[best] > -math.inf]]]


class Extrapolation:
    """The AP to be expected at the end of a training, from its AP at a rung and its costs.

    A plane through those trained to the end: their further rise over the AP at the rung and the logarithms of the
    costs, drawn towards one common rise while they are few (ridge), and the spread around it.

    Args:
        full_epochs: of a whole training.
        costs: how many known objectives a candidate has.
    """

    def __init__(self, full_epochs: int, costs: int = 0) -> None:
        """See the class."""
        self._full, self._width = full_epochs, 2 + costs
        self._passed: dict[int, array[float]] = {}  # rung -> final AP, AP there and costs, of those that passed it
        self._planes: dict[int, _Plane] = {}
        self.trained = 0
        """Trainings that were learned from."""

    def add(self, curve: Mapping[int, float], costs: Sequence[float] = ()) -> None:
        """Learn of a training that has ended: AP by epoch, and its costs."""
        final = curve.get(self._full, math.nan)
        if not math.isfinite(final):
            return
        self.trained += 1
        for epochs, ap in curve.items():
            if epochs < self._full:
                self._passed.setdefault(epochs, array("d")).extend((final, ap, *costs))
                self._planes.pop(epochs, None)

    def __call__(self, epochs: int, ap: npt.ArrayLike, costs: npt.ArrayLike) -> tuple[Floats, Floats]:
        """(mean, standard deviation) of the final AP, [n] each.

        Args:
            epochs: of the rung.
            ap: [n], there.
            costs: [n, d].
        """
        there = np.asarray(ap, dtype=np.float64)
        if epochs >= self._full:
            return there, np.zeros(len(there))
        if epochs not in self._planes:
            passed = np.array(self._passed.get(epochs, ()), dtype=np.float64).reshape(-1, self._width)
            self._planes[epochs] = _Plane(_points(passed[:, 1], passed[:, 2:]), passed[:, 0])
        return self._planes[epochs](_points(there, np.asarray(costs, dtype=np.float64)))


def _points(ap: Floats, costs: Floats) -> Floats:
    return np.column_stack([ap, np.log(np.maximum(costs, 1e-9))])


class _Plane:
    """Rise from the first coordinate of points to their finals."""

    def __init__(self, points: Floats, finals: Floats) -> None:
        self.centre: Floats | float = 0.0
        self.scale: Floats | float = 1.0
        self.slopes: Floats = np.zeros(0)
        self.rise = float((finals - points[:, 0]).mean()) if len(finals) else 0.0
        self.sd = max(0.25 * float(finals.mean()), 1.0) if len(finals) else 1.0
        if len(finals) < _FEW:
            return
        centre, scale = points.mean(axis=0), points.std(axis=0)
        scale[scale <= 1e-12] = math.inf  # what is the same for all says nothing
        x, rises = (points - centre) / scale, finals - points[:, 0] - self.rise
        slopes = np.linalg.solve(x.T @ x + _PRIOR * np.eye(x.shape[1]), x.T @ rises)
        residuals = rises - x @ slopes
        self.centre, self.scale, self.slopes = centre, scale, slopes
        self.sd = max(math.sqrt(float(residuals @ residuals) / max(len(finals) - x.shape[1] - 1, 1)), 1e-6)

    def __call__(self, points: Floats) -> tuple[Floats, Floats]:
        away = (points - self.centre) / self.scale
        tilt = away @ self.slopes if len(self.slopes) else 0.0
        return points[:, 0] + self.rise + tilt, np.full(len(points), self.sd)
