"""The driver's evaluator over a table: what is "trained" is looked up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fpn_bench.errors import DataError, InputError
from fpn_bench.graph import graph_tokens
from fpn_bench.metrics import metric_of
from fpn_bench.search.records import Described, OnProgress
from fpn_bench.search.space import CHEAP_FACTS, Space
from fpn_bench.tabular.files import LATENCY

if TYPE_CHECKING:
    from fpn_bench.tabular.benchmark import TabularBenchmark


class TabularEvaluator:
    """`fpn_bench.search.records.Evaluator` over a table; make one with `TabularBenchmark.evaluator`.

    It answers as real trainings did: params and MACs are known at once, latency once it is asked for and not before,
    AP of the run's seed after the epochs trained. No time passes, so that the columns of times stay empty or 0; what
    it would have taken is in `TabularBenchmark.query`. A choice set whose network is not in the table is a candidate
    that failed. A seed that the table lacks ends the run at its first training, before anything was paid.

    Raises:
        InputError: the space wants latencies or further seeds that the table lacks.
    """

    def __init__(self, table: TabularBenchmark, space: Space) -> None:
        """See `TabularBenchmark.evaluator`."""
        if "latency_ms" in space.measured:
            table.check_latency()
        lacking = [n for n in space.judged_by if n not in table.metrics and metric_of(n).compute is None]
        if lacking:
            raise InputError(
                f"{space.source}: expected {', '.join(table.metrics)}, which table {table.name!r} has, as objectives "
                f"and bounds, got {lacking[0]}"
            )
        budget = space.budget
        if budget.confirm and budget.seeds > len(table.seeds):
            raise InputError(
                f"{space.source}: budget.confirm trains a front member with up to {budget.seeds} seeds and table "
                f"{table.name!r} has {len(table.seeds)}: say budget: {{confirm: 0}} or seeds: {len(table.seeds)}"
            )
        if space.full_epochs != table.epochs:
            raise InputError(
                f"{space.source}: training.epochs: expected {table.epochs} of table {table.name!r}, got "
                f"{space.full_epochs}"
            )
        self.space = space
        self.table = table
        self.seeds = table.seeds
        self._described: dict[int, Described] = {}

    def describe(self, choices: Mapping[str, Any]) -> Described:
        """See `fpn_bench.search.records.Evaluator`. Raises as `TabularBenchmark.index` does."""
        index = self.table.index(choices)
        if index not in self._described:
            self._described[index] = self._describe(choices)
        return self._described[index]

    def _describe(self, choices: Mapping[str, Any]) -> Described:
        record, graph, head = self.table.query(choices), self.table.graph(choices), self.table.metadata.protocol.head
        return Described(
            id=record.candidate,
            label=record.label,
            neck=self.space.family(choices),
            graph_json=graph.to_json(),
            facts={
                **{name: getattr(record, name) for name in CHEAP_FACTS},
                "backbone": self.space.backbone(choices).name,
                "weights": self.table.metadata.weights,
                "head": f"{head.kind} {head.convs} convs",
            },
            candidate=record.candidate,
            tokens=graph_tokens(graph),
        )

    def predict(self, described: Described) -> Mapping[str, Any]:
        """Nothing: the table has measurements alone."""
        return {}

    def measure(self, described: Described) -> Mapping[str, Any]:
        """The latency measured."""
        record = self.table.query(described.candidate)
        return {name: getattr(record, name) for name in LATENCY}

    def train(self, described: Described, seed: int, epochs: int, on_progress: OnProgress) -> Mapping[str, Any]:
        """AP after each epoch up to ``epochs``.

        Raises:
            DataError: the table lacks the seed; the driver ends the run on it.
        """
        if seed not in self.table.seeds:
            listed = ", ".join(map(str, self.table.seeds))
            raise DataError(f"training with seed {seed} is not in table {self.table.name!r}: it has the seeds {listed}")
        curve = [[k, self.table.query(described.candidate, k, seed).ap] for k in range(1, epochs + 1)]
        return {"ap": curve[-1][1], "ap_curve": curve}
