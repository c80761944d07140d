"""The store of a study: an Optuna RDB storage, a folder around it, and the promise never to mix what does not compare.

A folder holds ``study.db`` (SQLite in WAL mode), and for people ``space.yaml`` and ``protocol.json``. The database
alone is the truth: everything a table or report needs is in it.

Any number of workers may be at one study (`fpn_bench.search.claims`); its folder is held by the one that began it.
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import filelock
import optuna
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import DisconnectionError, OperationalError, SQLAlchemyError

from fpn_bench.analysis import differing_fields, write_text_atomic
from fpn_bench.errors import FormatVersionError, FpnBenchError, InputError, ProtocolError
from fpn_bench.redact import redact_command, redact_text, redact_word
from fpn_bench.search import claims
from fpn_bench.search.space import ChoiceSpace
from fpn_bench.training.protocol import Protocol

DATABASE = "study.db"
METADATA = "metadata"
"""Study attribute: everything reports say about a study as a whole."""
IDENTITY = "identity"
"""Study attribute: what must be equal for two rows to stand in one study."""
RUN = "run"
"""Study attribute: how the last search was called (space as written, budget, seed), for workers that join it."""
SAMPLES = "samples"
"""Study attribute: the images that `ledger.DETECTIONS` speaks of, see `fpn_bench.detection.samples.sample_images`."""
PROXY = "proxy"
"""Study attribute: times the epochs -> candidates that were trained so much longer too, see
`fpn_bench.search.proxy.correlate`."""
STORE_VERSION = 1
_BUSY_TIMEOUT_S = 60.0
_IDLE_S = 5.0
"""A connection to a server that was not used for so long is looked at before it is."""


def is_url(target: str | Path) -> bool:
    """Whether this is a storage URL such as ``postgresql://...`` and no path."""
    return "://" in str(target)


def is_file(study: optuna.Study) -> bool:
    """Whether a study lives in a file, and not behind a database server."""
    return bool(claims.backend(study).engine.dialect.name == "sqlite")


def open_storage(target: str | Path, *, patience_s: float = 0.0, read_only: bool = False) -> RDBStorage:
    """The storage behind a database file or URL.

    A SQLite file is opened in WAL mode with ``synchronous=NORMAL``: commits cost no disk flush and readers never
    wait; a power cut may take the last commits, a killed process takes none.

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
            file = _sqlite_file(target)
            return _open_url(str(target), read_only) if file is None else _open_file(file.resolve(), read_only)
        except ImportError as error:
            wanted = '`pip install "fpn-bench[postgres]"`' if "postgresql" in str(target) else _first_line(error)
            raise InputError(f"the study storage {shown(target)} wants a driver that is not there: {wanted}") from error
        except (StorageInternalError, SQLAlchemyError, sqlite3.Error, ValueError, RuntimeError) as error:
            cause = (error.__cause__ or error) if isinstance(error, StorageInternalError) else error
            if not isinstance(cause, OperationalError) or time.monotonic() >= deadline:
                raise InputError(f"the study storage {shown(target)} cannot be opened: {_first_line(cause)}") from error
        time.sleep(1.0)


def _sqlite_file(target: str | Path) -> Path | None:
    """The file behind a path or a ``sqlite:///`` URL; None where a server is meant."""
    if not is_url(target):
        return Path(target)
    url = sa.make_url(str(target))
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def _open_file(path: Path, read_only: bool) -> RDBStorage:
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
    return RDBStorage(f"sqlite:///{path}", {"creator": connect}, skip_table_creation=read_only)


def _open_url(url: str, read_only: bool) -> RDBStorage:
    plain = "postgresql://"
    if url.startswith(plain) and not find_spec("psycopg2") and find_spec("psycopg"):
        url = f"postgresql+psycopg://{url.removeprefix(plain)}"  # SQLAlchemy would look for psycopg2
    options = {"execution_options": {"postgresql_readonly": True}} if read_only else None
    storage = RDBStorage(url, options, skip_table_creation=read_only)
    _look_before_use(storage.engine)
    return storage


def _look_before_use(engine: sa.Engine) -> None:
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


@contextmanager
def together(study: optuna.Study) -> Iterator[None]:
    """What this thread writes to a study herein is one transaction: all of it is there, or nothing.

    Optuna commits each parameter and attribute by itself, which would be most of what a trial costs. No trial is to be
    created herein: Optuna would remember it when it is not there.
    """
    session: Any = claims.backend(study).scoped_session()  # the one that all its methods use in this thread
    commit = session.commit
    session.commit, session.close = session.flush, lambda: None
    try:
        yield
        commit()
    except SQLAlchemyError as error:
        session.rollback()
        raise StorageInternalError(_first_line(error)) from error
    except BaseException:
        session.rollback()
        raise
    finally:
        del session.commit, session.close  # the class's own again
        session.close()


