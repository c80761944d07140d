"""Studies of store version 1, which kept each row as an attribute of Optuna's trial: read, and upgraded once.

An upgrade copies the rows into our tables; Optuna's trials stay, and a row that is no JSON stays as a JSON string, so
nothing is lost by it. Beside a SQLite file a copy of it is kept all the same, for an earlier fpn_bench to open.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState

from fpn_bench.json_text import parse_json
from fpn_bench.search.database import Database, sqlite_file
from fpn_bench.search.records import Columns, interruption
from fpn_bench.search.samplers.parameters import decode
from fpn_bench.search.space import ChoiceSpace
from fpn_bench.search.storage import (
    FINISHED,
    QUEUED,
    RUNNING,
    Request,
    StoredTrial,
    Transaction,
    create_study,
    damaged_row,
    is_row_of,
)

_log = logging.getLogger(__name__)

_EXCUSED = "excused"
_OLD_TABLES = ("fpn_bench_claims", "fpn_bench_workers")

# Optuna's tables as that version wrote them. Read directly, because Optuna reads no trial of a study in which one
# attribute is damaged.
_studies = sa.table("studies", sa.column("study_id"), sa.column("study_name"))
_trials = sa.table("trials", sa.column("trial_id"), sa.column("study_id"), sa.column("number"), sa.column("state"))
_attributes = sa.table(
    "trial_user_attributes",
    sa.column("trial_user_attribute_id"),
    sa.column("trial_id"),
    sa.column("key"),
    sa.column("value_json"),
)


class Version1Trials:
    """The trials of a study of version 1, to read.

    Args:
        engine: of the database.
        study: Optuna's study.
    """

    def __init__(self, engine: sa.Engine, study: optuna.Study) -> None:
        """See the class."""
        self._engine, self._study = engine, study

    def all_columns(self) -> list[tuple[StoredTrial, Columns | None]]:
        """As `StudyStorage.all_columns`. A row that is none is what `damaged_row` says."""
        attributes = self._study.user_attrs
        excused = {int(name.split()[1]) for name in attributes if name.startswith(f"{_EXCUSED} ")}
        excused |= set(attributes.get(_EXCUSED, ()))
        with self._engine.connect() as connection:
            rows = connection.execute(_stored_rows(self._study.study_name)).all()
        found: list[tuple[StoredTrial, Columns | None]] = []
        for row in rows:
            columns: Columns | None = None
            if row.value_json is not None:
                parsed = _parsed(row.value_json)
                text = parsed if isinstance(parsed, str) else row.value_json  # quoted by an upgrade that died
                columns = (
                    parsed
                    if isinstance(parsed, dict) and is_row_of(parsed, row.number)
                    else damaged_row(row.number, f"expected a row, got {text[:20]!r}") | {"damaged": text}
                )
                if row.number in excused:
                    columns = {**columns, **interruption(columns.get("reason") or "", queued=True)}
            state = QUEUED if row.state == TrialState.WAITING.name else RUNNING if columns is None else FINISHED
            found.append((StoredTrial(row.number, 0, state, "", "", Request(), None, ""), columns))
        return found


def _stored_rows(study: str) -> sa.Select[Any]:
    own = sa.and_(_attributes.c.trial_id == _trials.c.trial_id, _attributes.c.key == "row")
    joined = _trials.join(_studies, _studies.c.study_id == _trials.c.study_id).outerjoin(_attributes, own)
    wanted = sa.select(
        _trials.c.number, _trials.c.state, _attributes.c.value_json, _attributes.c.trial_user_attribute_id
    )
    return wanted.select_from(joined).where(_studies.c.study_name == study).order_by(_trials.c.number)


def _parsed(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return None


def upgrade(database: Database, study: optuna.Study, space: ChoiceSpace) -> str:
    """Copy the rows of a study into our tables, once; its key there. Any number of processes may do so at a time."""
    key = f"version 1: {study.study_name}"
    backup = _back_up(database)
    if backup is not None:
        _log.warning("the study was made by an earlier fpn_bench and is upgraded; a copy of it is kept in %s", backup)
    rows = [(stored.trial, columns) for stored, columns in Version1Trials(database.engine, study).all_columns()]
    _quote_unreadable(database, study.study_name)
    trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    create_study(database.engine, key, lambda transaction: _copy(rows, trials, space, transaction))
    _end_open_trials(study)
    with database.engine.begin() as connection:
        for table in _OLD_TABLES:
            connection.execute(sa.text(f"DROP TABLE IF EXISTS {table}"))
    return key


def _quote_unreadable(database: Database, study: str) -> None:
    """Make a JSON string of each row that is no JSON: with one there, Optuna reads no trial of the study at all."""
    with database.engine.begin() as connection:
        for row in connection.execute(_stored_rows(study)).all():
            if row.value_json is not None and _parsed(row.value_json) is None:
                own = _attributes.c.trial_user_attribute_id == row.trial_user_attribute_id
                connection.execute(sa.update(_attributes).where(own).values(value_json=json.dumps(row.value_json)))


def _copy(
    rows: list[tuple[int, Columns | None]],
    trials: Mapping[int, FrozenTrial],
    space: ChoiceSpace,
    transaction: Transaction,
) -> None:
    for number, row in rows:
        trial = trials[number]
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
        elif row is not None and not row.get("damaged"):
            transaction.add_finished(number, request, row, told=trial.state.is_finished())
        else:
            transaction.add_finished(number, request, None, text=None if row is None else str(row["damaged"]))


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
