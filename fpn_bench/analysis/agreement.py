"""How far predictions are from what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fpn_bench.errors import InputError


@dataclass(frozen=True, slots=True)
class PredictionError:
    """How far predictions are from measurements.

    Attributes:
        median_ape: median of |predicted - measured| / measured, in percent; NaN without candidates.
        kendall_tau: of the two rankings (tau-b); NaN below two candidates.
        candidates: how many.
    """

    median_ape: float
    kendall_tau: float
    candidates: int


def prediction_error(predicted_ms: Sequence[float], measured_ms: Sequence[float]) -> PredictionError:
    """Error of predictions against what was measured, pair by pair; pairs with a NaN are left out.

    Raises:
        InputError: unequal numbers of both.
    """
    if len(predicted_ms) != len(measured_ms):
        raise InputError(f"expected a measurement for each of {len(predicted_ms)} predictions, got {len(measured_ms)}")
    predicted, measured = np.asarray(predicted_ms, dtype=float), np.asarray(measured_ms, dtype=float)
    known = ~np.isnan(predicted) & ~np.isnan(measured)
    predicted, measured = predicted[known], measured[known]
    n = len(predicted)
    from scipy.stats import kendalltau  # takes a while to import

    ape = float(np.median(np.abs(predicted / measured - 1))) * 100 if n else math.nan
    return PredictionError(ape, float(kendalltau(predicted, measured).statistic) if n > 1 else math.nan, n)
