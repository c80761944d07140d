"""Which neck to take, given what the figures of a study can tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtrit

from fpn_bench.analysis.intervals import Comparison, by_candidate, compare_drawn
from fpn_bench.analysis.noise import Scatter, seed_scatter, truths_of
from fpn_bench.analysis.pareto import costs_no_more
from fpn_bench.analysis.rows import SEARCHED, Objective, one_protocol
from fpn_bench.errors import InputError

Floats = npt.NDArray[np.float64]

MARGIN_AP = 0.5
"""AP, in percent points, that is taken to make no difference."""
TOLERANCE_AP = 0.25
"""AP that a cheaper neck may be expected to lose beside the best pick and still be taken."""
_BASELINE = "fpn"
"""The family that every other neck is held against."""
_FAR = 8.0
"""Standard deviations of one figure below the best mean, beyond which a searched neck is not drawn."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The neck to take, and what is known of it.

    Attributes:
        neck: its row of `by_candidate`.
        ap: what its true AP is expected to be: less than its mean over seeds where luck had a part in the pick.
        ap_low, ap_high: 95 % interval of that, which also holds Student's interval of the mean: what is expected given
            all necks draws a neck that truly stands out from many equal ones too far towards these.
        regret: by how much the best of all allowed necks is expected to exceed it, in AP.
        alike: the rows that cannot be told from the best, the taken one among them, cheapest first.
        rival: what it is held against: the best published neck that costs no more, as far as measurements tell
            (`fpn_bench.analysis.pareto.costs_no_more`) or, of a published one, the best searched neck whatever it
            costs; None where there is none.
        comparison: how ``neck`` stands to ``rival``.
        baseline: the published FPN that costs no more (the cheapest where all cost more), the best of them; None where
            there is none, or it is ``neck`` itself.
        gain: how ``neck`` stands to ``baseline``.
        seeds: further seeds of each of ``alike`` that would tell them apart by `MARGIN_AP` or by what they seem to
            differ, whichever is more; 0 where nothing needs to be told apart.
        seconds: what these trainings would take, by the training times of the table; NaN where it has none.
        allowed: how many finished necks are within the bounds.
        scatter: how AP scatters from seed to seed.
    """

    neck: Mapping[str, Any]
    ap: float
    ap_low: float
    ap_high: float
    regret: float
    alike: tuple[Mapping[str, Any], ...]
    rival: Mapping[str, Any] | None
    comparison: Comparison | None
    baseline: Mapping[str, Any] | None
    gain: Comparison | None
    seeds: int
    seconds: float
    allowed: int
    scatter: Scatter


def choose(
    table: pd.DataFrame, *, costs: Sequence[Objective] = (), bounds: Mapping[str, float] | None = None
) -> Choice:
    """The neck of a study to take: the cheapest that is expected to lose next to nothing beside the best.

    All statements are read off the same draws of the true APs, given all necks of the table
    (`fpn_bench.analysis.noise.Truths`), so that the best of many is not taken at its luck. Of the necks whose expected
    regret is within `TOLERANCE_AP` of the least, the one that costs least is taken.

    Args:
        table: rows of one protocol (`fpn_bench.analysis.COLUMNS`).
        costs: what makes a neck cheap; the first decides, the others break ties. All of them bound the published necks
            that it is compared with.
        bounds: column -> the most that is allowed (the least, of a column that is to be maximised).

    Raises:
        ProtocolError: rows of two protocols.
        InputError: no finished neck, or none within the bounds; says which value would be.
    """
    one_protocol(table)
    finished = by_candidate(table).dropna(subset=["ap"])
    if finished.empty:
        raise InputError("expected a study with a finished candidate, got none; let the search train one first")
    scatter = seed_scatter(table)
    allowed = finished[_within(finished, bounds or {}, costs)]
    if allowed.empty:
        raise InputError(_nearest(finished, bounds or {}, costs))
    means = allowed["ap"].to_numpy(dtype=np.float64)
    count, far = len(allowed), means < means.max() - _FAR * scatter.sd
    allowed = allowed[~far | ~allowed["source"].isin(SEARCHED)]
    means, counts = (allowed[name].to_numpy(dtype=np.float64) for name in ("ap", "seeds"))
    truths = truths_of(finished, "ap", scatter)
    assert truths is not None  # AP has a prior
    drawn = truths.draw(means, counts)
    regret = drawn.max(axis=1).mean() - drawn.mean(axis=0)
    best = int(regret.argmin())
    cheap = _cheapest_first(allowed, costs)
    taken = next(i for i in cheap if regret[i] <= regret[best] + TOLERANCE_AP)
    alike = [i for i in cheap if i == taken or _compared(drawn, counts, i, best).verdict != "worse"]
    neck = allowed.iloc[taken].to_dict()
    low, high = np.quantile(drawn[:, taken], [0.025, 0.975])
    half = float(scatter.half_width(counts[taken]))
    rival = _rival(allowed, drawn, taken, costs)
    fpn = _baseline(allowed, drawn, taken, costs)
    seeds = _seeds_to_know(drawn, counts, alike, scatter)
    seconds = float(sum(seeds * allowed.iloc[i]["train_s"] / counts[i] for i in alike))
    return Choice(
        neck=neck,
        ap=float(drawn[:, taken].mean()),
        ap_low=min(float(low), float(means[taken]) - half),
        ap_high=max(float(high), float(means[taken]) + half),
        regret=float(regret[taken]),
        alike=tuple(allowed.iloc[i].to_dict() for i in alike),
        rival=None if rival is None else allowed.iloc[rival].to_dict(),
        comparison=None if rival is None else _compared(drawn, counts, taken, rival),
        baseline=None if fpn is None else allowed.iloc[fpn].to_dict(),
        gain=None if fpn is None else _compared(drawn, counts, taken, fpn),
        seeds=seeds,
        seconds=seconds,
        allowed=count,
        scatter=scatter,
    )


def _within(necks: pd.DataFrame, bounds: Mapping[str, float], costs: Sequence[Objective]) -> npt.NDArray[np.bool_]:
    """Which necks keep every bound; a value that is not known keeps none."""
    maximised = {o.name for o in costs if o.maximize}
    kept = np.ones(len(necks), dtype=np.bool_)
    for name, bound in bounds.items():
        values = _numbers(necks, name)
        kept &= values >= bound if name in maximised else values <= bound
    return kept


def _numbers(necks: pd.DataFrame, name: str) -> Floats:
    if name not in necks.columns or not pd.api.types.is_numeric_dtype(necks[name]):
        raise InputError(f"expected a column of numbers to bound, e.g. latency_ms, params or macs, got {name}")
    return necks[name].to_numpy(dtype=np.float64, na_value=np.nan)


def _nearest(necks: pd.DataFrame, bounds: Mapping[str, float], costs: Sequence[Objective]) -> str:
    maximised = {o.name for o in costs if o.maximize}
    wanted = " and ".join(f"{n} at {'least' if n in maximised else 'most'} {bound:g}" for n, bound in bounds.items())
    seen = []
    for name in bounds:
        values = _numbers(necks, name)
        known = values[~np.isnan(values)]
        ends = f"from {known.min():.4g} to {known.max():.4g}" if len(known) else "not measured"
        seen.append(f"{name} {ends}")
    return f"expected a finished neck with {wanted}, got {len(necks)} with {', '.join(seen)}; try a wider bound"


def _cheapest_first(necks: pd.DataFrame, costs: Sequence[Objective]) -> list[int]:
    keys = [-necks["ap"].to_numpy(dtype=np.float64)]
    for cost in reversed(costs):
        values = _numbers(necks, cost.name)
        keys.append(np.nan_to_num(-values if cost.maximize else values, nan=np.inf))
    return [int(i) for i in np.lexsort(keys)]


def _rival(necks: pd.DataFrame, drawn: Floats, taken: int, costs: Sequence[Objective]) -> int | None:
    """The neck of the other kind, searched or published, of the highest expected AP; a published one costs no more."""
    if necks.iloc[taken]["source"] == "published":
        possible = necks["source"].isin(SEARCHED).to_numpy(copy=True)
    else:
        possible = (necks["source"] == "published").to_numpy(copy=True)
        for cost in costs:
            values = _numbers(necks, cost.name)
            possible &= costs_no_more(values, values[taken], cost, within_noise=True)
    expected = np.where(possible, drawn.mean(axis=0), -np.inf)
    return int(expected.argmax()) if possible.any() else None


def _baseline(necks: pd.DataFrame, drawn: Floats, taken: int, costs: Sequence[Objective]) -> int | None:
    """The published (or listed) FPN of the highest expected AP that costs no more, else the cheapest one."""
    known = ~necks["source"].isin(SEARCHED) & (necks["neck"] == _BASELINE)
    places = np.flatnonzero(known)
    if not len(places) or taken in places:
        return None
    cheap = np.ones(len(places), dtype=np.bool_)
    for cost in costs:
        values = _numbers(necks, cost.name)
        cheap &= costs_no_more(values[places], values[taken], cost, within_noise=True)
    if not cheap.any():
        return next(i for i in _cheapest_first(necks, costs) if i in places)
    return int(places[cheap][drawn[:, places[cheap]].mean(axis=0).argmax()])


def _compared(drawn: Floats, counts: Floats, a: int, b: int) -> Comparison:
    return compare_drawn(drawn[:, [a, b]], (int(counts[a]), int(counts[b])), margin=MARGIN_AP)


def _seeds_to_know(drawn: Floats, counts: Floats, alike: Sequence[int], scatter: Scatter) -> int:
    """Further seeds of each, for an interval of a difference of two means as wide as the two best seem apart."""
    if len(alike) < 2:
        return 0
    first, second = np.sort(drawn[:, alike].mean(axis=0))[::-1][:2]
    apart = max(MARGIN_AP, float(first - second))
    needed = math.ceil(2 * (float(stdtrit(scatter.freedom, 0.975)) * scatter.sd / apart) ** 2)
    return max(0, needed - int(counts[list(alike)].min()))
