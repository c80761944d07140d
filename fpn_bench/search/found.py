"""What a search found, taken up again: of a study and a trial, its candidate on a workbench; and its full training."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import filelock
import torch

from fpn_bench.analysis import differing_fields, write_text_atomic
from fpn_bench.assess import Workbench
from fpn_bench.backbones import Backbone
from fpn_bench.candidate import Candidate
from fpn_bench.errors import FormatVersionError, InputError, ProtocolError
from fpn_bench.json_text import parse_json
from fpn_bench.model import DetectorSpec, ImageDetector
from fpn_bench.profiling import check_device, failures_told, machine
from fpn_bench.search.ledger import Row, stored_rows
from fpn_bench.search.run import DetectorEvaluator, OnLoad, adapted, prepare, source_of
from fpn_bench.search.space import Space
from fpn_bench.search.study import Study, load_study
from fpn_bench.training.checkpoint import Checkpoint
from fpn_bench.training.full import FullProgress, FullTraining
from fpn_bench.training.full import Row as Epoch
from fpn_bench.training.full_recipe import FullRecipe
from fpn_bench.training.log import TrainingLog
from fpn_bench.training.processes import Processes

TRAIN_SCHEMA: Final = 1
_SHORTEST_ID: Final = 6
"""Fewer digits than these are a trial's number, never how a candidate's id begins."""
MODEL, BEST, RECORD = "model.safetensors", "best.safetensors", "train.json"
"""In a training's folder: the detector with the last weights, with those of the best AP, and what was done."""


@dataclass(frozen=True)
class Found:
    """A candidate of a study, on a workbench with its data set, backbone and recipe.

    Attributes:
        study: where it was found.
        row: its row there; ``row["trial"]``, ``row["seed"]``, ``row["ap"]`` (None where it was not trained) ...
        bench: can assess it: ``bench.trained(candidate, row["seed"])`` is the training behind the row,
            ``bench.protocol.training`` its recipe, ``bench.dataset`` its data set.
        candidate: what it is.
        backbone: its own, mounted on the bench.
        weights: where the backbone's weights came from: a file, ``"hub"``, ``"pip:PACKAGE"`` or None (random).
        differences: fields in which the bench's protocol is not the study's, each (field, there, here): AP figures of
            the two do not compare. Empty unless ``data`` named another data set, or the study is of another release.
    """

    study: Study
    row: Mapping[str, Any]
    bench: Workbench
    candidate: Candidate
    backbone: Backbone
    weights: str | None
    differences: tuple[tuple[str, Any, Any], ...]

    @property
    def spec(self) -> DetectorSpec:
        """What its detector is made of; `fpn_bench.ImageDetector.build` makes it, `weights` are its backbone's."""
        return self.bench.spec(self.candidate)


def found(
    study: Study | str | Path,
    trial: int | str | None = None,
    *,
    data: str | Path | None = None,
    weights: str | None = None,
    cache: str | Path | None = None,
    device: str = "cpu",
    on_load: OnLoad | None = None,
) -> Found:
    """A candidate of a study, ready to be trained further or exported.

    Args:
        study: a loaded one, or what `fpn_bench.load_study` takes.
        trial: its number, or the beginning of its candidate's id; None is the best AP of the front.
        data: folder of the data set, where it lies elsewhere than when the search was begun, or of another one.
        weights: of the backbone, likewise; they must be the ones that the study was begun with.
        cache: folder of features and drawn data; None is `fpn_bench.cache_home.cache_home`.
        device: of the workbench.
        on_load: called while the data set is read.

    Raises:
        InputError: there is no such study or trial, or what it needs cannot be had here.
        ProtocolError: what is made here is another candidate than the trial's, e.g. for other weights.
    """
    study = study if isinstance(study, Study) else load_study(study)
    row = _row(study, trial)
    space = Space.parse(study.last_run()["space"], source=f"study {study.name!r}")
    space = _narrowed(adapted(space, data, None, None, {}), row["choices"], weights)
    bench, _ = prepare(space, device=device, cache=cache, on_load=on_load)
    candidate: Candidate = DetectorEvaluator(space, bench).describe(row["choices"]).candidate
    source = source_of(space.backbone(row["choices"]))
    if candidate.id != row["candidate"]:
        raise ProtocolError(
            f"trial {row['trial']} of study {study.name!r} is candidate {row['candidate']} with weights "
            f"{row['weights']}, and {candidate.id} with {candidate.backbone.weights} came of it here: give the weights "
            "that the study was begun with (--weights), or take the fpn_bench that it was made with"
        )
    there = {k: v for k, v in study.metadata()["protocol"].items() if k != "id"}
    differences = tuple(differing_fields(there, bench.protocol.model_dump(mode="json")))
    if data is None and (changed := [d for d in differences if d[0] == "dataset_hash"]):
        raise ProtocolError(
            f"the data set of study {study.name!r} has changed since (hash {changed[0][1][:12]} there, "
            f"{changed[0][2][:12]} here): name the one to take with --data DIR"
        )
    return Found(study, row, bench, candidate, bench.mount(source), source.weights, differences)


