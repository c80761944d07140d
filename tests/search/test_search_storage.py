"""What stands in the database: rows that outlive any death, old studies, damaged rows, studies of others."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState
from search_evaluator import PROTOCOL, InstantEvaluator, TrialError, begin_and_die, queued_in, space
from test_search_rungs import WIDE, Rising

from fpn_bench.errors import FormatVersionError, FpnBenchError, InputError, UnknownNameError
from fpn_bench.search import load_study, run_study
from fpn_bench.search.api import search
from fpn_bench.search.database import open_database
from fpn_bench.search.opening import IDENTITY, add_metadata, check_name, read_metadata
from fpn_bench.search.records import Status, TrialRow, summary_of
from fpn_bench.search.storage import Request

OLD = Path(__file__).parents[1] / "data" / "study_of_version_1.db"
"""Begun with commit d8a32b7: 25 rows, one interrupted by a full disk, one queued again and one new trial under way."""
HERE = Path(__file__).parents[1]


def old_space(**changes: Any):
    return space(
        neck=WIDE,
        training={"epochs": 8},
        rungs={"epochs": [1, 2], "keep": 0.5},
        sampler={"kind": changes.pop("sampler", "random")},
        constraints=["params <= 1.3e6"],
        budget={"trials": 12},
        **changes,
    )


class Diverging(Rising):
    """What the old study was trained with."""

    def train(self, described, seed, epochs, on_progress):
        if " 40ch" in described.label:
            raise TrialError("diverged")
        return super().train(described, seed, epochs, on_progress)


def old_study(folder: Path) -> Path:
    (folder / "begun_before").mkdir()
    return Path(shutil.copy(OLD, folder / "begun_before" / "study.db"))


# -- studies of store version 1 ---------------------------------------------------------------------------------


def test_a_study_of_version_1_is_read_as_it_was(tmp_path):
    database = old_study(tmp_path)
    loaded = load_study(database)
    table = loaded.table()
    assert len(table) == 28
    assert table.status.value_counts().to_dict() == {
        "complete": 7, "continued": 7, "rejected": 5, "stopped": 5, "failed": 2, "running": 2,
    }  # fmt: skip
    assert list(loaded.front().trial) == [23, 22, 14, 4]
    assert loaded.metadata()["commands"] == ["fpn-bench search"]
    assert database.read_bytes() == OLD.read_bytes()


@pytest.mark.parametrize("kind", ["random", "tpe", "nsga2", "known_cost"])
def test_a_study_of_version_1_is_continued_and_a_copy_of_it_kept(tmp_path, kind):
    database = old_study(tmp_path)
    before = load_study(database).table()
    searched = old_space(sampler=kind)
    evaluator = Diverging(searched)
    study, result = run_study(searched, evaluator, PROTOCOL, database.parent)
    assert result.status == "finished"
    assert 12 <= result.paid < 13
    table = study.table()
    columns = ["trial", "candidate", "reason", "seed", "ap"]
    assert table.iloc[:26][columns].equals(before.iloc[:26][columns])
    assert not set(evaluator.trained) & set(before.candidate[before.status == "complete"])
    assert table.reason[26] == "interrupted: the process ended in mid-trial; queued again"
    assert (table.status[25], table.status[26]) == ("continued", "continued")  # the full disk's candidate was trained
    assert (table.status != "running").all()
    told = study._study.get_trials()
    assert all(trial.state.is_finished() for trial in told)
    copy = load_study(database.with_name("study.version1.db"))
    assert copy.table().equals(before)
    again, result = run_study(searched, evaluator, PROTOCOL, database.parent)  # is upgraded once
    assert result.counts == {}
    assert again.table().equals(table)


def test_what_optuna_shows_of_a_continued_study_of_version_1_is_its_front(tmp_path):
    database = old_study(tmp_path)
    searched = old_space()
    study, _ = run_study(searched, Diverging(searched), PROTOCOL, database.parent)
    shown = optuna.load_study(study_name="begun_before", storage=f"sqlite:///{database}")
    front = set(study.front().ap)
    assert {trial.values[0] for trial in shown.best_trials} == front


# -- crashes ----------------------------------------------------------------------------------------------------

WATCHED = ("worker.py", "recorder.py", "storage.py", "mirror.py", "recovery.py")
STEPS = ("_finish", "store", "tell", "finish", "transaction", "_begin_next", "mark_told", "catch_up",
         "_lease_work", "assign_work", "begin_new", "recover_orphans", "fail_orphaned_trial")  # fmt: skip


def die_at_line(number: int) -> None:
    """Kill this process, as a power cut would, at the so-many-th line of storing and telling; of every thread."""
    left = number

    def at_line(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                os._exit(9)
        return at_line

    def at_call(frame: FrameType, event: str, argument: object) -> Any:
        code = frame.f_code
        watched = code.co_name in STEPS and code.co_filename.endswith(WATCHED) and "search" in code.co_filename
        return at_line if watched else None

    sys.settrace(at_call)


def search_in_a_fork(folder: Path, evaluator: InstantEvaluator, budget: int, die_at: int | None) -> int:
    """The exit status of a process that searches, and dies at a line."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            if die_at is not None:
                die_at_line(die_at)
            run_study(evaluator.space, evaluator, PROTOCOL, folder, budget=budget, share=False)
            os._exit(0)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
