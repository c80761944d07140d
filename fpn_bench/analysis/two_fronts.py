"""The fronts of two tables against each other, and the best of both at each cost: what was picked by the very figures
that are compared, and is therefore judged by draws of true values (`fpn_bench.analysis.noise.Truths`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from fpn_bench.analysis.hypervolume import hypervolume
from fpn_bench.analysis.intervals import Verdict, by_candidate, compare_drawn, verdict_of
from fpn_bench.analysis.noise import DRAWS, Scatter, Truths, cached_truths, scatter_within, standard_errors
from fpn_bench.analysis.pareto import objective_values, pareto_mask
from fpn_bench.analysis.rows import Objective
from fpn_bench.metrics import metric_of

Floats = npt.NDArray[np.float64]
LEVELS = 5
"""Cost levels at which the best of both is compared, at most."""


@dataclass(frozen=True, slots=True)
class Change:
    """One figure's way from A to B.

    Attributes:
        verdict: how B stands to A.
        difference: B - A, with its interval ``low``..``high``; NaN where it is not known.
        count: how many values are behind it.
    """

    verdict: Verdict
    difference: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class FrontChange:
    """Two fronts under one reference point.

    Attributes:
        reference: the worst value of each objective over the candidates of both that finished; NaN without any.
        hypervolume_a, hypervolume_b: of each side, at the means over seeds.
        hypervolume_union: of both together.
        change: of the hypervolume, as a share of that of both together, -1 to 1. Its interval allows for what noise
            adds to the best of many: a side of more candidates is flattered the more.
        members: both fronts, best first objective first: ``side`` (A | B), ``candidate``, ``neck``, ``neck_label``,
            ``seeds``, the objectives, and ``dominated``: by a member of the other front.
    """

    reference: tuple[float, ...]
    hypervolume_a: float
    hypervolume_b: float
    hypervolume_union: float
    change: Change
    members: pd.DataFrame


@dataclass(frozen=True)
class PooledTables:
    """PooledTables tables' candidates below each other, and the runs behind them.

    Attributes:
        candidates: `by_candidate` of A, then of B, with ``side``.
        runs: complete rows, one a candidate-seed of each side, with ``side`` and ``position``: the candidate's.
    """

    candidates: pd.DataFrame
    runs: pd.DataFrame

    def of(self, side: str) -> pd.DataFrame:
        """The candidates of one side, by id."""
        return self.candidates[self.candidates["side"] == side].set_index("candidate", drop=False)


def pool_tables(tables: tuple[pd.DataFrame, pd.DataFrame], confidence: float) -> PooledTables:
    candidates = pd.concat(
        [by_candidate(t, confidence=confidence).assign(side=s) for s, t in zip("AB", tables, strict=True)],
        ignore_index=True,
    )
    runs = pd.concat([t[t["status"] == "complete"].assign(side=s) for s, t in zip("AB", tables, strict=True)])
    runs = runs.drop_duplicates(["side", "candidate", "seed"]).reset_index(drop=True)
    place = {key: i for i, key in enumerate(zip(candidates["side"], candidates["candidate"], strict=True))}
    positions = [place[key] for key in zip(runs["side"], runs["candidate"], strict=True)]
    return PooledTables(candidates, runs.assign(position=np.array(positions, dtype=np.int64)))


def scatter_of(runs: pd.DataFrame, column: str) -> Scatter:
    """Pooled over the candidates of both sides; a figure that stands on both counts once."""
    figure = ["candidate", "seed", column]
    known = runs[[*figure, "side"]].dropna(subset=[column])
    mixed = known["candidate"].isin(known.loc[known.duplicated(figure), "candidate"])
    once = known.assign(side=known["side"].where(~mixed, "")).drop_duplicates([*figure, "side"])
    return scatter_within(once, ["side", "candidate"], column)


def equal_figures(
    runs: pd.DataFrame, ids_a: Sequence[str], ids_b: Sequence[str], column: str = "ap"
) -> tuple[Floats, Floats]:
    """How many seeds have one and the same AP (or other figure) on both sides, and how many of those are one training.

    A training is one where a side took it over from another study, or where both rows are copies of one.
    """
    columns = ["candidate", "seed", column, "shared_from", "study", "trial", "started_at"]
    a, b = (runs.loc[runs["side"] == side, columns] for side in "AB")
    pairs = a.merge(b, on=columns[:3])
    taken = (pairs["shared_from_x"] != "") | (pairs["shared_from_y"] != "")
    copied = pd.concat([pairs[f"{c}_x"] == pairs[f"{c}_y"] for c in columns[4:]], axis=1).all(axis=1)
    counts = pairs.assign(one=taken | copied).groupby("candidate")["one"].agg(["size", "sum"])
    of = [one if one == other else "" for one, other in zip(ids_a, ids_b, strict=True)]
    found = counts.reindex(of).fillna(0).to_numpy(dtype=np.float64)
    return found[:, 0], found[:, 1]


@dataclass(frozen=True)
class _Figures:
    """The measurements of one objective; what is one and the same on both sides is one of them.

    Attributes:
        of: for each candidate, the number of its measurement; -1 without any.
        value, error, count: of each measurement: mean, its standard error, figures behind it.
        truths: what the true values may be; None where they are drawn around each by its error alone.
    """

    of: npt.NDArray[np.int64]
    value: Floats
    error: Floats
    count: npt.NDArray[np.int64]
    truths: Truths | None

    def draw(self, which: npt.NDArray[np.int64], seed: int) -> Floats:
        """(draws, which): true values of these measurements, which are numbered."""
        if self.truths is not None:
            return self.truths.draw(self.value[which], self.count[which])
        rng = np.random.default_rng(seed)
        return self.value[which] + self.error[which] * rng.standard_normal((DRAWS, len(which)))


def _figures(both: PooledTables, objective: Objective) -> _Figures:
    name = objective.name
    metric = metric_of(name)
    if metric.noise == "seeds":
        return _trained(both, name)
    columns = ["candidate", name]
    if metric.noise == "interval":
        columns += metric.interval
    candidates = both.candidates
    # Equal rows have equal numbers, in an order that the sides have no part in.
    of = np.asarray(candidates.groupby(columns, sort=True, dropna=False).ngroup(), dtype=np.int64)
    first = np.unique(of, return_index=True)[1]
    errors = standard_errors(candidates, name, scatter_of(both.runs, name))
    value = candidates[name].to_numpy(dtype=np.float64, na_value=np.nan)
    return _Figures(of, value[first], errors[first], np.ones(len(first), dtype=np.int64), None)


def _trained(both: PooledTables, column: str) -> _Figures:
    """Each candidate of each side is one measurement; both sides' are one where they have a training in common."""
    runs = both.runs.dropna(subset=[column])
    figure = ["candidate", "seed", column]
    common = runs["candidate"].isin(runs.loc[runs.duplicated(figure), "candidate"])
    runs = runs.assign(owner=runs["side"].where(~common, ""))
    once = runs.drop_duplicates(["owner", *figure]).sort_values(["seed", column])
    groups = once.groupby(["candidate", "owner"])[column]
    known = groups.agg(["mean", "count"])
    known["runs"] = groups.agg(lambda values: " ".join(map(repr, values)))
    # In an order that the sides have no part in, so that swapping them mirrors the draws.
    known = known.reset_index().sort_values(["mean", "count", "candidate", "runs"], ignore_index=True)
    numbers = {key: i for i, key in enumerate(zip(known["candidate"], known["owner"], strict=True))}
    of = np.full(len(both.candidates), -1, dtype=np.int64)
    for position, key in zip(runs["position"], zip(runs["candidate"], runs["owner"], strict=True), strict=True):
        of[position] = numbers[key]
    value, count = known["mean"].to_numpy(dtype=np.float64), known["count"].to_numpy(dtype=np.int64)
    scatter = scatter_of(both.runs, column)
    sd = scatter.sd if scatter.sd > 0 else math.nan
    return _Figures(of, value, sd / np.sqrt(count), count, cached_truths(value, count, scatter))


