"""How long a table takes to load, and 100,000 questions to it, in one process on one core: CPU seconds.

    python benchmarks/tabular_queries.py [--table curves] [--queries 100000]

Asked at random: networks, epochs, and one seed or the mean. Each kind of argument is told apart, the first question of
each network included: the id of a neck graph that has not been asked for it is made then. "Other spellings" are choice
sets that leave out what is the family's default.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fpn_bench import tabular, zoo


def measure(table: tabular.TabularBenchmark, networks: Sequence[Any], queries: int) -> float:
    """CPU seconds of so many questions."""
    rng = random.Random(0)
    asked = [
        (rng.choice(networks), rng.choice([None, *range(1, table.epochs + 1)]), rng.choice([None, *table.seeds]))
        for _ in range(queries)
    ]
    start = time.process_time()
    for network, epochs, seed in asked:
        table.query(network, epochs, seed)
    return time.process_time() - start


def short(table: tabular.TabularBenchmark, choices: Mapping[str, Any]) -> dict[str, Any]:
    """The choice set without what is the family's default."""
    defaults = zoo.options(choices["family"])
    return {key: value for key, value in choices.items() if key not in defaults or value != defaults[key]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", default="curves")
    parser.add_argument("--queries", type=int, default=100_000)
    args = parser.parse_args()
    start = time.process_time()
    table = tabular.load(args.table)
    print(f"{table}: loaded in {time.process_time() - start:.3f} s; torch imported: {'torch' in sys.modules}")
    sets = list(table.space.enumerate())
    kinds: Mapping[str, Sequence[Any]] = {
        "choice sets": sets,
        "other spellings": [short(table, choices) for choices in sets],
        "ids": [table.query(choices).graph_id for choices in sets],
        "neck graphs": [table.space.to_graph(choices, table.features) for choices in sets],
    }
    for name, networks in kinds.items():
        table = tabular.load(args.table)  # which remembers nothing
        print(f"{name:16} {measure(table, networks, args.queries):6.3f} s for {args.queries} queries")


if __name__ == "__main__":
    main()
