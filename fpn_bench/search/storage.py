"""The trials of a study, in tables of our own beside Optuna's, in the same database.

One table row is one trial, from the moment it is queued or begun. It is the only record that decisions, tables and
reports read; Optuna is told afterwards (`fpn_bench.search.mirror`), and whatever it was not told when a process died
it is told by the next one that looks.

Every change is made in a `Transaction`, whose first statement locks the study's own row. So at most one worker changes
a study at a time, what a transaction reads stays true until it commits, and every change bears a *revision* larger than
all before it: who remembers the last revision reads only what is new.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from fpn_bench.json_text import parse_json
from fpn_bench.search.records import Columns, TrialRow, summary_of
from fpn_bench.search.space import Choices

QUEUED, RUNNING, FINISHED = "queued", "running", "finished"
"""States of a trial."""
_ROW_ERRORS = (KeyError, TypeError, ValueError, AttributeError)
"""What `TrialRow.from_columns` raises where columns are damaged."""

TABLES = sa.MetaData()
_studies = sa.Table(
    "fpn_bench_study",
    TABLES,
    sa.Column("study", sa.String(600), primary_key=True),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("trials", sa.Integer, nullable=False),
)
_trials = sa.Table(
    "fpn_bench_trial",
    TABLES,
    sa.Column("study", sa.String(600), primary_key=True),
    sa.Column("trial", sa.Integer, primary_key=True),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("owner", sa.String(255), nullable=False, server_default=""),
    sa.Column("work_key", sa.String(255), nullable=False, server_default=""),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("summary", sa.Text),
    sa.Column("columns", sa.Text),
    sa.Column("told", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index("fpn_bench_trial_revision", "study", "revision"),
    sa.Index("fpn_bench_trial_told", "study", "told"),
)


@dataclass(frozen=True, slots=True)
class Request:
    """What a trial is to assess.

    Attributes:
        choices: None until the sampler has proposed.
        source: ``"sampled"``, ``"published"``, ``"enqueued"``, ``"listed"``, ``"confirmed"``.
        seed: of the training; None is the seed of the run that begins it.
        attempt: 1, and one more each time its worker died.
        continues: the stopped trial that it takes up again.
    """

    choices: Choices | None = None
    source: str = "sampled"
    seed: int | None = None
    attempt: int = 1
    continues: int | None = None


@dataclass(frozen=True, slots=True)
class StoredTrial:
    """A trial as it stands in the table, without the columns that only reports need.

    Attributes:
        trial: its number.
        revision: of its last change.
        state: `QUEUED`, `RUNNING` or `FINISHED`.
        owner: the worker that has it, or had it.
        work_key: candidate, seed and what it continues, hashed; empty before that is known and after it ended.
        request: what it is to assess.
        row: what became of it; None before it ended, and where it is damaged.
        damage: what is wrong with its stored row; empty where it can be read.
    """

    trial: int
    revision: int
    state: str
    owner: str
    work_key: str
    request: Request
    row: TrialRow | None
    damage: str


class StudyStorage:
    """The trials of one study.

    Args:
        engine: of the database; our tables are there (`create_tables`).
        study: the key of the study in them.
    """

    def __init__(self, engine: sa.Engine, study: str) -> None:
        """See the class."""
        self.engine, self.study = engine, study

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Change the study: all that is done inside is there afterwards, or nothing."""
        with self.engine.begin() as connection:
            yield Transaction(connection, self.study)

    def changes(self, after: int = -1) -> list[StoredTrial]:
        """Trials that were changed after a revision, oldest change first."""
        with self.engine.connect() as connection:
            return _changes(connection, self.study, after)

    def columns(self, trial: int) -> Columns:
        """The stored row of a trial; empty where there is none."""
        wanted = sa.select(_trials.c.columns).where(_trials.c.study == self.study, _trials.c.trial == trial)
        with self.engine.connect() as connection:
            text = connection.execute(wanted).scalar_one_or_none()
        found = _parsed(text)[0]
        return found if found is not None else {}

    def all_columns(self) -> list[tuple[StoredTrial, Columns | None]]:
        """Every trial in order, with its whole row; None before it has one. For tables and reports."""
        wanted = sa.select(_trials).where(_trials.c.study == self.study).order_by(_trials.c.trial)
        with self.engine.connect() as connection:
            rows = connection.execute(wanted).all()
        return [(_stored(row), _columns_or_damage(row)) for row in rows]


