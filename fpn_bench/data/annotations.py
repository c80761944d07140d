"""What every annotation format has in common: from boxes as they were written to a data set that can be used.

A format's reader turns its files into an `AnnotatedSet`, opening no image. `assemble` then opens every image, brings
the boxes into it and hashes what is left, the same way for all formats.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fpn_bench.data.dataset import DetectionDataset, ImageRecord
from fpn_bench.data.images import ImageCheck, check_image
from fpn_bench.data.paths import regular_bytes
from fpn_bench.errors import DataError

OnProgress = Callable[[int, int], None]
"""Called with (images done, images in all)."""

REQUIRED_SPLITS = ("train", "val")
SPLITS = (*REQUIRED_SPLITS, "test")
UNSPLIT = "all"
"""What a reader calls the images of a data set without splits."""
MIN_SIDE_PX = 1.0
# Annotations that end on the border overshoot it by rounding; that is not worth a note.
CLIP_TOLERANCE_PX = 0.05

_Floats = npt.NDArray[np.float64]
_Mask = npt.NDArray[np.bool_]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatedImage:
    """One image as its annotation says it is; whether the file is there nobody has looked.

    Attributes:
        id: unlike those of other images of the split.
        path: image file.
        source: the file its boxes are written in, for messages.
        boxes: float64 [N, 4], x1 y1 x2 y2 as written: they may reach outside, be empty or no numbers. In pixels from
            the image's corner; see `relative`.
        labels: int64 [N], index into `AnnotatedSet.classes`.
        areas: float64 [N], the objects' own areas in pixels^2; NaN where nothing is known but the box.
        crowd: bool [N], regions to ignore.
        size: (height, width) in pixels as the annotation has it; None where it says nothing.
        relative: boxes are in parts of the image's width and height, not in pixels.
    """

    id: int
    path: Path
    source: Path
    boxes: _Floats
    labels: npt.NDArray[np.int64]
    areas: _Floats
    crowd: _Mask
    size: tuple[int, int] | None
    relative: bool = False

    def pixel_boxes(self, size: tuple[int, int]) -> _Floats:
        """Boxes in pixels of an image of (height, width), float64 [N, 4], otherwise as written."""
        if not self.relative:
            return self.boxes.copy()
        height, width = size
        # Decimal fractions miss whole pixels by a hair; single precision, which records have, knows no hairs.
        with np.errstate(over="ignore"):
            return (self.boxes * (width, height, width, height)).astype(np.float32).astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatedSplit:
    """A split as annotated.

    Attributes:
        name: ``"train"``, ``"val"``, ...
        source: the file or folder that lists its images, for messages.
        images: in the order of the source.
    """

    name: str
    source: Path
    images: tuple[AnnotatedImage, ...]


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatedSet:
    """What a format's reader found: at least the splits ``train`` and ``val``.

    Attributes:
        name: for people.
        classes: class names; a label is an index into them.
        splits: `SPLITS` first, in their order.
        notes: what the reader left out or took for something else, with counts, one line each.
        orphans: annotation files that belong to no image.
    """

    name: str
    classes: tuple[str, ...]
    splits: tuple[AnnotatedSplit, ...]
    notes: tuple[str, ...] = ()
    orphans: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class CleanedBoxes:
    """The boxes of an image as they can be used, [N] or [N, 4] each; ``kept`` says which those are."""

    boxes: _Floats
    areas: _Floats
    kept: _Mask
    clipped: _Mask
    tiny: _Mask
    no_number: _Mask


def annotated_image(
    id: int,
    path: Path,
    source: Path,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    *,
    areas: Sequence[float] | None = None,
    crowd: Sequence[bool] | None = None,
    size: tuple[int, int] | None = None,
    relative: bool = False,
) -> AnnotatedImage:
    """An `AnnotatedImage` from plain lists; areas unknown and nothing crowd where those are left out."""
    n = len(labels)
    return AnnotatedImage(
        id,
        path,
        source,
        np.array(boxes, np.float64).reshape(n, 4),
        np.array(labels, np.int64),
        np.full(n, np.nan) if areas is None else np.array(areas, np.float64),
        np.zeros(n, np.bool_) if crowd is None else np.array(crowd, np.bool_),
        size,
        relative,
    )


def complete_splits(
    found: Sequence[AnnotatedSplit], val_fraction: float | None, what: str, remedy: str
) -> tuple[tuple[AnnotatedSplit, ...], list[str]]:
    """The splits, with val held out of the images of train (or of `UNSPLIT`) where that is asked for, and notes.

    Which images are held out depends on their file names alone: the same however they are listed.

    Args:
        found: what the reader found.
        val_fraction: share of the images, above 0 and below 1; None where val is there.
        what: opens messages.
        remedy: ends the message where a split is missing; ``{missing}`` stands for its name.

    Raises:
        DataError: train or val is missing, or a fraction is given where it cannot be used.
    """
    splits = {split.name: split for split in found}
    notes = []
    if val_fraction is not None:
        if not 0 < val_fraction < 1:
            raise DataError(f"val_fraction: expected a number above 0 and below 1, got {val_fraction}")
        if "val" in splits:
            raise DataError(f"{what} has a val split: leave out --val-fraction (val_fraction)")
        whole = splits.pop(UNSPLIT, None) or splits.get("train")
        if whole is not None and len(whole.images) > 1:
            train, val = _hold_out(whole, val_fraction)
            splits |= {"train": train, "val": val}
            notes.append(f"val: {len(val.images)} of the {len(whole.images)} images of {whole.source.name} held out")
    hold_out = "--val-fraction 0.2 (val_fraction) holds out a part of the images"
    if UNSPLIT in splits:
        whole = splits[UNSPLIT]
        raise DataError(
            f"{what} has {len(whole.images)} images in {whole.source} and no splits: expected train and val; {hold_out}"
        )
    missing = [split for split in REQUIRED_SPLITS if split not in splits]
    if missing:
        raise DataError(
            f"{what} has no {' and no '.join(missing)} split: expected train and val, got "
            f"{', '.join(splits) or 'none'}; {remedy.replace('{missing}', missing[0])}"
            f"{f'; or {hold_out}' if 'train' in splits else ''}"
        )
    # The order counts in the hash, so that what was found whole stays as it is.
    order = [name for name in SPLITS if name in splits] if val_fraction is not None else list(splits)
    return tuple(splits[name] for name in order), notes


def _hold_out(whole: AnnotatedSplit, fraction: float) -> tuple[AnnotatedSplit, AnnotatedSplit]:
    """Train and val of one list of at least two images, each with at least one, in its order."""
    names = [f"{image.path.name}\0{i}" for i, image in enumerate(whole.images)]
    ranked = sorted(names, key=lambda name: hashlib.sha256(os.fsencode(name.split("\0")[0])).digest())
    held = set(ranked[: min(max(1, round(fraction * len(names))), len(names) - 1)])
    parts: dict[str, list[AnnotatedImage]] = {"train": [], "val": []}
    for name, image in zip(names, whole.images, strict=True):
        parts["val" if name in held else "train"].append(image)
    train, val = (AnnotatedSplit(split, whole.source, tuple(images)) for split, images in parts.items())
    return train, val


def read_text(path: Path, what: str) -> str:
    """The text of a small annotation file.

    Raises:
        DataError: it is not there, cannot be read or is no UTF-8; ``what`` says what it is.
    """
    try:
        return regular_bytes(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{what} {path} does not exist") from None
    except OSError as error:
        raise DataError(f"{what} {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise DataError(f"{what} {path} is no text in UTF-8: save it as UTF-8") from None


def read_class_list(path: Path) -> tuple[str, ...]:
    """Class names, one a line, in the order of the labels.

    Raises:
        DataError: the file cannot be read, has no names, or one twice.
    """
    lines = [line.strip() for line in read_text(path, "class list").splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    check_classes(lines, path)
    return tuple(lines)


def check_class_names(names: Sequence[str], format: str) -> None:
    """Refuse to write class names that would not be read again.

    Raises:
        DataError: one is empty or no Unicode text.
    """
    for label, name in enumerate(names):
        if not name or any("\ud800" <= character <= "\udfff" for character in name):
            raise DataError(f"class {label} ({name!r}) cannot be written as {format}: give it a name")


def check_classes(names: Sequence[str], source: Path) -> None:
    """Refuse class names that are none.

    Raises:
        DataError: there are none, one is empty, or one occurs twice.
    """
    if not names:
        raise DataError(f"{source}: expected at least one class, got none")
    if "" in names:
        raise DataError(f"{source}: the name of class {list(names).index('')} is empty; give each class a name")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(f"{source}: expected each class once, got {name!r} {count} times")


def assemble(
    annotated: AnnotatedSet,
    *,
    skip_unreadable: bool = False,
    name: str | None = None,
    on_progress: OnProgress | None = None,
) -> DetectionDataset:
    """Open every image and make the data set that can be trained on; its hash stands for the pixels.

    Boxes that reach outside their image are clipped; boxes with a side under 1 pixel or a coordinate that is no number
    are dropped; both are counted in the notes, like images that occur in two splits. Crowd regions are kept and marked.
    Images without boxes are kept. A split without any object (a box that is no region to ignore) is refused where it is
    required and left out where it is not.

    Args:
        annotated: what a reader found.
        skip_unreadable: leave out images that are missing or cannot be decoded, instead of refusing the data set.
        name: for people, instead of the reader's.
        on_progress: called as the images are checked.

    Raises:
        DataError: an image cannot be used, contradicts its annotation, or a required split has no boxes.
    """
    notes = list(annotated.notes)
    records: dict[str, tuple[ImageRecord, ...]] = {}
    hasher = hashlib.sha256(_frame(*(c.encode() for c in annotated.classes)))
    paths = [image.path for split in annotated.splits for image in split.images]
    checks = iter(in_threads(check_image, paths, on_progress))
    seen: dict[bytes, str] = {}
    for split in annotated.splits:
        found = [next(checks) for _ in split.images]
        changes = _check_found(split, found, skip_unreadable)
        kept, mended = _records(split, found)
        digests = [check.digest for check in found if check.problem is None]
        if any(len(record.boxes) for record in kept):
            hasher.update(_frame(split.name.encode(), *_hash_parts(kept, digests)))
        if (lack := _missing_objects(kept)) is not None:
            if split.name in REQUIRED_SPLITS:
                raise DataError(f"{split.source} has {lack}: nothing to learn from or to measure AP on")
            notes.append(f"{split.name}: left out, for there are {lack}")
            continue
        notes += changes + mended
        records[split.name] = kept
        shared = Counter(seen[digest] for digest in digests if digest in seen)
        notes += [f"{split.name}: {n} images are also in {other}" for other, n in shared.items()]
        seen = dict.fromkeys(digests, split.name) | seen  # the first split that has it is the one named
    return DetectionDataset(name or annotated.name, annotated.classes, records, hasher.hexdigest(), tuple(notes))


def _missing_objects(records: Sequence[ImageRecord]) -> str | None:
    """What is missing in a split without any object to learn or find; None where there is one."""
    ignored = sum(int(record.crowd.sum()) for record in records)
    if sum(len(record.boxes) for record in records) > ignored:
        return None
    only = f" but {ignored} regions to ignore (iscrowd, difficult)" if ignored else ""
    return f"no boxes{only} on its {len(records)} images"


def in_threads(look: Callable[[Path], _T], paths: Sequence[Path], on_progress: OnProgress | None) -> list[_T]:
    """What was found in each file, in order. Threads: decoding leaves the interpreter lock.

    No generator: one left half-way would end its pool wherever the garbage collector finds it, and waits for ever where
    that is the start of another thread.
    """
    found = []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for done, one in enumerate(pool.map(look, paths), start=1):
            if on_progress is not None:
                on_progress(done, len(paths))
            found.append(one)
    return found


def describe_mismatch(image: AnnotatedImage, check: ImageCheck) -> str | None:
    """What is wrong between an image that can be read and its annotation; None when nothing is."""
    height, width = check.size
    turn = "; save it turned (PIL.ImageOps.exif_transpose)"
    # Sizes tell the frame of the boxes only where viewers turn the picture by a quarter, and it is no square.
    told = image.size is not None and check.turned and height != width
    if image.size in (None, check.size):
        if not check.has_orientation or told:
            return None
        return (
            f"image {image.path} has an EXIF orientation, and {image.source} does not say whether its boxes were made "
            f"on the picture as stored or as turned by it{turn}, or remove the orientation"
        )
    assert image.size is not None
    said = f"image {image.path} is {width}x{height} but {image.source} says {image.size[1]}x{image.size[0]}"
    if check.turned and (width, height) == image.size:
        return f"{said}: the annotations were made on the picture as its EXIF orientation turns it{turn}"
    return f"{said}: its boxes would be in the wrong place; correct width and height, or the file"


def clean_boxes(image: AnnotatedImage, size: tuple[int, int]) -> CleanedBoxes:
    """The boxes of an image of (height, width) as they can be used.

    ``area`` is the object's (mask) area: the box's where it is not known, and at most that where the box was cut.
    """
    height, width = size
    raw = image.pixel_boxes(size)
    finite: _Mask = np.asarray(np.isfinite(raw).all(axis=1))
    raw[~finite] = 0
    boxes = np.clip(raw, 0, (width, height, width, height))
    sides = boxes[:, 2:] - boxes[:, :2]
    tiny: _Mask = finite & ~(sides >= MIN_SIDE_PX).all(axis=1)
    clipped: _Mask = finite & ~tiny & (np.abs(boxes - raw) > CLIP_TOLERANCE_PX).any(axis=1)
    box_areas = sides.prod(axis=1)
    areas = np.where(np.isfinite(image.areas) & (image.areas > 0), image.areas, box_areas)
    areas = np.where(clipped, np.minimum(areas, box_areas), areas)
    return CleanedBoxes(boxes, areas, finite & ~tiny, clipped, tiny, ~finite)


def _check_found(split: AnnotatedSplit, found: Sequence[ImageCheck], skip_unreadable: bool) -> list[str]:
    """Notes on images left out.

    Raises:
        DataError: an image cannot be used and may not be left out, or contradicts its annotation.
    """
    bad = [(image, check) for image, check in zip(split.images, found, strict=True) if check.problem is not None]
    if bad and not skip_unreadable:
        image, check = bad[0]
        more = f" (and {len(bad) - 1} more of {len(found)})" if len(bad) > 1 else ""
        raise DataError(
            f"image {image.path} of {image.source} cannot be read: {check.problem}{more}; "
            "mend it, or leave out what cannot be read with --skip-unreadable (skip_unreadable=True)"
        )
    for image, check in zip(split.images, found, strict=True):
        problem = describe_mismatch(image, check) if check.problem is None else None
        if problem is not None:
            raise DataError(problem)
    if not bad:
        return []
    names = ", ".join(image.path.name for image, _ in bad[:3]) + (", ..." if len(bad) > 3 else "")
    return [f"{split.name}: {len(bad)} unreadable images skipped ({names})"]


def _records(split: AnnotatedSplit, found: Sequence[ImageCheck]) -> tuple[tuple[ImageRecord, ...], list[str]]:
    """Records of the images that can be read, and notes on the boxes that were changed."""
    records = []
    changed: Counter[str] = Counter()
    for image, check in zip(split.images, found, strict=True):
        if check.problem is not None:
            continue
        mended = clean_boxes(image, check.size)
        changed["boxes reaching outside their image clipped"] += int(mended.clipped.sum())
        changed[f"boxes with a side under {MIN_SIDE_PX:g} px inside their image dropped"] += int(mended.tiny.sum())
        changed["boxes with a coordinate that is no number dropped"] += int(mended.no_number.sum())
        records.append(
            ImageRecord(
                id=image.id,
                path=image.path,
                size=check.size,
                boxes=mended.boxes[mended.kept].astype(np.float32),
                labels=image.labels[mended.kept],
                areas=mended.areas[mended.kept].astype(np.float32),
                crowd=image.crowd[mended.kept],
            )
        )
    return tuple(records), [f"{split.name}: {n} {what}" for what, n in changed.items() if n]


def _hash_parts(records: Sequence[ImageRecord], digests: Sequence[bytes]) -> Iterable[bytes]:
    """What of each record is data: not its id or path."""
    for record, digest in zip(records, digests, strict=True):
        yield digest
        arrays: tuple[npt.NDArray[np.generic], ...] = (
            record.boxes.astype("<f4"),
            record.labels.astype("<i8"),
            record.areas.astype("<f4"),
            record.crowd.astype("u1"),
        )
        yield from (array.tobytes() for array in arrays)


def _frame(*parts: bytes) -> bytes:
    """The parts with their lengths, so that no two lists of parts give the same bytes."""
    return b"".join(len(part).to_bytes(8, "little") + part for part in (str(len(parts)).encode(), *parts))
