"""How many trials a study can take: the driver's cost a trial after thousands of them, and trials a second of many
workers.

    python benchmarks/throughput.py [--only driver workers] [--samplers random known_cost] [--trials 10000]
        [--storage sqlite postgresql postgresql://...]

Candidates and their training are made up and cost nothing, so that everything measured is asking, looking up, storing
and telling. ``driver`` is one worker on a SQLite file: milliseconds a trial over the first and the last 500, on the
clock and of CPU (the two differ on a machine that others use too), and the memory of the process on its way.
``workers`` are eight processes on one database: trials a second over the last half (when all have started), and how
many ended by an error of the database; ``postgresql`` starts a server of its own. Each
measurement is appended to results/throughput.csv.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil

from fpn_bench.analysis.rows import Objective
from fpn_bench.errors import FpnBenchError
from fpn_bench.search import Described, load_study, run_study
from fpn_bench.search.database import DATABASE_ERRORS, open_database
from fpn_bench.search.records import Event, OnProgress
from fpn_bench.search.space import Budget, ChoiceDimension, ChoiceSpace, SamplerConfig, choices_key
from fpn_bench.training.protocol import Protocol

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from services import Postgres

RESULTS = Path(__file__).parents[1] / "results" / "throughput.csv"
COLUMNS = (
    "measured", "storage", "sampler", "workers", "trials", "first_500_ms", "last_500_ms",
    "first_500_cpu_ms", "last_500_cpu_ms", "rss_1000_mib", "rss_5000_mib", "rss_10000_mib", "trials_per_s",
    "database_errors", "cores", "load",
)  # fmt: skip
PROTOCOL = Protocol(dataset="made up", dataset_hash="0" * 64, image_size=(64, 64))


def made_up_space(sampler: str = "random", trials: int = 100, **budget: Any) -> ChoiceSpace:
    """16 million choice sets of eight keys."""
    keys = {f"key{i}": ChoiceDimension(f"key{i}", tuple(range(8)), {}) for i in range(8)}
    return ChoiceSpace(
        keys,
        (Objective("ap", "maximize"), Objective("macs", "minimize")),
        sampler=SamplerConfig(kind=sampler),  # type: ignore[arg-type]  # checked by it
        budget=Budget(trials=trials, **budget),
        name="made-up",
    )


@dataclass
class MadeUp:
    """An evaluator over `made_up_space` whose AP rises with its costs, and by a share that only its training tells."""

    train_s: float = 0.0

    def describe(self, choices: Mapping[str, Any]) -> Described:
        """See `fpn_bench.search.records.Evaluator`."""
        name = hashlib.sha256(choices_key(choices).encode()).hexdigest()[:16]
        size = 1 + sum((i + 1) * int(value) for i, value in enumerate(choices.values()))
        facts = {"params": 1000 * size, "macs": 10**6 * size, "neck_params": 500 * size, "neck_macs": 10**5 * size}
        tokens = {f"choice:{key}={value}": 1.0 for key, value in choices.items()}
        return Described(name, name, "made-up", "", facts, dict(choices), tokens)

    def predict(self, described: Described) -> Mapping[str, Any]:
        """See `fpn_bench.search.records.Evaluator`."""
        return {}

    def measure(self, described: Described) -> Mapping[str, Any]:
        """See `fpn_bench.search.records.Evaluator`."""
        return {}

    def train(self, described: Described, seed: int, epochs: int, on_progress: OnProgress) -> Mapping[str, Any]:
        """See `fpn_bench.search.records.Evaluator`."""
        time.sleep(self.train_s)
        values = [int(value) for value in described.candidate.values()]
        luck = int(described.id[:6], 16) / 16**6
        return {"ap": 10 + np.log(described.facts["params"]) + (values[0] * values[3] % 5) / 2 + luck}


def prepare(number: int) -> tuple[MadeUp, Mapping[str, Any]]:
    """Makes the evaluator of a worker."""
    return MadeUp(), {}


def driver(sampler: str, trials: int) -> dict[str, Any]:
    """One worker and one SQLite file, to the end."""
    process = psutil.Process()
    at, worked = [time.perf_counter()], [time.process_time()]
    memory: dict[str, float] = {}

    def on_event(event: Event) -> None:
        if event.kind == "trial":
            at.append(time.perf_counter())
            worked.append(time.process_time())
            n = len(at) - 1
            if n in (1000, 5000, 10_000):
                memory[f"rss_{n}_mib"] = process.memory_info().rss / 2**20
            if n % 500 == 0:
                ms, cpu_ms = (2 * (times[-1] - times[-501]) for times in (at, worked))
                rss_mib = process.memory_info().rss / 2**20
                print(f"  {n} trials: {ms:.1f} ms a trial, {cpu_ms:.1f} of them CPU, {rss_mib:.0f} MiB", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        run_study(made_up_space(sampler, trials), MadeUp(), PROTOCOL, Path(folder) / "study", on_event=on_event)
    took_ms, cpu_ms = 1e3 * np.diff(at), 1e3 * np.diff(worked)
    return {
        "measured": "driver",
        "storage": "sqlite",
        "sampler": sampler,
        "workers": 1,
        "trials": len(took_ms),
        "first_500_ms": took_ms[:500].mean(),
        "last_500_ms": took_ms[-500:].mean(),
        "first_500_cpu_ms": cpu_ms[:500].mean(),
        "last_500_cpu_ms": cpu_ms[-500:].mean(),
        "trials_per_s": 1e3 / took_ms[-500:].mean(),
        **memory,
    }


@contextmanager
def database(storage: str) -> Iterator[str | None]:
    """The URL of a storage; a server's is up meanwhile."""
    if storage != "postgresql":
        yield None if storage == "sqlite" else storage
        return
    server = Postgres()
    try:
        yield server.url()
    finally:
        server.close()


