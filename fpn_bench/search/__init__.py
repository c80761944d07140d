"""The search: space, samplers, driver, store, study. The only room that imports optuna."""

from fpn_bench.search.driver import Described, Evaluator, Event, RunResult
from fpn_bench.search.run import DetectorEvaluator, load_dataset, prepare, search
from fpn_bench.search.space import BackboneEntry, CocoData, Constraint, Space, SyntheticData, list_spaces
from fpn_bench.search.study import Study, load_study, run_study

__all__ = [
    "BackboneEntry",
    "CocoData",
    "Constraint",
    "Described",
    "DetectorEvaluator",
    "Evaluator",
    "Event",
    "RunResult",
    "Space",
    "Study",
    "SyntheticData",
    "list_spaces",
    "load_dataset",
    "load_study",
    "prepare",
    "run_study",
    "search",
]
