"""A study that was loaded is read and cannot be changed, and shows what others write meanwhile."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import optuna
import pandas as pd
import pytest
from optuna.exceptions import StorageInternalError
from search_evaluator import PROTOCOL, InstantEvaluator, space
from services import postgres_fixture  # noqa: F401
from test_search_study import HERE

from fpn_bench.errors import InputError
from fpn_bench.search import Study, load_study, run_study
from fpn_bench.search.leases import Leases
from fpn_bench.search.storage import Request


def searched(folder, budget=3, **options):
    wanted = space()
    return run_study(wanted, InstantEvaluator(wanted), PROTOCOL, folder, budget=budget, **options)[0]


def read_all(study) -> int:
    """Everything that reports ask for; how many trials there are."""
    study.front(), study.metadata(), study.last_run(), study.samples(), repr(study)
    return len(study.table())


def refuses_to_write(loaded: Study) -> None:
    study, storage = loaded._study, loaded._trials_store
    assert storage is not None
    before = study.user_attrs, [trial.state for trial in study.trials], storage.changes()
    for write in (  # Optuna tries for seconds to make a trial, so none of that here
        lambda: study.set_user_attr("mine", 1),
        lambda: optuna.delete_study(study_name=study.study_name, storage=study._storage),
    ):
        with pytest.raises(StorageInternalError) as refused:
            write()
        assert "read" in str(refused.value.__cause__)
    with pytest.raises(Exception, match="read"):
        Leases(storage.engine, storage.study).beat()
    with pytest.raises(Exception, match="read"), storage.transaction() as transaction:
        transaction.enqueue(Request())
    assert (study.user_attrs, [trial.state for trial in study.trials], storage.changes()) == before


def closed(folder) -> Path:
    """The database of a study that was searched and that nobody has open any more."""
    searched(folder)
    gc.collect()
    assert not (folder / "study.db-wal").exists()
    return folder / "study.db"


def state(database) -> tuple[bytes, int]:
    return database.read_bytes(), database.stat().st_mtime_ns


@pytest.mark.parametrize("as_url", [False, True])
def test_nothing_is_written_through_a_loaded_study(tmp_path, as_url) -> None:
    database = closed(tmp_path / "s")
    written = state(database)
    loaded = load_study(f"sqlite:///{database}" if as_url else tmp_path / "s")
    assert read_all(loaded) == 3
    refuses_to_write(loaded)
    assert read_all(loaded) == 3
    del loaded
    gc.collect()
    assert state(database) == written
    assert {path.name for path in database.parent.glob("study.db*")} == {"study.db"}


def test_another_study_that_is_looked_into_for_its_trainings_is_left_as_it_is(tmp_path) -> None:
    database = closed(tmp_path / "one")
    (tmp_path / "foreign").mkdir()
    foreign = tmp_path / "foreign" / "study.db"
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    written = state(database), state(foreign)
    two = searched(tmp_path / "two", budget=1)
    assert (two.table().shared_from == "one").any()
    assert (state(database), state(foreign)) == written


def test_reading_makes_no_database(tmp_path) -> None:
    with pytest.raises(InputError, match=r"missing\.db cannot be opened: .*unable to open"):
        load_study(f"sqlite:///{tmp_path}/missing.db")
    connection = sqlite3.connect(tmp_path / "foreign.db")
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(InputError, match=r"foreign\.db cannot be opened: .*no such table"):
        load_study(tmp_path / "foreign.db")
    assert [path.name for path in tmp_path.iterdir()] == ["foreign.db"]


def test_what_others_finish_meanwhile_is_seen(tmp_path) -> None:
    """Another process searches on; what was running when it was first read is finished later."""
    searched(tmp_path / "s")
    loaded = load_study(tmp_path / "s")
    assert read_all(loaded) == 3
    script = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
from search_evaluator import PROTOCOL, InstantEvaluator, space
from fpn_bench.search import run_study
wanted = space()
class Waits(InstantEvaluator):
    def train(self, described, seed, epochs, on_progress):
        print("trains", flush=True)
        sys.stdin.readline()
        return super().train(described, seed, epochs, on_progress)
study, _ = run_study(wanted, Waits(wanted), PROTOCOL, {str(tmp_path / "s")!r}, budget=5)
print(len(study.table()), flush=True)
sys.stdin.readline()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def answer() -> None:
            process.stdin.write("\n")
            process.stdin.flush()

        for finished in (3, 4):
            assert process.stdout.readline() == "trains\n"
            table = loaded.table()
            assert list(table.status) == ["complete"] * finished + ["running"]
            answer()
        in_all = int(process.stdout.readline())
        table = loaded.table()  # while the other still has the database open
        assert len(table) == in_all
        assert (table.status == "complete").sum() == 5
        assert table.ap[table.status == "complete"].notna().all()
        answer()
    assert load_study(tmp_path / "s").table().equals(table)


def test_what_a_killed_search_left_in_the_log_is_read(tmp_path) -> None:
    script = f"""
import os, signal, sys
sys.path[:0] = {[str(HERE), str(HERE / "search")]!r}
from test_search_read_only import searched
searched({str(tmp_path / "s")!r})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert os.path.getsize(tmp_path / "s" / "study.db-wal") > 0
    assert read_all(load_study(tmp_path / "s")) == 3


@pytest.mark.services
def test_nothing_is_written_through_a_study_loaded_from_a_server(postgres, tmp_path) -> None:
    name = tmp_path.name
    for url in (postgres.url(), postgres.url(driver="")):
        with pytest.raises(InputError, match=r'cannot be opened: .*"version_info" does not exist|holds'):
            load_study(url)
    written = searched(tmp_path / name, storage=postgres.url())
    loaded = load_study(postgres.url(), name)
    assert read_all(loaded) == 3
    refuses_to_write(loaded)
    written._study.set_user_attr("another", 1)
    assert loaded._study.user_attrs["another"] == 1
    searched(tmp_path / name, budget=5, storage=postgres.url())
    assert (loaded.table().status == "complete").sum() == 5


@contextlib.contextmanager
def as_someone_else() -> Iterator[None]:
    """Root may write anything: files are opened as nobody inside."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


class Nobodys(sqlite3.Connection):
    """Opened by nobody; the rest of the process stays who it is, for it reads modules that nobody may not."""

    def execute(self, *args):
        with as_someone_else():
            return super().execute(*args)


def test_a_finished_study_in_a_folder_that_may_not_be_written_is_read(monkeypatch):
    def connect(*args, **options):
        with as_someone_else():
            return plain(*args, factory=Nobodys, **options)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "study"
        closed(folder)
        table = load_study(folder).table()
        gc.collect()
        for path in (folder.parent, folder):
            path.chmod(0o555)
        plain = sqlite3.connect
        monkeypatch.setattr("sqlite3.connect", connect)
        try:
            again = load_study(folder).table()
            assert [p.name for p in folder.iterdir() if "db-" in p.name] == []
        finally:
            monkeypatch.undo()
            for path in (folder.parent, folder):
                path.chmod(0o755)
    pd.testing.assert_frame_equal(again, table)