def many_workers(storage: str, sampler: str, trials: int, workers: int) -> dict[str, Any]:
    """Several processes on one database."""
    errors = 0
    with tempfile.TemporaryDirectory() as folder, database(storage) as url:
        name = f"throughput-{os.getpid()}-{time.time_ns()}"
        where = Path(folder) / name
        space = made_up_space(sampler, trials)
        try:
            run_study(space, MadeUp(), PROTOCOL, where, storage=url, workers=workers, prepare=prepare)
        except (FpnBenchError, *DATABASE_ERRORS) as error:  # to be counted and said
            print(f"  ended by {type(error).__name__}: {error}")
            errors = 1
        study = load_study(url or where, name)
        errors += int(study.table()["reason"].str.contains("database|locked").sum())
        told = optuna.load_study(study_name=name, storage=open_database(url or where / "study.db").optuna)
        ends = sorted(t.datetime_complete for t in told.get_trials(deepcopy=False) if t.datetime_complete)
    half = ends[len(ends) // 2 :]
    return {
        "measured": "workers",
        "storage": storage.split(":")[0].split("+")[0],
        "sampler": sampler,
        "workers": workers,
        "trials": len(ends),
        "trials_per_s": (len(half) - 1) / (half[-1] - half[0]).total_seconds(),
        "database_errors": errors,
    }


def append(row: Mapping[str, Any]) -> None:
    """One line of the table, and the same for who watches."""
    new = not RESULTS.is_file()
    told = {k: f"{v:.3g}" if isinstance(v, float) and abs(v) < 100 else f"{v:.0f}" if isinstance(v, float) else v
            for k, v in row.items()}  # fmt: skip
    told |= {"cores": len(os.sched_getaffinity(0)), "load": f"{os.getloadavg()[0]:.1f}"}
    with RESULTS.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(told)
    print("; ".join(f"{name} {value}" for name, value in told.items()), flush=True)


def main() -> None:
    """Measure, print and append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("driver", "workers"), default=("driver", "workers"))
    parser.add_argument("--samplers", nargs="+", default=("random", "known_cost"))
    parser.add_argument("--trials", type=int, default=10_000, help="of the driver's measurement")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--workers-trials", type=int, default=1000, help="of the workers' measurement")
    parser.add_argument("--storage", nargs="+", default=("sqlite",), help="of the workers: sqlite, or URLs")
    options = parser.parse_args()
    if "driver" in options.only:
        for sampler in options.samplers:
            append(driver(sampler, options.trials))
    if "workers" in options.only:
        for storage in options.storage:
            append(many_workers(storage, "random", options.workers_trials, options.workers))


if __name__ == "__main__":
    main()