def front_change(
    both: PooledTables,
    joint: npt.NDArray[np.bool_],
    objectives: tuple[Objective, ...],
    margin: float,
    confidence: float,
    draws: int,
    seed: int,
) -> FrontChange:
    """`FrontChange` of both sides; ``joint`` says which candidates are on the front of all."""
    values, directions = objective_values(both.candidates, objectives), [o.direction for o in objectives]
    sides = [(both.candidates["side"] == side).to_numpy() for side in "AB"]
    on_front = np.zeros(len(values), dtype=bool)
    for side in sides:
        on_front[side] = pareto_mask(values[side], directions)
    best_first = both.candidates.assign(dominated=~joint)[on_front].sort_values(
        ["side", objectives[0].name], ascending=[True, not objectives[0].maximize], kind="stable"
    )
    members = described(best_first, objectives, "dominated")
    usable = np.asarray(np.isfinite(values).all(axis=1))
    if not usable.any():
        nothing = Change("unclear", math.nan, math.nan, math.nan, 0)
        return FrontChange((math.nan,) * len(objectives), 0.0, 0.0, 0.0, nothing, members)
    finite = values[usable]
    reference = tuple(float(v.min() if o.maximize else v.max()) for o, v in zip(objectives, finite.T, strict=True))
    volume_a, volume_b = (hypervolume(values[side], directions, reference) for side in sides)
    union = hypervolume(values, directions, reference)
    difference = low = high = math.nan
    if _same_figures(both.runs, objectives):
        low = high = difference = 0.0
    elif union > 0 and all(usable[side].any() for side in sides):
        difference = (volume_b - volume_a) / union
        bounds = _volume_bounds(both, values, objectives, reference, confidence, draws, seed)
        if bounds is not None:
            idle = _cannot_add(both, values, objectives, reference)
            low = 0.0 if idle[0] and bounds[0] < 0 else max(bounds[0] / union, -1.0)
            high = 0.0 if idle[1] and bounds[1] > 0 else min(bounds[1] / union, 1.0)
    change = Change(verdict_of(low, high, margin), difference, low, high, len(finite))
    return FrontChange(reference, volume_a, volume_b, union, change, members)


