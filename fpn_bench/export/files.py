"""`export`: one detector into the files of one target."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fpn_bench.candidates.model import ImageDetector
from fpn_bench.detection.dataset import ImageRecord
from fpn_bench.errors import ExportError, UnknownNameError
from fpn_bench.export.checks import Written, average_precision, compare_ap

TARGETS = ("torchvision", "onnx", "python", "mmdet")


@dataclass(frozen=True)
class Exported:
    """What an export wrote and what was checked of it.

    Attributes:
        target: one of `TARGETS`.
        files: what was written.
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
        folder: made where it is not there; files of the same names are replaced, one after the other once all are
            written and checked.
        records: images that AP is compared on, before and after; none compares no AP. Only a target that finds boxes
            on images has one: torchvision and onnx.

    Raises:
        UnknownNameError: there is no such target.
        InputError: a library that the target needs is not installed, or the backbone cannot be written like that.
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


def _checked(model: ImageDetector, to: str, folder: Path, records: Sequence[ImageRecord]) -> Exported:
    """Write and check beside the folder's files, then move what was written among them."""
    target = importlib.import_module(f"fpn_bench.export.to_{to}")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as unfinished:
        written: Written = target.write(model, Path(unfinished))
        before = after = None
        if records and written.detect is not None:
            before = average_precision(model.detect, records, len(model.spec.classes))
            after = average_precision(written.detect, records, len(model.spec.classes))
            compare_ap(to, before, after)
        files = []
        for path in written.files:
            shutil.move(path, folder / path.name)
            files.append(folder / path.name)
    return Exported(to, tuple(files), written.error, before, after, written.notes)
