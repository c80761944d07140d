"""How far a short training's ranking can be trusted: rank correlation with a longer one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fpn_bench.errors import InputError

RESAMPLES = 1_000
BANDS = 3
TOP = 0.25
"""Share of the candidates that are looked at as the top."""
LEAST = 5
"""Candidates below which a rank correlation says nothing."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two rankings of the same candidates agree.

    Attributes:
        tau: Kendall's tau-b: 1 the same order, 0 no relation, -1 the reverse; NaN where there are too few.
        low, high: its 95 % interval (percentiles over resampled candidates).
        candidates: how many were ranked.
    """

    tau: float
    low: float
    high: float
    candidates: int


@dataclass(frozen=True, slots=True)
class Retrained:
    """A candidate under both protocols.

    Attributes:
        candidate: its id.
        label: for people.
        cost: what bands are formed by.
        short, long: seed -> AP in percent points.
    """

    candidate: str
    label: str
    cost: float
    short: Mapping[int, float]
    long: Mapping[int, float]


@dataclass(frozen=True)
class ProxyTrust:
    """What a front built on the short protocol is worth, each as an `Agreement` of short with long.

    Attributes:
        whole: over all candidates.
        top: within the best quarter, chosen by one seed of the short protocol and ranked by the others, averaged over
            which seed chooses: whoever chooses and ranks by the same figure sees its noise twice. None where no
            candidate has a second seed, or a quarter of them are too few.
        bands: of pairs within a band of cost alone (`BANDS` of equal size): what is left once everybody knows that
            larger costs more and is better.
        seeds: of one seed of the short protocol with another of its own, for comparison: what noise leaves of a ranking
            by one training each. None with one seed.
    """

    whole: Agreement
    top: Agreement | None
    bands: Agreement
    seeds: Agreement | None

    def told(self) -> tuple[tuple[str, Agreement | None], ...]:
        """Each with the words for it."""
        return (
            ("over all of them", self.whole),
            ("within the top, as another seed chose it", self.top),
            ("among those of about one cost", self.bands),
            ("for comparison: one seed of the short training and another", self.seeds),
        )


def kendall_tau(x: npt.ArrayLike, y: npt.ArrayLike, bands: npt.ArrayLike | None = None) -> float:
    """Kendall's tau-b of two scores; with ``bands``, over pairs within a band alone. NaN where all pairs are tied.

    Args:
        x, y: (n,) scores.
        bands: (n,) anything that can be compared for equality.

    Raises:
        InputError: unequal lengths.
    """
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    within = np.zeros(len(first)) if bands is None else np.asarray(bands)
    if not len(first) == len(second) == len(within):
        raise InputError(f"expected as many x as y and bands, got {len(first)}, {len(second)} and {len(within)}")
    i, j = np.triu_indices(len(first), 1)
    pairs = within[i] == within[j]
    a, b = np.sign(first[i] - first[j])[pairs], np.sign(second[i] - second[j])[pairs]
    untied = math.sqrt(float((a != 0).sum()) * float((b != 0).sum()))
    return float((a * b).sum() / untied) if untied else math.nan


def agreement(x: npt.ArrayLike, y: npt.ArrayLike, bands: npt.ArrayLike | None = None, *, seed: int = 0) -> Agreement:
    """`kendall_tau` with its interval; candidates with a NaN are left out.

    Args:
        x, y: (n,) scores.
        bands: see `kendall_tau`.
        seed: of the resampling.
    """
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    known = np.isfinite(first) & np.isfinite(second)
    within = np.zeros(len(first)) if bands is None else np.asarray(bands)
    first, second, within = first[known], second[known], within[known]
    n = len(first)
    if n < LEAST:
        return Agreement(math.nan, math.nan, math.nan, n)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(RESAMPLES):
        picked = rng.integers(0, n, n)
        drawn.append(kendall_tau(first[picked], second[picked], within[picked]))
    kept = [tau for tau in drawn if not math.isnan(tau)]
    low, high = np.percentile(kept, [2.5, 97.5]) if kept else (math.nan, math.nan)
    return Agreement(kendall_tau(first, second, within), float(low), float(high), n)


def cost_bands(costs: npt.ArrayLike, bands: int = BANDS) -> npt.NDArray[np.int64]:
    """The band of each cost, 0 the cheapest: as equal in size as ties allow."""
    values = np.asarray(costs, dtype=np.float64)
    ranks = np.searchsorted(np.sort(values), values).astype(np.int64)
    return ranks * bands // max(1, len(values))


def longest(kept: Mapping[str, Mapping[str, Any]] | None) -> Mapping[str, Any] | None:
    """Of what `fpn_bench.search.proxy.correlate` keeps with a study (``proxy`` of its metadata) the longest training
    that enough candidates have had to be ranked, else the one that most have had; None where there is none."""
    entries = [entry for entry in (kept or {}).values() if entry["candidates"]]
    enough = [entry for entry in entries if len(entry["candidates"]) >= LEAST]
    if enough:
        return max(enough, key=lambda entry: entry["times"])
    return max(entries, key=lambda entry: len(entry["candidates"]), default=None)


def retrained_of(kept: Mapping[str, Any]) -> list[Retrained]:
    """One entry of what `fpn_bench.search.proxy.correlate` keeps, for `proxy_trust`."""
    return [
        Retrained(
            row["candidate"],
            row["label"],
            float(row[kept["cost"]]),
            {int(seed): float(ap) for seed, ap in row["short"].items()},
            {int(seed): float(ap) for seed, ap in row["long"].items()},
        )
        for row in kept["candidates"]
    ]


def proxy_trust(retrained: Sequence[Retrained]) -> ProxyTrust:
    """What retraining a sample under a longer protocol says of the short one.

    Args:
        retrained: those that have an AP under both.
    """
    both = [r for r in retrained if r.short and r.long]
    short = np.array([np.mean(list(r.short.values())) for r in both])
    long = np.array([np.mean(list(r.long.values())) for r in both])
    bands = cost_bands([r.cost for r in both])
    seeds = sorted({seed for r in both for seed in r.short})
    return ProxyTrust(
        whole=agreement(short, long),
        top=_top(both, long, seeds),
        bands=agreement(short, long, bands),
        seeds=_between_seeds(both, seeds),
    )


def _top(both: Sequence[Retrained], long: Floats, seeds: Sequence[int]) -> Agreement | None:
    found = []
    for chooser in seeds:
        able = [i for i, r in enumerate(both) if chooser in r.short and len(r.short) > 1]
        size = round(TOP * len(able))
        if size < LEAST:
            continue
        best = sorted(able, key=lambda i: -both[i].short[chooser])[:size]
        others = [np.mean([ap for seed, ap in both[i].short.items() if seed != chooser]) for i in best]
        found.append(agreement(others, long[best]))
    return _averaged(found)


def _between_seeds(both: Sequence[Retrained], seeds: Sequence[int]) -> Agreement | None:
    found = []
    for one, other in itertools.combinations(seeds, 2):
        shared = [r for r in both if one in r.short and other in r.short]
        if len(shared) >= LEAST:
            found.append(agreement([r.short[one] for r in shared], [r.short[other] for r in shared]))
    return _averaged(found)


def _averaged(found: Sequence[Agreement]) -> Agreement | None:
    """Of several that share their candidates, so that the interval is no narrower; those all tied say nothing."""
    if not found:
        return None
    telling = [a for a in found if not math.isnan(a.tau)] or found
    tau, low, high = (float(np.mean([getattr(a, name) for a in telling])) for name in ("tau", "low", "high"))
    return Agreement(tau, low, high, max(a.candidates for a in telling))
