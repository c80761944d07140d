"""The database of studies: opened for Optuna by its `RDBStorage`, and for tables of our own by an engine of our own.

Both stand on the same SQLite file or server. A SQLite file is opened in WAL mode with ``synchronous=NORMAL``: commits
cost no disk flush and readers never wait; a power cut may take the last commits, a killed process takes none.
"""

from __future__ import annotations

import logging
import math
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import DisconnectionError, OperationalError, SQLAlchemyError

from fpn_bench.errors import FpnBenchError, InputError
from fpn_bench.redact import redact_text, redact_word

_log = logging.getLogger(__name__)

DATABASE = "study.db"
"""Name of the SQLite file in a study's folder."""
DATABASE_ERRORS = (StorageInternalError, SQLAlchemyError)
"""What is raised when the database does not answer."""
STORAGE_PATIENCE_S = 300.0
"""So long a worker waits for a database server that is away."""
_BUSY_TIMEOUT_S = 60.0
_IDLE_S = 5.0
"""A connection to a server that was not used for so long is tested before it is."""

T = TypeVar("T")


def is_url(target: str | Path) -> bool:
    """Whether this is a storage URL such as ``postgresql://...`` and no path."""
    return "://" in str(target)


def sqlite_file(target: str | Path) -> Path | None:
    """The file behind a path or a ``sqlite:///`` URL; None where a server is meant."""
    if not is_url(target):
        return Path(target).resolve()
    url = sa.make_url(str(target))
    return Path(url.database).resolve() if url.get_backend_name() == "sqlite" and url.database else None


def redacted(target: str | Path) -> str:
    """A database file or URL as it may be printed: without its password."""
    return redact_word(str(target))


class Database:
    """One database, opened twice over: see the module.

    Attributes:
        target: the file or URL that was opened.
        optuna: the storage that Optuna's studies live in.
        engine: ours.
        is_file: SQLite, and no server that may be away for a while.
    """

    def __init__(self, target: str | Path, optuna_storage: RDBStorage, engine: sa.Engine) -> None:
        """See `open_database`."""
        self.target = target
        self.optuna = optuna_storage
        self.engine = engine
        self.is_file = engine.dialect.name == "sqlite"


