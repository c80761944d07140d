"""Who does what, among the workers of one study: claims in the study's own database.

Optuna hands a queued trial to one worker only where the database isolates a read from the write behind it, which SQLite
as Python opens it does not; and nothing in it keeps two workers from assessing one candidate at once. So each trial is
claimed by its worker, and with it what it assesses (its *unit*): two rows that a database refuses to hold twice.

A claim lasts as long as its worker lives. One on this machine is known to live by its process; one elsewhere by a
counter that it raises every few seconds: whoever looks measures by a clock of its own how long the counter has stood
still, so that no two clocks need to agree, and an outage of the database takes nobody's claim.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterable
from functools import cache
from typing import Any

import optuna
import psutil
import sqlalchemy as sa
from optuna.storages import RDBStorage
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

BEAT_S = 5.0
LEASE_S = 60.0
"""A worker elsewhere that has not been heard of for so long is dead."""

_tables = sa.MetaData()
_workers = sa.Table(
    "fpn_bench_workers",
    _tables,
    sa.Column("study", sa.Integer, primary_key=True),
    sa.Column("worker", sa.String(255), primary_key=True),
    sa.Column("beat", sa.Integer, nullable=False),
    sa.Column("doing", sa.String(255), nullable=False, server_default=""),
)
_claims = sa.Table(
    "fpn_bench_claims",
    _tables,
    sa.Column("study", sa.Integer, primary_key=True),
    sa.Column("trial", sa.Integer, primary_key=True),
    sa.Column("worker", sa.String(255), nullable=False),
    sa.Column("unit", sa.String(255)),
    sa.UniqueConstraint("study", "unit"),
)


def create_tables(study: optuna.Study) -> None:
    """Make the tables beside Optuna's; to be called once, by who opens the study."""
    _tables.create_all(backend(study).engine)


def backend(study: optuna.Study) -> RDBStorage:
    """The database storage of a study, behind what Optuna caches of it."""
    storage: Any = study._storage
    found: RDBStorage = getattr(storage, "_backend", storage)
    return found


@cache
def _here() -> str:
    """Names this machine, boot and space of process numbers: containers on one machine number theirs apart."""
    try:
        boot = int(psutil.boot_time())
        space = os.readlink("/proc/self/ns/pid")
    except (OSError, psutil.Error):
        boot, space = 0, ""
    return f"{platform.node()}/{boot}/{space}"


def _process_lives(worker: str) -> bool | None:
    """Whether the worker's process is there; None for one elsewhere."""
    here, pid, started, _ = worker.rsplit("|", 3)
    if here != _here():
        return None
    try:
        process = psutil.Process(int(pid))
        zombie = process.status() == psutil.STATUS_ZOMBIE
        return not zombie and int(process.create_time()) == int(started)
    except psutil.Error:
        return False


