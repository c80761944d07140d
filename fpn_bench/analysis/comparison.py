"""Two tables of one protocol side by side: what changed from A to B, and how sure that is.

Differences are B - A, ratios B / A, and every verdict says how B stands to A. Swapping the two mirrors all of them.

AP of one candidate on both sides is compared by Welch's interval over its seeds. Where a side has a single seed, the
standard deviation pooled over all candidates with several stands in; where no candidate has, the verdict is "unclear".
Trainings that one study took over from the other are one and the same figure: they agree by construction, and are
evidence of nothing.

Many candidates are many verdicts, of which some would be wrong by chance. Holm's step-down (Holm 1979) keeps the chance
of any wrong "better" or "worse" in a list at 1 - confidence, and that of any wrong "same" too. Intervals are those of
each candidate alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from fpn_bench.analysis.comparable import (
    LATENCY_CONDITIONS,
    Metadata,
    comparable_objectives,
    latency_conditions,
    objectives_of_both,
    other_conditions,
    protocol_of_both,
)
from fpn_bench.analysis.hypervolume import hypervolume
from fpn_bench.analysis.intervals import Verdict, by_candidate, mean_interval, verdict_of, welch_error
from fpn_bench.analysis.pareto import objective_values, pareto_mask
from fpn_bench.analysis.rows import STATUSES, Objective, check_table, json_records, json_value, parse_objectives
from fpn_bench.analysis.uncertain_front import Scatter, scatter_within, within_reach
from fpn_bench.analysis.words import count, named
from fpn_bench.errors import InputError

Floats = npt.NDArray[np.float64]

COMPARISON_VERSION = 1
CORRECTION = "Holm"
NOT_COMPARABLE = "not comparable"
AP_COLUMNS = ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l")
LEVELS = 5
"""Cost levels at which the best AP of both is compared, at most."""
DRAWS = 1_000
_SEPARATE = ("welch", "pooled sd")
"""What an interval of AP rests on, where the two figures are two measurements."""


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
        change: of the hypervolume, as a share of the union's. Its interval is that of draws of what scatters: AP by the
            seeds' pooled standard deviation, latency by its interval; a figure that stands on both sides is drawn once.
            Noise flatters a front, and one of more candidates the more.
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
class TableComparison:
    """What `compare_tables` found.

    Attributes:
        headline: the answer in one sentence.
        sentences: what qualifies it.
        warnings: what needs a look before any figure is believed.
        protocol: id both were taken under; ``""`` where neither has a row.
        objectives: of the fronts.
        conditions: ``field``, ``a``, ``b``: what else differs; figures may have changed for it.
        statuses: ``status``, ``a``, ``b``: rows of each.
        shared: one row a candidate that finished on both sides; the columns are those of `SHARED_COLUMNS`.
        only: candidates that finished on one side only: ``side``, ``candidate``, ``neck``, ``neck_label``, ``seeds``,
            the objectives, ``on_joint_front``.
        ap: mean change of AP over the shared candidates that were trained twice, paired by candidate.
        front: the two fronts.
        levels: the best AP at several costs: ``cost`` (the column), ``at_most``, and for each side ``candidate_*``,
            ``neck_label_*``, ``ap_*``, ``seeds_*``; ``ap_difference``, its ``_low`` and ``_high``, ``ap_verdict`` and
            ``ap_basis`` as in ``shared``.
        seed_sd: the seeds' pooled standard deviation of AP, in points; NaN where no candidate has two seeds.
        seed_freedom: its degrees of freedom.
        margin_ap: difference of AP that does not matter, in points.
        latency_tolerance: ratio of latencies, less one, that does not matter.
        margin_hypervolume: share of the union's hypervolume that does not matter.
        confidence: of all intervals.
    """

    headline: str
    sentences: tuple[str, ...]
    warnings: tuple[str, ...]
    protocol: str
    objectives: tuple[Objective, ...]
    conditions: pd.DataFrame
    statuses: pd.DataFrame
    shared: pd.DataFrame
    only: pd.DataFrame
    ap: Change
    front: FrontChange
    levels: pd.DataFrame
    seed_sd: float
    seed_freedom: int
    margin_ap: float
    latency_tolerance: float
    margin_hypervolume: float
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what is not known is None."""
        front = self.front
        return {
            "schema_version": COMPARISON_VERSION,
            "headline": self.headline,
            "sentences": list(self.sentences),
            "warnings": list(self.warnings),
            "protocol": self.protocol,
            "objectives": [{"name": o.name, "direction": o.direction} for o in self.objectives],
            "confidence": self.confidence,
            "correction": CORRECTION,
            "margin_ap": self.margin_ap,
            "latency_tolerance": self.latency_tolerance,
            "margin_hypervolume": self.margin_hypervolume,
            "seed_sd": json_value(self.seed_sd),
            "seed_freedom": self.seed_freedom,
            "conditions": json_records(self.conditions),
            "statuses": json_records(self.statuses),
            "ap": _fields(self.ap),
            "front": {
                "reference": [json_value(v) for v in front.reference],
                "hypervolume_a": json_value(front.hypervolume_a),
                "hypervolume_b": json_value(front.hypervolume_b),
                "hypervolume_union": json_value(front.hypervolume_union),
                "change": _fields(front.change),
                "members": json_records(front.members),
            },
            "levels": json_records(self.levels),
            "shared": json_records(self.shared),
            "only": json_records(self.only),
        }


