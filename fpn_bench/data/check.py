"""What there is in a data set, and what looks wrong, before anything is trained on it.

Facts are tables of plain values; what looks wrong is a list of `Finding`, few of which make a data set unusable.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from fpn_bench.data.annotations import (
    MIN_SIDE_PX,
    REQUIRED_SPLITS,
    AnnotatedImage,
    OnProgress,
    clean_boxes,
    describe_mismatch,
    in_threads,
)
from fpn_bench.data.duplicates import ImageDigest, digest_of, find_duplicates
from fpn_bench.data.formats import find_format, read_annotations
from fpn_bench.data.images import ImageCheck

EXAMPLES = 5
"""So many are named of what a finding counts."""
TINY_PX = 4.0
"""Longer side of a box that is half a cell of a map of stride 8."""
WHOLE_IMAGE = 0.98
"""Share of the image's area from which a box is the whole of it."""
HUGE_OVERLAP = 0.9
"""Intersection over union from which two boxes of one class are likely one object."""
LEVEL_STRIDES = (8, 16)
"""Longer sides, in strides, of the boxes that a level of the FCOS head is for: those whose farther side is 4 to 8
strides
from a point in their centre."""
COCO_SIZES = (("small", 0.0, 32.0**2), ("medium", 32.0**2, 96.0**2), ("large", 96.0**2, math.inf))
"""COCO's words for areas, in pixels^2 of the image file."""
_SIDES = (0, 4, 8, 16, 32, 64, 128, 256, 512, 1024, math.inf)
_RATIOS = (0, 1 / 4, 1 / 2, 1 / math.sqrt(2), math.sqrt(2), 2, 4, math.inf)

_BOXES_AT_ONCE, _PAIRS_AT_ONCE = 128, 2**20  # of which the second is some 100 MB of what is computed on the way