def _narrowed(space: Space, choices: Mapping[str, Any], weights: str | None) -> Space:
    """The space with no backbone but that of a choice set, which is all that is mounted then; its choices stay."""
    entry = space.backbone(choices)
    narrowed = copy.copy(space)
    narrowed.backbones = (entry if weights is None else entry.model_copy(update={"weights": str(weights)}),)
    return narrowed


def _row(study: Study, trial: int | str | None) -> Row:
    """The row that is meant, of a candidate that could be built."""
    rows = [row for _, row in stored_rows(study._study) if row is not None and row.get("candidate")]
    if trial is None:
        front = study.front()
        if not len(front):
            raise InputError(f"study {study.name!r} has no complete trial yet: let it go on, or name one with --trial")
        return _best_known(rows, str(front.sort_values("ap")["candidate"].iloc[-1]))
    text = str(trial)
    if text.isdecimal():
        for row in rows:
            if row["trial"] == int(text):
                return row
    is_number = isinstance(trial, int) or (text.isdecimal() and len(text) < _SHORTEST_ID)
    named = [] if is_number else sorted({row["candidate"] for row in rows if row["candidate"].startswith(text)})
    if len(named) == 1 and trial != "":
        return _best_known(rows, named[0])
    if named:
        raise InputError(f"trial {trial!r} came, and candidates {', '.join(named[:4])} ... begin so: say more of it")
    there = [row["trial"] for row in rows if row["status"] == "complete"]
    wanted = f"complete are {_listed(there)}" if there else "none is complete"
    raise InputError(f"study {study.name!r} has no candidate of trial {trial}: {wanted}")


def _best_known(rows: Sequence[Row], candidate: str) -> Row:
    """Of the rows of a candidate the complete one of the lowest seed, else the last."""
    own = [row for row in rows if row["candidate"] == candidate]
    return min((row for row in own if row["status"] == "complete"), key=lambda row: row["seed"], default=own[-1])


def _listed(numbers: Sequence[int], most: int = 12) -> str:
    return ", ".join(map(str, numbers[:most])) + (" ..." if len(numbers) > most else "")


@dataclass(frozen=True)
class Trained:
    """A full training that is done.

    Attributes:
        folder: where its files are.
        about: what stands in the detector's file and in `RECORD`: study, trial, candidate, seed, recipe, AP ...
        fresh: trained in this call; False where it was found done.
    """

    folder: Path
    about: Mapping[str, Any]
    fresh: bool

    @property
    def model(self) -> Path:
        """The detector, see `fpn_bench.ImageDetector.load`."""
        return self.folder / MODEL


def train_found(
    found: Found,
    folder: str | Path | None = None,
    *,
    recipe: FullRecipe | None = None,
    seed: int = 0,
    device: str = "cpu",
    workers: int = 0,
    eval_every: int = 1,
    checkpoint_minutes: float = 10.0,
    processes: Processes | None = None,
    on_progress: Callable[[FullProgress], None] | None = None,
) -> Trained:
    """Train a found detector to the end, from the beginning or from where an earlier call was broken off.

    The folder then holds `MODEL`: the averaged weights after the last epoch, which no choice on the val split has made
    look better; `BEST`: those of the epoch with the best AP; `RECORD`; ``log.csv``, an epoch a row; and, where
    TensorBoard is installed, ``tensorboard/``.

    Args:
        found: what to train.
        folder: of the training, one for all processes; None is ``trained/trial-N`` in the study's.
        recipe: None is the study's own, for longer and on images, see `FullRecipe.after`.
        seed: of the initial weights and the training.
        device: where it is trained and evaluated; of several processes ``"cuda"`` is a GPU each.
        workers: processes that load images, for each that trains.
        eval_every: AP on val after every so many epochs, and after the last.
        checkpoint_minutes: between two checkpoints within an epoch; there is one after each epoch in any case.
        processes: those that train together; None is what torchrun says.
        on_progress: called in the first process, see `FullTraining.run`.

    Raises:
        ProtocolError: the folder holds a training of something else, or with other settings; nothing was changed.
        InputError: the folder is in use, or something that was given cannot be used.
        TrialError: the loss is no longer finite, or the detector cannot be trained here, e.g. because memory runs out.
    """
    recipe = recipe or FullRecipe.after(found.bench.protocol.training)
    folder = Path(folder) if folder is not None else _folder(found)
    processes = processes or Processes.here()
    settings = {
        "candidate": found.candidate.id,
        "dataset_hash": found.bench.dataset.hash,
        "seed": seed,
        "recipe": recipe.model_dump(mode="json"),
    }
    done = _done(folder, settings)
    if done is not None:
        return Trained(folder, done, fresh=False)
    where = check_device(processes.device(device))
    with _held(folder, processes), processes.joined(where), failures_told():
        # Another call may have ended since. Nobody writes now, so all processes read the same.
        done = _done(folder, settings)
        if done is not None:
            return Trained(folder, done, fresh=False)
        splits = found.bench.dataset.splits
        training = FullTraining(
            found.bench.detector(found.candidate, seed),
            found.backbone,
            splits["train"],
            splits["val"],
            image_size=found.candidate.image_size,
            recipe=recipe,
            seed=seed,
            device=where,
            processes=processes,
        )
        if processes.is_first:
            _record(folder, {"status": "running", "settings": settings})
        identity = f"full training {json.dumps(settings, sort_keys=True)}"
        checkpoint = Checkpoint(folder / "checkpoint.pt", identity, every_s=60 * checkpoint_minutes)
        training.begin(checkpoint)

        def keep(name: str) -> None:
            about = _about(found, training, settings)
            detector = copy.deepcopy(training.detector).cpu()
            ImageDetector(found.spec, training.trained_backbone(), detector, about).save(folder / name)

        def keep_best() -> None:
            if training.best is training.rows[-1]:
                keep(BEST)

        with _logged(folder, training, processes) as log:

            def progress(now: FullProgress) -> None:
                if now.row is not None and log is not None:
                    log.write(training.rows)
                if on_progress is not None:
                    on_progress(now)

            training.run(
                checkpoint=checkpoint,
                eval_every=eval_every,
                workers=workers,
                on_progress=progress,
                on_evaluated=keep_best,
            )
        if processes.is_first:
            keep(MODEL)
            _record(folder, {"status": "finished", "settings": settings, "about": _about(found, training, settings)})
            checkpoint.delete()
        processes.wait()
    about = _done(folder, settings)  # as all processes read it: only the first knows the AP
    assert about is not None
    return Trained(folder, about, fresh=True)