class Claims:
    """One worker's hold on the trials of a study. Heard of from its making to `leave`.

    Attributes:
        worker: its name, unlike any other.
    """

    def __init__(self, study: optuna.Study) -> None:
        """Announce the worker. The tables are there (`create_tables`)."""
        self._engine = backend(study).engine
        self._study = study._study_id
        started = int(psutil.Process().create_time())
        self.worker = f"{_here()}|{os.getpid()}|{started}|{uuid.uuid4().hex[:6]}"
        self._heard: dict[str, tuple[int, float]] = {}  # worker -> its counter, and since when it has stood there
        self._answers_since = time.monotonic()
        self._doing = ""
        self._left = threading.Event()
        with self._engine.begin() as connection:
            connection.execute(_workers.insert().values(study=self._study, worker=self.worker, beat=0))
        self._thread = threading.Thread(target=self._beat, name="fpn_bench claims", daemon=True)
        self._thread.start()

    def doing(self, text: str) -> None:
        """Say, with the next sign of life, what the worker is at."""
        self._doing = text[:255]

    def leave(self) -> None:
        """The worker is gone; what it still holds is anyone's."""
        self._left.set()
        self._thread.join(timeout=BEAT_S)
        with contextlib.suppress(SQLAlchemyError), self._engine.begin() as connection:
            connection.execute(_workers.delete().where(*self._is(_workers, worker=self.worker)))

    def _beat(self) -> None:
        own = self._is(_workers, worker=self.worker)
        while not self._left.wait(BEAT_S):
            try:
                with self._engine.begin() as connection:
                    found = connection.execute(
                        _workers.update().where(*own).values(beat=_workers.c.beat + 1, doing=self._doing)
                    )
                    if not found.rowcount:  # taken for dead meanwhile
                        connection.execute(_workers.insert().values(study=self._study, worker=self.worker, beat=0))
            except SQLAlchemyError:  # away: nobody's counter can move, so that nobody's is held against them
                self._answers_since = time.monotonic() + BEAT_S

    # -- trials ---------------------------------------------------------------------------------------------------

    def take_trial(self, trial: int) -> bool:
        """Make a trial this worker's; False where a living worker has it."""
        try:
            with self._engine.begin() as connection:
                connection.execute(_claims.insert().values(study=self._study, trial=trial, worker=self.worker))
            return True
        except IntegrityError:
            pass
        with self._engine.begin() as connection:
            holder = connection.execute(
                sa.select(_claims.c.worker).where(*self._is(_claims, trial=trial))
            ).scalar_one_or_none()
            if holder is None:
                return False  # given back this moment; the next look will find it free
            if holder == self.worker:
                return True
            if self.lives(holder):
                return False
            taken = connection.execute(
                _claims.update().where(*self._is(_claims, trial=trial, worker=holder)).values(worker=self.worker)
            )
            return taken.rowcount == 1

    def take_unit(self, trial: int, unit: str) -> int | None:
        """Say what an own trial assesses; the number of the trial that assesses it already, else None."""
        while True:
            try:
                with self._engine.begin() as connection:
                    connection.execute(_claims.update().where(*self._is(_claims, trial=trial)).values(unit=unit))
                return None
            except IntegrityError:
                pass
            with self._engine.begin() as connection:
                holder = connection.execute(
                    sa.select(_claims.c.trial, _claims.c.worker).where(*self._is(_claims, unit=unit))
                ).one_or_none()
                if holder is None:
                    continue
                if holder.worker == self.worker or self.lives(holder.worker):
                    return int(holder.trial)
                connection.execute(
                    _claims.update()
                    .where(*self._is(_claims, trial=holder.trial, worker=holder.worker))
                    .values(unit=None)
                )

    def give_back(self, trial: int) -> None:
        """The trial, and what it assesses, are free again."""
        with self._engine.begin() as connection:
            connection.execute(_claims.delete().where(*self._is(_claims, trial=trial, worker=self.worker)))

    def free_unit(self, trial: int) -> None:
        """What a trial of anyone's assessed is free again; the trial itself is done with."""
        with self._engine.begin() as connection:
            connection.execute(_claims.update().where(*self._is(_claims, trial=trial)).values(unit=None))

    def holders(self, trials: Iterable[int]) -> dict[int, str]:
        """Of these trials, each that is claimed -> the worker that claimed it."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                sa.select(_claims.c.trial, _claims.c.worker).where(*self._is(_claims), _claims.c.trial.in_(trials))
            )
            return {int(row.trial): row.worker for row in rows}

    def holder(self, trial: int) -> str | None:
        """The worker that claimed a trial."""
        with self._engine.connect() as connection:
            found: str | None = connection.execute(
                sa.select(_claims.c.worker).where(*self._is(_claims, trial=trial))
            ).scalar_one_or_none()
            return found

    # -- workers --------------------------------------------------------------------------------------------------

    def lives(self, worker: str) -> bool:
        """Whether a worker is still at work."""
        return worker == self.worker or worker in self.others()

    def others(self) -> dict[str, str]:
        """The other living workers, and what each is doing."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                sa.select(_workers.c.worker, _workers.c.beat, _workers.c.doing).where(*self._is(_workers))
            ).all()
        now = time.monotonic()
        living = {}
        for row in rows:
            beat, since = self._heard.get(row.worker, (None, now))
            if beat != row.beat:
                since = now
            self._heard[row.worker] = (row.beat, since)
            lives = _process_lives(row.worker)
            silent_s = now - max(since, self._answers_since)
            if row.worker != self.worker and (silent_s < LEASE_S if lives is None else lives):
                living[row.worker] = row.doing
        return living

    def _is(self, table: sa.Table, **values: Any) -> list[Any]:
        """Conditions on a row of this study."""
        return [table.c.study == self._study, *(table.c[name] == value for name, value in values.items())]
