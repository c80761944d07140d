"""The candidates that finished on both sides of a comparison, one by one.

AP of one candidate on both sides is compared by Student's interval with the scatter pooled over all candidates
(`fpn_bench.analysis.noise`). Trainings that one study took over from the other are one and the same figure: they agree
by construction, and are evidence of nothing.

Many candidates are many verdicts, of which some would be wrong by chance. Holm's step-down (Holm 1979) keeps the chance
of any wrong "better" or "worse" in a list at 1 - confidence, and that of any wrong "same" too. Intervals are those of
each candidate alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtri

from fpn_bench.analysis.comparable import conditions_of
from fpn_bench.analysis.intervals import Estimates, verdict_of
from fpn_bench.analysis.noise import Scatter
from fpn_bench.analysis.rows import Objective
from fpn_bench.analysis.two_fronts import Change, PooledTables, equal_figures, scatter_of
from fpn_bench.metrics import LATENCY_CONDITIONS, metric_of

NOT_COMPARABLE = "not comparable"
SEPARATE = ("pooled sd", "prior sd")
"""What an interval of AP rests on, where the two figures are two measurements."""

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


def _trained_changes(
    both: PooledTables, ids: list[str], objective: Objective, margin: float, confidence: float
) -> pd.DataFrame:
    """What was trained of candidates in B against their own in A: of AP the columns of `SHARED_COLUMNS`."""
    column = objective.name
    scatter = scatter_of(both.runs, column)
    runs = both.runs.dropna(subset=[column])
    samples = runs.groupby(["side", "candidate"])[column].agg(["mean", "count"])
    a, b = (samples.reindex(pd.MultiIndex.from_arrays([[side] * len(ids), ids])) for side in "AB")
    n, m = (side["count"].fillna(0).to_numpy(dtype=np.float64) for side in (a, b))
    mean_a, mean_b = (side["mean"].to_numpy(dtype=np.float64) for side in (a, b))
    known = (n > 0) & (m > 0)
    equal, taken = equal_figures(runs, ids, ids, column)
    same_runs = known & (equal == n) & (equal == m)
    basis = np.select(
        [~known, same_runs & (taken == equal), same_runs],
        [f"no {metric_of(column).label}", "same training", "equal figures"],
        "pooled sd" if scatter.replicates else "prior sd" if scatter.freedom else "not known",
    )
    known_scatter = Estimates.of_means(mean_b, m, mean_a, n, scatter)
    change = Estimates(
        np.where(same_runs, 0.0, known_scatter.value),
        np.where(same_runs, 0.0, known_scatter.error),
        np.where(same_runs, np.inf, known_scatter.freedom),
    )
    low, high = change.interval(confidence)
    gain = change if objective.maximize else Estimates(-change.value, change.error, change.freedom)
    decided = gain.decided(np.isin(basis, SEPARATE), margin, 0.0, confidence)
    verdict = decided.verdict
    verdict[same_runs] = "same"
    verdict[~known] = ""
    return pd.DataFrame(
        {
            f"{column}_difference": change.value,
            f"{column}_difference_low": low,
            f"{column}_difference_high": high,
            f"{column}_basis": pd.Series(basis, dtype="str"),
            f"{column}_p_differs": decided.p_differs,
            f"{column}_p_same": decided.p_same,
            f"{column}_verdict": pd.Series(verdict, dtype="str"),
        }
    )


def shared_candidates(
    both: PooledTables, objectives: Sequence[Objective], margin_ap: float, tolerance: float, confidence: float
) -> pd.DataFrame:
    """The columns of `SHARED_COLUMNS`, and of each objective that is none of them ``NAME_a``, ``NAME_b``,
    ``NAME_difference`` and, where it is trained, the same as of AP."""
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
            _trained_changes(both, ids, Objective("ap", "maximize"), margin_ap, confidence),
            _latency_changes(a, b, tolerance, confidence),
        ],
        axis=1,
    )
    equal = [
        (found[f"{name}_a"] == found[f"{name}_b"]).fillna(False)
        | (found[f"{name}_a"].isna() & found[f"{name}_b"].isna())
        for name in ("params", "macs")
    ]
    found = found.assign(costs_equal=(equal[0] & equal[1]).astype(bool))[list(SHARED_COLUMNS)]
    more = [_further(both, a, b, ids, o, confidence) for o in objectives if f"{o.name}_a" not in found]
    return pd.concat([found, *more], axis=1)


def _further(
    both: PooledTables, a: pd.DataFrame, b: pd.DataFrame, ids: list[str], objective: Objective, confidence: float
) -> pd.DataFrame:
    name, metric = objective.name, metric_of(objective.name)
    values = pd.DataFrame({f"{name}_a": a[name], f"{name}_b": b[name]})
    if metric.noise != "seeds":
        return values.assign(**{f"{name}_difference": b[name] - a[name]})
    return pd.concat([values, _trained_changes(both, ids, objective, metric.margin, confidence)], axis=1)


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
    change = Estimates(usable, np.where(equal, 0.0, error), np.full(len(x), np.inf))
    low, high = (np.exp(end) for end in change.interval(confidence))
    limit = math.log1p(tolerance)
    faster = Estimates(-change.value, change.error, change.freedom)
    verdict = faster.decided(comparable & ~equal, limit, limit, confidence).verdict
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
    x, y = (conditions_of(t).to_numpy(dtype=object) for t in (a, b))
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


def mean_change(shared: pd.DataFrame, scatter: Scatter, margin: float, confidence: float) -> Change:
    """Mean of the paired differences over the candidates that were trained on both sides: of these, not of others."""
    trained = shared[shared["ap_basis"].isin([*SEPARATE, "equal figures"])]
    count = len(trained)
    if not count:
        return Change("unclear", math.nan, math.nan, math.nan, 0)
    again = trained[trained["ap_basis"] != "equal figures"]
    # As if of one mean: the variances of the differences add up.
    variance = (1 / again["seeds_a"] + 1 / again["seeds_b"]).sum() / count**2
    half = float(scatter.half_width(1 / variance, confidence=confidence)) if variance else 0.0
    value = float(trained["ap_difference"].mean())
    return Change(verdict_of(value - half, value + half, margin), value, value - half, value + half, count)