def shown(target: str | Path) -> str:
    """A database file or URL as it may be printed: without its password."""
    return redact_word(str(target))


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a study's folder against a second driver; the lock dies with the process.

    A study in a database elsewhere is held by its folder too, and thus not against a driver in another folder.

    Raises:
        InputError: another driver holds it, or the folder cannot be made or written.
    """
    lock = filelock.FileLock(folder / "driver.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InputError(
            f"another search is running in {folder}: wait for it, or give this one another folder with --name"
        ) from None
    except OSError as error:
        raise InputError(
            f"the study folder {folder} cannot be written: {error.strerror or error}: give another with --results DIR"
        ) from error
    try:
        yield
    finally:
        lock.release()


def open_study(
    target: str | Path, space: ChoiceSpace, protocol: Protocol, *, name: str, metadata: Mapping[str, Any]
) -> optuna.Study:
    """Create the study, or go on with the one that is there.

    Args:
        target: database file or URL.
        space: what is searched.
        protocol: what the AP is taken under.
        name: of the study.
        metadata: what the study attribute `METADATA` says beside space, objectives and protocol. On going on, its
            ``weights`` (backbone -> id) and, where latency is judged, its ``latency_device`` must be those that are
            there; its ``warnings``, ``notes`` and ``commands`` are added to those that are there; another
            ``machine`` is warned of.

    Raises:
        ProtocolError: the study there has another protocol, space, weights or latency device; nothing was changed.
        FormatVersionError: a newer fpn_bench made it.
        InputError: the storage cannot be opened.
    """
    storage = open_storage(target)
    identity = {
        "version": STORE_VERSION,
        "protocol": protocol.id,
        "space": space.fingerprint,
        "protocol_fields": protocol.model_dump(mode="json"),
        "space_fields": space.identity,
    }
    directions = [o.direction for o in space.objectives]
    study = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
    claims.create_tables(study)
    there = study.user_attrs.get(IDENTITY)
    if there is None:
        study.set_user_attr(METADATA, _new_metadata(space, protocol, name, metadata))
        study.set_user_attr(IDENTITY, identity)  # last: with it the study is whole
        return study
    if there["version"] > STORE_VERSION:
        raise FormatVersionError(
            f"study {name!r} in {shown(target)} has store version {there['version']}, this fpn_bench reads up to "
            f"{STORE_VERSION}: `pip install --upgrade fpn-bench`"
        )
    for kind in ("protocol", "space"):
        if there[kind] != identity[kind]:
            fields = differing_fields(there[f"{kind}_fields"], identity[f"{kind}_fields"])
            differ = ", ".join(f"{f}: {json.dumps(old)} there, {json.dumps(new)} here" for f, old, new in fields)
            raise ProtocolError(
                f"study {name!r} in {shown(target)} has {kind} {there[kind]}, this run has {kind} {identity[kind]} "
                f"({differ}); their rows do not compare: give this run another --name"
            )
    before = _conditions(study.user_attrs[METADATA], space)
    for condition, here in _conditions(metadata, space).items():
        if before.get(condition, here) != here:
            raise ProtocolError(
                f"study {name!r} in {shown(target)} has {condition} {before[condition]}, this run has {here}; their "
                "rows do not compare: give this run another --name"
            )
    merged = _merged(study.user_attrs[METADATA], metadata)
    if merged != study.user_attrs[METADATA]:
        study.set_user_attr(METADATA, merged)
    return study


def write_companions(folder: Path, space: ChoiceSpace, protocol: Protocol) -> None:
    """``space.yaml`` and ``protocol.json`` beside the database, for people and for `git diff`."""
    write_text_atomic(folder / "space.yaml", space.text)
    content = {"id": protocol.id, **protocol.model_dump(mode="json")}
    write_text_atomic(folder / "protocol.json", json.dumps(content, indent=2) + "\n")


def now() -> str:
    """The time as the table has it: ISO 8601, UTC, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _new_metadata(space: ChoiceSpace, protocol: Protocol, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "notes": [],
        "warnings": [],
        "commands": [],
        "machine": {},
        "versions": {},
        "weights": {},
        **given,
        "name": name,
        "objectives": [{"name": o.name, "direction": o.direction} for o in space.objectives],
        "constraints": [c.text for c in space.constraints],
        "protocol": {"id": protocol.id, **protocol.model_dump(mode="json")},
        "space": space.text,
        "created_at": now(),
    }


def _conditions(metadata: Mapping[str, Any], space: ChoiceSpace) -> dict[str, str]:
    """Under which, beside protocol and space, all rows of a study must be taken."""
    conditions = {f"{backbone} with weights": weights for backbone, weights in metadata.get("weights", {}).items()}
    if space.needs_latency and "latency_device" in metadata:
        conditions["latency measured on"] = metadata["latency_device"]
    return conditions


def _merged(there: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**given, **there}
    warnings = list(given.get("warnings", []))
    here, before = given.get("machine", {}).get("id"), there.get("machine", {}).get("id")
    if here is not None and before is not None and here != before:
        warnings.append(f"continued on machine {here}, begun on {before}: latencies of the two do not compare")
    for key, new in (("notes", given.get("notes", [])), ("warnings", warnings)):
        merged[key] = [*there[key], *(line for line in new if line not in there[key])]
    merged["commands"] = [*map(redact_command, there["commands"]), *given.get("commands", [])]
    return merged


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    # A driver takes what follows the first "@" of a password for the host, and quotes it.
    return re.sub(r"([\"'])[^\s\"'@]*@(?=[^\s\"']*\1)", r"\1***@", redact_text(line))


@contextmanager
def storage_errors(target: str | Path) -> Iterator[None]:
    """Turn a failure of the database (disk full, server gone) into one clear error."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = error.__cause__ or error
        raise FpnBenchError(
            f"the study in {shown(target)} cannot be written: {_first_line(cause)}; what finished is safe, and the "
            "same command goes on once that is mended"
        ) from error
