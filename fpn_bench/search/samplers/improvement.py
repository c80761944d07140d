"""What a candidate of known costs is expected to add to the front."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from fpn_bench.analysis.pareto import pareto_mask
from fpn_bench.search.samplers.base import Floats

CELLS = 1024
"""Most steps of the front over the space of costs; a finer front is thinned to so many."""


def expected_hypervolume_improvement(
    costs: Floats, mean: Floats, sd: Floats, front_costs: Floats, front_ap: Floats, reference: Floats
) -> Floats:
    """Hypervolume that each candidate is expected to add, at known costs and normally distributed AP.

    The front is a staircase over cost space: AP h(u) is reached at costs u. A candidate of costs c and AP Y raises it
    to Y wherever u >= c, so that it adds the integral of max(Y - h(u), 0) over the box from c to the reference. h is
    constant on the cells of the grid through the front's costs, and the volume that the box shares with a cell is a
    product of lengths: a finite sum, exact for any number of costs, none included, as long as the grid has at most
    `CELLS` cells. Beyond that each axis keeps quantiles of the front's costs, and members move to the nearest.

    Args:
        costs: (p, d), to be minimised.
        mean, sd: (p,) of AP, to be maximised from 0.
        front_costs, front_ap: (f, d), (f,) of what is there already; dominated ones change nothing.
        reference: (d,) worst costs; what lies beyond adds nothing.

    Returns:
        (p,), in units of AP times those of all costs.
    """
    d = costs.shape[1]
    steps = pareto_mask(np.column_stack([front_costs, front_ap]), ["minimize"] * d + ["maximize"])
    steps &= (front_costs < reference).all(axis=1) & (front_ap > 0)
    front_costs, front_ap = front_costs[steps], front_ap[steps]
    at_most = max(int(CELLS ** (1 / d)) - 1, 1) if d else 0
    axes = [_thinned(np.unique(column), at_most) for column in front_costs.T]
    cell = np.zeros(len(front_ap), dtype=np.int64)
    for axis, column in zip(axes, front_costs.T, strict=True):
        cell = cell * (len(axis) + 1) + _nearest(axis, column) + 1
    heights = np.zeros([len(axis) + 1 for axis in axes])
    np.maximum.at(heights.reshape(-1), cell, front_ap)
    for i in range(d):
        heights = np.maximum.accumulate(heights, axis=i)
    levels, cells = np.unique(heights, return_inverse=True)
    volumes = np.ones((len(costs), 1))
    for axis, column, end in zip(axes, costs.T, reference, strict=True):
        ends = np.concatenate([[-np.inf], axis, [end]])
        lengths = np.maximum(ends[1:] - np.maximum(column[:, None], ends[:-1]), 0)
        volumes = (volumes[:, :, None] * lengths[:, None, :]).reshape(len(costs), -1)
    order = np.argsort(cells.ravel(), kind="stable")
    starts = np.searchsorted(cells.ravel()[order], np.arange(len(levels)))
    of_level = np.add.reduceat(volumes[:, order], starts, axis=1)
    return np.asarray((of_level * expected_improvement(mean[:, None], sd[:, None], levels)).sum(axis=1))


def expected_improvement(mean: Floats, sd: Floats, above: Floats) -> Floats:
    """E[max(Y - above, 0)] of a normal Y (Mockus 1975)."""
    away = mean - above
    z = away / sd
    return np.asarray(np.maximum(away * ndtr(z) + sd * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi), 0.0))


def _thinned(ascending: Floats, at_most: int) -> Floats:
    if len(ascending) <= at_most:
        return ascending
    kept: Floats = ascending[np.linspace(0, len(ascending) - 1, at_most).round().astype(np.int64)]
    return kept


def _nearest(axis: Floats, values: Floats) -> npt.NDArray[np.intp]:
    return np.asarray(np.searchsorted((axis[1:] + axis[:-1]) / 2, values))


def winsorised(ap: Floats) -> Floats:
    """AP with what lies further below the lower quartile than half the quartiles' distance raised to there.

    Trainings that failed to learn lie far from all others, and a process that must reach them takes its scale and
    its smoothness from them. That they are bad is all there is to know of them (winsorising; Tukey 1962).
    """
    low, high = np.quantile(ap, [0.25, 0.75]).tolist()
    lifted: Floats = np.maximum(ap, low - 0.5 * (high - low))
    return lifted
