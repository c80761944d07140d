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

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from fpn_bench.analysis.pareto import best_first
from fpn_bench.search.samplers.improvement import expected_hypervolume_improvement

Floats = npt.NDArray[np.float64]

_PRIOR = 2.0
"""Trainings that a common rise is worth against what is observed."""
_FEW = 4
"""Fewer finished trainings than this say too little of how far an AP still rises."""


@dataclass(frozen=True)
class Standing:
    """A candidate at a rung.

    Attributes:
        trial: that brought it there.
        ap: there.
        costs: its known objectives, less is better.
        final_ap: what its AP is expected to be at the end.
        final_sd: how uncertain that is.
        gone_on: it was taken further already.
    """

    trial: int
    ap: float
    costs: tuple[float, ...]
    final_ap: float
    final_sd: float
    gone_on: bool = False


@dataclass(frozen=True)
class Finished:
    """A candidate trained to the end: its AP and its known objectives, less is better."""

    ap: float
    costs: tuple[float, ...]


class Rule(Protocol):
    """Which candidates of a rung are worth more."""

    def __call__(self, rung: Sequence[Standing], finished: Sequence[Finished]) -> Sequence[float]:
        """A score for each, more is better; minus infinity for one that is not to go on."""
        ...


def nondominated(rung: Sequence[Standing], finished: Sequence[Finished]) -> Sequence[float]:
    """By fronts peeled off one by one within the rung, within a front those with the most room around them first.

    The AP at the rung stands for the final one; what was trained to the end plays no part. Room is the crowding
    distance of NSGA-II (Deb et al. 2002).
    """
    if not rung:
        return []
    values = np.array([[-s.ap, *s.costs] for s in rung], dtype=np.float64)
    scores = np.empty(len(rung))
    scores[list(best_first(values, ["minimize"] * values.shape[1]))] = -np.arange(len(rung))
    return [float(score) for score in np.where(np.isnan(values).any(axis=1), -math.inf, scores)]


def reach(rung: Sequence[Standing], finished: Sequence[Finished]) -> Sequence[float]:
    """By the hypervolume that each is expected to add once trained to the end, at its own cost.

    The AP at the end is taken as normal around what `Extrapolation` expects. What has less than one chance in twenty
    to exceed the best AP known at no higher cost is not to go on.
    """
    if not rung:
        return []
    costs = np.array([s.costs for s in rung], dtype=np.float64).reshape(len(rung), -1)
    mean = np.array([s.final_ap for s in rung])
    sd = np.maximum([s.final_sd for s in rung], 1e-9)
    there = np.array([f.costs for f in finished], dtype=np.float64).reshape(len(finished), costs.shape[1])
    ap = np.array([f.ap for f in finished], dtype=np.float64)
    # Beyond the worst, so that the dearest still adds something.
    reference = 1.05 * np.vstack([costs, there]).max(axis=0) + 1e-9
    scores = expected_hypervolume_improvement(costs, mean, sd, there, ap, reference)
    below = (there[None, :, :] <= costs[:, None, :]).all(axis=2)
    height = np.where(below, ap, 0.0).max(axis=1, initial=0.0)
    hopeless = ~(norm.cdf((mean - height) / sd) >= 0.05)  # an AP that is no number included
    return [float(score) for score in np.where(hopeless, -math.inf, scores)]


RULES: Mapping[str, Rule] = {"reach": reach, "nondominated": nondominated}


def going_on(rung: Sequence[Standing], finished: Sequence[Finished], *, rule: Rule, keep: float) -> list[int]:
    """The trials of a rung to be taken further, best first.

    At most the share ``keep`` of those that reached the rung goes on in all, whenever each of them arrived.
    """
    scores = rule(rung, finished)
    room = math.floor(keep * len(rung)) - sum(standing.gone_on for standing in rung)
    waiting = [i for i, standing in enumerate(rung) if not standing.gone_on and scores[i] > -math.inf]
    waiting.sort(key=lambda i: -scores[i])
    return [rung[i].trial for i in waiting[: max(room, 0)]]


class Extrapolation:
    """The AP to be expected at the end of a training, from its AP at a rung and its costs.

    A plane through those trained to the end: their further rise over the AP at the rung and the logarithms of the
    costs, drawn towards one common rise while they are few (ridge), and the spread around it.

    Args:
        trained: AP by epoch, and costs, of finished trainings.
        full_epochs: of a whole training.
    """

    def __init__(self, trained: Sequence[tuple[Mapping[int, float], Sequence[float]]], full_epochs: int) -> None:
        """See the class."""
        self._trained = [(curve, costs) for curve, costs in trained if math.isfinite(curve.get(full_epochs, math.nan))]
        self._full = full_epochs
        self._planes: dict[int, _Plane] = {}

    def __call__(self, epochs: int, ap: float, costs: Sequence[float] = ()) -> tuple[float, float]:
        """(mean, standard deviation) of the final AP."""
        if epochs >= self._full:
            return ap, 0.0
        if epochs not in self._planes:
            passed = [(curve, costs) for curve, costs in self._trained if epochs in curve]
            points = np.array([_point(curve[epochs], costs) for curve, costs in passed])
            finals = np.array([curve[self._full] for curve, _ in passed])
            self._planes[epochs] = _Plane(points, finals)
        return self._planes[epochs](_point(ap, costs))


def _point(ap: float, costs: Sequence[float]) -> list[float]:
    return [ap, *(math.log(max(cost, 1e-9)) for cost in costs)]


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

    def __call__(self, point: Sequence[float]) -> tuple[float, float]:
        away = (np.asarray(point) - self.centre) / self.scale
        tilt = float(away @ self.slopes) if len(self.slopes) == len(away) else 0.0
        return point[0] + self.rise + tilt, self.sd
