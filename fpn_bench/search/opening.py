"""A study's folder and database, opened: created, continued, refused where another's, upgraded where old."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import filelock
import optuna
from optuna.exceptions import DuplicatedStudyError
from pydantic import BaseModel, ConfigDict, ValidationError

from fpn_bench.analysis import differing_fields
from fpn_bench.errors import FormatVersionError, InputError, ProtocolError
from fpn_bench.paths import write_text_atomic
from fpn_bench.redact import redact_text
from fpn_bench.search.database import (
    DATABASE_ERRORS,
    Database,
    describe_damage,
    open_database,
    redacted,
    sqlite_file,
)
from fpn_bench.search.space import ChoiceSpace
from fpn_bench.search.storage import StudyStorage, create_study, create_tables
from fpn_bench.search.version1 import upgrade
from fpn_bench.training.protocol import Protocol

METADATA = "metadata"
"""Study attribute: everything reports say about a study as a whole, as it was begun. What later runs and workers add
stands beside it, one attribute each, so that nobody overwrites what another adds: see `add_metadata`."""
IDENTITY = "identity"
"""Study attribute: what must be equal for two rows to stand in one study, and the study's key in our tables."""
TEST = "test"
"""Study attributes begin so that keep a neck's figures on the test split, see `fpn_bench.search.held_out`."""
RUN = "run"
"""Study attribute: how the last search was called (space as written, budget, seed), for workers that join it."""
SAMPLES = "samples"
"""Study attribute: the images that `DETECTIONS` speaks of, see `fpn_bench.detection.samples.sample_images`."""
PROXY = "proxy"
"""Study attribute: times the epochs -> candidates that were trained so much longer too, see
`fpn_bench.search.proxy.correlate`."""
STORE_VERSION = 2


class _Attribute(BaseModel):
    """What a study attribute has for sure; others may stand beside it."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Identity(_Attribute):
    version: int = 1
    protocol: str
    space: str
    protocol_fields: dict[str, Any]
    space_fields: dict[str, Any]
    key: str = ""


class _Id(_Attribute):
    id: str


class _Objective(_Attribute):
    name: str
    direction: Literal["minimize", "maximize"]


class _Added(_Attribute):
    notes: list[str] = []
    warnings: list[str] = []
    commands: list[str] = []


class _Metadata(_Added):
    name: str
    objectives: list[_Objective]
    constraints: list[str]
    protocol: _Id
    space: str
    created_at: str
    machine: dict[str, Any] = {}
    versions: dict[str, str | None] = {}
    weights: dict[str, str | None] = {}


class _Run(_Attribute):
    space: str
    budget: float | None
    seed: int


class _Samples(_Attribute):
    classes: list[str]
    images: list[dict[str, Any]]


@dataclass(frozen=True)
class OpenStudy:
    """A study that may be written.

    Attributes:
        database: where it lives.
        name: of it.
        storage: its trials.
        optuna: Optuna's study, for its attributes.
    """

    database: Database
    name: str
    storage: StudyStorage
    optuna: optuna.Study


@contextmanager
def lock_study_folder(folder: Path) -> Iterator[None]:
    """Hold a study's folder against a second search; the lock dies with the process.

    A study in a database elsewhere is held by its folder too, and thus not against a search in another folder.

    Raises:
        InputError: another search holds it, or the folder cannot be made or written.
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


def check_name(name: str) -> str:
    """The name of a study, which is also the name of its folder.

    Raises:
        InputError: it is a path, or empty.
    """
    if not name.strip() or name in (".", "..") or set(name) & set("/\\\0") or name != name.strip():
        raise InputError(
            f"expected the name of a study, got {name!r}: a name has no slashes; say where its folder is with "
            "--results DIR (results=...)"
        )
    return name


