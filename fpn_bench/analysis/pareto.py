"""The Pareto front: exact, over any number of objectives, of rows that finished and of no others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import moocore
import numpy as np
import numpy.typing as npt
import pandas as pd

from fpn_bench.analysis.intervals import by_candidate
from fpn_bench.analysis.rows import Objective, one_protocol, parse_direction, parse_objectives
from fpn_bench.errors import InputError
from fpn_bench.metrics import metric_of

Floats = npt.NDArray[np.float64]


def pareto_mask(values: npt.ArrayLike, directions: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which points no other point dominates.

    A point dominates another when it is at least as good in every objective and better in one; equal points do not
    dominate each other, so duplicates stand on the front together. A point with a NaN is never on it and dominates
    nothing. Infinities are ordinary values. O(n log n) in two and three objectives (Kung et al. 1975, by moocore).

    Args:
        values: (points, objectives).
        directions: "minimize" or "maximize" for each objective.

    Returns:
        (points,) truth values.

    Raises:
        InputError: the shape of ``values`` does not fit ``directions``.
    """
    points = np.asarray(values, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != len(directions) or not directions:
        raise InputError(
            f"expected one direction for each column of the values, got {len(directions)} for shape {points.shape}"
        )
    maximize = [parse_direction(d) == "maximize" for d in directions]
    mask: npt.NDArray[np.bool_] = np.logical_not(np.isnan(points).any(axis=1))
    if mask.any():
        # Order alone decides, so ranks stand for values: moocore's own sentinels are infinities.
        ranks = np.column_stack([np.unique(column, return_inverse=True)[1] for column in points[mask].T])
        mask[mask] = moocore.is_nondominated(ranks.astype(np.float64), maximise=maximize, keep_weakly=True)
    return mask


def front(
    table: pd.DataFrame, objectives: Sequence[Mapping[str, str] | Objective], *, mix_protocols: bool = False
) -> pd.DataFrame:
    """The candidates on the Pareto front, best first objective first.

    Complete rows alone take part: what was rejected, failed, is running or repeats an earlier row never does. Seeds
    of one candidate are collapsed into their mean first (`by_candidate`), so no lucky seed puts a neck on the front.

    Returns:
        The rows of `by_candidate` that are on the front; empty when nothing finished.

    Raises:
        ProtocolError: rows of two protocols, unless ``mix_protocols``.
    """
    one_protocol(table, mix_protocols=mix_protocols)
    wanted = parse_objectives(objectives)
    candidates = by_candidate(table)
    on_front = candidates[pareto_mask(objective_values(candidates, wanted), [o.direction for o in wanted])]
    return on_front.sort_values(wanted[0].name, ascending=not wanted[0].maximize, kind="stable").reset_index(drop=True)


def objective_values(table: pd.DataFrame, objectives: Sequence[Objective]) -> npt.NDArray[np.float64]:
    """(rows, objectives) of floats, NaN where missing."""
    columns = [table[o.name].to_numpy(dtype=np.float64, na_value=np.nan) for o in objectives]
    return np.column_stack(columns).reshape(len(table), len(objectives))


def best_first(values: Floats, directions: Sequence[str]) -> Iterator[int]:
    """Row numbers: front by front, within a front those with the most room around them first.

    A row with a NaN is in the last front.
    """
    left = np.arange(len(values))
    while len(left):
        mask = pareto_mask(values[left], directions)
        mask = mask if mask.any() else ~mask
        members = left[mask]
        yield from members[np.argsort(-_crowding(values[members]), kind="stable")].tolist()
        left = left[~mask]


def _crowding(values: Floats) -> Floats:
    """Half the circumference of the box between each row's neighbours (Deb et al. 2002, section III-B)."""
    room = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        room[order[[0, -1]]] = np.inf
        if span > 0:
            room[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return room


def costs_no_more(
    values: npt.ArrayLike, bound: float, objective: Objective, *, within_noise: bool
) -> npt.NDArray[np.bool_]:
    """Which values (n,) of a cost are no worse than ``bound``; a NaN is.

    Args:
        values: of necks.
        bound: of the neck that they are held against.
        objective: the cost.
        within_noise: count what is worse by less than `Metric.tolerance` as the same cost: two measurements of one
            neck differ by as much.
    """
    given = np.asarray(values, dtype=np.float64)
    share = metric_of(objective.name).tolerance if within_noise else 0.0
    if objective.maximize:
        return np.asarray(given >= bound - share * abs(bound))
    return np.asarray(given <= bound + share * abs(bound))