def _same_figures(runs: pd.DataFrame, objectives: tuple[Objective, ...]) -> bool:
    """Whether both sides hold the same candidates and seeds with the same figures."""
    columns = ["candidate", "seed", *(o.name for o in objectives)]
    a, b = (runs.loc[runs["side"] == side, columns].sort_values(columns[:2]).reset_index(drop=True) for side in "AB")
    return bool(a.equals(b))


def _volume_bounds(
    both: PooledTables,
    values: Floats,
    objectives: tuple[Objective, ...],
    reference: tuple[float, ...],
    confidence: float,
    draws: int,
    seed: int,
) -> tuple[float, float] | None:
    """Interval of B's true hypervolume less A's; None where nothing is known of how an objective scatters.

    A hypervolume is the best AP at each cost, summed over the costs. Measured, the best of many is too high by the
    noise's own best of as many at most (were all true values equal), and too low by the noise of one at most (for the
    truly best one stands among them). So B less A is at least what was measured, less the hypervolume of pure noise
    over B's costs, less the noise of one candidate of A over all of A's costs; and the same the other way round.
    However many candidates a side has, equal truths are told apart no more often than the confidence says.
    """
    figures = [_figures(both, o) for o in objectives]
    errors = np.column_stack([np.where(f.of >= 0, f.error[f.of], math.nan) for f in figures])
    usable = np.isfinite(values).all(axis=1)
    if np.isnan(errors[usable]).any():
        return None
    merit = next((i for i, o in enumerate(objectives) if metric_of(o.name).noise == "seeds"), None)
    freedom = scatter_of(both.runs, objectives[merit].name).freedom if merit is not None else 0
    numbers = np.column_stack([f.of for f in figures])
    measured, optimism, pessimism = [], [], []
    for side in "AB":
        rows = np.flatnonzero((both.candidates["side"] == side).to_numpy() & usable)
        rows = rows[np.lexsort(numbers[rows].T)]  # draws belong to figures, whichever side they are on
        measured.append(hypervolume(values[rows], [o.direction for o in objectives], reference))
        noise = _volume_noise(values[rows], errors[rows], objectives, reference, merit, freedom, draws, seed)
        optimism.append(noise[0])
        pessimism.append(noise[1])
    upper = (1 + confidence) / 2
    low = measured[1] - measured[0] - float(np.quantile(optimism[1] + pessimism[0], upper))
    high = measured[1] - measured[0] + float(np.quantile(optimism[0] + pessimism[1], upper))
    return low, high