def open_database(target: str | Path, *, patience_s: float = 0.0, read_only: bool = False) -> Database:
    """Open a database file or URL.

    Args:
        target: file or URL. ``postgresql://`` means whichever of psycopg2 and psycopg is installed.
        patience_s: so long a server is waited for that does not answer.
        read_only: the database, SQLite or PostgreSQL, refuses whatever would change it, and a database without
            Optuna's tables cannot be opened. Transactions that a killed process left in the log beside a SQLite file
            may still be moved into it, which SQLite itself does.

    Raises:
        InputError: it cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            file = sqlite_file(target)
            return _open_server(str(target), read_only) if file is None else _open_file(file, target, read_only)
        except ImportError as error:
            wanted = '`pip install "fpn-bench[postgres]"`' if "postgresql" in str(target) else first_line(error)
            raise InputError(
                f"the study storage {redacted(target)} needs a driver that is missing: {wanted}"
            ) from error
        except (StorageInternalError, SQLAlchemyError, sqlite3.Error, ValueError, RuntimeError) as error:
            cause = (error.__cause__ or error) if isinstance(error, StorageInternalError) else error
            if not isinstance(cause, OperationalError) or time.monotonic() >= deadline:
                raise InputError(
                    f"the study storage {redacted(target)} cannot be opened: {first_line(cause)}"
                ) from error
        time.sleep(1.0)


def study_names(database: Database) -> list[str]:
    """The studies of a database, whoever made them. Optuna would read the attributes of all, damaged ones too."""
    names: sa.Select[Any] = (
        sa.select(sa.column("study_name")).select_from(sa.table("studies")).order_by(sa.column("study_id"))
    )
    with database.engine.connect() as connection:
        return [name for (name,) in connection.execute(names)]


def _open_file(path: Path, target: str | Path, read_only: bool) -> Database:
    def opened(mode: str) -> sqlite3.Connection:
        uri = f"{path.as_uri()}?mode={mode}"
        return sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S, check_same_thread=False)

    def connect() -> sqlite3.Connection:
        if not read_only:
            connection = opened("rwc")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            return connection
        try:
            connection = opened("rw")  # a reader of a WAL database writes too: that it reads. It makes no file
            connection.execute("PRAGMA query_only=ON")
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
            return connection
        except sqlite3.OperationalError:
            if not path.exists() or path.with_name(f"{path.name}-wal").exists():
                raise
        # In a folder that may not be written. Nobody is at work on it: what is there stays what it is.
        return opened("ro&immutable=1")

    # A creator, because RDBStorage connects before a listener could be attached to its engine.
    storage = RDBStorage(f"sqlite:///{path}", {"creator": connect}, skip_table_creation=read_only)
    return Database(target, storage, sa.create_engine(f"sqlite:///{path}", creator=connect))


def _open_server(url: str, read_only: bool) -> Database:
    plain = "postgresql://"
    if url.startswith(plain) and not find_spec("psycopg2") and find_spec("psycopg"):
        url = f"postgresql+psycopg://{url.removeprefix(plain)}"  # SQLAlchemy would look for psycopg2
    options: dict[str, Any] = {"execution_options": {"postgresql_readonly": True}} if read_only else {}
    storage = RDBStorage(url, options, skip_table_creation=read_only)
    engine = sa.create_engine(url, **options)
    for each in (storage.engine, engine):
        _test_idle_connections(each)
    return Database(url, storage, engine)


def _test_idle_connections(engine: sa.Engine) -> None:
    """Replace connections that a server has ended which was away; `pool_pre_ping` asks before each transaction."""

    @sa.event.listens_for(engine, "checkin")
    def used(connection: Any, record: Any) -> None:
        record.info["used_at"] = time.monotonic()

    @sa.event.listens_for(engine, "checkout")
    def look(connection: Any, record: Any, proxy: Any) -> None:
        if time.monotonic() - record.info.get("used_at", math.inf) > _IDLE_S and not _answers(engine, connection):
            raise DisconnectionError  # the pool makes a new one


def _answers(engine: sa.Engine, connection: Any) -> bool:
    try:
        return engine.dialect.do_ping(connection)
    except Exception as error:  # of whatever driver
        if isinstance(error, engine.dialect.loaded_dbapi.Error):
            return False
        raise


def retry_on_database_error(
    call: Callable[[], T], wait: Callable[[float], None] = time.sleep, *, is_file: bool = False
) -> T:
    """The result of a call, after waiting for its database server if that is away for a while.

    A file is not away for a while: what it raises will not pass.
    """
    deadline = None
    while True:
        try:
            return call()
        except DATABASE_ERRORS as error:
            if is_file or (deadline is not None and time.monotonic() > deadline):
                raise
            if deadline is None:
                deadline = time.monotonic() + STORAGE_PATIENCE_S
                cause = first_line(error.__cause__ or error)
                _log.warning("the study's database does not answer, waiting for it: %s", cause)
            wait(1.0)


@contextmanager
def storage_errors(target: str | Path) -> Iterator[None]:
    """Turn a failure of the database (disk full, server gone) into one clear error."""
    try:
        yield
    except DATABASE_ERRORS as error:
        cause = error.__cause__ or error
        raise FpnBenchError(
            f"the study in {redacted(target)} cannot be written: {first_line(cause)}; what finished is safe, and the "
            "same command goes on once that is mended"
        ) from error


@contextmanager
def describe_damage(study: str, also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn what Optuna raises of a study whose tables were damaged into one clear error.

    Args:
        study: its name or place, for the message.
        also: further errors that mean nothing else here.
    """
    means_damage: tuple[type[Exception], ...] = (LookupError, ValueError, TypeError, RecursionError, *also)
    try:
        yield
    except FpnBenchError:
        raise
    except means_damage as error:
        cause = first_line(error.__cause__ or error)
        raise InputError(f"study {study} cannot be read, its database is damaged or is none: {cause}") from error


def first_line(error: BaseException) -> str:
    """The first line of what an error says, without passwords; else its type."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    # A driver takes what follows the first "@" of a password for the host, and quotes it.
    return re.sub(r"([\"'])[^\s\"'@]*@(?=[^\s\"']*\1)", r"\1***@", redact_text(line))
