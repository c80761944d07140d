"""Is a study crash-proof? Workers are killed at random while it runs, and once its database or a whole node.

    python benchmarks/chaos.py sqlite|postgresql|ray [--trials 200] [--workers 4] [--every 4] [--outage 10]
        [--clock-step 3600] [--seed 0]

Four workers assess 200 candidates whose training takes a second and is made up. Every few seconds one that is in
mid-training is killed (SIGKILL). With ``postgresql`` the server is killed too, a third of the way through, and comes
back after ten seconds; with ``ray`` the workers are tasks on two nodes of a local cluster, and a third of the way
through one node is killed. On this machine, the system clock is stepped by an hour for one of the workers, again and
again, as NTP or a machine that wakes up does. Afterwards it is checked that

- every candidate that was asked is finished, or failed with a reason;
- none was trained twice to the end;
- no row is lost: trials are numbered without gaps, and each has its row.

The outcome is printed and appended to results/chaos.csv. PostgreSQL's server must be installed, and the extras
``test``, ``postgres`` and ``ray``.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))
# Workers on other nodes of the cluster look there, too.
os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])

from search_evaluator import PROTOCOL, InstantEvaluator, Prepare, check_study, space  # noqa: E402
from services import Postgres  # noqa: E402

from fpn_bench.search import run_study, worker  # noqa: E402
from fpn_bench.search.executors import Executor, RayExecutor  # noqa: E402

RESULTS = Path(__file__).parents[1] / "results" / "chaos.csv"
COLUMNS = (
    "on", "trials", "workers", "kills", "outage_s", "nodes_killed", "minutes", "status", "rows", "complete", "repeat",
    "queued_again", "given_up", "trained_twice", "verdict", "clock_step_s",
)  # fmt: skip
TRAIN_S = 1.0


@dataclass(frozen=True)
class SteppedClock(Prepare):
    """For the second worker, whenever it is begun, the system clock is stepped ten seconds later."""

    step_s: float

    def __call__(self, number: int) -> tuple[InstantEvaluator, Mapping[str, Any]]:
        """See `Prepare`."""
        if number == 1:
            timer = threading.Timer(10.0, step_clock, (self.step_s,))
            timer.daemon = True
            timer.start()
        return super().__call__(number)


def step_clock(step_s: float) -> None:
    """What a step of the system clock changes in this process: the time of day, and when processes seem to have begun.

    The clock itself is everybody's. Monotonic clocks go on, as they do when the system's is stepped.
    """
    for module, name, factor in ((time, "time", 1), (time, "time_ns", 10**9), (psutil, "boot_time", 1)):
        plain = getattr(module, name)
        setattr(module, name, lambda plain=plain, factor=factor: plain() + int(step_s) * factor)
    begun = psutil.Process.create_time
    psutil.Process.create_time = lambda self: begun(self) + step_s  # type: ignore[method-assign]
    now = datetime.datetime

    class Stepped(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return now.now(tz) + datetime.timedelta(seconds=step_s)

    worker.datetime = Stepped  # type: ignore[misc]


class Chaos:
    """Kills workers until it is stopped, and calls ``blow`` once, when a third of the trials is trained."""

    def __init__(self, prepare: Prepare, trials: int, every: float, seed: int, blow: Callable[[], None]) -> None:
        """Not begun."""
        self._prepare, self._trials, self._every = prepare, trials, every
        self._blow, self._rng = blow, random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.kills = 0
        self.blown = False

    def __enter__(self) -> Chaos:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._every):
            ended = sum(t.what == "end" for t in self._prepare.trainings())
            if not self.blown and 3 * ended >= self._trials:
                self.blown = True
                self._blow()
            at_work = sorted({t.pid for t in self._prepare.under_way() if _lives(t.pid)} - {os.getpid()})
            if at_work:
                os.kill(self._rng.choice(at_work), signal.SIGKILL)
                self.kills += 1


def _lives(pid: int) -> bool:
    """Whether the process is still there, and no zombie."""
    try:
        return b"Z" not in Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1][:3]
    except OSError:
        return False


@contextmanager
def database(outage_s: float) -> Iterator[tuple[str, None, Callable[[], None]]]:
    """A PostgreSQL server; the blow is its end, and its return after a while."""
    server = Postgres()

    def blow() -> None:
        server.kill()
        time.sleep(outage_s)
        server.start()

    try:
        yield server.url(), None, blow
    finally:
        server.close()


@contextmanager
def cluster() -> Iterator[tuple[None, Executor, Callable[[], None]]]:
    """Two nodes beside the head, on one machine; the blow is the end of one."""
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 * 2**20})
    first, _ = (nodes.add_node(num_cpus=4, object_store_memory=80 * 2**20) for _ in range(2))
    ray.init(address=nodes.address, log_to_driver=False)
    try:
        yield None, RayExecutor(), lambda: nodes.remove_node(first, allow_graceful=False)
    finally:
        ray.shutdown()
        nodes.shutdown()


@contextmanager
def nothing() -> Iterator[tuple[None, None, Callable[[], None]]]:
    """A file, and no blow."""
    yield None, None, lambda: None


def measure(on: str, options: argparse.Namespace) -> dict[str, Any]:
    """One study under attack, and its outcome."""
    searched = space(
        budget={"trials": options.trials},
        sampler={"kind": "random", "seed": options.seed},
        neck={
            "family": {"choices": ["fpn", "pafpn"]},
            "channels": {"range": [16, 128], "step": 8},
            "merge": {"choices": ["sum", "fast_normalised", "concat", "max"]},
            "repeats": {"range": [1, 5]},
        },
    )
    services = {"sqlite": nothing(), "postgresql": database(options.outage), "ray": cluster()}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, services[on] as (storage, executor, blow):
        log = Path(folder) / "log"
        stepped_s = 0.0 if on == "ray" else options.clock_step
        prepare = SteppedClock(searched, TRAIN_S, log, stepped_s) if stepped_s else Prepare(searched, TRAIN_S, log)
        with Chaos(prepare, options.trials, options.every, options.seed, blow) as chaos:
            study, result = run_study(
                searched,
                InstantEvaluator(searched),
                PROTOCOL,
                Path(folder) / "chaos",
                storage=storage,
                workers=options.workers,
                executor=executor,
                prepare=prepare,
            )
        table = study.table()
        try:
            check_study(study, prepare)
            assert result.paid == options.trials, f"{result.paid} was paid for"
            verdict = "holds"
        except AssertionError as error:
            verdict = f"broken: {error}"
        ends = [(t.candidate, t.seed) for t in prepare.trainings() if t.what == "end"]
    return {
        "on": on,
        "trials": options.trials,
        "workers": options.workers,
        "kills": chaos.kills,
        "outage_s": options.outage if on == "postgresql" and chaos.blown else 0,
        "nodes_killed": int(on == "ray" and chaos.blown),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "status": result.status,
        "rows": len(table),
        "complete": int((table.status == "complete").sum()),
        "repeat": int((table.status == "repeat").sum()),
        "queued_again": int(table.reason.str.endswith("; queued again").sum()),
        "given_up": int(table.reason.str.contains("not queued again").sum()),
        "trained_twice": len(ends) - len(set(ends)),
        "verdict": verdict,
        "clock_step_s": stepped_s,
    }


def append(row: Mapping[str, Any]) -> None:
    """One line of the table, and the same for who watches."""
    new = not RESULTS.is_file()
    with RESULTS.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)
    print("; ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def main() -> None:
    """Measure, print and append; fails where a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("on", nargs="+", choices=("sqlite", "postgresql", "ray"))
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--every", type=float, default=4.0, help="seconds between two kills")
    parser.add_argument("--outage", type=float, default=10.0, help="seconds without a database")
    parser.add_argument("--clock-step", type=float, default=3600.0, help="seconds, for one worker; 0 leaves it")
    parser.add_argument("--seed", type=int, default=0, help="of the kills, and of the proposals")
    options = parser.parse_args()
    rows = []
    for on in options.on:
        rows.append(measure(on, options))
        append(rows[-1])
    sys.exit(any(row["verdict"] != "holds" for row in rows))


if __name__ == "__main__":
    main()