def _folder(found: Found) -> Path:
    if found.study.path is None:
        raise InputError(f"study {found.study.name!r} lives in a database: say where its detector goes with --out DIR")
    return found.study.path / "trained" / f"trial-{found.row['trial']}"


def _record(folder: Path, content: Mapping[str, Any]) -> None:
    write_text_atomic(folder / RECORD, json.dumps({"schema_version": TRAIN_SCHEMA, **content}, indent=2) + "\n")


def _done(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is told of the training in the folder, where it is done; None where it is to be begun or gone on with."""
    path = folder / RECORD
    if not path.is_file():
        if foreign := [name for name in (MODEL, BEST) if (folder / name).exists()]:
            raise InputError(
                f"{folder} holds {' and '.join(foreign)} of something else: give another folder with --out DIR"
            )
        return None
    try:
        there = parse_json(path.read_text(encoding="utf-8"))
        version = there["schema_version"]
        if version > TRAIN_SCHEMA:
            raise FormatVersionError(
                f"{path}: schema_version {version} came, this fpn_bench reads up to {TRAIN_SCHEMA}: upgrade it"
            )
        before, is_finished = dict(there["settings"]), there["status"] == "finished"
        about = dict(there["about"]) if is_finished else None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no record of a training: give another folder with --out DIR") from error
    if differ := list(differing_fields(before, dict(settings))):
        fields = ", ".join(f"{field}: {json.dumps(old)} there, {json.dumps(new)} here" for field, old, new in differ)
        raise ProtocolError(f"{folder} holds another training ({fields}): give this one another folder with --out DIR")
    return about


@contextlib.contextmanager
def _held(folder: Path, processes: Processes) -> Iterator[None]:
    """Hold the folder against a second training; the lock dies with the process."""
    if not processes.is_first:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / "train.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InputError(f"another training is at work in {folder}: wait for it, or give --out DIR") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _logged(folder: Path, training: FullTraining, processes: Processes) -> Iterator[TrainingLog | None]:
    """The log of the first process; the others have none."""
    if not processes.is_first:
        yield None
        return
    log = TrainingLog(folder)
    with log.opened(training.rows):
        yield log


def _about(found: Found, training: FullTraining, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a detector's training, the same however often it was broken off."""
    last: Epoch = training.rows[-1]
    return {
        "study": found.study.name,
        "trial": found.row["trial"],
        "neck": found.row.get("neck_label", ""),
        **settings,
        "dataset": found.bench.dataset.name,
        "processes": training.processes.count,
        "epochs": last["epoch"],
        "ap": last["ap"],
        "ap50": last["ap50"],
        "ap_curve": [[row["epoch"], row["ap"]] for row in training.rows if row["ap"] is not None],
        "search_ap": found.row.get("ap"),
        "versions": machine().to_dict()["versions"],
        "torch_threads": torch.get_num_threads(),
    }
