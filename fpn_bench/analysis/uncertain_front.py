"""How sure a front is: the chance of each candidate to be on it, given how its figures scatter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from fpn_bench.analysis.intervals import by_candidate
from fpn_bench.analysis.noise import DRAWS, Scatter, seed_scatter, standard_errors, truths_of
from fpn_bench.analysis.pareto import objective_values, pareto_mask
from fpn_bench.analysis.rows import Objective, parse_objectives
from fpn_bench.metrics import metric_of

Floats = npt.NDArray[np.float64]

_AT_ONCE = 500
"""Draws that are held in memory together."""
_FEW, _FEW_PAIRS = 256, 64
"""Up to so many points it is faster to look at all draws at once: where one objective changes, and in general."""


def front_probability(
    values: npt.ArrayLike, directions: Sequence[str], *, sd: npt.ArrayLike, draws: int = 2_000, seed: int = 0
) -> Floats:
    """The share of draws in which each point is on the Pareto front.

    Each value is drawn from a normal distribution of its own, independent of the others. Only points that come within
    reach of the front are drawn, which in 2,000 draws of 100 points takes a tenth of a second.

    Args:
        values: (points, objectives); a point with a NaN has no chance.
        directions: "minimize" or "maximize" for each objective.
        sd: (points, objectives) or what broadcasts to it; 0 for a figure that is exact.
        draws: how many fronts are drawn. The standard error of a share p is sqrt(p (1 - p) / draws).
        seed: of the draws.
    """
    means = np.asarray(values, dtype=np.float64)
    spread = np.broadcast_to(np.asarray(sd, dtype=np.float64), means.shape)
    chance = np.zeros(len(means))
    sign = np.where([d.startswith("max") for d in directions], -1.0, 1.0)
    # At its best (4 sd) below another at its worst: never on the front.
    possible = within_reach(means * sign, 4 * spread)
    if not possible.any():
        return chance
    rng = np.random.default_rng(seed)
    hits = np.zeros(int(possible.sum()))
    for part in range(0, draws, _AT_ONCE):
        noise = rng.standard_normal((min(_AT_ONCE, draws - part), len(hits), means.shape[1]))
        hits += _times_on_front((means[possible] + spread[possible] * noise) * sign)
    chance[possible] = hits / draws
    return chance


def _times_on_front(drawn: Floats) -> Floats:
    """(n,): in how many of the draws (draws, n, objectives), less is better, each point is on the front.

    As `pareto_mask` of each draw, whose calls it spares where there are few points.
    """
    count = drawn.shape[1]
    changing = np.flatnonzero((drawn != drawn[0]).any(axis=(0, 1)))
    if count <= _FEW and len(changing) == 1 and not np.isnan(drawn).any():
        return _times_of_one_changing(drawn, int(changing[0]))
    if count <= _FEW_PAIRS:
        return _times_by_pairs(drawn)
    masks = [pareto_mask(draw, ["minimize"] * drawn.shape[2]) for draw in drawn]
    return np.asarray(np.sum(masks, axis=0), dtype=np.float64)


def _times_of_one_changing(drawn: Floats, changing: int) -> Floats:
    """Where one objective alone changes from draw to draw: by whom a point can be beaten is the same in all of them."""
    exact = np.delete(drawn[0], changing, axis=1)
    values = drawn[:, :, changing]
    hits = np.empty(len(exact))
    for i, own in enumerate(exact):
        no_worse = (exact <= own).all(axis=1)
        better = no_worse & (exact < own).any(axis=1)
        beaten = (values[:, no_worse].min(axis=1) < values[:, i]) | (
            values[:, better].min(axis=1, initial=np.inf) <= values[:, i]
        )
        hits[i] = len(drawn) - int(beaten.sum())
    return hits


def _times_by_pairs(drawn: Floats) -> Floats:
    """Each point compared with each, in all draws at once."""
    no_worse = np.ones((len(drawn), drawn.shape[1], drawn.shape[1]), dtype=np.bool_)
    better = np.zeros_like(no_worse)
    for column in np.moveaxis(drawn, -1, 0):
        no_worse &= column[:, :, None] <= column[:, None, :]
        better |= column[:, :, None] < column[:, None, :]
    on_front = ~(no_worse & better).any(axis=1) & ~np.isnan(drawn).any(axis=2)
    return np.asarray(on_front.sum(axis=0), dtype=np.float64)


def within_reach(values: Floats, reach: Floats) -> npt.NDArray[np.bool_]:
    """Which points (less is better) could be on the front if each value may move by its reach."""
    possible = np.asarray(np.isfinite(values).all(axis=1))
    best, worst = values - reach, values + reach
    # Whoever is beaten for certain is beaten by a member of the front of all at their worst.
    rivals = worst[possible][pareto_mask(worst[possible], ["minimize"] * values.shape[1])] if possible.any() else worst
    beaten = np.zeros(len(values), dtype=bool)
    for rival in rivals:
        beaten |= (rival <= best).all(axis=1) & (rival < best).any(axis=1)
    return possible & ~beaten


def with_front_probability(
    table: pd.DataFrame, objectives: Sequence[Mapping[str, str] | Objective], *, seed: int = 0
) -> pd.DataFrame:
    """`by_candidate` of a table, with the column ``front_probability``.

    What is trained is drawn by `fpn_bench.analysis.noise.Truths`, as in every other statement about picked candidates;
    latency by its 95 % interval; what is counted is exact. The chance is NaN where nothing is known of how an objective
    scatters, for all candidates or for this one. A trained objective also gets the two ends of its mean's 95 %
    interval, ``NAME_low`` and ``NAME_high``, as AP has them.
    """
    wanted = parse_objectives(objectives)
    candidates = by_candidate(table)
    values, unknown = objective_values(candidates, wanted), np.full(len(candidates), np.nan)
    scatters = [seed_scatter(table, o.name) for o in wanted]
    for objective, scatter in zip(wanted, scatters, strict=True):
        name = objective.name
        if metric_of(name).noise == "seeds" and f"{name}_low" not in candidates:
            half = scatter.half_width(candidates["seeds"])
            candidates[f"{name}_low"], candidates[f"{name}_high"] = candidates[name] - half, candidates[name] + half
    errors = np.column_stack(
        [standard_errors(candidates, o.name, s) for o, s in zip(wanted, scatters, strict=True)]
    ).reshape(values.shape)
    finite = np.isfinite(values).all(axis=1)
    known = finite & np.isfinite(errors).all(axis=1)
    if not known.any():
        return candidates.assign(front_probability=np.where(finite, unknown, 0.0) if finite.any() else unknown)
    sign = np.where([o.maximize for o in wanted], -1.0, 1.0)
    errors = np.nan_to_num(errors)
    possible = within_reach(values * sign, 4 * errors)
    drawn = draw_values(candidates, values, errors, possible, wanted, scatters, seed)
    hits = _times_on_front(drawn * sign)
    chance = np.zeros(len(candidates))
    chance[possible] = hits / len(drawn)
    return candidates.assign(front_probability=np.where(finite & ~known, np.nan, chance))


def draw_values(
    candidates: pd.DataFrame,
    values: Floats,
    errors: Floats,
    which: npt.NDArray[np.bool_],
    objectives: Sequence[Objective],
    scatters: Sequence[Scatter],
    seed: int = 0,
) -> Floats:
    """(draws, of which, objectives): true values of some candidates.

    Args:
        candidates: `by_candidate`, all of them: the others tell how far true values spread.
        values, errors: (candidates, objectives) and their standard errors.
        which: of the candidates to draw.
        objectives: what the columns of ``values`` are.
        scatters: of one figure of each objective.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    seeds = np.maximum(candidates["seeds"].to_numpy(dtype=np.int64), 1)
    drawn = np.repeat(values[None, which], DRAWS, axis=0)
    for column, (objective, scatter) in enumerate(zip(objectives, scatters, strict=True)):
        truths = truths_of(candidates, objective.name, scatter) if metric_of(objective.name).noise == "seeds" else None
        if truths is not None:
            drawn[:, :, column] = truths.draw(values[which, column], seeds[which])
        elif (errors[which, column] > 0).any():
            drawn[:, :, column] += errors[which, column] * rng.standard_normal(drawn.shape[:2])
    return drawn