def test_a_worker_killed_at_any_line_of_storing_and_telling_loses_nothing(tmp_path):
    searched = space(enqueue="none", sampler={"kind": "random"}, constraints=["params <= 1.25e6"])
    deaths = 0
    for line in range(1, 100_000):
        folder = tmp_path / f"s{line}"
        evaluator = InstantEvaluator(searched, log=tmp_path / f"log{line}")
        died = search_in_a_fork(folder, evaluator, 2, line)
        if died == 0:
            break  # the whole run has fewer lines
        assert died == 9
        deaths += 1
        assert search_in_a_fork(folder, evaluator, 3, None) == 0
        study = load_study(folder)
        table = study.table()
        assert (table.status == "complete").sum() == 3
        assert not (table.status == "running").any()
        assert not queued_in(study)
        told = study._study.get_trials(deepcopy=False)
        assert sorted(trial.user_attrs["trial"] for trial in told) == list(table.trial), f"line {line}"
        complete = {t.user_attrs["trial"] for t in told if t.state is TrialState.COMPLETE}
        assert complete == set(table.trial[table.status == "complete"])
        trained = evaluator.log.read_text().split()
        stored = set(table.candidate[table.status == "complete"])
        assert len(trained) <= len(stored) + 1  # what had ended and was not stored is trained once more
    assert deaths > 60


def test_a_row_stored_and_not_told_is_told_by_the_next_run_and_one_told_and_not_marked_is_not_told_again(tmp_path):
    searched = space(sampler={"kind": "random"}, enqueue="none")
    study, _ = run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", budget=3)
    trial = begin_and_die(study)
    with study._trials_store.transaction() as transaction:
        transaction.finish(trial, {**study._trials_store.columns(0), "trial": trial, "candidate": "f" * 16, "paid": 0})
        transaction.finish(1, study._trials_store.columns(1))  # stands there as not told
    study, _ = run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", budget=4)
    told = [t.user_attrs["trial"] for t in study._study.trials]
    assert sorted(told) == list(range(len(told)))
    assert trial in told


# -- damage -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_study(tmp_path_factory):
    """Three trials, to be copied and damaged."""
    searched = space(sampler={"kind": "random"}, enqueue="none")
    folder = tmp_path_factory.mktemp("whole") / "s"
    run_study(searched, InstantEvaluator(searched), PROTOCOL, folder, budget=3)
    return folder


@pytest.mark.parametrize(
    "text", ["{", "[1,2]", "", "null", "7", '{"trial": 99}', '{"status": "grown"}', "\x00", "[" * 3000]
)
@pytest.mark.parametrize("column", ["columns", "summary"])
def test_a_damaged_row_costs_that_row(whole_study, tmp_path, text, column):
    shutil.copytree(whole_study, tmp_path / "s")
    whole = load_study(whole_study).table()
    with contextlib.closing(sqlite3.connect(tmp_path / "s" / "study.db")) as connection, connection:
        connection.execute(f"UPDATE fpn_bench_trial SET {column} = ? WHERE trial = 1", (text,))
    table = load_study(tmp_path / "s").table()
    assert table.status[1] == "failed"
    others = table.trial != 1
    assert table[others][["status", "ap"]].equals(whole[others][["status", "ap"]])
    assert table.reason[1].startswith("the stored row of trial 1 cannot be read: ")
    assert "\n" not in table.reason[1]
    searched = space(sampler={"kind": "random"}, enqueue="none")
    study, result = run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", budget=4)
    assert result.status == "finished"
    assert (study.table().status == "complete").sum() >= 4 - (column == "columns")


