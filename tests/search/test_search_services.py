"""Studies on a real database server and on a real cluster, while parts of them are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from search_evaluator import PROTOCOL, InstantEvaluator, Prepare, check_study, space
from services import postgres_fixture  # noqa: F401
from test_search_run import SPACE as TINY
from test_search_workers import meanwhile, wait_for

from fpn_bench.errors import InputError
from fpn_bench.search import Space, load_study, run_study
from fpn_bench.search.api import search
from fpn_bench.search.database import open_database
from fpn_bench.search.executors import RayExecutor

pytestmark = pytest.mark.services

HERE = Path(__file__).parents[1]


def named(tmp_path: Path) -> str:
    """A study of its own in a database that tests share."""
    return str(tmp_path.name)


def test_a_plain_url_finds_the_driver_that_is_there(postgres, tmp_path):
    searched = space()
    for url in (postgres.url(), postgres.url(driver="")):
        run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / named(tmp_path), storage=url, budget=2)
    assert list(load_study(postgres.url(driver=""), named(tmp_path)).table().status) == ["complete", "complete"]


def test_a_missing_driver_is_named(monkeypatch):
    for module in ("psycopg", "psycopg2"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"//me:\*\*\*@db/x .*`pip install \"fpn-bench\[postgres\]"):
        open_database("postgresql+psycopg://me:secret@db/x")


def test_a_server_that_is_away_from_the_start_is_an_error_at_once():
    with pytest.raises(InputError, match=r"cannot be opened: .*refused"):
        open_database("postgresql+psycopg://127.0.0.1:1/x")


def test_a_killed_worker_and_a_lost_database_lose_nothing(postgres, tmp_path):
    searched = space(budget={"trials": 18}, sampler={"kind": "random"})
    prepare = Prepare(searched, 0.5, tmp_path / "log")

    def attack() -> None:
        wait_for(prepare.under_way)
        os.kill(prepare.under_way()[0].pid, signal.SIGKILL)
        wait_for(lambda: len(prepare.trainings()) > 10)
        postgres.kill()
        time.sleep(10)
        postgres.start()

    with meanwhile(attack):
        study, result = run_study(
            searched,
            InstantEvaluator(searched),
            PROTOCOL,
            tmp_path / named(tmp_path),
            storage=postgres.url(),
            share=False,
            workers=3,
            prepare=prepare,
        )
    assert (result.status, result.paid) == ("finished", 18)
    check_study(study, prepare)
    assert (study.table().status == "complete").sum() == 18


def test_a_worker_of_the_command_line_joins_a_study_of_real_detectors(postgres, tmp_path):
    where = {"results": tmp_path / "results", "cache": tmp_path / "cache"}
    tiny = Space.from_dict({**TINY, "neck": {"family": "fpn", "channels": {"choices": [8, 12, 16, 20, 24, 28]}}})
    name = named(tmp_path)
    search(tiny, trials=1, name=name, storage=postgres.url(), **where)
    command = [
        sys.executable,
        "-c",
        "from fpn_bench.cli import main; main()",
        "worker",
        postgres.url(),
        "--name",
        name,
        "--trials",
        "3",
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "3 of 3 trials" in done.stdout
    table = load_study(postgres.url(), name).table()
    assert list(table.status) == ["complete"] * 3
    assert table.candidate.nunique() == 3


# --------------------------------------------------------------------------------------------------------------
# Ray


@pytest.fixture
def nodes(monkeypatch):
    """A cluster of two nodes beside its head, on this machine."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE / "search"), str(HERE.parent)]))
    memory = 80 * 2**20
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": memory})
    workers = [cluster.add_node(num_cpus=4, num_gpus=1, object_store_memory=memory) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster, workers
    ray.shutdown()
    cluster.shutdown()


def test_a_lost_node_of_a_cluster_loses_nothing(nodes, tmp_path):
    cluster, (first, _) = nodes
    searched = space(budget={"trials": 24}, sampler={"kind": "random"})
    prepare = Prepare(searched, 0.8, tmp_path / "log")

    def attack() -> None:
        wait_for(lambda: len({t.pid for t in prepare.trainings()}) == 4)
        cluster.remove_node(first, allow_graceful=False)

    with meanwhile(attack):
        study, result = run_study(
            searched,
            InstantEvaluator(searched),
            PROTOCOL,
            tmp_path / "s",
            workers=4,
            executor=RayExecutor(gpus=0.25),
            prepare=prepare,
        )
    assert (result.status, result.paid) == ("finished", 24)
    check_study(study, prepare, lost_at_once=2)  # those of the node
    table = study.table()
    assert (table.status == "complete").sum() == 24
    assert (table.reason == "interrupted: the process ended in mid-trial; queued again").any()


def test_a_fraction_of_a_gpu_is_asked_of_ray(nodes):
    import ray

    executor = RayExecutor(gpus=0.25, cpus=0.5)
    assert executor._work._num_gpus == 0.25
    assert executor._work._num_cpus == 0.5
    shares = ray.remote(num_gpus=0.25, num_cpus=0.5)(ray.get_gpu_ids)
    assert len(ray.get(shares.remote())) == 1


def test_a_stopped_search_stops_its_tasks(nodes, tmp_path):
    searched = space(budget={"trials": 6}, sampler={"kind": "random"})
    prepare = Prepare(searched, 1.0, tmp_path / "log")

    def stop() -> None:
        wait_for(prepare.under_way)
        os.kill(os.getpid(), signal.SIGINT)

    with meanwhile(stop):
        _, result = run_study(
            searched,
            InstantEvaluator(searched),
            PROTOCOL,
            tmp_path / "s",
            workers=2,
            executor=RayExecutor(),
            prepare=prepare,
        )
    assert result.status == "interrupted"
    evaluator, _ = prepare(0)
    study, result = run_study(searched, evaluator, PROTOCOL, tmp_path / "s")
    assert (result.status, result.paid) == ("finished", 6)
    check_study(study, prepare)
