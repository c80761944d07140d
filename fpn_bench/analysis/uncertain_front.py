"""How sure a front is: the chance of each candidate to be on it, given how its figures scatter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from fpn_bench.analysis.intervals import NAN, by_candidate
from fpn_bench.analysis.pareto import objective_values, pareto_mask
from fpn_bench.analysis.rows import Objective, parse_objectives

Floats = npt.NDArray[np.float64]
DRAWS = 2_000


@dataclass(frozen=True, slots=True)
class Scatter:
    """How figures that are taken to scatter alike do so: standard deviation within, and its degrees of freedom.

    Without arguments: nothing is known of it.
    """

    sd: float = NAN
    freedom: int = 0


def pooled_scatter(samples: Iterable[npt.ArrayLike]) -> Scatter:
    """The scatter within samples, pooled over them. A NaN in a sample is no value."""
    known = [values[~np.isnan(values)] for values in (np.asarray(s, dtype=np.float64) for s in samples)]
    freedom = sum(len(values) - 1 for values in known if len(values) > 1)
    if not freedom:
        return Scatter()
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in known if len(values) > 1)
    return Scatter(float(np.sqrt(squares / freedom)), freedom)


def pooled_sd(samples: Iterable[npt.ArrayLike]) -> float:
    """The standard deviation within samples that are taken to scatter alike; NaN where none has two values.

    A NaN in a sample is no value.
    """
    return pooled_scatter(samples).sd


def scatter_within(rows: pd.DataFrame, groups: Sequence[str], column: str) -> Scatter:
    """The scatter of a column within the groups of rows that are equal in the columns ``groups``."""
    several = rows[rows.duplicated(list(groups), keep=False)]  # mostly few: a group of one tells nothing
    return pooled_scatter(values for _, values in several.groupby(list(groups))[column])


def seed_scatter(table: pd.DataFrame) -> Scatter:
    """How AP scatters from seed to seed of one candidate, in points. A seed that stands twice counts once."""
    done = table[table["status"] == "complete"].drop_duplicates(["protocol", "candidate", "seed"])
    return scatter_within(done, ["protocol", "candidate"], "ap")


def front_probability(
    values: npt.ArrayLike, directions: Sequence[str], *, sd: npt.ArrayLike, draws: int = DRAWS, seed: int = 0
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
    for _ in range(draws):
        drawn = means[possible] + spread[possible] * rng.standard_normal((len(hits), means.shape[1]))
        hits += pareto_mask(drawn, directions)
    chance[possible] = hits / draws
    return chance


def within_reach(values: Floats, reach: Floats) -> npt.NDArray[np.bool_]:
    """Which points (less is better) could be on the front if each value may move by its reach."""
    possible = np.asarray(np.isfinite(values).all(axis=1))
    best, worst = values - reach, values + reach
    # Whoever is beaten for certain is beaten by a member of the front of all at their worst.
    rivals = worst[possible][pareto_mask(worst[possible], ["minimize"] * values.shape[1])] if possible.any() else worst
    for i in np.flatnonzero(possible):
        possible[i] = not ((rivals <= best[i]).all(axis=1) & (rivals < best[i]).any(axis=1)).any()
    return possible


def with_front_probability(
    table: pd.DataFrame, objectives: Sequence[Mapping[str, str] | Objective], *, draws: int = DRAWS
) -> pd.DataFrame:
    """`by_candidate` of a table, with the column ``front_probability``.

    AP is taken to scatter by the pooled standard deviation of the candidates that have several seeds, divided by the
    root of the candidate's own number of seeds; latency by its 95 % interval. Without any second seed the chance is
    NaN: nothing is known of the scatter.
    """
    wanted = parse_objectives(objectives)
    candidates = by_candidate(table)
    typical = seed_scatter(table).sd
    if not len(candidates) or np.isnan(typical):
        return candidates.assign(front_probability=np.full(len(candidates), np.nan))
    sd = np.zeros((len(candidates), len(wanted)))
    for column, objective in enumerate(wanted):
        if objective.name == "ap":
            sd[:, column] = typical / np.sqrt(candidates["seeds"].to_numpy(dtype=np.float64))
        elif objective.name == "latency_ms":
            width = candidates["latency_high_ms"] - candidates["latency_low_ms"]
            sd[:, column] = np.nan_to_num(width.to_numpy(dtype=np.float64) / (2 * 1.96))
    values = objective_values(candidates, wanted)
    chance = front_probability(values, [o.direction for o in wanted], sd=sd, draws=draws)
    return candidates.assign(front_probability=chance)