@pytest.mark.parametrize("text", ["{", "[1,2]", "", "null", '{"trial": 99}', "[" * 3000])
def test_a_damaged_row_of_version_1_costs_that_row(tmp_path, text):
    database = old_study(tmp_path)
    damage(database, "UPDATE trial_user_attributes SET value_json = ? WHERE key = 'row' AND trial_id = 3", text)
    assert list(load_study(database).table().status[:4]) == ["complete", "rejected", "failed", "complete"]
    searched = old_space()
    study, result = run_study(searched, Diverging(searched), PROTOCOL, database.parent)
    assert result.status == "finished"
    assert study.table().reason[2].startswith("the stored row of trial 2 cannot be read")


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM study_user_attributes WHERE key = 'metadata'",
        "UPDATE study_user_attributes SET value_json = '{' WHERE key = 'metadata'",
        "UPDATE study_user_attributes SET value_json = '{}' WHERE key = 'identity'",
        "UPDATE study_user_attributes SET value_json = '[1]' WHERE key = 'identity'",
        "DROP TABLE studies",
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_a_study_damaged_as_a_whole_is_one_line(tmp_path, statement, version):
    searched = old_space() if version == 1 else space()
    database = old_study(tmp_path) if version == 1 else tmp_path / "s" / "study.db"
    if version == 2:
        run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", budget=2)
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(statement)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def read() -> None:
        loaded = load_study(database)
        loaded.table(), loaded.metadata()

    with pytest.raises(InputError) as refused:
        read()
    assert "\n" not in str(refused.value)
    with pytest.raises(FpnBenchError) as refused:
        run_study(searched, InstantEvaluator(searched), PROTOCOL, database.parent, budget=4)
    assert "\n" not in str(refused.value)


def damage(database: Path, statement: str, *values: Any) -> None:
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(statement, values)


@pytest.mark.parametrize("text", ["{", "{}", "[1]"])
def test_a_damaged_study_beside_it_hinders_no_search(tmp_path, text):
    searched = space(budget={"trials": 2})
    together = f"sqlite:///{tmp_path}/together.db"
    for name in ("bad", "good"):
        run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / name, share=False)
        run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / name, storage=together, share=False)
    spoil = "UPDATE study_user_attributes SET value_json = ? WHERE key = 'identity' AND study_id = 1"
    for database in (tmp_path / "bad" / "study.db", tmp_path / "together.db"):
        damage(database, spoil, text)
    study, _ = run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "next")
    assert "good" in set(study.table().shared_from)
    assert len(load_study(together, "good").table()) == 2
    with pytest.raises(InputError):
        load_study(together, "bad").table()
    with pytest.raises(UnknownNameError, match="unknown study 'gud': did you mean 'good'"):
        load_study(together, "gud")
    elsewhere, _ = run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "x" / "next", storage=together)
    assert "good" in set(elsewhere.table().shared_from)


def test_what_is_said_of_damage_holds_no_password(tmp_path):
    searched = space(budget={"trials": 1})
    study, _ = run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s")
    typed = {"commands": ["fpn-bench search --storage postgresql://me:hunter2@host/db"], "name": 7}
    for told in (typed, {"notes": typed["commands"][0]}, [typed["commands"][0]]):
        study._study.set_user_attr("metadata", told)
        with pytest.raises(InputError) as refused:
            load_study(tmp_path / "s").metadata()
        assert "hunter" not in str(refused.value)


def test_an_upgrade_that_dies_keeps_the_text_of_a_damaged_row(tmp_path, monkeypatch):
    database, text = old_study(tmp_path), '{"trial": 2, "status": "rejec'
    damage(database, "UPDATE trial_user_attributes SET value_json = ? WHERE key = 'row' AND trial_id = 3", text)
    said = load_study(database).table().reason[2]
    assert text[:20] in said
    searched = old_space()
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["fpn_bench.search.version1"], "create_study", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_study(searched, Diverging(searched), PROTOCOL, database.parent)
    assert load_study(database).table().reason[2] == said
    study, _ = run_study(searched, Diverging(searched), PROTOCOL, database.parent)
    with study._trials_store.engine.connect() as connection:
        kept = connection.execute(sa.text("SELECT columns FROM fpn_bench_trial WHERE trial = 2")).scalar_one()
    assert kept == text