def _volume_noise(
    values: Floats,
    errors: Floats,
    objectives: tuple[Objective, ...],
    reference: tuple[float, ...],
    merit: int | None,
    freedom: int,
    draws: int,
    seed: int,
) -> tuple[Floats, Floats]:
    """(draws,) each: by how much noise alone raises a hypervolume, and by how much that of one candidate lowers it.

    Costs that scatter (latency) are drawn with the first.
    """
    directions = [o.direction for o in objectives]
    rng, other = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    costs = [i for i in range(len(objectives)) if i != merit]
    timed = bool((errors[:, costs] > 0).any())
    still = hypervolume(values, directions, reference)
    cost_directions, cost_reference = [directions[i] for i in costs], [reference[i] for i in costs]
    ground = hypervolume(values[:, costs], cost_directions, cost_reference) if costs else 1.0
    raised, lowered = np.zeros(draws), np.zeros(draws)
    if merit is not None:
        error, sign = errors[:, merit], 1.0 if objectives[merit].maximize else -1.0
        depth = 12 * float(error.max())
        low = tuple(-sign * depth if i == merit else r for i, r in enumerate(reference))
        factor = np.sqrt(freedom / rng.chisquare(freedom, draws))
        front = pareto_mask(values, directions)
        lowered = ground * float(error[front].max()) * factor * other.standard_normal(draws)
    for i in range(draws):
        if timed:
            moved = values.copy()
            moved[:, costs] += errors[:, costs] * rng.standard_normal((len(values), len(costs)))
            raised[i] = hypervolume(moved, directions, reference) - still
        if merit is not None and ground > 0:
            drawn = values.copy()
            drawn[:, merit] = sign * np.maximum(error * rng.standard_normal(len(values)), -0.99 * depth)
            raised[i] += factor[i] * (hypervolume(drawn, directions, low) - depth * ground)
    return raised, lowered


def _cannot_add(
    both: PooledTables, values: Floats, objectives: tuple[Objective, ...], reference: tuple[float, ...]
) -> list[bool]:
    """For each side, whether what it alone has is too dear to add to any hypervolume, whatever training gives."""
    numbers = np.column_stack([_figures(both, o).of for o in objectives])
    of = [(both.candidates["side"] == side).to_numpy() for side in "AB"]
    costs = [i for i, o in enumerate(objectives) if metric_of(o.name).noise != "seeds"]
    found = []
    for own, others in ((0, 1), (1, 0)):
        known = set(map(tuple, numbers[of[others]].tolist()))
        alone = of[own] & np.array([tuple(row) not in known for row in numbers.tolist()], dtype=bool)
        limit = [reference[i] for i in costs]
        ground = hypervolume(values[alone][:, costs], [objectives[i].direction for i in costs], limit) if costs else 1.0
        found.append(not alone.any() or (bool(costs) and ground == 0))
    return found


