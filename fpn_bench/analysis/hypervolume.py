"""Hypervolume: the share of objective space a set of candidates dominates, one number for a whole front.

Zitzler and Thiele 1999; computed exactly by moocore (Guerreiro and Fonseca 2018). The figure depends on the
reference point, so the point stands beside it everywhere. The rule, unless the user gives a point: the worst value
observed in each objective over the candidates that finished. A candidate that is worst somewhere then adds nothing,
and figures of two studies compare only under one given point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import moocore
import numpy as np
import numpy.typing as npt
import pandas as pd

from fpn_bench.analysis.intervals import by_candidate
from fpn_bench.analysis.pareto import objective_values, pareto_mask
from fpn_bench.analysis.rows import Objective, one_protocol, parse_direction, parse_objectives
from fpn_bench.errors import InputError

Floats = npt.NDArray[np.float64]


def hypervolume(values: npt.ArrayLike, directions: Sequence[str], reference: Sequence[float]) -> float:
    """Volume dominated by ``values`` (points, objectives) within ``reference``; 0.0 for none.

    Points with a NaN or an infinity are left out; so is what lies beyond the reference point.

    Raises:
        InputError: values, directions and reference differ in their number of objectives.
    """
    points = np.asarray(values, dtype=np.float64)
    if points.ndim != 2 or not points.shape[1] == len(directions) == len(reference):
        raise InputError(
            "expected one direction and one reference value for each column of the values, got values of shape "
            f"{points.shape}, {len(directions)} directions and a reference of {len(reference)}"
        )
    sign = np.where([parse_direction(d) == "maximize" for d in directions], -1.0, 1.0)
    finite = points[np.isfinite(points).all(axis=1)] * sign
    limit = np.asarray(reference, dtype=np.float64) * sign
    inside = finite[(finite < limit).all(axis=1)]
    return float(moocore.hypervolume(inside, ref=limit)) if len(inside) else 0.0


def reference_point(table: pd.DataFrame, objectives: Sequence[Mapping[str, str] | Objective]) -> tuple[float, ...]:
    """The worst value of each objective over the candidates that finished; NaN for each when none did."""
    wanted = parse_objectives(objectives)
    values = objective_values(by_candidate(table), wanted)
    values = values[np.isfinite(values).all(axis=1)]
    if not len(values):
        return (float("nan"),) * len(wanted)
    return tuple(float(v.min() if o.maximize else v.max()) for o, v in zip(wanted, values.T, strict=True))


def hypervolume_over_trials(
    table: pd.DataFrame,
    objectives: Sequence[Mapping[str, str] | Objective],
    *,
    reference: Sequence[float] | None = None,
    mix_protocols: bool = False,
) -> pd.DataFrame:
    """The hypervolume reached after each trial.

    A candidate counts from the trial that first completed it, at the mean over all its seeds, so the last value is
    that of `front`.

    Args:
        reference: one value for each objective; None takes `reference_point`.

    Returns:
        Columns ``study``, ``trial``, ``step`` (trials so far, from 1) and ``hypervolume``; a row for each trial that
        ended, in the order of the table.

    Raises:
        ProtocolError: rows of two protocols, unless ``mix_protocols``.
    """
    one_protocol(table, mix_protocols=mix_protocols)
    wanted = parse_objectives(objectives)
    directions = [o.direction for o in wanted]
    limit = tuple(reference) if reference is not None else reference_point(table, wanted)
    candidates = by_candidate(table)
    values = dict(zip(_trials(candidates), objective_values(candidates, wanted), strict=True))

    ended = table[table["status"] != "running"].drop_duplicates(["study", "trial"])[["study", "trial"]]
    archive = np.empty((0, len(wanted)))
    reached, current = [], 0.0
    for key in _trials(ended):
        point = values.get(key)
        if point is not None and np.isfinite(point).all():
            grown = np.vstack([archive, point])
            mask = pareto_mask(grown, directions)
            if mask[-1]:  # a dominated point leaves the volume as it is
                archive = grown[mask]
                current = hypervolume(archive, directions, limit)
        reached.append(current)
    return ended.assign(step=np.arange(1, len(ended) + 1), hypervolume=np.array(reached, dtype=np.float64)).reset_index(
        drop=True
    )


def _trials(table: pd.DataFrame) -> list[tuple[str, int]]:
    return list(zip(table["study"], table["trial"], strict=True))
