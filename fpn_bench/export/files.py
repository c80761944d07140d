"""`export`: one detector into the files of one target."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fpn_bench.candidates.model import ImageDetector
from fpn_bench.data.dataset import ImageRecord
from fpn_bench.errors import ExportError, InputError, UnknownNameError
from fpn_bench.export.checks import Written, average_precision, compare_ap
from fpn_bench.json_text import parse_json
from fpn_bench.paths import write_text_atomic

TARGETS = ("torchvision", "onnx", "python", "mmdet")
RECORD_SCHEMA = 1


@dataclass(frozen=True)
class Exported:
    """What an export wrote and what was checked of it.

    Attributes:
        target: one of `TARGETS`.
        files: what was written; the last one, ``export-TARGET.json``, says of which detector.
        error: largest difference to the source among the outputs compared, as a share of those larger than 1.
        ap_before, ap_after: AP of the source and of what was written, in percent points; None where it was not asked.
        notes: what a user must know, a line each.
    """

    target: str
    files: tuple[Path, ...]
    error: float
    ap_before: float | None
    ap_after: float | None
    notes: tuple[str, ...]


def export(
    model: ImageDetector, to: str, folder: str | os.PathLike[str], *, records: Sequence[ImageRecord] = ()
) -> Exported:
    """Write a detector as files that run without fpn_bench, and check them against it.

    Args:
        model: trained; in eval mode, on the CPU.
        to: ``"torchvision"``: a module that gives torchvision's FCOS with the trained weights, and RetinaNet and
            Faster R-CNN on the same pyramid; ``"onnx"``: images to boxes and scores; ``"python"``: neck, head and
            decoding in one file that needs torch alone; ``"mmdet"``: a module that registers backbone and neck, and a
            config.
        folder: made where it is not there. Files that an export of the same detector left there are replaced, one
            after the other once all are written and checked; files of anything else are never replaced.
        records: images that AP is compared on, before and after; none compares no AP. Only a target that finds boxes
            on images has one: torchvision and onnx.

    Raises:
        UnknownNameError: there is no such target.
        InputError: a library that the target needs is not installed, the backbone cannot be written like that, or
            the folder has files of the same names that are not of this detector.
        ExportError: what was written does not agree with the source; nothing is kept.
    """
    if to not in TARGETS:
        raise UnknownNameError("target", to, TARGETS)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    was_training = model.training
    model.eval()
    try:
        return _checked(model, to, folder, records)
    except ExportError as error:
        raise ExportError(f"{error}: nothing was written") from error
    finally:
        model.train(was_training)


def unused_folder(model: ImageDetector, to: str, folder: Path) -> Path:
    """``folder``, or ``folder-2`` and so on: the first that holds no export to a target of another detector."""
    digest = _digest(model)
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    for candidate in itertools.chain([folder], numbered):
        there = candidate.is_dir() and any(candidate.iterdir())
        if not there or _recorded(candidate, to, digest):
            return candidate
    raise AssertionError("itertools.count ends never")


def _checked(model: ImageDetector, to: str, folder: Path, records: Sequence[ImageRecord]) -> Exported:
    """Write and check beside the folder's files, then move what was written among them."""
    target = importlib.import_module(f"fpn_bench.export.to_{to}")
    digest = _digest(model)
    record = folder / f"export-{to}.json"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as unfinished:
        written: Written = target.write(model, Path(unfinished))
        names = [path.name for path in written.files]
        own = _recorded(folder, to, digest)
        foreign = [name for name in names if name not in own and os.path.lexists(folder / name)]
        if foreign:
            raise InputError(
                f"{folder} holds {', '.join(foreign)} of another detector or export: give another folder with --out DIR"
            )
        before = after = None
        if records and written.detect is not None:
            before = average_precision(model.detect, records, len(model.spec.classes))
            after = average_precision(written.detect, records, len(model.spec.classes))
            compare_ap(to, before, after)
        about = {"schema_version": RECORD_SCHEMA, "target": to, "detector": digest, "files": names}
        for path in written.files:
            shutil.move(path, folder / path.name)
        write_text_atomic(record, json.dumps({**about, "about": model.about}, indent=2) + "\n")
    files = (*(folder / name for name in names), record)
    return Exported(to, files, written.error, before, after, written.notes)


def _digest(model: ImageDetector) -> str:
    """What two exports of one detector have in common: its description and its weights."""
    digest = hashlib.sha256(json.dumps(model.spec.to_dict(), sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _recorded(folder: Path, to: str, digest: str) -> tuple[str, ...]:
    """Names of the files that an export of this detector left in a folder."""
    try:
        told = parse_json((folder / f"export-{to}.json").read_text(encoding="utf-8"))
        same = told["detector"] == digest and told["schema_version"] == RECORD_SCHEMA
        return tuple(map(str, told["files"])) if same else ()
    except (OSError, ValueError, KeyError, TypeError):  # none, or not by an export
        return ()
