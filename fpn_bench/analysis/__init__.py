"""Rows -> tables, Pareto front, hypervolume, intervals, verdicts. Plain numpy and pandas: no torch, no optuna."""

from fpn_bench.analysis.agreement import PredictionError, prediction_error
from fpn_bench.analysis.comparable import differing_fields
from fpn_bench.analysis.comparison import TableComparison, compare_tables
from fpn_bench.analysis.hypervolume import hypervolume, hypervolume_over_trials, reference_point
from fpn_bench.analysis.importance import choice_groups, choice_importance
from fpn_bench.analysis.intervals import (
    Comparison,
    Interval,
    bootstrap_difference,
    by_candidate,
    compare,
    holm,
    mean_interval,
)
from fpn_bench.analysis.noise import Scatter, Truths, pooled_sd, seed_scatter
from fpn_bench.analysis.pareto import front, objective_values, pareto_mask
from fpn_bench.analysis.proxy import (
    Agreement,
    ProxyTrust,
    Retrained,
    agreement,
    kendall_tau,
    longest,
    proxy_trust,
    retrained_of,
)
from fpn_bench.analysis.rows import (
    CHOICE_PREFIX,
    COLUMNS,
    SCHEMA_VERSION,
    Column,
    Objective,
    check_table,
    empty_table,
    make_table,
    one_protocol,
    parse_objectives,
    read_csv,
    write_csv,
)
from fpn_bench.analysis.two_fronts import Change, FrontChange
from fpn_bench.analysis.uncertain_front import front_probability, with_front_probability
from fpn_bench.metrics import Direction

__all__ = [
    "CHOICE_PREFIX",
    "COLUMNS",
    "SCHEMA_VERSION",
    "Agreement",
    "Change",
    "Column",
    "Comparison",
    "Direction",
    "FrontChange",
    "Interval",
    "Objective",
    "PredictionError",
    "ProxyTrust",
    "Retrained",
    "Scatter",
    "TableComparison",
    "Truths",
    "agreement",
    "bootstrap_difference",
    "by_candidate",
    "check_table",
    "choice_groups",
    "choice_importance",
    "compare",
    "compare_tables",
    "differing_fields",
    "empty_table",
    "front",
    "front_probability",
    "holm",
    "hypervolume",
    "hypervolume_over_trials",
    "kendall_tau",
    "longest",
    "make_table",
    "mean_interval",
    "objective_values",
    "one_protocol",
    "pareto_mask",
    "parse_objectives",
    "pooled_sd",
    "prediction_error",
    "proxy_trust",
    "read_csv",
    "reference_point",
    "retrained_of",
    "seed_scatter",
    "with_front_probability",
    "write_csv",
]
