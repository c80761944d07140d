"""Which workers of a study are alive: their signs of life in the study's own database.

A running trial belongs to its owner (`StoredTrial.owner`) for as long as that worker lives: that is its lease. There is
nothing to renew or to give back; a trial is free when its worker is dead or gone.

A worker is dead when its process id is free on this machine, or when the counter that it raises every few seconds has
stood still for `LEASE_S`. Whoever looks measures that by a monotonic clock of its own, so that no two clocks need to
agree and a step of the system clock means nothing. A process id proves death only, never life: it may be another
process's by now. An outage of the database takes nobody's lease, because no counter can move meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path

import psutil
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from fpn_bench.search.storage import TABLES

BEAT_S = 5.0
LEASE_S = 60.0
"""A worker that has not been heard of for so long is dead."""

_workers = sa.Table(
    "fpn_bench_worker",
    TABLES,
    sa.Column("study", sa.String(600), primary_key=True),
    sa.Column("worker", sa.String(255), primary_key=True),
    sa.Column("beat", sa.Integer, nullable=False),
    sa.Column("doing", sa.String(255), nullable=False, server_default=""),
)


class Leases:
    """One worker's place among those of its study. It is heard of from `start` to `leave`.

    Args:
        engine: of the database; our tables are there.
        study: the key of the study in them.
        clock: seconds that only ever grow.

    Attributes:
        worker: its name, unlike any other.
    """

    def __init__(self, engine: sa.Engine, study: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """See the class."""
        self._engine, self._study, self._clock = engine, study, clock
        self.worker = f"{_here()}|{os.getpid()}|{uuid.uuid4().hex[:12]}"
        self._heard: dict[str, tuple[int, float]] = {}  # worker -> its counter, and since when it has stood there
        self._answers_since = clock()
        self._doing = ""
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._beat_until_left, name="fpn_bench leases", daemon=True)

    def start(self) -> Leases:
        """Announce the worker, and go on raising its counter."""
        self.beat()
        self._thread.start()
        return self

    def doing(self, text: str) -> None:
        """Say, with the next sign of life, what the worker does."""
        self._doing = text[:255]

    def leave(self) -> None:
        """The worker is gone; what it still owns is anyone's."""
        self._left.set()
        if self._thread.is_alive():
            self._thread.join(timeout=BEAT_S)
        with contextlib.suppress(SQLAlchemyError), self._engine.begin() as connection:
            connection.execute(_workers.delete().where(*self._is(self.worker)))

    def _beat_until_left(self) -> None:
        while not self._left.wait(BEAT_S):
            with contextlib.suppress(SQLAlchemyError):
                self.beat()

    def beat(self) -> None:
        """One sign of life."""
        try:
            with self._engine.begin() as connection:
                raised = {"beat": _workers.c.beat + 1, "doing": self._doing}
                found = connection.execute(_workers.update().where(*self._is(self.worker)).values(**raised))
                if not found.rowcount:  # new, or taken for dead meanwhile
                    row = {"study": self._study, "worker": self.worker, "beat": 0, "doing": self._doing}
                    connection.execute(_workers.insert().values(**row))
        except SQLAlchemyError:  # away: nobody's counter can move, so that nobody's is held against them
            self._answers_since = self._clock() + BEAT_S
            raise

    def others(self) -> dict[str, str]:
        """The other living workers, and what each is doing."""
        now = self._clock()
        living = {}
        for worker, beat, doing in self._announced():
            known, since = self._heard.get(worker, (None, now))
            if known != beat:
                since = now
            self._heard[worker] = (beat, since)
            silent_s = now - max(since, self._answers_since)
            if worker != self.worker and silent_s < LEASE_S and not _process_is_gone(worker):
                living[worker] = doing
        return living

    def lives(self, worker: str) -> bool:
        """Whether a worker is still at work."""
        return worker == self.worker or worker in self.others()

    def forget_dead(self) -> None:
        """Delete what dead workers left of themselves."""
        living = self.others()
        dead = [worker for worker, _, _ in self._announced() if worker != self.worker and worker not in living]
        if dead:
            with self._engine.begin() as connection:
                for worker in dead:
                    connection.execute(_workers.delete().where(*self._is(worker)))
        for worker in dead:
            self._heard.pop(worker, None)

    def _announced(self) -> list[tuple[str, int, str]]:
        wanted = sa.select(_workers.c.worker, _workers.c.beat, _workers.c.doing)
        with self._engine.connect() as connection:
            rows = connection.execute(wanted.where(_workers.c.study == self._study)).all()
        return [(row.worker, int(row.beat), row.doing) for row in rows]

    def _is(self, worker: str) -> tuple[sa.ColumnElement[bool], ...]:
        return _workers.c.study == self._study, _workers.c.worker == worker


@cache
def _here() -> str:
    """Names this machine, its boot and its space of process numbers: containers on one machine number theirs apart."""
    found = [platform.node(), f"{uuid.getnode():x}"]
    for place in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            path = Path(place)
            found.append(os.readlink(path) if path.is_symlink() else path.read_text().strip())
        except OSError:
            found.append("")
    return "/".join(found)


def _process_is_gone(worker: str) -> bool:
    """Whether no process of this machine has the worker's number any more; False for one elsewhere."""
    here, pid, _ = worker.rsplit("|", 2)
    if here != _here():
        return False
    try:
        return psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False