def create_tables(engine: sa.Engine) -> None:
    """Make our tables beside Optuna's, where they are missing."""
    TABLES.create_all(engine)


def create_study(
    engine: sa.Engine, study: str, fill: Callable[[Transaction], object] = lambda transaction: None
) -> StudyStorage:
    """Begin a study in our tables, and ``fill`` it in the same transaction; one that is there stays as it is."""
    storage = StudyStorage(engine, study)
    known = sa.select(_studies.c.study).where(_studies.c.study == study)
    with engine.connect() as connection:
        if connection.execute(known).first() is not None:
            return storage
    try:
        with engine.begin() as connection:
            connection.execute(_studies.insert().values(study=study, revision=0, trials=0))
            fill(Transaction(connection, study))
    except IntegrityError:
        pass  # another process did so at this moment, and this one waited for it
    return storage


class Transaction:
    """A change of a study; see the module."""

    def __init__(self, connection: sa.Connection, study: str) -> None:
        """Lock the study's row. See `StudyStorage.transaction`."""
        self._connection, self._study = connection, study
        locked = _studies.update().where(_studies.c.study == study).values(revision=_studies.c.revision + 1)
        row = connection.execute(locked.returning(_studies.c.revision, _studies.c.trials)).one()
        self.revision: int = row.revision
        self._trials: int = row.trials

    def changes(self, after: int) -> list[StoredTrial]:
        """Trials that were changed after a revision, oldest change first."""
        return _changes(self._connection, self._study, after)

    def enqueue(self, request: Request) -> int:
        """Queue a trial; its number."""
        return self._insert(request, QUEUED, "")

    def begin_new(self, request: Request, owner: str) -> int:
        """Make a new trial that is running; its number."""
        return self._insert(request, RUNNING, owner)

    def begin(self, trial: int, owner: str) -> None:
        """A queued trial runs now, or a running one of an owner that is gone is another's."""
        self._update(trial, state=RUNNING, owner=owner)

    def assign_work(self, trial: int, request: Request, work_key: str) -> None:
        """Say what a running trial assesses, so that no other does, and another can where its worker dies."""
        self._update(trial, request=_request_json(request), work_key=work_key)

    def finish(self, trial: int, columns: Columns, *, told: bool = False) -> None:
        """Store the row of a trial, which ends it. Also replaces the row of one that had ended."""
        self._update(trial, state=FINISHED, work_key="", told=told, **_row_values(columns))

    def add_finished(
        self, trial: int, request: Request, columns: Columns | None, *, text: str | None = None, told: bool = True
    ) -> None:
        """A trial that an earlier version stored, under its own number, as it is."""
        values = {"summary": text, "columns": text} if columns is None else _row_values(columns)
        self._insert(request, FINISHED, "", trial=trial, told=told, **values)

    def state_and_owner(self, trial: int) -> tuple[str, str]:
        """Of a trial, as they stand now."""
        wanted = sa.select(_trials.c.state, _trials.c.owner).where(*self._is(trial))
        row = self._connection.execute(wanted).one()
        return row.state, row.owner

    def adopt_untold(self, owner: str, living: Container[str]) -> list[int]:
        """Make finished trials of owners that are gone, which Optuna may not know, this owner's; all that it has."""
        wanted = sa.select(_trials.c.trial, _trials.c.owner).where(
            _trials.c.study == self._study, _trials.c.told.is_(False), _trials.c.state == FINISHED
        )
        rows = self._connection.execute(wanted).all()
        adopted = [row.trial for row in rows if row.owner == owner or row.owner not in living]
        for trial in adopted:
            self._connection.execute(_trials.update().where(*self._is(trial)).values(owner=owner))
        return sorted(adopted)

    def mark_told(self, trials: Iterable[int]) -> None:
        """Optuna knows these trials. No change that anybody needs to read."""
        numbers = list(trials)
        if numbers:
            where = (_trials.c.study == self._study, _trials.c.trial.in_(numbers))
            self._connection.execute(_trials.update().where(*where).values(told=True))

    def _insert(self, request: Request, state: str, owner: str, trial: int | None = None, **values: Any) -> int:
        number = self._trials if trial is None else trial
        self._trials = max(self._trials, number + 1)
        self._connection.execute(
            _trials.insert().values(
                study=self._study,
                trial=number,
                revision=self.revision,
                state=state,
                owner=owner,
                request=_request_json(request),
                **values,
            )
        )
        counted = _studies.update().where(_studies.c.study == self._study).values(trials=self._trials)
        self._connection.execute(counted)
        return number

    def _update(self, trial: int, **values: Any) -> None:
        self._connection.execute(_trials.update().where(*self._is(trial)).values(revision=self.revision, **values))

    def _is(self, trial: int) -> tuple[sa.ColumnElement[bool], ...]:
        return _trials.c.study == self._study, _trials.c.trial == trial


