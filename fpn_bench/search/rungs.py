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
from scipy.stats import norm

from fpn_bench.analysis import pareto_mask

_FEW = 4
"""Fewer trainings than this that came to their end say too little of how far an AP still rises."""


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
    """By fronts peeled off one by one within the rung, and within a front by distance to their neighbours.

    The AP at the rung stands for the final one; what was trained to the end plays no part. Ties by the crowding
    distance of NSGA-II (Deb et al. 2002).
    """
    values = np.array([[-s.ap, *s.costs] for s in rung])
    scores = np.empty(len(rung))
    left, rank = np.arange(len(rung)), 0
    while len(left):
        front = left[pareto_mask(values[left], ["minimize"] * values.shape[1])]
        if not len(front):  # an AP that is no number
            scores[left] = -math.inf
            break
        distance = _crowding(values[front])
        scores[front] = -rank + distance / (1 + distance.max(where=np.isfinite(distance), initial=0.0)) / 2
        scores[front[np.isinf(distance)]] = -rank + 0.75
        left, rank = np.setdiff1d(left, front), rank + 1
    return [float(score) for score in scores]


def _crowding(
    values: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Sum over objectives of the normalised gap between a point's neighbours; infinite at the ends."""
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = np.inf
        if span > 0 and len(order) > 2:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distance


def reach(rung: Sequence[Standing], finished: Sequence[Finished]) -> Sequence[float]:
    """By how much the final AP is expected to exceed the best known at no higher cost.

    The expected improvement (Mockus 1978) over the front's height at the candidate's own cost, its AP at the end taken
    as normal around what `Extrapolation` expects. What has less than one chance in twenty to get there is not to go on.
    """
    scores = []
    for standing in rung:
        height = max((f.ap for f in finished if _no_dearer(f.costs, standing.costs)), default=0.0)
        gain, sd = standing.final_ap - height, max(standing.final_sd, 1e-9)
        if norm.cdf(gain / sd) < 0.05 or not math.isfinite(gain):
            scores.append(-math.inf)
        else:
            scores.append(float(gain * norm.cdf(gain / sd) + sd * norm.pdf(gain / sd)))
    return scores


def _no_dearer(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True))


RULES: Mapping[str, Rule] = {"reach": reach, "nondominated": nondominated}


def going_on(rung: Sequence[Standing], finished: Sequence[Finished], *, rule: Rule, keep: float) -> list[int]:
    """The trials of a rung to be taken further, best first.

    At most the share ``keep`` of those that reached the rung goes on in all, whenever each of them came.
    """
    scores = rule(rung, finished)
    ranked = sorted(range(len(rung)), key=lambda i: -scores[i])
    chosen = [i for i in ranked[: math.floor(keep * len(rung))] if scores[i] > -math.inf]
    return [rung[i].trial for i in chosen if not rung[i].gone_on]


class Extrapolation:
    """The AP to be expected at the end of a training, from its AP at a rung.

    A line through those trained to the end, drawn towards a slope of one and a common rise while they are few, and the
    spread around it.
    """

    def __init__(self, curves: Sequence[Mapping[int, float]], full_epochs: int) -> None:
        """``curves``: AP by epoch of the trainings that came to their end."""
        self._curves = [curve for curve in curves if math.isfinite(curve.get(full_epochs, math.nan))]
        self._full = full_epochs
        self._lines: dict[int, tuple[float, float, float, float]] = {}

    def __call__(self, epochs: int, ap: float) -> tuple[float, float]:
        """(mean, standard deviation) of the final AP."""
        if epochs >= self._full:
            return ap, 0.0
        if epochs not in self._lines:
            self._lines[epochs] = self._line(epochs)
        centre, rise, slope, sd = self._lines[epochs]
        return centre + rise + slope * (ap - centre), sd

    def _line(self, epochs: int) -> tuple[float, float, float, float]:
        """(AP at the rung around which the line turns, rise there, slope, spread)."""
        pairs = np.array([(c[epochs], c[self._full]) for c in self._curves if epochs in c])
        if len(pairs) < _FEW:
            rise = float((pairs[:, 1] - pairs[:, 0]).mean()) if len(pairs) else 0.0
            height = float(pairs[:, 1].mean()) if len(pairs) else 0.0
            return 0.0, rise, 1.0, max(0.25 * height, 1.0)
        x, y = pairs.T
        centre, rise = float(x.mean()), float((y - x).mean())
        spread = float(((x - centre) ** 2).sum())
        # A prior worth two points of the rung's own spread, at slope one.
        weight = 2 * spread / len(x) + 1e-9
        slope = float((((x - centre) * (y - y.mean())).sum() + weight) / (spread + weight))
        residuals = y - (centre + rise + slope * (x - centre))
        sd = math.sqrt(float((residuals**2).sum()) / max(len(x) - 2, 1))
        return centre, rise, slope, max(sd, 1e-6)
