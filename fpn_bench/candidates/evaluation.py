"""Costs, latency and AP of one candidate in one call."""

from __future__ import annotations

from dataclasses import dataclass

from fpn_bench.candidates.candidate import Candidate
from fpn_bench.candidates.context import EvaluationContext
from fpn_bench.candidates.costs import Costs
from fpn_bench.candidates.training import OnProgress
from fpn_bench.latency import Latency
from fpn_bench.training.train import TrainingResult


@dataclass(frozen=True, slots=True)
class Assessment:
    """Result of `assess`."""

    candidate: Candidate
    costs: Costs
    latency: Latency
    training: TrainingResult


def assess(
    candidate: Candidate, context: EvaluationContext, *, seed: int = 0, on_progress: OnProgress | None = None
) -> Assessment:
    """Costs, latency and AP of one candidate.

    Args:
        candidate: made by `EvaluationContext.candidate`.
        context: what it is evaluated with.
        seed: of the training.
        on_progress: see `fpn_bench.candidates.training.OnProgress`.

    Raises:
        TrialError: the training diverged.
    """
    costs = context.costs(candidate)
    latency = context.latency(candidate)
    return Assessment(candidate, costs, latency, context.train(candidate, seed, on_progress))
