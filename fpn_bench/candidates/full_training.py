"""The full training of a candidate that a study found, in a folder of its own."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import filelock
import torch

from fpn_bench.analysis import differing_fields
from fpn_bench.candidates.model import ImageDetector
from fpn_bench.candidates.study_candidate import StudyCandidate
from fpn_bench.errors import FormatVersionError, InputError, ProtocolError
from fpn_bench.json_text import parse_json
from fpn_bench.paths import write_text_atomic
from fpn_bench.profiling import check_device, machine, translate_torch_errors
from fpn_bench.training.checkpoint import Checkpoint
from fpn_bench.training.full import FullProgress, FullTraining
from fpn_bench.training.full import Row as Epoch
from fpn_bench.training.full_recipe import FullRecipe
from fpn_bench.training.log import TrainingLog
from fpn_bench.training.processes import Processes

TRAIN_SCHEMA: Final = 1
MODEL, BEST, RECORD = "model.safetensors", "best.safetensors", "train.json"
"""Files of a training's folder: the detector with the last weights, with those of the best AP, and the record."""


@dataclass(frozen=True)
class FullyTrained:
    """A finished full training.

    Attributes:
        folder: where its files are.
        about: what stands in the detector's file and in `RECORD`: study, trial, candidate, seed, recipe, AP ...
        fresh: trained in this call; False if it was finished before.
    """

    folder: Path
    about: Mapping[str, Any]
    fresh: bool

    @property
    def model(self) -> Path:
        """The detector, see `fpn_bench.ImageDetector.load`."""
        return self.folder / MODEL


def train_full(
    chosen: StudyCandidate,
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
) -> FullyTrained:
    """Train the detector of a study's candidate to the end, from the beginning or from an earlier call's checkpoint.

    The folder then holds `MODEL`: the averaged weights after the last epoch, whose AP on val is not biased by a choice;
    `BEST`: those of the epoch with the best AP; `RECORD`; ``log.csv``, an epoch a row; and, where TensorBoard is
    installed, ``tensorboard/``.

    Args:
        chosen: what to train.
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
    recipe = recipe or FullRecipe.after(chosen.context.protocol.training)
    folder = Path(folder) if folder is not None else _folder(chosen)
    processes = processes or Processes.here()
    settings = {
        "candidate": chosen.candidate.id,
        "dataset_hash": chosen.context.dataset.hash,
        "seed": seed,
        "recipe": recipe.model_dump(mode="json"),
    }
    done = _finished_record(folder, settings)
    if done is not None:
        return FullyTrained(folder, done, fresh=False)
    where = check_device(processes.device(device))
    with _locked(folder, processes), processes.joined(where), translate_torch_errors():
        # Another call may have finished meanwhile. Nobody writes now, so all processes read the same.
        done = _finished_record(folder, settings)
        if done is not None:
            return FullyTrained(folder, done, fresh=False)
        training = FullTraining(
            chosen.context.detector(chosen.candidate, seed),
            chosen.backbone,
            chosen.context.dataset.splits["train"],
            chosen.context.dataset.splits["val"],
            image_size=chosen.candidate.image_size,
            recipe=recipe,
            seed=seed,
            device=where,
            processes=processes,
        )
        checkpoint_s = 60 * checkpoint_minutes
        _run(chosen, training, folder, settings, checkpoint_s, eval_every, workers, on_progress)
    about = _finished_record(folder, settings)  # as all processes read it: only the first knows the AP
    assert about is not None
    return FullyTrained(folder, about, fresh=True)


def _run(
    chosen: StudyCandidate,
    training: FullTraining,
    folder: Path,
    settings: Mapping[str, Any],
    checkpoint_s: float,
    eval_every: int,
    workers: int,
    on_progress: Callable[[FullProgress], None] | None,
) -> None:
    """Train from where the folder's checkpoint is, and leave the folder finished."""
    processes = training.processes
    if processes.is_first:
        _record(folder, {"status": "running", "settings": settings})
    identity = f"full training {json.dumps(settings, sort_keys=True)}"
    checkpoint = Checkpoint(folder / "checkpoint.pt", identity, every_s=checkpoint_s)
    training.begin(checkpoint)

    def keep(name: str) -> None:
        about = _about(chosen, training, settings)
        detector = copy.deepcopy(training.detector).cpu()
        ImageDetector(chosen.spec, training.trained_backbone(), detector, about).save(folder / name)

    def keep_best() -> None:
        if training.best is training.rows[-1]:
            keep(BEST)

    with _open_log(folder, training, processes) as log:

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
        _record(folder, {"status": "finished", "settings": settings, "about": _about(chosen, training, settings)})
        checkpoint.delete()
    processes.wait()


def _folder(chosen: StudyCandidate) -> Path:
    if chosen.study.path is None:
        raise InputError(f"study {chosen.study.name!r} lives in a database: say where its detector goes with --out DIR")
    return chosen.study.path / "trained" / f"trial-{chosen.row['trial']}"


def _record(folder: Path, content: Mapping[str, Any]) -> None:
    write_text_atomic(folder / RECORD, json.dumps({"schema_version": TRAIN_SCHEMA, **content}, indent=2) + "\n")


def _finished_record(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of the training in the folder if it is finished; None if it must be started or continued."""
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
                f"{path}: expected schema_version {TRAIN_SCHEMA} or lower, got {version}; upgrade fpn-bench"
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
def _locked(folder: Path, processes: Processes) -> Iterator[None]:
    """Lock the folder against a second training; the lock ends with the process."""
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
def _open_log(folder: Path, training: FullTraining, processes: Processes) -> Iterator[TrainingLog | None]:
    """The log of the first process; the others have none."""
    if not processes.is_first:
        yield None
        return
    log = TrainingLog(folder)
    with log.resumed_at(training.rows):
        yield log


def _about(chosen: StudyCandidate, training: FullTraining, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of a detector's training, the same however often it was interrupted."""
    last: Epoch = training.rows[-1]
    return {
        "study": chosen.study.name,
        "trial": chosen.row["trial"],
        "neck": chosen.row.get("neck_label", ""),
        **settings,
        "dataset": chosen.context.dataset.name,
        "processes": training.processes.count,
        "epochs": last["epoch"],
        "ap": last["ap"],
        "ap50": last["ap50"],
        "ap_curve": [[row["epoch"], row["ap"]] for row in training.rows if row["ap"] is not None],
        "search_ap": chosen.row.get("ap"),
        "versions": machine().to_dict()["versions"],
        "torch_threads": torch.get_num_threads(),
    }
