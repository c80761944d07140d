"""A study as people use it: its table, its front, its metadata; running one and loading one."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pandas as pd

from fpn_bench.analysis import CHOICE_PREFIX, front, make_table, with_front_probability
from fpn_bench.analysis.rows import table_columns
from fpn_bench.errors import FormatVersionError, InputError, UnknownNameError
from fpn_bench.json_text import parse_json
from fpn_bench.redact import redact, redact_text
from fpn_bench.search import opening
from fpn_bench.search.database import (
    DATABASE,
    DATABASE_ERRORS,
    Database,
    describe_damage,
    is_url,
    open_database,
    redacted,
    study_names,
)
from fpn_bench.search.records import DETECTIONS, Columns, RunResult, Status
from fpn_bench.search.space import Space, choices_key
from fpn_bench.search.storage import QUEUED, StudyStorage
from fpn_bench.search.version1 import Version1Trials


class Study:
    """A study that was run, or is running, read from its storage at each call.

    Attributes:
        name: of the study.
        path: its folder; None when it lives in a database elsewhere.
        result: how the run ended that made this object; None when it was loaded.
    """

    result: RunResult | None = None

    def __init__(self, study: optuna.Study, storage: StudyStorage | Version1Trials, path: Path | None) -> None:
        """See `load_study`.

        Args:
            study: Optuna's, for its attributes.
            storage: the trials.
            path: the study's folder.
        """
        self._study, self._trials_store = study, storage
        self.path = path
        self.name = study.study_name

    def rows(self) -> Iterator[Columns]:
        """The stored row of each finished trial, in order, with all that was stored.

        Stopped at a rung, or interrupted, it says "continued" where a later trial took it up again.
        """
        return (row for _, row in self._trials() if row["status"] != Status.RUNNING)

    def table(self) -> pd.DataFrame:
        """One row a trial, in order, with the columns of `fpn_bench.analysis.COLUMNS` and one for each choice."""
        protocol = opening.read_metadata(self._attributes())["protocol"]["id"]
        known = {column.name for column in table_columns()}
        return make_table(self._row(trial, row, protocol, known) for trial, row in self._trials())

    def _trials(self) -> Iterator[tuple[int, Columns]]:
        """Trials that have begun, with their rows; of one under way no more than that."""
        found: list[tuple[int, Columns]] = []
        with describe_damage(self.name, DATABASE_ERRORS):
            for stored, columns in self._trials_store.all_columns():
                if stored.state != QUEUED:
                    found.append((stored.trial, columns or {"status": "running", "choices": stored.request.choices}))
        return _with_continued(found)

    def _attributes(self) -> dict[str, Any]:
        with describe_damage(self.name, DATABASE_ERRORS):
            return self._study.user_attrs

    def front(self) -> pd.DataFrame:
        """The candidates that no other beats in every objective, best first objective first.

        With the column ``front_probability``: how likely each is to be on the front, given how seeds scatter; NaN while
        no candidate has a second seed.
        """
        table, objectives = self.table(), self.metadata()["objectives"]
        chance = with_front_probability(table, objectives).set_index("candidate")["front_probability"]
        members = front(table, objectives)
        return members.assign(front_probability=members["candidate"].map(chance).to_numpy(dtype=float))

    def last_run(self) -> dict[str, Any]:
        """How the last search was called: ``space`` as written, ``budget`` and ``seed``."""
        return opening.read_run(self._attributes())

    def space(self) -> Space:
        """What the last search searched, trained as the study recorded it.

        Raises:
            SpaceError: this release cannot read it.
        """
        space = Space.parse(self.last_run()["space"], source=f"study {self.name!r}")
        return space.with_recorded_recipe(self.metadata()["protocol"]["training"])

    def metadata(self) -> dict[str, Any]:
        """The study as a whole: name, objectives, constraints, protocol, space, machine, versions, warnings ...

        With ``proxy`` where `fpn_bench.search.proxy.correlate` was run on it, and ``test`` (`test_results`).
        """
        attributes = self._attributes()
        metadata = opening.read_metadata(attributes)
        metadata["test"] = self.test_results()
        if opening.PROXY in attributes:
            metadata["proxy"] = attributes[opening.PROXY]
        redacted: dict[str, Any] = redact(metadata)  # older releases stored commands as they were typed
        return redacted

    def test_results(self) -> list[dict[str, Any]]:
        """What the necks that the search chose came to on the held-out test split; see `fpn_bench.search.held_out`.

        Of each ``candidate`` the ``seed`` of its training, ``val_ap``, ``test_ap`` and ``test_ap50`` in percent points,
        how many ``images`` the split has, and ``at``, when it was looked at.
        """
        found = [value for key, value in self._attributes().items() if key.startswith(f"{opening.TEST} ")]
        return sorted(found, key=lambda record: (record["at"], record["candidate"]))

    def add_test_result(self, record: Mapping[str, Any]) -> None:
        """Keep what one neck came to on the test split."""
        self._study.set_user_attr(f"{opening.TEST} {record['candidate']}", dict(record))

    def samples(self, candidates: Collection[str] | None = None) -> dict[str, Any] | None:
        """A few images of the val split, and what the necks found on them, as plain data for JSON.

        Args:
            candidates: ids of those whose detections to read; None is all, some 10 KB of memory each.

        Returns:
            ``classes``: names, which labels are indices into. ``images``: of each its ``name``, ``width`` and
            ``height`` of the file in pixels, a small ``jpeg`` (base64), and its ``truth``, boxes ``[x1, y1, x2, y2,
            label]`` without crowd regions. ``detections``: candidate id -> for each of the images boxes
            ``[x1, y1, x2, y2, label, score]``, the most confident first; of several seeds the lowest. All in pixels of
            the files. A candidate whose training kept none is not among them. None where the study has no images.
        """
        kept = opening.read_samples(self._attributes())
        if kept is None:
            return None
        wanted = None if candidates is None else set(candidates)
        lowest: dict[str, Mapping[str, Any]] = {}
        for row in self.rows():
            if row["status"] != "complete" or not row.get(DETECTIONS):
                continue
            name = row["candidate"]
            if (wanted is None or name in wanted) and (name not in lowest or row["seed"] < lowest[name]["seed"]):
                lowest[name] = row
        positions = [str(image["position"]) for image in kept["images"]]
        found = {name: _boxes(row[DETECTIONS]) for name, row in lowest.items()}
        return {
            "classes": kept["classes"],
            "images": [{k: v for k, v in image.items() if k != "position"} for image in kept["images"]],
            "detections": {
                name: [boxes[position] for position in positions]
                for name, boxes in found.items()
                if set(positions) <= set(boxes)  # else of other images, which another version chose
            },
        }

    def _row(self, trial: int, stored: Columns, protocol: str, known: Collection[str]) -> dict[str, Any]:
        row = {k: v for k, v in stored.items() if k in known}
        for curve in ("ap_curve", "val_loss_curve"):
            row[curve] = json.dumps(stored[curve]) if stored.get(curve) else ""
        choices = {f"{CHOICE_PREFIX}{k}": v for k, v in (stored["choices"] or {}).items()}
        row["reason"] = redact_text(str(row.get("reason") or ""))
        return {"source": "sampled", "protocol": protocol, **row, **choices, "study": self.name, "trial": trial}

    def __repr__(self) -> str:
        return f"Study({self.name!r}, {sum(1 for _ in self._trials())} trials, {self.path or 'remote'})"


def _boxes(text: Any) -> Mapping[str, Any]:
    """Detections by position; none where they are damaged."""
    try:
        found = parse_json(text)
    except (TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _with_continued(trials: list[tuple[int, Columns]]) -> Iterator[tuple[int, Columns]]:
    """Mark what a later trial took up again: stopped at a rung, or interrupted and queued again."""
    taken_up, finished = set(), {}
    for trial, row in trials:
        if row["status"] != Status.RUNNING and not row.get("interrupted"):
            finished[_work_of(row)] = trial
            if row["status"] != Status.REPEAT and row.get("continues") is not None:
                taken_up.add(row["continues"])
    for trial, row in trials:
        again = row.get("queued_again") and finished.get(_work_of(row), -1) > trial
        if again or (row["status"] == Status.STOPPED and trial in taken_up):
            row = {**row, "status": Status.CONTINUED.value}
        yield trial, row


def _work_of(row: Columns) -> tuple[str, Any, Any]:
    return choices_key(row["choices"] or {}), row.get("seed"), row.get("continues")


def load_study(path_or_url: str | Path, name: str | None = None) -> Study:
    """A study from its folder, its database file or a storage URL, to read: nothing can be written through it.

    Args:
        path_or_url: e.g. ``"results/quickstart"``, ``"results/quickstart/study.db"``, ``"postgresql://..."``.
        name: of the study, where a database holds several.

    Raises:
        InputError: there is no study; names those at hand.
    """
    target: str | Path = path_or_url
    folder: Path | None = None
    if not is_url(path_or_url):
        path = Path(path_or_url)
        target = path / DATABASE if path.is_dir() else path
        folder = Path(target).parent
        if not Path(target).is_file():
            raise InputError(f"no study at {path_or_url}: {_studies_near(path)}")
    with describe_damage(redacted(path_or_url), DATABASE_ERRORS):
        database = open_database(target, read_only=True)
        names = study_names(database)
        if name is None:  # studies of others stand in the same database, too
            names = [known for known in names if opening.IDENTITY in _optuna_study(database, known).user_attrs]
    if name is None:
        if len(names) != 1:
            listed = ", ".join(sorted(names)) or "none"
            raise InputError(f"expected one study, and {redacted(path_or_url)} holds {listed}; say name=...")
        name = names[0]
    study = study_in(database, name, folder) if name in names else None
    if study is None:
        raise UnknownNameError("study", name, names)
    return study


def _optuna_study(database: Database, name: str) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=database.optuna)


def study_in(database: Database, name: str, folder: Path | None, *, protocol: str | None = None) -> Study | None:
    """A study of a database, to read; None where something else than fpn_bench made it, or under another protocol.

    Raises:
        InputError: it is damaged.
        FormatVersionError: a newer fpn_bench made it.
    """
    with describe_damage(name, DATABASE_ERRORS):
        study = _optuna_study(database, name)
        attributes = study.user_attrs
    if opening.IDENTITY not in attributes:
        return None
    identity = opening.read_identity(attributes)
    if protocol is not None and identity["protocol"] != protocol:
        return None
    version = identity["version"]
    if version > opening.STORE_VERSION:
        raise FormatVersionError(
            f"study {name!r} has store version {version}, this fpn_bench reads up to {opening.STORE_VERSION}: "
            "`pip install --upgrade fpn-bench`"
        )
    if version == opening.STORE_VERSION:
        return Study(study, StudyStorage(database.engine, identity["key"]), folder)
    return Study(study, Version1Trials(database.engine, study), folder)


def _studies_near(path: Path) -> str:
    """The studies near a path that holds none."""
    folders = dict.fromkeys([path, path.parent, Path("results")])
    found = sorted({str(db.parent) for f in folders if f.is_dir() for db in f.glob(f"*/{DATABASE}")})
    return f"at hand are {', '.join(found)}" if found else "none is at hand; `fpn-bench search` makes one"
