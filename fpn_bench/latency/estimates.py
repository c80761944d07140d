"""Estimates of units that were never timed, and the correction of sums of units by necks that were measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from fpn_bench.latency.units import Unit

CONFIDENCE: Final = 0.95
PRIOR: Final = np.array([1.0, 0.0, 1.0])
HUBER: Final = 1.345
"""Residuals up to so many standard deviations count in full: 95 % efficient where noise is normal (Huber 1964)."""


Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimator:
    """Times of units from their costs: so much a MAC, and so much an operation and an element of each kind.

    Kinds are drawn, with the weight of one unit, towards what operations of any kind take; so does one never timed.

    Attributes:
        terms: what is timed of each column: of MACs, then of each kind (operations, elements).
        any_kind: the same without a difference between kinds: of MACs, operations, elements.
        kinds: position of each kind.
        spread: relative standard deviation of the misses.
    """

    terms: Floats
    any_kind: Floats
    kinds: Mapping[str, int]
    spread: float

    @classmethod
    def of(cls, timed: Sequence[tuple[Unit, float]]) -> Estimator:
        """From units and their shares; without any, it estimates NaN."""
        if not timed:
            return cls(np.array([math.nan]), np.full(3, math.nan), {}, math.nan)
        kinds = {kind: i for i, kind in enumerate(sorted({kind for unit, _ in timed for kind in unit.work}))}
        relative = np.array([_columns(unit, kinds)[0] / share for unit, share in timed])
        plain = np.column_stack([relative[:, 0], relative[:, 1::2].sum(axis=1), relative[:, 2::2].sum(axis=1)])
        any_kind = _terms(plain, np.zeros(3), 1e-6 * plain.max(axis=0))
        prior = np.concatenate([any_kind[:1], np.tile(any_kind[1:], len(kinds))])
        used = np.maximum((relative > 0).sum(axis=0), 1)
        terms = _terms(relative, prior, relative.sum(axis=0) / used)
        misses = np.log(np.maximum(relative @ terms, 1e-3))
        return cls(terms, any_kind, kinds, float(np.sqrt(np.mean(misses**2))) if len(timed) > 1 else math.inf)

    def share(self, unit: Unit) -> float:
        """In yardsticks."""
        row, other = _columns(unit, self.kinds)
        return float(row @ self.terms + other @ self.any_kind[1:])


def _columns(unit: Unit, kinds: Mapping[str, int]) -> tuple[Floats, Floats]:
    """MACs and, by kind, operations and elements; and the latter two of all kinds that are none of these."""
    row, other = np.zeros(1 + 2 * len(kinds)), np.zeros(2)
    row[0] = unit.macs
    for kind, work in unit.work.items():
        if kind in kinds:
            row[1 + 2 * kinds[kind] :][:2] = work
        else:
            other += work
    return row, other


def _terms(relative: Floats, prior: Floats, pull: Floats, weights: Floats | float = 1.0) -> Floats:
    """Least squares of ``relative @ terms = 1``, no term below zero, each drawn to `prior` by the weight of `pull`."""
    root = np.sqrt(np.broadcast_to(weights, len(relative)))
    rows = np.vstack([relative * root[:, None], np.diag(pull)])
    q, r = np.linalg.qr(rows)  # as many equations as terms, with the same solution
    terms, _ = nnls(r, q.T @ np.concatenate([root, pull * prior]))
    return np.asarray(terms)


@dataclass(frozen=True, slots=True)
class Fit:
    """measured = row @ terms, over rows (sum of units, number of units, base), in yardsticks.

    Attributes:
        terms: what the rows are multiplied by.
        measured: of the candidates.
        predicted: each from all the others.
    """

    terms: Floats
    measured: Floats
    predicted: Floats

    @classmethod
    def of(cls, rows: Floats, measured: Floats) -> Fit:
        """From rows [n, 3] and what was measured [n]; without any, the plain sum."""
        if not len(rows):
            return cls(PRIOR, measured, measured)
        relative = rows / measured[:, None]
        pull = relative.mean(axis=0)  # of one candidate
        pull = np.where(pull > 0, pull, 1.0)  # a column of zeros says nothing of its term: as it was
        weights = np.ones(len(rows))
        for _ in range(20):
            terms = _terms(relative, PRIOR, pull, weights)
            misses = 1 - relative @ terms
            sigma = max(1.4826 * float(np.median(np.abs(misses))), 0.01)
            weights = np.minimum(1.0, HUBER * sigma / np.maximum(np.abs(misses), 1e-12))
        # What it would miss a candidate by without that candidate, from its leverage; terms held at zero have none.
        free = relative[:, terms > 0]
        inverse = np.linalg.pinv(free.T @ (weights[:, None] * free) + np.diag(pull[terms > 0] ** 2))
        leverage = weights * np.einsum("ij,jk,ik->i", free, inverse, free)
        return cls(terms, measured, measured * (1 - misses / (1 - leverage)))

    @property
    def ratio(self) -> float:
        """Factor that 95 of 100 misses stay within."""
        return miss_ratio(np.log(self.predicted / self.measured))


def miss_ratio(logarithms: Floats) -> float:
    """Factor that 95 of 100 misses stay within, by their order alone; infinite below 19 of them."""
    n = len(logarithms)
    rank = math.ceil(CONFIDENCE * (n + 1))
    return math.exp(np.sort(np.abs(logarithms))[rank - 1]) if rank <= n else math.inf