_Floats = npt.NDArray[np.float64]
_Mask = npt.NDArray[np.bool_]
Table = tuple[Mapping[str, Any], ...]
"""Rows, each with the same keys; ``pandas.DataFrame(table)`` makes a frame of it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of thing that looks wrong, in one split.

    Attributes:
        kind: one word or two with an underscore, the same in every data set.
        split: where; for what occurs in two splits, the later one.
        count: how many images, boxes, classes or files.
        refused: a search on the data set as it is would be refused.
        text: what it is and what may be done about it.
        examples: some of them: paths, boxes in pixels, or names.
    """

    kind: str
    split: str
    count: int
    refused: bool
    text: str
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DatasetCheck:
    """What `check_dataset` found.

    Boxes are counted as they would be trained on: clipped, without those that are dropped and without regions to
        ignore.

    Attributes:
        name: of the data set.
        format: ``"coco"``, ``"voc"`` or ``"yolo"``.
        classes: class names.
        image_size: (height, width) in pixels that images would be resized to; None leaves them.
        splits: a row a split: images, how many can be read, are without boxes, boxes, regions to ignore, boxes an
            image, and the smallest, median and largest width and height of the files in pixels.
        balance: a row a class: boxes and images with it in each split, and its share of the train split's boxes.
        sizes: a row each of COCO's small, medium and large, by areas in the files: boxes in each split.
        sides: a row an octave of the longer side in pixels, resized if ``image_size`` is given: boxes in each split,
            and the pyramid level that they suit (`LEVEL_STRIDES`); the finest level there is takes the smaller ones
            too, and the coarsest the larger.
        ratios: a row a range of width / height, likewise: boxes in each split.
        findings: what looks wrong; what is refused first.
        notes: what the reader says of the files.
    """

    name: str
    format: str
    classes: tuple[str, ...]
    image_size: tuple[int, int] | None
    splits: Table
    balance: Table
    sizes: Table
    sides: Table
    ratios: Table
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def is_usable(self) -> bool:
        """Whether a search would take the data set as it is."""
        return not any(finding.refused for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; infinite ends of ranges are None."""
        return {"schema_version": 1, "is_usable": self.is_usable, **asdict(self)}


@dataclass(frozen=True, slots=True, eq=False)
class _Box:
    """One box that would be trained on: its area in the file, and its longer side and width / height when resized."""

    split: str
    label: int
    area: float
    side: float
    ratio: float


class _Findings:
    """Counts by kind and split, in the order in which they are first found."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[str, bool, list[str]]] = {}

    def add(self, kind: str, split: str, text: str, examples: Iterable[str], *, refused: bool = False) -> None:
        """Count further examples."""
        for example in examples:
            self._found.setdefault((kind, split), (text, refused, []))[2].append(example)

    def all(self) -> tuple[Finding, ...]:
        """Those that are refused first."""
        found = (
            Finding(kind, split, len(examples), refused, text, tuple(examples[:EXAMPLES]))
            for (kind, split), (text, refused, examples) in self._found.items()
        )
        return tuple(sorted(found, key=lambda finding: not finding.refused))


def check_dataset(
    root: str | os.PathLike[str] | None,
    format: str | None = None,
    *,
    image_size: tuple[int, int] | None = None,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> DatasetCheck:
    """Count what is in a data set and look for what is wrong with it; every image is decoded.

    Args:
        root, format, options: see `fpn_bench.data.formats.load_dataset`.
        image_size: (height, width) that images would be resized to, so that boxes are measured as a detector sees them.
        on_progress: called with (images looked at, images in all).

    Raises:
        DataError: the annotations cannot be read, so there is nothing to check.
        UnknownNameError: there is no such format or option.
    """
    if format is None and root is not None:
        format = find_format(root).name
    annotated = read_annotations(root, format, **options)
    paths = [image.path for split in annotated.splits for image in split.images]
    looks = in_threads(digest_of, paths, on_progress)
    findings = _Findings()
    boxes: list[_Box] = []
    rows = []
    balance: dict[str, Counter[int]] = {}
    images_of: dict[str, Counter[int]] = {}
    at = 0
    for split in annotated.splits:
        mine = looks[at : at + len(split.images)]
        at += len(split.images)
        found: list[list[_Box]] = []
        crowd = 0
        for image, seen in zip(split.images, mine, strict=True):
            size = _size(findings, split.name, image, seen.check)
            here, ignored = _boxes(findings, split.name, annotated.classes, image, size, image_size)
            found.append(here)
            crowd += ignored
        boxes += [box for here in found for box in here]
        rows.append(_split_row(split.name, mine, found, crowd))
        balance[split.name] = Counter(box.label for here in found for box in here)
        images_of[split.name] = Counter(label for here in found for label in {box.label for box in here})
        if not any(found):
            only = f" but {crowd} regions to ignore (iscrowd, difficult)" if crowd else " at all"
            text = f"no boxes{only}: nothing to learn from or to measure AP on"
            findings.add("no_boxes", split.name, text, [str(split.source)], refused=split.name in REQUIRED_SPLITS)
        absent = [name for label, name in enumerate(annotated.classes) if not balance[split.name][label]]
        findings.add("absent_class", split.name, "classes without a box here", absent)
    for duplicate in find_duplicates(annotated, looks):
        findings.add(duplicate.kind, duplicate.split, duplicate.text, [duplicate.example])
    text = "annotation files that belong to no image"
    findings.add("orphan", "all", text, map(str, annotated.orphans))
    names = [split.name for split in annotated.splits]
    return DatasetCheck(
        annotated.name,
        str(format),
        annotated.classes,
        image_size,
        tuple(rows),
        _balance_table(annotated.classes, names, balance, images_of),
        tuple(
            {"size": word, "area_from": low, "area_to": _end(high), "boxes": _count(boxes, names, "area", low, high)}
            for word, low, high in COCO_SIZES
        ),
        tuple(_side_rows(boxes, names)),
        tuple(
            {"ratio_from": low, "ratio_to": _end(high), "boxes": _count(boxes, names, "ratio", low, high)}
            for low, high in pairwise(_RATIOS)
        ),
        findings.all(),
        annotated.notes,
    )


# --------------------------------------------------------------------------------------------------------------
# One image


def _size(findings: _Findings, split: str, image: AnnotatedImage, check: ImageCheck) -> tuple[int, int] | None:
    """(height, width) of an image whose boxes can be placed; None where that cannot be said."""
    if check.problem is not None:
        text = "images that cannot be read; --skip-unreadable goes on without them"
        findings.add("unreadable", split, text, [f"{image.path}: {check.problem}"], refused=True)
        return None
    wrong = describe_mismatch(image, check)
    if wrong is not None:
        text = "images whose size or orientation is not what the boxes were made on"
        findings.add("contradiction", split, text, [wrong], refused=True)
        return None
    if check.has_orientation:
        text = "images that viewers turn (EXIF orientation) and training does not: are the boxes on them as stored?"
        findings.add("orientation", split, text, [str(image.path)])
    return check.size


def _boxes(
    findings: _Findings,
    split: str,
    classes: Sequence[str],
    image: AnnotatedImage,
    size: tuple[int, int] | None,
    image_size: tuple[int, int] | None,
) -> tuple[list[_Box], int]:
    """The boxes of an image that would be trained on, and the number of its regions to ignore."""
    if size is None:
        return [], 0
    mended = clean_boxes(image, size)
    raw = image.pixel_boxes(size)

    def named(which: Iterable[int]) -> Iterator[str]:
        for i in which:
            x1, y1, x2, y2 = raw[i].tolist()
            yield f"{image.path}: {classes[image.labels[i]]} {x1:.6g}, {y1:.6g} to {x2:.6g}, {y2:.6g}"

    def note(kind: str, text: str, which: Iterable[int]) -> None:
        findings.add(kind, split, text, named(which))

    (height, width), (to_height, to_width) = size, image_size or size
    scale = np.array([to_width / width, to_height / height])
    kept = np.flatnonzero(mended.kept & ~image.crowd)
    boxes, labels = mended.boxes[kept], image.labels[kept]
    sides = boxes[:, 2:] - boxes[:, :2]
    longer = (sides * scale).max(axis=1, initial=0)
    note("no_number", "boxes with a coordinate that is no number, which are dropped", np.flatnonzero(mended.no_number))
    note("outside", "boxes that reach outside their image, which are clipped", np.flatnonzero(mended.clipped))
    text = f"boxes with a side under {MIN_SIDE_PX:g} px inside their image, which are dropped"
    note("empty", text, np.flatnonzero(mended.tiny))
    text = f"boxes with a longer side under {TINY_PX:g} px{' when resized' if image_size else ''}: hardly to be seen"
    note("tiny", text, kept[longer < TINY_PX])
    whole = sides.prod(axis=1) >= WHOLE_IMAGE * height * width
    note("whole_image", f"boxes of {WHOLE_IMAGE:.0%} of their image or more", kept[whole])

    repeated, other_class, overlapping = _twins(boxes, labels)
    note("repeated", "boxes that are in their image twice", kept[repeated])
    note("two_classes", "boxes that are in their image as another class too", kept[other_class])
    text = f"boxes that overlap another of their class by {HUGE_OVERLAP:g} (intersection over union) or more"
    note("overlap", text, kept[overlapping])

    resized = sides * scale
    trained = [
        _Box(split, int(label), float(area), float(max(w, h)), float(w / h))
        for label, area, (w, h) in zip(labels, mended.areas[kept], resized, strict=True)
    ]
    return trained, int((mended.kept & image.crowd).sum())


def _twins(boxes: _Floats, labels: npt.NDArray[np.int64]) -> tuple[_Mask, _Mask, _Mask]:
    """Which boxes equal an earlier one of their class, equal one of another class, or overlap one of their class.

    Boxes are gone through from left to right, some at a time, each with those near its left side alone: of two that
    overlap by t, the left sides are at most 1 / t - 1 of a width apart.
    """
    order = np.argsort(boxes[:, 0], kind="stable")
    x1, n = boxes[order, 0], len(boxes)
    repeated, other_class, overlapping = (np.zeros(n, np.bool_) for _ in range(3))
    at_once = max(1, min(_BOXES_AT_ONCE, _PAIRS_AT_ONCE // max(1, n)))
    for start in range(0, n, at_once):
        some = order[start : start + at_once]
        reach = (1 / HUGE_OVERLAP - 1) * float((boxes[some, 2] - boxes[some, 0]).max()) + 1e-6
        near = order[np.searchsorted(x1, x1[start] - reach) : np.searchsorted(x1, boxes[some[-1], 0] + reach, "right")]
        earlier = some[:, None] < near[None, :]
        same_class = labels[some, None] == labels[None, near]
        equal = (boxes[some, None] == boxes[None, near]).all(axis=2) & earlier
        huge = (_iou(boxes[some], boxes[near]) >= HUGE_OVERLAP) & earlier & ~equal
        repeated[near] |= (equal & same_class).any(axis=0)
        other_class[near] |= (equal & ~same_class).any(axis=0)
        overlapping[near] |= (huge & same_class).any(axis=0)
    return repeated, other_class, overlapping


def _iou(some: _Floats, others: _Floats) -> _Floats:
    """Intersection over union of each of [N, 4] with each of [M, 4], [N, M]."""
    low = np.maximum(some[:, None, :2], others[None, :, :2])
    high = np.minimum(some[:, None, 2:], others[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(axis=2)
    areas, other_areas = ((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (some, others))
    union: _Floats = areas[:, None] + other_areas[None, :] - both
    return np.asarray(both / union)


# --------------------------------------------------------------------------------------------------------------
# Tables


def _split_row(split: str, looks: Sequence[ImageDigest], found: Sequence[Sequence[_Box]], crowd: int) -> dict[str, Any]:
    readable = [(look.check, here) for look, here in zip(looks, found, strict=True) if look.check.problem is None]
    counts = [len(here) for _, here in readable]
    row: dict[str, Any] = {
        "split": split,
        "images": len(looks),
        "readable": len(readable),
        "without_boxes": counts.count(0),
        "boxes": sum(counts),
        "to_ignore": crowd,
        "boxes_an_image": sum(counts) / len(counts) if counts else 0.0,
        "boxes_at_most": max(counts, default=0),
    }
    for axis, name in ((1, "width"), (0, "height")):
        lengths = sorted(check.size[axis] for check, _ in readable)
        for word, value in zip(("min", "median", "max"), _three(lengths), strict=True):
            row[f"{name}_{word}_px"] = value
    return row


def _three(values: Sequence[int]) -> tuple[int | None, int | None, int | None]:
    return (values[0], values[len(values) // 2], values[-1]) if values else (None, None, None)


def _balance_table(
    classes: Sequence[str],
    splits: Sequence[str],
    boxes: Mapping[str, Counter[int]],
    images: Mapping[str, Counter[int]],
) -> Table:
    total = max(1, boxes["train"].total())
    return tuple(
        {
            "class": name,
            "boxes": {split: boxes[split][label] for split in splits},
            "images": {split: images[split][label] for split in splits},
            "train_share": boxes["train"][label] / total,
        }
        for label, name in enumerate(classes)
    )


def _side_rows(boxes: Sequence[_Box], splits: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Octaves from the first that has boxes to the last."""
    rows: list[dict[str, Any]] = [
        {
            "side_from_px": low,
            "side_to_px": _end(high),
            "level": _level(low, high),
            "boxes": _count(boxes, splits, "side", low, high),
        }
        for low, high in pairwise(_SIDES)
    ]
    filled = [i for i, row in enumerate(rows) if sum(row["boxes"].values())]
    yield from rows[filled[0] : filled[-1] + 1] if filled else ()


def _level(low: float, high: float) -> int | None:
    """The level of stride 2^k that boxes with a longer side in the range suit; None below stride 1 and without end."""
    if low < LEVEL_STRIDES[0] or math.isinf(high):
        return None
    return round(math.log2(low / LEVEL_STRIDES[0]))


def _count(boxes: Sequence[_Box], splits: Sequence[str], what: str, low: float, high: float) -> dict[str, int]:
    """Boxes of each split of which an attribute is in [low, high)."""
    value = attrgetter(what)
    counts = Counter(box.split for box in boxes if low <= value(box) < high)
    return {split: counts[split] for split in splits}


def _end(high: float) -> float | None:
    return None if math.isinf(high) else high
