"""Two tables of one protocol side by side: what changed from A to B, and how sure that is.

Differences are B - A, ratios B / A, and every verdict says how B stands to A. Swapping the two mirrors all of them.

AP of one candidate on both sides is compared by Student's interval with the scatter pooled over all candidates
(`fpn_bench.analysis.noise`). Trainings that one study took over from the other are one and the same figure: they agree
by construction, and are evidence of nothing.

Many candidates are many verdicts, of which some would be wrong by chance. Holm's step-down (Holm 1979) keeps the chance
of any wrong "better" or "worse" in a list at 1 - confidence, and that of any wrong "same" too. Intervals are those of
each candidate alone.

Fronts and the best at each cost were picked by their figures: they are judged by draws of the true values
(`fpn_bench.analysis.two_fronts`), as the report judges its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtri, stdtr, stdtrit

from fpn_bench.analysis.comparable import (
    LATENCY_CONDITIONS,
    Metadata,
    comparable_objectives,
    latency_conditions,
    objectives_of_both,
    other_conditions,
    protocol_of_both,
)
from fpn_bench.analysis.intervals import Verdict, verdict_of
from fpn_bench.analysis.noise import Scatter
from fpn_bench.analysis.pareto import objective_values, pareto_mask
from fpn_bench.analysis.rows import STATUSES, Objective, check_table, json_records, json_value, parse_objectives
from fpn_bench.analysis.two_fronts import (
    Both,
    Change,
    FrontChange,
    both_of,
    described,
    equal_figures,
    front_change,
    levels,
    scatter_of,
)
from fpn_bench.analysis.words import count, named
from fpn_bench.errors import InputError

Floats = npt.NDArray[np.float64]

COMPARISON_VERSION = 1
CORRECTION = "Holm"
NOT_COMPARABLE = "not comparable"
DRAWS = 1_000
_SEPARATE = ("pooled sd", "prior sd")
"""What an interval of AP rests on, where the two figures are two measurements."""


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
            ``neck_label_*``, ``ap_*``, ``seeds_*``; ``ap_difference``, the expected one, its ``_low`` and ``_high``,
            ``ap_verdict`` and ``ap_basis`` (expected | same training | equal figures).
        seed_sd: the seeds' pooled standard deviation of AP, in points, the prior's without any second seed.
        seed_freedom: its degrees of freedom, those of the prior among them.
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
    "ap_low_a": "lower end of its t interval, by the scatter pooled over the table",
    "ap_high_a": "upper end",
    "ap_b": "mean AP over B's seeds, percent points",
    "ap_low_b": "lower end of its t interval, by the scatter pooled over the table",
    "ap_high_b": "upper end",
    "ap_difference": "B - A, percent points",
    "ap_difference_low": "lower end of its interval, for this candidate alone",
    "ap_difference_high": "upper end",
    "ap_basis": "what that interval rests on: pooled sd (candidates with several seeds, and the prior) | prior sd (no "
    "candidate has a second seed) | same training (taken over or copied) | equal figures (seed by seed, to the last "
    "digit) | no AP",
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
            raise InputError(f"expected {name} to be a finite number of 0 or more, e.g. {name}=0.02, got {value}")
    if not 0 < confidence < 1:
        raise InputError(f"expected confidence to be a share between 0 and 1, e.g. 0.95, got {confidence}")
    if draws < 2:
        raise InputError(f"expected draws to be at least 2, e.g. {DRAWS}, got {draws}")
    tables = (check_table(a), check_table(b))
    protocol = protocol_of_both(tables, metadata)
    wanted, notes = objectives_of_both(metadata) if objectives is None else (parse_objectives(objectives), [])
    wanted, left_out = comparable_objectives(tables, wanted)
    both = both_of(tables, confidence)
    scatter = scatter_of(both.runs, "ap")
    shared = _shared(both, scatter, margin_ap, latency_tolerance, confidence)
    ap = _mean_change(shared, scatter, margin_ap, confidence)
    joint = pareto_mask(objective_values(both.candidates, wanted), [o.direction for o in wanted])
    front = front_change(both, joint, wanted, margin_hypervolume, confidence, draws, seed)
    alone = both.candidates.assign(on_joint_front=joint)[~both.candidates["candidate"].isin(shared["candidate"])]
    only = described(alone, wanted, "on_joint_front")
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
        levels=levels(both, wanted, margin_ap, confidence),
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
class _Estimates:
    """Differences with their standard errors and degrees of freedom; NaN where they are not known."""

    value: Floats
    error: Floats
    freedom: Floats

    def interval(self, confidence: float) -> tuple[Floats, Floats]:
        half = np.asarray(stdtrit(self.freedom, (1 + confidence) / 2) * self.error, dtype=np.float64)
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
            tail = 2 * stdtr(self.freedom, -room / self.error)
        p = np.where(self.error == 0, np.where(exact, 0.0, 1.0), np.minimum(tail, 1.0))
        return np.asarray(np.where(np.isnan(self.value), np.nan, p), dtype=np.float64)


def _verdicts(same: Floats, differs: Floats, gain: Floats, level: float) -> npt.NDArray[np.object_]:
    """From adjusted p-values; "same" goes first, as in `fpn_bench.analysis.compare`."""
    apart = differs <= level
    conditions = [same <= level, apart & (gain > 0), apart & (gain < 0)]
    return np.select(conditions, ["same", "better", "worse"], "unclear").astype(object)


def _ap_changes(both: Both, ids: list[str], scatter: Scatter, margin: float, confidence: float) -> pd.DataFrame:
    """AP of candidates in B against their own in A; the columns of `SHARED_COLUMNS`."""
    runs = both.runs.dropna(subset=["ap"])
    samples = runs.groupby(["side", "candidate"])["ap"].agg(["mean", "count"])
    a, b = (samples.reindex(pd.MultiIndex.from_arrays([[side] * len(ids), ids])) for side in "AB")
    n, m = (side["count"].fillna(0).to_numpy(dtype=np.float64) for side in (a, b))
    mean_a, mean_b = (side["mean"].to_numpy(dtype=np.float64) for side in (a, b))
    known = (n > 0) & (m > 0)
    with np.errstate(divide="ignore"):
        error = np.where(known, scatter.sd * np.sqrt(1 / n + 1 / m), np.nan)
    equal, taken = equal_figures(runs, ids, ids)
    same_runs = known & (equal == n) & (equal == m)
    basis = np.select(
        [~known, same_runs & (taken == equal), same_runs],
        ["no AP", "same training", "equal figures"],
        "pooled sd" if scatter.replicates else "prior sd",
    )
    error = np.where(same_runs, 0.0, error)
    freedom = np.where(same_runs, np.inf, scatter.freedom)
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


def _shared(both: Both, scatter: Scatter, margin_ap: float, tolerance: float, confidence: float) -> pd.DataFrame:
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
            _ap_changes(both, ids, scatter, margin_ap, confidence),
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
    turns (`fpn_bench.latency.rounds`), "same" and "better" need the whole interval on their side of the tolerance.
    """
    names = ("latency_ms", "latency_low_ms", "latency_high_ms")
    x, y = (np.column_stack([t[name].to_numpy(dtype=np.float64) for name in names]) for t in (a, b))
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.hypot(*(np.log(t[:, 2] / t[:, 1]) / (2 * ndtri(0.975)) for t in (x, y)))
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