def open_study(
    target: str | Path, space: ChoiceSpace, protocol: Protocol, *, name: str, metadata: Mapping[str, Any]
) -> OpenStudy:
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
        InputError: the storage cannot be opened, or what has this name there is no study of fpn_bench.
    """
    refuse_foreign(target, name, space)
    database = open_database(target)
    identity: dict[str, Any] = {
        "version": STORE_VERSION,
        "protocol": protocol.id,
        "space": space.fingerprint,
        "protocol_fields": protocol.model_dump(mode="json"),
        "space_fields": space.identity,
        "key": uuid.uuid4().hex,
    }
    with describe_damage(name):
        study = _open_or_create(database, space, name)
        attributes = study.user_attrs
    if IDENTITY not in attributes:
        create_tables(database.engine)
        storage = create_study(database.engine, identity["key"])
        study.set_user_attr(METADATA, _new_metadata(space, protocol, name, metadata))
        study.set_user_attr(IDENTITY, identity)  # last: with it the study is whole
        return OpenStudy(database, name, storage, study)
    there = read_identity(attributes)
    check_identity(there, identity, target, name)
    before = _conditions(read_metadata(attributes), space)
    for condition, here in _conditions(metadata, space).items():
        if before.get(condition, here) != here:
            raise ProtocolError(
                f"study {name!r} in {redacted(target)} has {condition} {before[condition]}, this run has {here}; their "
                "rows do not compare: give this run another --name"
            )
    create_tables(database.engine)
    if there["version"] < STORE_VERSION:
        with describe_damage(name):
            key = upgrade(database, study, space)
        study.set_user_attr(IDENTITY, {**there, "version": STORE_VERSION, "key": key})
    else:
        key = there["key"]
    add_metadata(study, metadata)
    return OpenStudy(database, name, create_study(database.engine, key), study)


def open_existing(database: Database, name: str) -> OpenStudy:
    """A study that is there, to be written.

    Raises:
        InputError: it is not there, or was not opened by `open_study` before.
    """
    missing = InputError(f"no study {name!r} in {redacted(database.target)}")
    with describe_damage(name):
        try:
            study = optuna.load_study(study_name=name, storage=database.optuna)
        except KeyError:
            raise missing from None
        attributes = study.user_attrs
    if IDENTITY not in attributes or not (key := read_identity(attributes).get("key")):
        raise missing
    return OpenStudy(database, name, StudyStorage(database.engine, key), study)


def _open_or_create(database: Database, space: ChoiceSpace, name: str) -> optuna.Study:
    directions = [o.direction for o in space.objectives]
    try:
        return optuna.create_study(storage=database.optuna, study_name=name, directions=directions)
    except DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=database.optuna)
    deadline = time.monotonic() + 2.0
    while not study.user_attrs and not study.get_trials(deepcopy=False) and time.monotonic() < deadline:
        time.sleep(0.1)  # another process has just created it and has not said yet what it is
    return study


def refuse_foreign(target: str | Path, name: str, space: ChoiceSpace) -> None:
    """Look at what is there, without writing.

    Raises:
        InputError: it has a study of this name that something else than fpn_bench made.
    """
    file = sqlite_file(target)
    if file is not None and not file.exists():
        return
    try:
        study = optuna.load_study(study_name=name, storage=open_database(target, read_only=True).optuna)
        attributes = study.user_attrs
        if IDENTITY in attributes:
            return
        begun = bool(study.get_trials(deepcopy=False))
        begun |= [d.name.lower() for d in study.directions] != [o.direction for o in space.objectives]
    except (LookupError, ValueError, InputError, *DATABASE_ERRORS):
        return  # nothing there yet, or what opening it for writing will name
    if begun or set(attributes) - {METADATA}:  # a bare one was left by a process that died
        raise InputError(
            f"study {name!r} in {redacted(target)} was not made by fpn_bench, and nothing was written into it: give "
            "this run another --name"
        )


def check_identity(there: Mapping[str, Any], here: Mapping[str, Any], target: str | Path, name: str) -> None:
    """Raise where the rows of two studies do not compare."""
    if there["version"] > STORE_VERSION:
        raise FormatVersionError(
            f"study {name!r} in {redacted(target)} has store version {there['version']}, this fpn_bench reads up to "
            f"{STORE_VERSION}: `pip install --upgrade fpn-bench`"
        )
    for kind in ("protocol", "space"):
        old_fields, new_fields = (_without_weight_files(fields[f"{kind}_fields"]) for fields in (there, here))
        if there[kind] != here[kind] and old_fields != new_fields:
            fields = differing_fields(there[f"{kind}_fields"], here[f"{kind}_fields"])
            differ = ", ".join(f"{f}: {json.dumps(old)} there, {json.dumps(new)} here" for f, old, new in fields)
            raise ProtocolError(
                f"study {name!r} in {redacted(target)} has {kind} {there[kind]}, this run has {kind} {here[kind]} "
                f"({differ}); their rows do not compare: give this run another --name"
            )


def _without_weight_files(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies a space, but for where its backbones' weights lie: which they are, their hash says
    (`_conditions`)."""
    plain: dict[str, Any] = json.loads(json.dumps(fields))
    if isinstance(plain.get("backbone"), list):
        plain["backbone"] = [{k: v for k, v in entry.items() if k != "weights"} for entry in plain["backbone"]]
    return plain


