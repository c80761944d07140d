"""A study as people use it: its table, its front, its metadata; running one and loading one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from fpn_bench.analysis import CHOICE_PREFIX, COLUMNS, front, make_table, with_front_probability
from fpn_bench.errors import InputError, UnknownNameError
from fpn_bench.redact import redact, redact_text
from fpn_bench.search import driver, store
from fpn_bench.search.claims import Claims
from fpn_bench.search.driver import Evaluator, Event, RunResult
from fpn_bench.search.ledger import DETECTIONS, stored_rows
from fpn_bench.search.space import ChoiceSpace
from fpn_bench.search.workers import Executor, Job, LocalExecutor, oversee
from fpn_bench.training.protocol import Protocol

_log = logging.getLogger(__name__)

_COLUMNS = {column.name for column in COLUMNS}


class Study:
    """A study that was run, or is running, read from its storage at each call.

    Attributes:
        name: of the study.
        path: its folder; None when it lives in a database elsewhere.
        result: how the run ended that made this object; None when it was loaded.
    """

    result: RunResult | None = None

    def __init__(self, study: optuna.Study, path: Path | None) -> None:
        """See `load_study`."""
        self._study = study
        self.path = path
        self.name = study.study_name

    def table(self) -> pd.DataFrame:
        """One row a trial, in order, with the columns of `fpn_bench.analysis.COLUMNS` and one for each choice."""
        rows = stored_rows(self._study)
        return make_table(self._row(t, row) for t, row in rows if t.state is not TrialState.WAITING)

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
        run: dict[str, Any] = self._study.user_attrs[store.RUN]
        return run

    def metadata(self) -> dict[str, Any]:
        """The study as a whole: name, objectives, constraints, protocol, space, machine, versions, warnings ...

        With ``proxy`` where `fpn_bench.search.proxy.correlate` was run on it.
        """
        attributes = self._study.user_attrs
        metadata: dict[str, Any] = attributes[store.METADATA]
        if store.PROXY in attributes:
            metadata = {**metadata, "proxy": attributes[store.PROXY]}
        redacted: dict[str, Any] = redact(metadata)  # older releases stored commands as they were typed
        return redacted

    def samples(self, candidates: Collection[str] | None = None) -> dict[str, Any] | None:
        """A few images of the val split, and what the necks found on them, as plain data for JSON.

        Args:
            candidates: ids of those whose detections are wanted; None is all, some 10 KB of memory each.

        Returns:
            ``classes``: names, which labels are indices into. ``images``: of each its ``name``, ``width`` and
            ``height`` of the file in pixels, a small ``jpeg`` (base64), and its ``truth``, boxes ``[x1, y1, x2, y2,
            label]`` without crowd regions. ``detections``: candidate id -> for each of the images boxes
            ``[x1, y1, x2, y2, label, score]``, the most confident first; of several seeds the lowest. All in pixels of
            the files. A candidate whose training kept none is not among them. None where the study has no images.
        """
        kept = self._study.user_attrs.get(store.SAMPLES)
        if kept is None:
            return None
        wanted = None if candidates is None else set(candidates)
        lowest: dict[str, Mapping[str, Any]] = {}
        for _, row in stored_rows(self._study):
            if row is None or row["status"] != "complete" or not row.get(DETECTIONS):
                continue
            name = row["candidate"]
            if (wanted is None or name in wanted) and (name not in lowest or row["seed"] < lowest[name]["seed"]):
                lowest[name] = row
        positions = [str(image["position"]) for image in kept["images"]]
        found = {name: json.loads(row[DETECTIONS]) for name, row in lowest.items()}
        return {
            "classes": kept["classes"],
            "images": [{k: v for k, v in image.items() if k != "position"} for image in kept["images"]],
            "detections": {
                name: [boxes[position] for position in positions]
                for name, boxes in found.items()
                if set(positions) <= set(boxes)  # else of other images, which another version chose
            },
        }

    def _row(self, trial: FrozenTrial, stored: Mapping[str, Any] | None) -> dict[str, Any]:
        stored = stored or {"status": "running", "choices": trial.params}
        row = {k: v for k, v in stored.items() if k in _COLUMNS}
        row["ap_curve"] = json.dumps(stored["ap_curve"]) if stored.get("ap_curve") else ""
        choices = {f"{CHOICE_PREFIX}{k}": v for k, v in (stored["choices"] or {}).items()}
        protocol = self._study.user_attrs[store.METADATA]["protocol"]["id"]
        return {
            "source": "sampled",
            "protocol": protocol,
            **row,
            **choices,
            "reason": redact_text(str(row.get("reason") or "")),
            "study": self.name,
            "trial": trial.number,
        }

    def __repr__(self) -> str:
        return f"Study({self.name!r}, {len(self._study.get_trials(deepcopy=False))} trials, {self.path or 'remote'})"


def run_study(
    space: ChoiceSpace,
    evaluator: Evaluator,
    protocol: Protocol,
    folder: str | Path,
    *,
    storage: str | None = None,
    name: str | None = None,
    budget: float | None = None,
    seed: int = 0,
    columns: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    samples: Callable[[], Mapping[str, Any] | None] | None = None,
    share: bool = True,
    workers: int = 1,
    executor: Executor | None = None,
    prepare: Callable[[int], tuple[Evaluator, Mapping[str, Any]]] | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> tuple[Study, RunResult]:
    """Begin a study, or go on with the one in ``folder``, until its budget is spent.

    Trials that are under way when this begins, and whose worker is gone, are queued again. The folder is held against a
    second search; further workers join a study by `fpn_bench.search.run.join`.

    Args:
        space: what is searched.
        evaluator: describes, times and trains candidates.
        protocol: what the AP is taken under.
        folder: where the study lives, e.g. ``results/quickstart``.
        storage: URL of a database server instead of ``folder/study.db``.
        name: of the study; the folder's by default.
        budget: whole trainings to pay for in all; the space's by default.
        seed: of the trainings.
        columns: table columns equal in every row (protocol, data set, machine, versions ...).
        share: take over what other studies in the same storage, or in the folders beside this one, have trained under
            this protocol.
        workers: how many; several need ``prepare``.
        executor: where they run; None is this process for one, processes of this machine for several.
        prepare: makes the evaluator of the worker of a number, and its columns; must be picklable.
        metadata: ``machine``, ``versions``, ``notes``, ``warnings``, ``commands``, as `store.open_study` takes them.
        samples: makes the images that `Study.samples` shows, see `fpn_bench.detection.samples.sample_images`; called
            where the study has none yet.
        on_event: called with what happens, for display.

    Returns:
        The study and how the run ended.

    Raises:
        ProtocolError: the folder holds a study of another protocol or space; nothing was changed.
        SpaceError: no candidate can be built, or none is within the bounds; nothing was written.
        InputError: another driver is at work in the folder, or the folder or storage cannot be opened.
    """
    space.check()
    folder = Path(folder)
    name = name or folder.resolve().name
    target: str | Path = storage or folder / store.DATABASE
    with ExitStack() as stack:
        stack.enter_context(store.exclusive(folder))
        stack.enter_context(store.storage_errors(target))
        driver.check_feasible(space, evaluator)
        study = store.open_study(target, space, protocol, name=name, metadata=metadata or {})
        store.write_companions(folder, space, protocol)
        if samples is not None and store.SAMPLES not in study.user_attrs and (shown := samples()) is not None:
            study.set_user_attr(store.SAMPLES, shown)
        study.set_user_attr(store.RUN, {"space": space.text, "budget": budget, "seed": seed})
        _take_over(study, space, seed)
        shared = {"protocol": protocol.id, "study": name, **(columns or {})}
        known = shared_rows(target, folder, name, protocol.id, seed) if share else {}
        if executor is None and workers == 1:
            result = driver.run(
                space, study, evaluator, budget=budget, seed=seed, columns=shared, shared=known, on_event=on_event
            )
        else:
            if prepare is None:
                raise InputError(f"workers={workers} came without prepare=, which makes the evaluator of each")
            given = partial(_with_columns, prepare, shared)
            job = Job(str(target), name, space, given, budget, seed, known)
            result = oversee(job, executor or LocalExecutor(workers), workers, on_event=on_event)
    return Study(study, folder), result


def _with_columns(
    prepare: Callable[[int], tuple[Evaluator, Mapping[str, Any]]], columns: Mapping[str, Any], number: int
) -> tuple[Evaluator, Mapping[str, Any]]:
    evaluator, own = prepare(number)
    return evaluator, {**columns, **own}


def shared_rows(
    target: str | Path, folder: Path, name: str, protocol: str, seed: int
) -> dict[tuple[str, int], Mapping[str, Any]]:
    """Complete rows of other studies of a protocol, by candidate and seed.

    Looked for in the same storage, and in the databases of the folders beside ``folder``. One that cannot be read is
    passed over: a search can do without.

    Args:
        target: the storage of the study that asks.
        folder: of that study.
        name: of that study, which is left out.
        protocol: id; rows of another do not compare.
        seed: rows with a lower one are none of this run's.
    """
    found: dict[tuple[str, int], Mapping[str, Any]] = {}
    beside = sorted(p for p in folder.resolve().parent.glob(f"*/{store.DATABASE}") if p.parent != folder.resolve())
    for place in dict.fromkeys([target, *beside]):
        try:
            storage = store.open_storage(place, read_only=True)
            for summary in optuna.get_all_study_summaries(storage):
                identity = summary.user_attrs.get(store.IDENTITY, {})
                own = place == target and summary.study_name == name
                if own or identity.get("protocol") != protocol:
                    continue
                study = optuna.load_study(study_name=summary.study_name, storage=storage)
                for _, row in stored_rows(study):
                    if row is not None and row["status"] == "complete" and row["seed"] >= seed:
                        found.setdefault((row["candidate"], row["seed"]), {**row, "study": summary.study_name})
        except (InputError, StorageInternalError, SQLAlchemyError, KeyError) as error:
            _log.info("%s is passed over: %s", store.shown(place), redact_text(str(error)))
    return found


def _take_over(study: optuna.Study, space: ChoiceSpace, seed: int) -> None:
    """See to what earlier workers left, and queue what is to be asked first."""
    claims = Claims(study)
    try:
        driver.recover(study, space, claims, seed=seed)
        driver.begin(study, space, seed=seed)
    finally:
        claims.leave()


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
    if not store.is_url(path_or_url):
        path = Path(path_or_url)
        target = path / store.DATABASE if path.is_dir() else path
        folder = Path(target).parent
        if not Path(target).is_file():
            raise InputError(f"no study at {path_or_url}: {_at_hand(path)}")
    try:
        storage = store.open_storage(target, read_only=True)
        names = {s.study_name for s in optuna.get_all_study_summaries(storage) if store.IDENTITY in s.user_attrs}
    except (StorageInternalError, SQLAlchemyError) as error:
        raise InputError(
            f"no study at {store.shown(path_or_url)}: it is no study database ({redact_text(str(error))})"
        ) from error
    if name is not None and name not in names:
        raise UnknownNameError("study", name, names)
    if name is None:
        if len(names) != 1:
            listed = ", ".join(sorted(names)) or "none"
            raise InputError(f"one study is wanted and {store.shown(path_or_url)} holds {listed}; say name=...")
        name = names.pop()
    return Study(optuna.load_study(study_name=name, storage=storage), folder)


def _at_hand(path: Path) -> str:
    """The studies near a path that holds none."""
    folders = dict.fromkeys([path, path.parent, Path("results")])
    found = sorted({str(db.parent) for f in folders if f.is_dir() for db in f.glob(f"*/{store.DATABASE}")})
    return f"at hand are {', '.join(found)}" if found else "none is at hand; `fpn-bench search` makes one"
