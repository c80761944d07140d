"""Tabular neck benchmarks: every network of a space trained beforehand, so that searches are compared in seconds.

    import fpn_bench as fb

    table = fb.tabular.load("curves")
    table.query({"family": "fpn", "channels": 64}, epochs=4).ap
    for choices in table.space.enumerate(): ...

A table comes with the package and is read offline; nothing here needs torch. `TabularBenchmark` answers questions, its
`evaluator` lets the driver of `fpn_bench.search` run on it, and its `hypervolume_fraction` and `regret` judge what a
search evaluated, alike for every method.
"""

from fpn_bench.tabular.benchmark import TabularBenchmark, list_tables, load
from fpn_bench.tabular.evaluator import TabularEvaluator
from fpn_bench.tabular.figures import Record
from fpn_bench.tabular.files import Metadata, read_table, write_table

__all__ = [
    "Metadata",
    "Record",
    "TabularBenchmark",
    "TabularEvaluator",
    "list_tables",
    "load",
    "read_table",
    "write_table",
]