SHARED_COLUMNS: Mapping[str, str] = {
    "candidate": "id of backbone + neck graph + head + image size",
    "neck": "neck family in the zoo",
    "neck_label": "the neck for people",
    "backbone": "timm name",
    "seeds_a": "seeds with an AP in A",
    "seeds_b": "seeds with an AP in B",
    "ap_a": "mean AP over A's seeds, percent points",
    "ap_low_a": "lower end of its t interval; missing with one seed",
    "ap_high_a": "upper end",
    "ap_b": "mean AP over B's seeds, percent points",
    "ap_low_b": "lower end of its t interval; missing with one seed",
    "ap_high_b": "upper end",
    "ap_difference": "B - A, percent points",
    "ap_difference_low": "lower end of its interval, for this candidate alone",
    "ap_difference_high": "upper end",
    "ap_basis": "what that interval rests on: welch | pooled sd | one seed (nothing: no candidate has a second) | same "
    "training (taken over or copied) | equal figures (seed by seed, to the last digit) | no AP",
    "ap_p_differs": "p-value of 'no difference', adjusted by Holm over the list",
    "ap_p_same": "p-value of 'a difference beyond the margin', adjusted by Holm over the list",
    "ap_verdict": "better | worse | same | unclear, by those two; empty without an AP on both sides",
    "latency_ms_a": "A's latency",
    "latency_low_ms_a": "lower end of its 95 % interval",
    "latency_high_ms_a": "upper end",
    "latency_ms_b": "B's latency",
    "latency_low_ms_b": "lower end of its 95 % interval",
    "latency_high_ms_b": "upper end",
    "latency_ratio": "B / A",
    "latency_ratio_low": "lower end of its interval, for this candidate alone",
    "latency_ratio_high": "upper end",
    "latency_verdict": "better (faster, beyond the tolerance) | worse | same | unclear | not comparable; or empty",
    "latency_conditions": "where they are not comparable: what differs, A / B",
    "params_a": "parameters of the whole detector in A",
    "params_b": "in B",
    "macs_a": "multiply-adds for one image in A",
    "macs_b": "in B",
    "costs_equal": "params and MACs are those of the other side, as they must be",
}


