"""Studies of store version 1, which kept each row as an attribute of Optuna's trial: read, and upgraded once.

An upgrade copies the rows into our tables; Optuna's trials stay as they are, so nothing is lost by it. Beside a SQLite
file a copy of it is kept all the same, for an earlier fpn_bench to open.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState

from fpn_bench.search.database import Database, sqlite_file
from fpn_bench.search.records import Columns, TrialRow, interruption
from fpn_bench.search.samplers.parameters import decode
from fpn_bench.search.space import ChoiceSpace
from fpn_bench.search.storage import Request, Transaction, create_study

_log = logging.getLogger(__name__)

_ROW, _EXCUSED = "row", "excused"
_OLD_TABLES = ("fpn_bench_claims", "fpn_bench_workers")


def read_rows(study: optuna.Study) -> Iterator[tuple[FrozenTrial, Any]]:
    """Each trial in order with its row; None before it has one, and what stands there where that is no row."""
    attributes = study.user_attrs
    excused = {int(name.split()[1]) for name in attributes if name.startswith(f"{_EXCUSED} ")}
    excused |= set(attributes.get(_EXCUSED, ()))
    for trial in study.get_trials(deepcopy=False):
        row = trial.user_attrs.get(_ROW)
        if isinstance(row, dict) and trial.number in excused:
            row = {**row, **interruption(row["reason"], queued=True)}
        yield trial, row


def read_columns(study: optuna.Study) -> list[tuple[int, bool, Columns | None]]:
    """For reading without an upgrade: number, whether it waits, and row of each trial."""
    found: list[tuple[int, bool, Columns | None]] = []
    for trial, row in read_rows(study):
        if row is not None and not _is_row(row, trial.number):
            row = damaged_row(trial.number, json.dumps(row))
        found.append((trial.number, trial.state is TrialState.WAITING, row))
    return found


def damaged_row(trial: int, text: str) -> dict[str, Any]:
    """What a table shows of a trial whose row cannot be read."""
    return {
        "trial": trial,
        "status": "failed",
        "reason": f"the stored row of trial {trial} cannot be read: expected a row, got {text[:20]!r}",
        "seed": 0,
        "choices": None,
    }


def _is_row(row: Any, trial: int) -> bool:
    try:
        return isinstance(row, dict) and TrialRow.from_columns(row).trial == trial
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def upgrade(database: Database, study: optuna.Study, space: ChoiceSpace) -> str:
    """Copy the rows of a study into our tables, once; its key there. Any number of processes may do so at a time."""
    key = f"version 1: {study.study_name}"
    backup = _back_up(database)
    if backup is not None:
        _log.warning("the study was made by an earlier fpn_bench and is upgraded; a copy of it is kept in %s", backup)
    rows = list(read_rows(study))
    create_study(database.engine, key, lambda transaction: _copy(rows, space, transaction))
    _end_open_trials(study)
    with database.engine.begin() as connection:
        for table in _OLD_TABLES:
            connection.execute(sa.text(f"DROP TABLE IF EXISTS {table}"))
    return key


def _copy(rows: list[tuple[FrozenTrial, Any]], space: ChoiceSpace, transaction: Transaction) -> None:
    for trial, row in rows:
        attributes = trial.user_attrs
        request = Request(
            attributes.get("choices") or decode(space, trial.params),
            attributes.get("source", "sampled"),
            attributes.get("seed"),
            attributes.get("retries", 0) + 1,
            attributes.get("continues"),
        )
        if row is None and not trial.state.is_finished():
            if trial.state is TrialState.WAITING:
                transaction.enqueue(request)
            else:  # its worker is gone: an owner that never lived
                transaction.begin_new(request, "an earlier fpn_bench")
        elif _is_row(row, trial.number):
            transaction.add_finished(trial.number, request, row, told=trial.state.is_finished())
        else:
            transaction.add_finished(trial.number, request, None, text=json.dumps(row))


def _end_open_trials(study: optuna.Study) -> None:
    """Optuna's copies of what is queued or running are told when that ends, as new trials; these come to nothing."""
    study.sampler = optuna.samplers.RandomSampler()
    for _ in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.tell(study.ask(), state=TrialState.FAIL)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)


def _back_up(database: Database) -> Path | None:
    """A copy of the database file, made before anything in it is changed; None where there is none to make."""
    file = sqlite_file(database.target) if database.is_file else None
    if file is None:
        return None
    copy = file.with_name(f"{file.stem}.version1{file.suffix}")
    if copy.exists():
        return None
    partial = copy.with_name(f"{copy.name}.partial")
    partial.unlink(missing_ok=True)
    source, target = sqlite3.connect(file), sqlite3.connect(partial)
    try:
        source.backup(target)
    finally:
        source.close()
        target.close()
    partial.replace(copy)
    return copy
