"""The search: space, samplers, driver, store, study. The only room that imports optuna.

Nothing here needs torch but `fpn_bench.search.run`, which puts real detectors in front of the driver.
"""

from fpn_bench.search.driver import Evaluator, Event, RunResult
from fpn_bench.search.records import Described
from fpn_bench.search.space import (
    BackboneEntry,
    ChoiceSpace,
    CocoData,
    Constraint,
    Space,
    SyntheticData,
    VocData,
    YoloData,
    list_spaces,
    list_suites,
)
from fpn_bench.search.study import Study, load_study, run_study

__all__ = [
    "BackboneEntry",
    "ChoiceSpace",
    "CocoData",
    "Constraint",
    "Described",
    "Evaluator",
    "Event",
    "RunResult",
    "Space",
    "Study",
    "SyntheticData",
    "VocData",
    "YoloData",
    "list_spaces",
    "list_suites",
    "load_study",
    "run_study",
]