# -- studies of others ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", ["bare", "attribute", "trials", "queued"])
def test_a_foreign_study_is_refused_before_anything_is_written(tmp_path, begun):
    database = tmp_path / "theirs.db"
    theirs = optuna.create_study(study_name="mine", storage=f"sqlite:///{database}", directions=["minimize"] * 2)
    if begun == "attribute":
        theirs.set_user_attr("theirs", 1)
    elif begun == "trials":
        theirs.tell(theirs.ask(), [1.0, 2.0])
    elif begun == "queued":
        theirs.enqueue_trial({"x": 1})
    del theirs
    before = database.read_bytes()
    searched = space()
    where = {"storage": f"sqlite:///{database}", "name": "mine"}
    with pytest.raises(InputError, match=r"'mine' in .*theirs\.db was not made by fpn_bench, and nothing was written"):
        run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", **where)
    assert database.read_bytes() == before
    run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", **{**where, "name": "ours"}, budget=1)


def test_a_study_of_a_newer_version_is_refused(tmp_path):
    searched = space()
    study, _ = run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", budget=1)
    study._study.set_user_attr(IDENTITY, {**study._study.user_attrs[IDENTITY], "version": 3})
    with pytest.raises(FormatVersionError, match="store version 3"):
        load_study(tmp_path / "s")
    with pytest.raises(FormatVersionError, match="store version 3"):
        run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", budget=2)


@pytest.mark.parametrize("name", ["../x", "a/b", "/tmp/x", "..", ".", "", " ", "a\\b", "x ", "nul\0"])
def test_a_folder_name_is_a_name(tmp_path, name):
    with pytest.raises(InputError, match=r"expected the name of a study, got .*--results"):
        check_name(name)
    if name:
        with pytest.raises(InputError, match="expected the name of a study"):
            search("quickstart", name=name, results=tmp_path / "results")
    assert not list(tmp_path.iterdir())


# -- what is read -----------------------------------------------------------------------------------------------


def test_the_table_reads_the_studys_attributes_once(tmp_path, monkeypatch):
    searched = space()
    study, _ = run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", budget=6)
    calls: list[None] = []
    plain = optuna.Study.user_attrs.fget
    monkeypatch.setattr(optuna.Study, "user_attrs", property(lambda self: (calls.append(None), plain(self))[1]))
    assert len(study.table()) >= 6
    assert len(calls) == 1  # the sample images are among them, some megabytes


def test_what_many_add_to_the_metadata_at_once_is_all_there(tmp_path):
    searched = space()
    study, _ = run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", budget=1)

    def join(number: int) -> None:
        own = optuna.load_study(study_name="s", storage=open_database(tmp_path / "s" / "study.db").optuna)
        add_metadata(own, {"warnings": ["all say this", f"warning {number}"], "commands": [f"join {number}"]})

    threads = [threading.Thread(target=join, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    metadata = load_study(tmp_path / "s").metadata()
    assert sorted(metadata["warnings"]) == ["all say this", *(f"warning {n}" for n in range(6))]
    assert sorted(metadata["commands"]) == [f"join {n}" for n in range(6)]
    assert read_metadata(study._study.user_attrs)["warnings"] == metadata["warnings"]


def test_a_row_is_its_summary_and_changes_are_read_once(tmp_path):
    searched = space(sampler={"kind": "random"})
    study, _ = run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", budget=4)
    storage = study._trials_store
    for trial in (trial for trial in storage.changes() if trial.row is not None):
        columns = storage.columns(trial.trial)
        assert TrialRow.from_columns(columns) == TrialRow.from_columns(json.loads(json.dumps(summary_of(columns))))
        assert trial.row == TrialRow.from_columns(columns)
    last = storage.changes()[-1].revision
    assert storage.changes(last) == []
    with storage.transaction() as transaction:
        number = transaction.enqueue(Request({"channels": 32}))
    assert [trial.trial for trial in storage.changes(last)] == [number]


def test_a_transaction_that_fails_changes_nothing(tmp_path):
    searched = space()
    study, _ = run_study(searched, InstantEvaluator(searched), PROTOCOL, tmp_path / "s", budget=1)
    storage, before = study._trials_store, study._trials_store.changes()

    def fail(action: Callable[[Any], object]) -> None:
        def change() -> None:
            with storage.transaction() as transaction:
                action(transaction)
                raise RuntimeError

        with pytest.raises(RuntimeError):
            change()

    fail(lambda t: t.enqueue(Request()))
    fail(lambda t: t.begin(0, "me"))
    fail(lambda t: t.finish(0, {"trial": 0, "status": Status.FAILED.value, "seed": 0, "choices": {}}))
    assert storage.changes() == before
