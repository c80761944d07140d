"""The search: space, samplers, workers, storage, study. The only package that imports optuna.

Nothing here needs torch but `fpn_bench.search.detectors` and `fpn_bench.search.api`, which search real detectors.
"""

from fpn_bench.search.launch import run_study
from fpn_bench.search.records import Described, Evaluator, Event, RunResult
from fpn_bench.search.space import (
    BackboneEntry,
    ChoiceSpace,
    Constraint,
    Space,
    SyntheticData,
    list_spaces,
    list_suites,
)
from fpn_bench.search.study import Study, load_study

__all__ = [
    "BackboneEntry",
    "ChoiceSpace",
    "Constraint",
    "Described",
    "Evaluator",
    "Event",
    "RunResult",
    "Space",
    "Study",
    "SyntheticData",
    "list_spaces",
    "list_suites",
    "load_study",
    "run_study",
]
