"""What was written against what it was written from."""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fpn_bench.data.dataset import ImageRecord
from fpn_bench.data.images import load_image
from fpn_bench.detection.average_precision import evaluate_ap
from fpn_bench.errors import ExportError

TOLERANCE = 1e-4
AP_TOLERANCE = 0.1
"""Percent points."""
_BATCH = 8
_numbers = itertools.count()

Detect = Callable[[Sequence[Image.Image]], list[dict[str, Tensor]]]
"""Images to what is on them, see `fpn_bench.candidates.model.ImageDetector.detect`."""


@dataclass(frozen=True)
class Written:
    """What a target wrote.

    Attributes:
        files: in the folder given.
        error: largest difference to the source, see `difference`.
        notes: what a user must know, a line each.
        detect: what was written, as a detector; None where it is none.
    """

    files: Sequence[Path]
    error: float
    notes: tuple[str, ...] = ()
    detect: Detect | None = None


def difference(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference, as a share of values larger than 1; infinite where shapes differ or a number is none."""
    worst = 0.0
    for a, b in zip(got, expected, strict=True):
        if a.shape != b.shape:
            return math.inf
        if b.numel():
            share = ((a - b).abs() / b.abs().clamp(min=1)).max().item()
            worst = max(worst, math.inf if math.isnan(share) else share)
    return worst


def compare(what: str, got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The `difference`.

    Raises:
        ExportError: it is more than `TOLERANCE`.
    """
    error = difference(got, expected)
    if not error <= TOLERANCE:
        raise ExportError(f"{what} differs from its source by {error:.2g}, more than {TOLERANCE:g}")
    return error


def compare_found(what: str, boxes: Tensor, scores: Tensor, found: Mapping[str, Tensor]) -> float:
    """The `difference` of each of the source's detections to the box nearest to it in all numbers.

    Only the source has a say in what is dropped by NMS: an IoU may be at the threshold, where rounding decides.

    Args:
        what: opens the message.
        boxes: [A, 4], of one image, before any is dropped.
        scores: [A, K], of each label.
        found: what the source finds on it, see `fpn_bench.detection.detector.Detector.detect`.

    Raises:
        ExportError: it is more than `TOLERANCE`, e.g. because a box is missing or has another label.
    """
    if not len(boxes):
        return compare(what, [boxes], [found["boxes"]])
    wanted, labels = found["boxes"], found["labels"]
    apart = ((boxes - wanted[:, None]).abs() / wanted[:, None].abs().clamp(min=1)).amax(dim=-1)  # [D, A]
    apart = torch.maximum(apart, (scores[:, labels].T - found["scores"][:, None]).abs())
    nearest = apart.argmin(dim=1)
    return compare(what, [boxes[nearest], scores[nearest, labels]], [wanted, found["scores"]])


def compare_ap(what: str, before: float, after: float) -> None:
    """Whether AP is what it was.

    Raises:
        ExportError: it is not.
    """
    if not (abs(before - after) <= AP_TOLERANCE or (math.isnan(before) and math.isnan(after))):
        raise ExportError(
            f"AP is {before:.2f} before and {after:.2f} after the export to {what}, more than {AP_TOLERANCE:g} apart"
        )


def average_precision(detect: Detect, records: Sequence[ImageRecord], num_classes: int) -> float:
    """AP of a detector on image files, in percent points."""
    found: list[Mapping[str, Any]] = []
    for start in range(0, len(records), _BATCH):
        found += detect([load_image(record) for record in records[start : start + _BATCH]])
    return evaluate_ap(found, records, num_classes).ap


def noise(batch: int, channels: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """Uniform numbers in 0..1, float32 [batch, channels, *size]; always the same ones."""
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


def imported(path: Path) -> ModuleType:
    """A file as a module of its own, not among those that `import` finds."""
    spec = importlib.util.spec_from_file_location(f"exported_{next(_numbers)}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