def write_companions(folder: Path, space: ChoiceSpace, protocol: Protocol) -> None:
    """``space.yaml`` and ``protocol.json`` beside the database, for people and for `git diff`."""
    write_text_atomic(folder / "space.yaml", space.text)
    content = {"id": protocol.id, **protocol.model_dump(mode="json")}
    write_text_atomic(folder / "protocol.json", json.dumps(content, indent=2) + "\n")


# --------------------------------------------------------------------------------------------------------------
# Metadata


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
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def add_metadata(study: optuna.Study, given: Mapping[str, Any]) -> None:
    """Add what a later run or worker says, where it says anything new: its conditions, notes, warnings, commands."""
    there = read_metadata(study.user_attrs)
    warnings = list(given.get("warnings", []))
    here, before = given.get("machine", {}).get("id"), there.get("machine", {}).get("id")
    if here is not None and before is not None and here != before:
        warnings.append(f"continued on machine {here}, begun on {before}: latencies of the two do not compare")
    added: dict[str, Any] = {k: v for k, v in given.items() if k not in there}
    for key, lines in (("notes", given.get("notes", [])), ("warnings", warnings)):
        added[key] = [line for line in lines if line not in there[key]]
    added["commands"] = list(given.get("commands", []))
    if any(added.values()):
        study.set_user_attr(f"{METADATA} {time.time_ns():020d} {uuid.uuid4().hex[:8]}", added)


def add_run(
    study: optuna.Study, samples: Callable[[], Mapping[str, Any] | None] | None, run: Mapping[str, Any]
) -> None:
    """Say how a search was called, and with ``samples`` which images its reports show, where the study has none."""
    if samples is not None and SAMPLES not in study.user_attrs and (images := samples()) is not None:
        study.set_user_attr(SAMPLES, images)
    study.set_user_attr(RUN, run)


def _read(attributes: Mapping[str, Any], key: str, kind: type[_Attribute]) -> dict[str, Any]:
    """A study attribute as it was written.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        kind.model_validate(attributes[key])
        return dict(attributes[key])
    except KeyError:
        raise InputError(f"the study is damaged: its attribute {key!r} is missing") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, (key, *first["loc"])))
        if first["type"] == "missing":
            raise InputError(f"the study is damaged: {where} is missing") from None
        got = redact_text(str(first["input"]))[:60]  # in this order: cut off, a password is not known as one
        raise InputError(f"the study is damaged: {where} is {got!r}: {first['msg']}") from None


def read_identity(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What a study is, see `IDENTITY`. Raises InputError where that is damaged."""
    identity = {"version": 1, **_read(attributes, IDENTITY, _Identity)}
    if identity["version"] == STORE_VERSION and not identity.get("key"):
        raise InputError(f"the study is damaged: {IDENTITY}.key is missing")
    return identity


def read_run(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """How the last search was called, see `RUN`. Raises InputError where that is damaged."""
    return _read(attributes, RUN, _Run)


def read_samples(attributes: Mapping[str, Any]) -> dict[str, Any] | None:
    """The sample images, see `SAMPLES`; None where the study has none. Raises InputError where they are damaged."""
    return _read(attributes, SAMPLES, _Samples) if attributes.get(SAMPLES) is not None else None


def read_metadata(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a study, with all that was added to it. Raises InputError where it is damaged."""
    metadata = _read(attributes, METADATA, _Metadata)
    for name in sorted(name for name in attributes if name.startswith(f"{METADATA} ")):
        added = _read(attributes, name, _Added)
        metadata = {**added, **metadata}
        for key in ("notes", "warnings"):
            metadata[key] = list(dict.fromkeys([*metadata[key], *added.get(key, [])]))
        metadata["commands"] = [*metadata["commands"], *added.get("commands", [])]
    return metadata


def _conditions(metadata: Mapping[str, Any], space: ChoiceSpace) -> dict[str, str]:
    """Under which, beside protocol and space, all rows of a study must be taken."""
    conditions = {f"{backbone} with weights": weights for backbone, weights in metadata.get("weights", {}).items()}
    if space.measured and "latency_device" in metadata:
        conditions["latency measured on"] = metadata["latency_device"]
    return conditions