def levels(both: PooledTables, objectives: tuple[Objective, ...], margin: float, confidence: float) -> pd.DataFrame:
    """The best of both at costs of members of the two fronts in the plane of the merit and that cost.

    The merit is the first objective, where it is trained; AP, mostly. Columns: ``cost``, ``at_most``, for each side
    ``candidate_*``, ``neck_label_*``, ``ap_*`` (or the other merit's name) and ``seeds_*``, and what is expected of the
    difference of the two picks.
    """
    merit = objectives[0] if metric_of(objectives[0].name).noise == "seeds" else Objective("ap", "maximize")
    names = ("candidate", "neck_label", merit.name, "seeds")
    costs = [o for o in objectives if not o.maximize and metric_of(o.name).noise != "seeds"]
    rows: list[tuple[Any, ...]] = []
    picked: list[tuple[int, int]] = []
    for cost in costs if merit in objectives else []:
        plane = (cost, merit)
        known = both.candidates[["side", *names, cost.name]].dropna(subset=[merit.name, cost.name])
        candidates = [known[known["side"] == side] for side in "AB"]
        if not all(map(len, candidates)):
            continue
        masks = [pareto_mask(objective_values(c, plane), [o.direction for o in plane]) for c in candidates]
        steps = np.concatenate([objective_values(c, plane)[m, 0] for c, m in zip(candidates, masks, strict=True)])
        first = max(float(c[cost.name].min()) for c in candidates)  # from there on both have one
        steps = np.unique(np.append(steps[steps >= first], first))
        for at_most in steps[np.unique(np.linspace(0, len(steps) - 1, LEVELS).round().astype(int))]:
            best = [_best(c[c[cost.name] <= at_most], merit, cost.name) for c in candidates]
            picked.append((best[0], best[1]))
            a, b = (known.loc[row] for row in best)
            rows.append((cost.name, at_most, *(side[n] for n in names for side in (a, b))))
    found = pd.DataFrame(rows, columns=["cost", "at_most", *(f"{n}_{s}" for n in names for s in "ab")])
    return pd.concat([found, _expected(both, merit, picked, found, margin, confidence)], axis=1)


def _expected(
    both: PooledTables,
    merit: Objective,
    picked: Sequence[tuple[int, int]],
    pairs: pd.DataFrame,
    margin: float,
    confidence: float,
) -> pd.DataFrame:
    """What is expected of the difference B - A of pairs of candidates, which were picked by their merit."""
    column = merit.name
    columns = [f"{column}_{name}" for name in ("difference", "difference_low", "difference_high", "basis", "verdict")]
    if not picked:
        dtypes = ("float64", "float64", "float64", "str", "str")
        return pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in zip(columns, dtypes, strict=True)})
    figures = _trained(both, column)
    runs = both.runs.dropna(subset=[column])
    equal, taken = equal_figures(runs, list(pairs["candidate_a"]), list(pairs["candidate_b"]), column)
    measured = figures.of[np.array(picked)]
    which, back = np.unique(measured, return_inverse=True)
    drawn, back = figures.draw(which, 0), back.reshape(measured.shape)
    rows = []
    for i, (a, b) in enumerate(measured):
        if a == b:
            basis = "same training" if taken[i] == equal[i] else "equal figures"
            rows.append((0.0, 0.0, 0.0, basis, "same"))
            continue
        found = compare_drawn(
            drawn[:, back[i, ::-1]],
            (int(figures.count[b]), int(figures.count[a])),
            direction=merit.direction,
            margin=margin if column == "ap" else metric_of(column).margin,
            confidence=confidence,
        )
        rows.append((found.difference, found.low, found.high, "expected", found.verdict))
    return pd.DataFrame(rows, columns=columns)


def _best(candidates: pd.DataFrame, merit: Objective, cost: str) -> int:
    """The row of the best merit; the cheapest of equals."""
    return int(candidates.sort_values([merit.name, cost], ascending=[not merit.maximize, True], kind="stable").index[0])


def described(candidates: pd.DataFrame, objectives: tuple[Objective, ...], *more: str) -> pd.DataFrame:
    """What tables of candidates have: side, neck, seeds, objectives and more columns."""
    columns = ["side", "candidate", "neck", "neck_label", "seeds", *(o.name for o in objectives), *more]
    return candidates[columns].reset_index(drop=True)