# --------------------------------------------------------------------------------------------------------------
# Text in the tables, and back


def _changes(connection: sa.Connection, study: str, after: int) -> list[StoredTrial]:
    light = [column for column in _trials.c if column is not _trials.c.columns]
    wanted = sa.select(*light).where(_trials.c.study == study, _trials.c.revision > after)
    rows = connection.execute(wanted.order_by(_trials.c.revision, _trials.c.trial)).all()
    return [_stored(row) for row in rows]


def _stored(row: sa.Row[Any]) -> StoredTrial:
    asked, damage = _parsed(row.request)
    try:
        request = Request(**asked) if asked is not None else Request()
    except TypeError as error:
        request, damage = Request(), f"its request is damaged: {error}"
    typed = None
    if row.state == FINISHED:
        columns, damage = _parsed(row.summary)
        if columns is not None:
            try:
                typed = TrialRow.from_columns(columns)
            except _ROW_ERRORS as error:
                damage = f"{type(error).__name__} {error}"
            if typed is not None and typed.trial != row.trial:
                damage, typed = f"it says that it is trial {typed.trial}", None
    return StoredTrial(row.trial, row.revision, row.state, row.owner, row.work_key, request, typed, damage)


def _columns_or_damage(row: sa.Row[Any]) -> Columns | None:
    if row.state != FINISHED:
        return None
    stored, (columns, damage) = _stored(row), _parsed(row.columns)
    if columns is not None and stored.row is not None and is_row_of(columns, row.trial):
        return columns
    return damaged_row(row.trial, stored.damage or damage or "not a row", stored.request)


def damaged_row(trial: int, why: str, request: Request | None = None) -> dict[str, Any]:
    """What a table shows of a trial whose row cannot be read."""
    request = request or Request()
    return {
        "trial": trial,
        "status": "failed",
        "reason": f"the stored row of trial {trial} cannot be read: {why}",
        "source": request.source,
        "seed": request.seed or 0,
        "choices": request.choices,
        "damaged": True,
    }


def is_row_of(columns: Columns, trial: int) -> bool:
    """Whether columns are a trial's row that can be read."""
    try:
        return TrialRow.from_columns(columns).trial == trial
    except _ROW_ERRORS:
        return False


def _parsed(text: str | None) -> tuple[dict[str, Any] | None, str]:
    """The JSON object in a text, or what is wrong with it."""
    if text is None:
        return None, "it is missing"
    try:
        found = parse_json(text)
    except ValueError as error:
        return None, f"expected a JSON object, got {text[:20]!r} ({error})"
    if not isinstance(found, dict):
        return None, f"expected a JSON object, got {text[:20]!r}"
    return found, ""


def _request_json(request: Request) -> str:
    told = {name: getattr(request, name) for name in Request.__slots__}
    return json.dumps({name: value for name, value in told.items() if value is not None})


def _row_values(columns: Columns) -> dict[str, str]:
    plain: Mapping[str, Any] = {k: v.item() if isinstance(v, np.generic) else v for k, v in columns.items()}
    return {"summary": json.dumps(summary_of(plain)), "columns": json.dumps(plain)}
