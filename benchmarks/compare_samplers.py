"""Six search methods on a table of trained necks, over 50 seeds: how much of its front each finds.

    python benchmarks/compare_samplers.py [--objectives ap macs] [--samplers known_cost tpe ...] [--seeds 0 50]
    python benchmarks/compare_samplers.py --table

A search sees the AP of one training a network, as a real one does: run k is shown the table's seed k modulo how many
there are. It is judged on the mean over the table's seeds: the hypervolume of the networks that it evaluated, from AP 0
and the table's highest cost, as a share of the whole table's (`TabularBenchmark.hypervolume_fraction`), and the AP of
the best of them below the table's best. With a table of one seed both are the same figures, and the luck of its
trainings counts as quality; the output says so.

Params, MACs and latency are known before an evaluation, as the known-cost sampler wants them. An evaluation is a
network not asked before: a proposal that was is told its known values and replaced by a random neighbour that was not,
which helps samplers that repeat themselves; how often it happened is printed. Medians over runs stand with the 95 %
interval of the median, bootstrapped over runs. Rows are appended as runs end, and what stands in the file for
the same objectives and table is not run again.
"""

from __future__ import annotations

import argparse
import csv
import random
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import optuna
from optuna.trial import create_trial

from fpn_bench import tabular
from fpn_bench.search import Space
from fpn_bench.search.records import Facts, History, Observed
from fpn_bench.search.samplers import SAMPLERS, ProposingSampler, create_sampler
from fpn_bench.search.samplers.evolution import EvolutionSampler
from fpn_bench.search.samplers.known_cost import KnownCostSampler
from fpn_bench.search.samplers.parameters import distributions, encode, suggest
from fpn_bench.search.space import Choices

COMPARED = ("known_cost", "tpe", "nsga2", "nsga3", "evolution", "random")
CHECKPOINTS = (8, 16, 32, 64)
COLUMNS = ("table", "table_seeds", "objectives", "sampler", "seed", "evaluations", "hypervolume_fraction", "regret_ap",
           "repeats", "cpu_s")  # fmt: skip
"""`repeats` and `cpu_s` of the whole run up to there."""
CSV = Path("results/compare_samplers.csv")