def _mean_change(shared: pd.DataFrame, scatter: Scatter, margin: float, confidence: float) -> Change:
    """Mean of the paired differences over the candidates that were trained on both sides: of these, not of others."""
    trained = shared[shared["ap_basis"].isin([*_SEPARATE, "equal figures"])]
    count = len(trained)
    if not count:
        return Change("unclear", math.nan, math.nan, math.nan, 0)
    again = trained[trained["ap_basis"] != "equal figures"]
    # As if of one mean: the variances of the differences add up.
    variance = (1 / again["seeds_a"] + 1 / again["seeds_b"]).sum() / count**2
    half = float(scatter.half_width(1 / variance, confidence=confidence)) if variance else 0.0
    value = float(trained["ap_difference"].mean())
    return Change(verdict_of(value - half, value + half, margin), value, value - half, value + half, count)


# --------------------------------------------------------------------------------------------------------------
# Sentences


def _headline(both: Both, shared: pd.DataFrame, ap: Change, front: FrontChange) -> str:
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
    if pairs and scatter.replicates:
        said.append(
            f"Seeds' standard deviation: {scatter.sd:.2f} AP, pooled with {count(scatter.freedom, 'degree')} of "
            f"freedom, {scatter.freedom - scatter.replicates} of them known beforehand."
        )
    elif pairs:
        said.append(
            f"No candidate has a second seed: the seeds' standard deviation is taken to be {scatter.sd:.2f} AP, as in "
            "the tables that come with fpn_bench."
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