def compare_tables(
    a: pd.DataFrame,
    b: pd.DataFrame,
    objectives: Sequence[Mapping[str, str] | Objective] | None = None,
    *,
    metadata: tuple[Metadata, Metadata] = ({}, {}),
    margin_ap: float = 0.5,
    latency_tolerance: float = 0.02,
    margin_hypervolume: float = 0.01,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> TableComparison:
    """How table ``b`` stands to table ``a``, candidate by candidate and front against front.

    Args:
        a, b: as `fpn_bench.analysis.make_table`, `read_csv` or a study's ``table()`` give them.
        objectives: of the fronts; None takes those that both studies' metadata name, else AP and MACs.
        metadata: of the two studies, where they are known; their protocols tell which fields differ.
        margin_ap: difference of AP that does not matter, in points.
        latency_tolerance: relative difference of latencies that does not matter.
        margin_hypervolume: difference of hypervolumes that does not matter, as a share of the union's.
        confidence: of all intervals and verdicts.
        draws: of the two fronts, for the interval of their hypervolumes.
        seed: of the draws.

    Raises:
        ProtocolError: the two were taken under two protocols, or one of them holds several; names what differs.
        InputError: no tables of fpn_bench; a margin or confidence that is none; unknown objectives.
    """
    for name, value in (
        ("margin_ap", margin_ap),
        ("latency_tolerance", latency_tolerance),
        ("margin_hypervolume", margin_hypervolume),
    ):
        if not 0 <= value < math.inf:
            raise InputError(f"{name} {value} came; a number of 0 or more is wanted, e.g. {name}=0.02")
    if not 0 < confidence < 1:
        raise InputError(f"confidence {confidence} came; a share between 0 and 1 is wanted, e.g. 0.95")
    if draws < 2:
        raise InputError(f"draws {draws} came; at least 2 are wanted, e.g. {DRAWS}")
    tables = (check_table(a), check_table(b))
    protocol = protocol_of_both(tables, metadata)
    wanted, notes = objectives_of_both(metadata) if objectives is None else (parse_objectives(objectives), [])
    wanted, left_out = comparable_objectives(tables, wanted)
    both = _both(tables, confidence)
    scatter = _seed_scatter(both.runs, "ap")
    shared = _shared(both, scatter, margin_ap, latency_tolerance, confidence)
    ap = _mean_change(shared, margin_ap, confidence)
    joint = pareto_mask(objective_values(both.candidates, wanted), [o.direction for o in wanted])
    front = _front_change(both, joint, wanted, margin_hypervolume, confidence, draws, seed)
    alone = both.candidates.assign(on_joint_front=joint)[~both.candidates["candidate"].isin(shared["candidate"])]
    only = _described(alone, wanted, "on_joint_front")
    return TableComparison(
        headline=_headline(both, shared, ap, front),
        sentences=(
            *_shared_sentences(shared, scatter, margin_ap, latency_tolerance, confidence),
            *_front_sentences(front, only, wanted),
            *notes,
            *left_out,
        ),
        warnings=_warnings(shared),
        protocol=protocol,
        objectives=wanted,
        conditions=other_conditions(tables, metadata),
        statuses=_statuses(tables),
        shared=shared,
        only=only,
        ap=ap,
        front=front,
        levels=_levels(both, wanted, scatter, margin_ap, confidence),
        seed_sd=scatter.sd,
        seed_freedom=scatter.freedom,
        margin_ap=margin_ap,
        latency_tolerance=latency_tolerance,
        margin_hypervolume=margin_hypervolume,
        confidence=confidence,
    )


def holm(p_values: npt.ArrayLike) -> Floats:
    """p-values adjusted by Holm's step-down (Holm 1979): those below alpha are false with a chance of alpha in all.

    NaN stands for no test: it stays, and counts for nothing.
    """
    given = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(given.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(given))
    order = tested[np.argsort(given[tested], kind="stable")]
    steps = given[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def _statuses(tables: tuple[pd.DataFrame, pd.DataFrame]) -> pd.DataFrame:
    counts = [table["status"].value_counts() for table in tables]
    rows = [(s, *(int(c.get(s, 0)) for c in counts)) for s in STATUSES if any(s in c for c in counts)]
    return pd.DataFrame(rows, columns=["status", "a", "b"]).astype({"status": "str", "a": "int64", "b": "int64"})


# --------------------------------------------------------------------------------------------------------------
# Candidates of both


@dataclass(frozen=True)
class _Both:
    """Both tables' candidates below each other, and the runs behind them.

    Attributes:
        candidates: `by_candidate` of A, then of B, with ``side``.
        runs: complete rows, one a candidate-seed of each side, with ``side`` and ``position``: the candidate's.
    """

    candidates: pd.DataFrame
    runs: pd.DataFrame

    def of(self, side: str) -> pd.DataFrame:
        """The candidates of one side, by id."""
        return self.candidates[self.candidates["side"] == side].set_index("candidate", drop=False)


def _both(tables: tuple[pd.DataFrame, pd.DataFrame], confidence: float) -> _Both:
    candidates = pd.concat(
        [by_candidate(t, confidence=confidence).assign(side=s) for s, t in zip("AB", tables, strict=True)],
        ignore_index=True,
    )
    runs = pd.concat([t[t["status"] == "complete"].assign(side=s) for s, t in zip("AB", tables, strict=True)])
    runs = runs.drop_duplicates(["side", "candidate", "seed"]).reset_index(drop=True)
    place = {key: i for i, key in enumerate(zip(candidates["side"], candidates["candidate"], strict=True))}
    positions = [place[key] for key in zip(runs["side"], runs["candidate"], strict=True)]
    return _Both(candidates, runs.assign(position=np.array(positions, dtype=np.int64)))


def _seed_scatter(runs: pd.DataFrame, column: str) -> Scatter:
    """Pooled over the candidates of both sides; a figure that stands on both counts once."""
    figure = ["candidate", "seed", column]
    known = runs[[*figure, "side"]].dropna(subset=[column])
    mixed = known["candidate"].isin(known.loc[known.duplicated(figure), "candidate"])
    once = known.assign(side=known["side"].where(~mixed, "")).drop_duplicates([*figure, "side"])
    return scatter_within(once, ["side", "candidate"], column)


@dataclass(frozen=True)
class _Estimates:
    """Differences with their standard errors and degrees of freedom; NaN where they are not known."""

    value: Floats
    error: Floats
    freedom: Floats

    def interval(self, confidence: float) -> tuple[Floats, Floats]:
        half = np.asarray(stats.t.ppf((1 + confidence) / 2, self.freedom) * self.error, dtype=np.float64)
        return self.value - half, self.value + half

    def p_beyond(self, limit: float) -> Floats:
        """The least 1 - confidence whose interval lies beyond +-``limit`` as a whole."""
        room = np.abs(self.value) - limit
        return self._p(room, room > 0)

    def p_within(self, limit: float) -> Floats:
        """The least 1 - confidence whose interval lies within +-``limit`` as a whole."""
        room = limit - np.abs(self.value)
        return self._p(room, room >= 0)

    def _p(self, room: Floats, exact: npt.NDArray[np.bool_]) -> Floats:
        """``exact`` decides where nothing spreads."""
        with np.errstate(divide="ignore", invalid="ignore"):
            tail = 2 * stats.t.sf(room / self.error, self.freedom)
        p = np.where(self.error == 0, np.where(exact, 0.0, 1.0), np.minimum(tail, 1.0))
        return np.asarray(np.where(np.isnan(self.value), np.nan, p), dtype=np.float64)


def _verdicts(same: Floats, differs: Floats, gain: Floats, level: float) -> npt.NDArray[np.object_]:
    """From adjusted p-values; "same" goes first, as in `fpn_bench.analysis.compare`."""
    apart = differs <= level
    conditions = [same <= level, apart & (gain > 0), apart & (gain < 0)]
    return np.select(conditions, ["same", "better", "worse"], "unclear").astype(object)


def _ap_changes(
    both: _Both, ids_a: Sequence[str], ids_b: Sequence[str], scatter: Scatter, margin: float, confidence: float
) -> pd.DataFrame:
    """AP of the candidates ``ids_b`` of B against ``ids_a`` of A, pair by pair; the columns of `SHARED_COLUMNS`."""
    runs = both.runs.dropna(subset=["ap"])
    samples = runs.groupby(["side", "candidate"])["ap"].agg(["mean", "var", "count"])
    a, b = (
        samples.reindex(pd.MultiIndex.from_arrays([[side] * len(ids), list(ids)]))
        for side, ids in (("A", ids_a), ("B", ids_b))
    )
    n, m = (side["count"].fillna(0).to_numpy(dtype=np.float64) for side in (a, b))
    mean_a, mean_b, var_a, var_b = (
        side[name].to_numpy(dtype=np.float64) for name in ("mean", "var") for side in (a, b)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        error, freedom = welch_error(var_a / n, n, var_b / m, m)
        pooled = scatter.sd * np.sqrt(1 / n + 1 / m)
    equal, taken = _equal_figures(runs, ids_a, ids_b)
    known = (n > 0) & (m > 0)
    same_runs = known & (equal == n) & (equal == m)
    several = np.minimum(n, m) >= 2
    basis = np.select(
        [~known, same_runs & (taken == equal), same_runs, several],
        ["no AP", "same training", "equal figures", "welch"],
        "one seed" if math.isnan(scatter.sd) else "pooled sd",
    )
    error = np.where(same_runs, 0.0, np.where(several, error, pooled))
    freedom = np.where(same_runs, np.inf, np.where(several, freedom, scatter.freedom))
    change = _Estimates(np.where(same_runs, 0.0, mean_b - mean_a), error, freedom)
    low, high = change.interval(confidence)
    tested = np.isin(basis, _SEPARATE)
    differs = holm(np.where(tested, change.p_beyond(0.0), np.nan))
    same = holm(np.where(tested, change.p_within(margin), np.nan))
    verdict = _verdicts(same, differs, change.value, 1 - confidence)
    verdict[same_runs] = "same"
    verdict[~known] = ""
    return pd.DataFrame(
        {
            "ap_difference": change.value,
            "ap_difference_low": low,
            "ap_difference_high": high,
            "ap_basis": pd.Series(basis, dtype="str"),
            "ap_p_differs": differs,
            "ap_p_same": same,
            "ap_verdict": pd.Series(verdict, dtype="str"),
        }
    )


def _equal_figures(runs: pd.DataFrame, ids_a: Sequence[str], ids_b: Sequence[str]) -> tuple[Floats, Floats]:
    """How many seeds have one and the same AP on both sides, and how many of those are one and the same training.

    A training is one where a side took it over from another study, or where both rows are copies of one.
    """
    columns = ["candidate", "seed", "ap", "shared_from", "study", "trial", "started_at"]
    a, b = (runs.loc[runs["side"] == side, columns] for side in "AB")
    pairs = a.merge(b, on=columns[:3])
    taken = (pairs["shared_from_x"] != "") | (pairs["shared_from_y"] != "")
    copied = pd.concat([pairs[f"{c}_x"] == pairs[f"{c}_y"] for c in columns[4:]], axis=1).all(axis=1)
    counts = pairs.assign(one=taken | copied).groupby("candidate")["one"].agg(["size", "sum"])
    of = [one if one == other else "" for one, other in zip(ids_a, ids_b, strict=True)]
    found = counts.reindex(of).fillna(0).to_numpy(dtype=np.float64)
    return found[:, 0], found[:, 1]


def _shared(both: _Both, scatter: Scatter, margin_ap: float, tolerance: float, confidence: float) -> pd.DataFrame:
    """`TableComparison.shared`."""
    a, b = both.of("A"), both.of("B")
    ids = [name for name in a.index if name in b.index]
    a, b = a.loc[ids].reset_index(drop=True), b.loc[ids].reset_index(drop=True)
    counts = both.runs.dropna(subset=["ap"]).groupby(["side", "candidate"]).size()
    seeds = {f"seeds_{side.lower()}": [int(counts.get((side, name), 0)) for name in ids] for side in "AB"}
    facts = {name: a[name] for name in ("candidate", "neck", "neck_label", "backbone")}
    figures = {
        f"{name}_{side}": table[name]
        for name in ("ap", "ap_low", "ap_high", "latency_ms", "latency_low_ms", "latency_high_ms", "params", "macs")
        for side, table in (("a", a), ("b", b))
    }
    found = pd.concat(
        [
            pd.DataFrame({**facts, **seeds, **figures}),
            _ap_changes(both, ids, ids, scatter, margin_ap, confidence),
            _latency_changes(a, b, tolerance, confidence),
        ],
        axis=1,
    )
    equal = [
        (found[f"{name}_a"] == found[f"{name}_b"]).fillna(False)
        | (found[f"{name}_a"].isna() & found[f"{name}_b"].isna())
        for name in ("params", "macs")
    ]
    return found.assign(costs_equal=(equal[0] & equal[1]).astype(bool))[list(SHARED_COLUMNS)]


def _latency_changes(a: pd.DataFrame, b: pd.DataFrame, tolerance: float, confidence: float) -> pd.DataFrame:
    """Latencies of B against those of A, row by row; the columns of `SHARED_COLUMNS`.

    Logarithms are taken to be normal, with the standard error that the 95 % interval has. As in a comparison taken in
    turns (`fpn_bench.profiling.rounds`), "same" and "better" need the whole interval on their side of the tolerance.
    """
    names = ("latency_ms", "latency_low_ms", "latency_high_ms")
    x, y = (np.column_stack([t[name].to_numpy(dtype=np.float64) for name in names]) for t in (a, b))
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.hypot(*(np.log(t[:, 2] / t[:, 1]) / (2 * stats.norm.ppf(0.975)) for t in (x, y)))
        value = np.log(y[:, 0] / x[:, 0])
    known = np.isfinite(value)
    equal = known & (np.isnan(x) & np.isnan(y) | (x == y)).all(axis=1)  # one and the same measurement
    conditions = _differing_conditions(a, b)
    comparable = known & (conditions == "")
    usable = np.where(comparable, value, np.nan)
    change = _Estimates(usable, np.where(equal, 0.0, error), np.full(len(x), np.inf))
    low, high = (np.exp(end) for end in change.interval(confidence))
    limit = math.log1p(tolerance)
    tested = comparable & ~equal
    same = holm(np.where(tested, change.p_within(limit), np.nan))
    differs = holm(np.where(tested, change.p_beyond(limit), np.nan))
    verdict = _verdicts(same, differs, -change.value, 1 - confidence)
    verdict[equal] = "same"
    verdict[conditions != ""] = NOT_COMPARABLE
    verdict[~known] = ""
    return pd.DataFrame(
        {
            "latency_ratio": np.exp(usable),
            "latency_ratio_low": low,
            "latency_ratio_high": high,
            "latency_verdict": pd.Series(verdict, dtype="str"),
            "latency_conditions": pd.Series(np.where(known, conditions, ""), dtype="str"),
        }
    )


def _differing_conditions(a: pd.DataFrame, b: pd.DataFrame) -> npt.NDArray[np.object_]:
    """For each pair of rows: ``"latency_device: cpu, 1 threads / NVIDIA L4"``, or ``""``."""
    x, y = (latency_conditions(t).to_numpy(dtype=object) for t in (a, b))
    return np.array(
        [
            "; ".join(
                f"{name}: {one or 'not recorded'} / {other or 'not recorded'}"
                for name, one, other in zip(LATENCY_CONDITIONS, left, right, strict=True)
                if one != other
            )
            for left, right in zip(x, y, strict=True)
        ],
        dtype=object,
    )


def _mean_change(shared: pd.DataFrame, margin: float, confidence: float) -> Change:
    """Mean of the paired differences over the candidates that were trained on both sides."""
    trained = shared[shared["ap_basis"].isin([*_SEPARATE, "one seed", "equal figures"])]
    found = mean_interval(trained["ap_difference"].to_numpy(dtype=np.float64), confidence=confidence)
    low, high = found.low, found.high
    if found.count == 1:
        low, high = (float(trained[f"ap_difference_{end}"].iloc[0]) for end in ("low", "high"))
    return Change(verdict_of(low, high, margin), found.value, low, high, found.count)


# --------------------------------------------------------------------------------------------------------------
# Fronts


def _front_change(
    both: _Both,
    joint: npt.NDArray[np.bool_],
    objectives: tuple[Objective, ...],
    margin: float,
    confidence: float,
    draws: int,
    seed: int,
) -> FrontChange:
    values, directions = objective_values(both.candidates, objectives), [o.direction for o in objectives]
    sides = [(both.candidates["side"] == side).to_numpy() for side in "AB"]
    on_front = np.zeros(len(values), dtype=bool)
    for side in sides:
        on_front[side] = pareto_mask(values[side], directions)
    best_first = both.candidates.assign(dominated=~joint)[on_front].sort_values(
        ["side", objectives[0].name], ascending=[True, not objectives[0].maximize], kind="stable"
    )
    members = _described(best_first, objectives, "dominated")
    usable = np.asarray(np.isfinite(values).all(axis=1))
    if not usable.any():
        nothing = Change("unclear", math.nan, math.nan, math.nan, 0)
        return FrontChange((math.nan,) * len(objectives), 0.0, 0.0, 0.0, nothing, members)
    finite = values[usable]
    reference = tuple(float(v.min() if o.maximize else v.max()) for o, v in zip(objectives, finite.T, strict=True))
    volume_a, volume_b = (hypervolume(values[side], directions, reference) for side in sides)
    union = hypervolume(values, directions, reference)
    known = union > 0 and all(usable[side].any() for side in sides)
    difference = (volume_b - volume_a) / union if known else math.nan
    if _same_figures(both.runs, objectives):
        low = high = difference = 0.0
    elif known and (noise := _noise(both, objectives)) is not None:
        drawn = _drawn_volumes(values, sides, noise, objectives, reference, draws, seed) / union
        tails = (1 - confidence) / 2, (1 + confidence) / 2
        low, high = (float(end) for end in np.quantile(drawn[:, 1] - drawn[:, 0], tails))
    else:
        low = high = math.nan
    change = Change(verdict_of(low, high, margin), difference, low, high, len(finite))
    return FrontChange(reference, volume_a, volume_b, union, change, members)


def _same_figures(runs: pd.DataFrame, objectives: tuple[Objective, ...]) -> bool:
    """Whether both sides hold the same candidates and seeds with the same figures."""
    columns = ["candidate", "seed", *(o.name for o in objectives)]
    a, b = (runs.loc[runs["side"] == side, columns].sort_values(columns[:2]).reset_index(drop=True) for side in "AB")
    return bool(a.equals(b))


@dataclass(frozen=True)
class _Noise:
    """What scatters in one objective.

    Attributes:
        column: of the objective.
        position: the candidate that a scattering figure belongs to.
        figure: number of the figure; what is one and the same on both sides has one number, and is drawn once.
        sd: what the figure adds to the candidate's value.
    """

    column: int
    position: npt.NDArray[np.int64]
    figure: npt.NDArray[np.int64]
    sd: Floats


def _noise(both: _Both, objectives: tuple[Objective, ...]) -> list[_Noise] | None:
    """None where an AP is among the objectives and no candidate has two seeds."""
    found = []
    for column, objective in enumerate(objectives):
        if objective.name in AP_COLUMNS:
            sd = _seed_scatter(both.runs, objective.name).sd
            if math.isnan(sd):
                return None
            runs = both.runs.dropna(subset=[objective.name])
            position = runs["position"].to_numpy(dtype=np.int64)
            share = np.bincount(position, minlength=len(both.candidates))[position]
            figure = _numbered(runs, ["candidate", "seed", objective.name])
            found.append(_Noise(column, position, figure, sd / share))
        elif objective.name == "latency_ms":
            timed = both.candidates
            width = (timed["latency_high_ms"] - timed["latency_low_ms"]).to_numpy(dtype=np.float64)
            figure = _numbered(timed, ["candidate", "latency_ms", "latency_low_ms", "latency_high_ms"])
            sd_ms = np.nan_to_num(width / (2 * stats.norm.ppf(0.975)))
            found.append(_Noise(column, np.arange(len(timed)), figure, sd_ms))
    return found


def _numbered(rows: pd.DataFrame, columns: list[str]) -> npt.NDArray[np.int64]:
    """Equal rows have equal numbers, in an order that the sides have no part in."""
    return np.asarray(rows.groupby(columns, sort=True, dropna=False).ngroup(), dtype=np.int64)


def _drawn_volumes(
    values: Floats,
    sides: Sequence[npt.NDArray[np.bool_]],
    noise: Sequence[_Noise],
    objectives: tuple[Objective, ...],
    reference: tuple[float, ...],
    draws: int,
    seed: int,
) -> Floats:
    """(draws, 2): hypervolumes of A and B when all that scatters is drawn anew."""
    directions = [o.direction for o in objectives]
    sign = np.where([o.maximize for o in objectives], -1.0, 1.0)
    spread = np.zeros_like(values)
    for part in noise:
        spread[:, part.column] = np.sqrt(np.bincount(part.position, part.sd**2, minlength=len(values)))
    # At its best (4 sd) below another of its side at its worst: never on that side's front.
    possible = np.zeros(len(values), dtype=bool)
    for side in sides:
        possible[side] = within_reach(values[side] * sign, 4 * spread[side])
    rows = [side[possible] for side in sides]
    means, place = values[possible], np.cumsum(possible) - 1
    kept = []
    for part in noise:
        used = possible[part.position]
        numbers, figure = np.unique(part.figure[used], return_inverse=True)
        kept.append((part.column, place[part.position[used]], figure, part.sd[used], len(numbers)))
    rng = np.random.default_rng(seed)
    volumes = np.empty((draws, 2))
    for i in range(draws):
        drawn = means.copy()
        for column, position, figure, sd, figures in kept:
            drawn[:, column] += np.bincount(position, sd * rng.standard_normal(figures)[figure], minlength=len(means))
        volumes[i] = [hypervolume(drawn[row], directions, reference) for row in rows]
    return volumes


def _levels(
    both: _Both, objectives: tuple[Objective, ...], scatter: Scatter, margin: float, confidence: float
) -> pd.DataFrame:
    """`TableComparison.levels`: at costs of members of the two fronts in the plane of AP and that cost."""
    columns = ["cost", "at_most", *(f"{n}_{s}" for n in ("candidate", "neck_label", "ap", "seeds") for s in "ab")]
    costs = [o for o in objectives if not o.maximize and o.name not in AP_COLUMNS]
    rows: list[tuple[Any, ...]] = []
    for cost in costs if any(o.name == "ap" for o in objectives) else []:
        plane = (cost, Objective("ap", "maximize"))
        wanted = ["side", "candidate", "neck_label", "ap", "seeds", cost.name]
        known = both.candidates[wanted].dropna(subset=["ap", cost.name])
        candidates = [known[known["side"] == side] for side in "AB"]
        if not all(map(len, candidates)):
            continue
        masks = [pareto_mask(objective_values(c, plane), [o.direction for o in plane]) for c in candidates]
        steps = np.concatenate([objective_values(c, plane)[m, 0] for c, m in zip(candidates, masks, strict=True)])
        first = max(float(c[cost.name].min()) for c in candidates)  # from there on both have one
        steps = np.unique(np.append(steps[steps >= first], first))
        for at_most in steps[np.unique(np.linspace(0, len(steps) - 1, LEVELS).round().astype(int))]:
            a, b = (_best(c[c[cost.name] <= at_most], cost.name) for c in candidates)
            rows.append(
                (cost.name, at_most, *(side[n] for n in ("candidate", "neck_label", "ap", "seeds") for side in (a, b)))
            )
    found = pd.DataFrame(rows, columns=columns)
    ids_a, ids_b = list(found["candidate_a"]), list(found["candidate_b"])
    return pd.concat([found, _ap_changes(both, ids_a, ids_b, scatter, margin, confidence)], axis=1)


def _best(candidates: pd.DataFrame, cost: str) -> pd.Series[Any]:
    """The best AP; the cheapest of equals."""
    return candidates.sort_values(["ap", cost], ascending=[False, True], kind="stable").iloc[0]


def _described(candidates: pd.DataFrame, objectives: tuple[Objective, ...], *more: str) -> pd.DataFrame:
    columns = ["side", "candidate", "neck", "neck_label", "seeds", *(o.name for o in objectives), *more]
    return candidates[columns].reset_index(drop=True)


# --------------------------------------------------------------------------------------------------------------
# Sentences


def _headline(both: _Both, shared: pd.DataFrame, ap: Change, front: FrontChange) -> str:
    empty = [side for side in "AB" if not (both.candidates["side"] == side).any()]
    if empty:
        return f"Nothing to compare: no candidate finished in {' and '.join(empty)}."
    found: list[tuple[Verdict, str, str]] = []
    if not math.isnan(front.change.difference):
        change = front.change
        share = _change(100 * change.difference, 100 * change.low, 100 * change.high, ".1f", " %")
        found.append((change.verdict, "its front", f"hypervolume {share} of the joint front's"))
    if ap.count:
        told = f"AP of {count(ap.count, 'shared candidate')} {_change(ap.difference, ap.low, ap.high, '.2f')}"
        found.append((ap.verdict, "shared candidates", told))
    elif (shared["ap_basis"] == "same training").any():
        found.append(("same", "shared candidates", "shared candidates are the same trainings"))
    if not found:
        return "Nothing to compare: no candidate has an AP in both, and the two fronts span no volume."
    words = {"better": "better than A", "worse": "worse than A", "same": "the same as A"}
    found.sort(key=lambda part: part[0] == "unclear")  # a verdict first
    said = "; ".join(told for _, _, told in found)
    first = found[0][0]
    if first == "unclear":
        return f"Unclear how B stands to A: {said}."
    if all(verdict == first for verdict, _, _ in found):
        return f"B is {words[first]}: {said}."
    parts = ", ".join(f"{words.get(verdict, verdict)} by {by}" for verdict, by, _ in found)
    return f"B is {parts}: {said}."


def _shared_sentences(
    shared: pd.DataFrame, scatter: Scatter, margin: float, tolerance: float, confidence: float
) -> list[str]:
    if shared.empty:
        return ["No candidate finished in both."]
    said = []
    basis = shared["ap_basis"].value_counts()
    pairs = int(basis.reindex(_SEPARATE).fillna(0).sum())
    if pairs:
        listed = _counts(shared.loc[shared["ap_basis"].isin(_SEPARATE), "ap_verdict"])
        said.append(
            f"AP of {count(pairs, 'pair')} measured apart: {listed}. Differences within {margin:g} are the same; "
            f"verdicts are corrected for their number ({CORRECTION}, {100 * (1 - confidence):g} %)."
        )
    if "pooled sd" in basis:
        said.append(
            f"{count(int(basis['pooled sd']), 'pair')} with one seed on a side: judged by the seeds' pooled standard "
            f"deviation, {scatter.sd:.2f} AP with {count(scatter.freedom, 'degree')} of freedom."
        )
    if "one seed" in basis:
        said.append(
            f"{count(int(basis['one seed']), 'pair')} with one seed on a side: unclear, for no candidate has a second."
        )
    if "same training" in basis:
        said.append(
            f"{count(int(basis['same training']), 'pair')} of one and the same training, taken over or copied: the "
            "same by construction, and left out of the mean."
        )
    if "equal figures" in basis:
        said.append(f"{count(int(basis['equal figures']), 'pair')} equal seed by seed to the last digit.")
    if "no AP" in basis:
        said.append(f"{count(int(basis['no AP']), 'pair')} without an AP on both sides.")
    timed = shared.loc[~shared["latency_verdict"].isin(["", NOT_COMPARABLE]), "latency_verdict"]
    if len(timed):
        said.append(
            f"Latency of {count(len(timed), 'pair')}: {_counts(timed)}. Ratios within {100 * tolerance:g} % are the "
            "same."
        )
    other = shared.loc[shared["latency_conditions"] != "", "latency_conditions"]
    if len(other):
        said.append(f"Latency of {count(len(other), 'pair')} {NOT_COMPARABLE}: {other.mode()[0]}.")
    return said


def _front_sentences(front: FrontChange, only: pd.DataFrame, objectives: tuple[Objective, ...]) -> list[str]:
    said = []
    for side, other in ("AB", "BA"):
        members = front.members[front.members["side"] == side]
        beaten = int(members["dominated"].sum())
        if len(members):
            said.append(f"{beaten} of {count(len(members), 'member')} of {side}'s front beaten by {other}'s.")
        else:
            said.append(f"{side} has no front: no candidate of it has all of {named(objectives)}.")
        alone = only[only["side"] == side]
        if len(alone):
            joint = int(alone["on_joint_front"].sum())
            said.append(f"{count(len(alone), 'candidate')} only in {side}, {joint} of them on the joint front.")
    return said


def _warnings(shared: pd.DataFrame) -> tuple[str, ...]:
    other = shared[~shared["costs_equal"]]
    if other.empty:
        return ()
    first = other.iloc[0]
    return (
        f"{count(len(other), 'shared candidate')} with other params or MACs under the same id, e.g. "
        f"{first['candidate']} ({first['neck_label']}): params {first['params_a']} / {first['params_b']}, MACs "
        f"{first['macs_a']} / {first['macs_b']}. Counting changed between the two, or they are not the same networks.",
    )


def _change(value: float, low: float, high: float, digits: str, unit: str = "") -> str:
    """``"+1.20 (+0.55 to +1.85)"``."""
    said = f"{value:+{digits}}{unit}"
    return f"{said} (interval not known)" if math.isnan(low) else f"{said} ({low:+{digits}} to {high:+{digits}})"


def _counts(words: pd.Series[Any]) -> str:
    """``"3 better, 1 unclear"``."""
    return ", ".join(f"{n} {word}" for word, n in words.value_counts().sort_index().items())


# --------------------------------------------------------------------------------------------------------------
# Plain data


def _fields(change: Change) -> dict[str, Any]:
    return {name: json_value(value) for name, value in asdict(change).items()}