class Search:
    """One run: what was evaluated, and who says what comes next."""

    def __init__(self, table: tabular.TabularBenchmark, facts: Mapping[str, Facts], space: Space, seed: int) -> None:
        self.table, self.facts, self.space = table, facts, space
        self.seed = table.seeds[seed % len(table.seeds)]
        self.rng = random.Random(seed)
        self.observed: dict[str, Observed] = {}
        self.repeats = 0
        sampler = self._sampler()
        self.own = sampler if isinstance(sampler, ProposingSampler) else None
        directions = [o.direction for o in space.objectives]
        self.study = optuna.create_study(directions=directions, sampler=None if self.own else sampler)
        self.distributions = {k: v for d in space.dimensions.values() for k, v in distributions(d).items()}

    def run(self, budget: int) -> Iterator[int]:
        """Evaluate so many, and say after each how many it were."""
        while len(self.observed) < min(budget, len(self.table)):
            if self.own:  # which reads the history, and need not be told
                choices = self.own.propose(self.history()) or self.space.sample(self.rng)
            else:
                trial = self.study.ask()
                choices = suggest(self.space, trial)
            repeated = self._id(choices) in self.observed
            values = self._evaluate(choices)
            if not self.own:
                self.study.tell(trial, values)
            if repeated:
                self.repeats += 1
                choices = self._unseen(choices)
                values = self._evaluate(choices)
            if repeated and not self.own:
                params = encode(self.space, choices)
                told = {name: self.distributions[name] for name in params}
                self.study.add_trial(create_trial(params=params, distributions=told, values=list(values)))
            yield len(self.observed)

    def _evaluate(self, choices: Choices) -> tuple[float, ...]:
        record = self.table.query(choices, seed=self.seed)
        name = record.candidate
        self.observed.setdefault(name, Observed(choices, self.facts[name], record.ap))
        return tuple(float(getattr(record, o.name)) for o in self.space.objectives)

    def _unseen(self, choices: Choices) -> Choices:
        near = self.space.neighbours(choices, self.rng)
        drawn = (self.space.sample(self.rng) for _ in iter(int, 1))
        return next(c for source in (near, drawn) for c in source if self._id(c) not in self.observed)

    def _id(self, choices: Choices) -> str:
        return self.table.query(choices).candidate

    def look_up(self, choices: Choices) -> Facts:
        return self.facts[self._id(choices)]

    def history(self) -> History:
        return History(list(self.observed.values()), taken=self.observed.keys())

    def _sampler(self) -> optuna.samplers.BaseSampler | ProposingSampler:
        kind, seed = self.space.sampler.kind, self.space.sampler.seed
        match kind:
            case "known_cost":
                return KnownCostSampler(self.space, self, seed=seed)
            case "evolution":
                population = max(CHECKPOINTS[-1] // 5, 4)  # as create_sampler has it
                return EvolutionSampler(self.space, self, seed=seed, population=population)
        return create_sampler(self.space, trials=CHECKPOINTS[-1], seed=seed)


def run(
    table: tabular.TabularBenchmark, facts: Mapping[str, Facts], objectives: Sequence[str], sampler: str, seed: int
) -> list[dict[str, object]]:
    """The rows of one run."""
    wanted = {name: "maximise" if name == "ap" else "minimise" for name in objectives}
    space = table.space.replace(objectives=wanted, sampler={"kind": sampler, "seed": seed})
    search, start, rows = Search(table, facts, space, seed), time.process_time(), []
    for count in search.run(CHECKPOINTS[-1]):
        if count in CHECKPOINTS:
            share = table.hypervolume_fraction(search.observed, objectives)
            figures = (f"{share:.6f}", f"{table.regret(search.observed):.4f}", search.repeats)
            values = (*key_of(table, objectives), sampler, seed, count, *figures, f"{time.process_time() - start:.2f}")
            rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def key_of(table: tabular.TabularBenchmark, objectives: Sequence[str]) -> tuple[str, str, str]:
    """What rows compare under: table, its seeds, objectives."""
    return table.name, " ".join(map(str, table.seeds)), " ".join(objectives)


def print_table(path: Path, table: tabular.TabularBenchmark, objectives: Sequence[str]) -> None:
    """Medians over runs with their intervals, best first."""
    with path.open(newline="") as stream:
        rows = [r for r in csv.DictReader(stream) if (r["table"], r["table_seeds"], r["objectives"])
                == key_of(table, objectives)]  # fmt: skip
    runs: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        runs.setdefault(row["sampler"], []).append(row)
    judged = "mean of seeds" if len(table.seeds) > 1 else "the same seed, for the table has no other"
    print(
        f"{table.name}, {', '.join(objectives)}; shown one seed, judged on {judged} {', '.join(map(str, table.seeds))}"
    )
    print(
        "| sampler | runs |", " | ".join(f"after {c}" for c in CHECKPOINTS), "| AP below the best | repeats | CPU s |"
    )
    print("|" + "---|" * (len(CHECKPOINTS) + 5))

    def at(own: list[dict[str, str]], count: int, column: str) -> npt.NDArray[np.float64]:
        return np.array([float(row[column]) for row in own if int(row["evaluations"]) == count])

    last = CHECKPOINTS[-1]
    for sampler, own in sorted(runs.items(), key=lambda r: -np.median(at(r[1], last, "hypervolume_fraction"))):
        cells = [median(at(own, count, "hypervolume_fraction"), 3) for count in CHECKPOINTS]
        cells.append(median(at(own, last, "regret_ap"), 2))
        cells += [f"{at(own, last, 'repeats').mean():.1f}", f"{at(own, last, 'cpu_s').mean():.2f}"]
        print(f"| {sampler} | {len(at(own, last, 'repeats'))} |", " | ".join(cells), "|")


def median(values: npt.NDArray[np.float64], digits: int) -> str:
    """With its 95 % interval (percentile bootstrap, Efron 1979)."""
    drawn = np.median(np.random.default_rng(0).choice(values, (9_999, len(values))), axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{np.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="curves", help="a shipped table, or the path of one")
    parser.add_argument("--objectives", nargs="+", help="default: ap and latency_ms, or macs without latencies")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=COMPARED)
    parser.add_argument("--seeds", nargs=2, type=int, metavar=("FROM", "TO"), default=(0, 50))
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--table", action="store_true", help="only print what the file has")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # GP warns of every conditional key
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    table = tabular.load(args.name)
    objectives = args.objectives or table.objectives
    if not args.csv.exists():
        args.csv.write_text(",".join(COLUMNS) + "\n")
    if not args.table:
        with args.csv.open(newline="") as stream:
            done = {(r["table"], r["table_seeds"], r["objectives"], r["sampler"], int(r["seed"]))
                    for r in csv.DictReader(stream)}  # fmt: skip
        evaluator = table.evaluator()
        described = [evaluator.describe(choices) for choices in table.space.enumerate()]
        costs = [table.query(d.id) for d in described]
        known = ("params", "macs", "neck_params", "neck_macs", *(("latency_ms",) if table.has_latency else ()))
        facts = {
            d.id: Facts(d.id, {name: float(getattr(c, name)) for name in known}, d.tokens)
            for d, c in zip(described, costs, strict=True)
        }
        for seed in range(*args.seeds):
            for sampler in args.samplers:
                if (*key_of(table, objectives), sampler, seed) in done:
                    continue
                rows = run(table, facts, objectives, sampler, seed)
                with args.csv.open("a", newline="") as stream:
                    csv.DictWriter(stream, COLUMNS, lineterminator="\n").writerows(rows)
    print_table(args.csv, table, objectives)


if __name__ == "__main__":
    main()
