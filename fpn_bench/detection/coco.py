"""Reading COCO-format detection data (Lin et al. 2014, https://cocodataset.org/#format-data)."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fpn_bench.detection.dataset import DetectionDataset, ImageRecord
from fpn_bench.detection.images import ImageCheck, check_image
from fpn_bench.errors import DataError

OnProgress = Callable[[int, int], None]
"""Called with (images checked, images in all)."""

_LAYOUT = (
    "annotations/train.json and annotations/val.json (or annotations/instances_train*.json and "
    "annotations/instances_val*.json) beside images/"
)
_SPLITS = ("train", "val", "test")
_REQUIRED_SPLITS = ("train", "val")
_MIN_SIDE_PX = 1.0
# Annotations that end on the border overshoot it by rounding; that is not worth a note.
_CLIP_TOLERANCE_PX = 0.05


class _Read(BaseModel):
    """What is read of a COCO file; other keys are other tools' business."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _Image(_Read):
    id: int
    file_name: str
    height: Annotated[int, Field(gt=0)]
    width: Annotated[int, Field(gt=0)]


class _Annotation(_Read):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: bool = False


class _Category(_Read):
    id: int
    name: str


class _CocoFile(_Read):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


class _Split(NamedTuple):
    """One annotation file and the folder its images are in."""

    name: str
    annotation_path: Path
    image_dir: Path
    coco: _CocoFile

    def image_path(self, image: _Image) -> Path:
        return self.image_dir / image.file_name


def load_coco(
    root: str | os.PathLike[str] | None = None,
    *,
    splits: Mapping[str, tuple[str | os.PathLike[str], str | os.PathLike[str]]] | None = None,
    skip_unreadable: bool = False,
    name: str | None = None,
    on_progress: OnProgress | None = None,
) -> DetectionDataset:
    """Read a data set in COCO format, checking every image.

    Each image file is read and decoded once: what is returned can be trained on, and its hash stands for the pixels.
    Category ids become labels 0 .. C - 1 in the order of the ids. Boxes that reach outside their image are clipped;
    boxes with a side under 1 pixel or a coordinate that is no number are dropped; both are counted in the notes.
    Crowd regions are kept and marked. Images without boxes are kept. Segmentations are not read.

    Args:
        root: folder with ``annotations/`` and the images; not needed when ``splits`` has the paths.
        splits: split name -> (annotation file, image folder), relative to ``root`` when that is given; ``train`` and
            ``val`` at least.
        skip_unreadable: leave out images that are missing or cannot be decoded, instead of refusing the data set.
        name: for people; the name of the root folder when omitted.
        on_progress: called as the images are checked.

    Raises:
        DataError: a file is missing, is no COCO file, contradicts another file or itself, or an image cannot be used.
    """
    base = Path(root) if root is not None else Path()
    if splits is not None:
        paths = {split: (base / annotation, base / images) for split, (annotation, images) in splits.items()}
        read = [
            _Split(split, annotation, images, _read_annotations(annotation))
            for split, (annotation, images) in paths.items()
        ]
    elif root is not None:
        read = _find_splits(base)
    else:
        raise DataError(f"no data set came: give a folder with {_LAYOUT}, or splits=...")
    missing = [split for split in _REQUIRED_SPLITS if split not in (s.name for s in read)]
    if missing:
        given = ", ".join(s.name for s in read) or "none"
        raise DataError(
            f"data set {base if root is not None else 'given by splits'} has no {' and no '.join(missing)} split "
            f"(splits: {given}): wanted are train and val; put the file at annotations/{missing[0]}.json "
            f"or name the files in the space's data: {{splits: {{train: [JSON, FOLDER], val: [JSON, FOLDER]}}}}"
        )
    classes = _check_classes(read)

    notes: list[str] = []
    records: dict[str, tuple[ImageRecord, ...]] = {}
    hasher = hashlib.sha256(_frame(*(c.encode() for c in classes)))
    checks = iter(_check_images([s.image_path(image) for s in read for image in s.coco.images], on_progress))
    seen: dict[bytes, str] = {}
    for split in read:
        found = [next(checks) for _ in split.coco.images]
        notes += _check_found(split, found, skip_unreadable)
        kept, changes = _records(split, found)
        notes += changes
        if not any(len(record.boxes) for record in kept):
            raise DataError(f"{split.annotation_path} has no boxes on its {len(kept)} images: nothing to learn from")
        records[split.name] = kept
        digests = [check.digest for check in found if check.problem is None]
        hasher.update(_frame(split.name.encode(), *_hash_parts(kept, digests)))
        shared = Counter(seen[digest] for digest in digests if digest in seen)
        notes += [f"{split.name}: {n} images are also in {other}" for other, n in shared.items()]
        seen.update((digest, split.name) for digest in digests)
    if name is None:
        name = base.resolve().name if root is not None else read[0].annotation_path.stem
    return DetectionDataset(name, classes, records, hasher.hexdigest(), tuple(notes))


def _find_splits(root: Path) -> list[_Split]:
    """The splits that lie in ``root``, required ones first."""
    if not root.is_dir():
        raise DataError(f"data set folder {root} does not exist: wanted is a folder with {_LAYOUT}")
    found = []
    for split in _SPLITS:
        plain = root / "annotations" / f"{split}.json"
        # instances_train2017.json, but not instances_trainval2017.json
        named = [
            path
            for path in sorted((root / "annotations").glob(f"instances_{split}*.json"))
            if not any(path.stem.startswith(f"instances_{split}{other}") for other in _SPLITS)
        ]
        candidates = [plain] if plain.is_file() else named
        if len(candidates) > 1:
            raise DataError(
                f"data set {root} has {len(candidates)} {split} files ({', '.join(p.name for p in candidates)}): "
                "say which in the space: data: {splits: {train: [JSON, FOLDER], val: [JSON, FOLDER]}}"
            )
        for path in candidates:
            coco = _read_annotations(path)
            found.append(_Split(split, path, _find_image_dir(root, path, split, coco), coco))
    if not found:
        raise DataError(f"data set {root} has no annotation file: wanted are {_LAYOUT}")
    return found


def _find_image_dir(root: Path, annotation_path: Path, split: str, coco: _CocoFile) -> Path:
    """The first of the customary folders that holds any of the images."""
    folder = annotation_path.stem.removeprefix("instances_")
    candidates = [root / "images" / folder, root / folder, root / "images", root / split, root]
    for candidate in candidates:
        if candidate.is_dir() and any((candidate / image.file_name).is_file() for image in coco.images):
            return candidate
    return root / "images"


def _read_annotations(path: Path) -> _CocoFile:
    """Read and check one annotation file on its own."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"annotation file {path} does not exist: wanted is a COCO detection file (JSON)") from error
    except OSError as error:
        raise DataError(f"annotation file {path} cannot be read: {error.strerror}") from error
    try:
        coco = _CocoFile.model_validate_json(data.removeprefix(b"\xef\xbb\xbf"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            raise DataError(
                f"annotation file {path} is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}"
            ) from None
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        came = "is missing" if first["type"] == "missing" else f"is {str(first['input'])[:60]!r}: {first['msg']}"
        raise DataError(
            f"annotation file {path} is JSON but not COCO: {f'key {where}' if where else 'the whole'} {came}; "
            "wanted is {images: [{id, file_name, height, width}], annotations: [{image_id, category_id, bbox}], "
            "categories: [{id, name}]}"
        ) from None
    if not coco.images:
        raise DataError(f"annotation file {path} lists no images: at least one is wanted")
    _check_unique(path, "image id", (image.id for image in coco.images))
    _check_unique(path, "category id", (category.id for category in coco.categories))
    _check_unique(path, "category name", (category.name for category in coco.categories))
    images = {image.id for image in coco.images}
    categories = {category.id for category in coco.categories}
    for index, annotation in enumerate(coco.annotations):
        if annotation.image_id not in images:
            raise DataError(
                f"{path}: annotations[{index}] is on image {annotation.image_id}, which images does not list"
            )
        if annotation.category_id not in categories:
            raise DataError(
                f"{path}: annotations[{index}] has category {annotation.category_id}, which categories does not list"
            )
    return coco


def _check_unique(path: Path, what: str, values: Iterable[int | str]) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise DataError(
            f"{path}: {what} {repeated[0]!r} occurs more than once ({len(repeated)} do); each once is wanted"
        )


def _check_classes(splits: Sequence[_Split]) -> tuple[str, ...]:
    """Class names in the order of the category ids, the same in every split."""
    first, *others = splits
    wanted = {category.id: category.name for category in first.coco.categories}
    for split in others:
        came = {category.id: category.name for category in split.coco.categories}
        if came == wanted:
            continue
        only = [
            f"only {s.annotation_path} has {', '.join(map(repr, sorted(set(a.values()) - set(b.values()))))}"
            for s, a, b in ((first, wanted, came), (split, came, wanted))
            if set(a.values()) - set(b.values())
        ]
        moved = [
            f"{name!r} has id {next(i for i, n in wanted.items() if n == name)} in {first.annotation_path} and {i} in "
            f"{split.annotation_path}"
            for i, name in came.items()
            if name in wanted.values() and wanted.get(i) != name
        ]
        raise DataError(
            f"classes differ between splits {first.name} and {split.name}: {'; '.join(only or moved[:1])}; give both "
            "files the same categories, with the same ids"
        )
    return tuple(wanted[i] for i in sorted(wanted))


def _check_images(paths: Sequence[Path], on_progress: OnProgress | None) -> list[ImageCheck]:
    """Check every image, in order. Threads: decoding leaves the interpreter lock.

    No generator: one left half-way would end its pool wherever the garbage collector finds it, and waits for ever where
    that is the start of another thread.
    """
    checks = []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for done, check in enumerate(pool.map(check_image, paths), start=1):
            if on_progress is not None:
                on_progress(done, len(paths))
            checks.append(check)
    return checks


def _check_found(split: _Split, found: Sequence[ImageCheck], skip_unreadable: bool) -> list[str]:
    """Notes on images left out.

    Raises:
        DataError: an image cannot be used and may not be left out, or its size contradicts the annotation file.
    """
    bad = [(image, check) for image, check in zip(split.coco.images, found, strict=True) if check.problem is not None]
    if bad and not skip_unreadable:
        image, check = bad[0]
        more = f" (and {len(bad) - 1} more of {len(found)})" if len(bad) > 1 else ""
        raise DataError(
            f"image {split.image_path(image)} of {split.annotation_path} cannot be read: {check.problem}{more}; "
            "mend it, or leave out what cannot be read with --skip-unreadable (skip_unreadable=True)"
        )
    for image, check in zip(split.coco.images, found, strict=True):
        if check.problem is None and check.size != (image.height, image.width):
            height, width = check.size
            turned = check.turned and (width, height) == (image.height, image.width)
            raise DataError(
                f"image {split.image_path(image)} is {width}x{height} but {split.annotation_path} says "
                f"{image.width}x{image.height}"
                + (
                    ": the annotations were made on the picture as its EXIF orientation turns it; save it turned "
                    "(PIL.ImageOps.exif_transpose)"
                    if turned
                    else ": its boxes would be in the wrong place; correct width and height, or the file"
                )
            )
    if not bad:
        return []
    names = ", ".join(image.file_name for image, _ in bad[:3]) + (", ..." if len(bad) > 3 else "")
    return [f"{split.name}: {len(bad)} unreadable images skipped ({names})"]


def _records(split: _Split, found: Sequence[ImageCheck]) -> tuple[tuple[ImageRecord, ...], list[str]]:
    """Records of the images that can be read, and notes on the boxes that were changed."""
    coco = split.coco
    n = len(coco.annotations)
    position = {image.id: i for i, image in enumerate(coco.images)}
    label = {category_id: i for i, category_id in enumerate(sorted(c.id for c in coco.categories))}
    owner = np.array([position[a.image_id] for a in coco.annotations], np.int64)
    labels = np.array([label[a.category_id] for a in coco.annotations], np.int64)
    crowd = np.array([a.iscrowd for a in coco.annotations], np.bool_)
    areas = np.array([np.nan if a.area is None else a.area for a in coco.annotations], np.float64)
    xywh = np.array([a.bbox for a in coco.annotations], np.float64).reshape(n, 4)
    readable = np.array([check.problem is None for check in found])[owner] if n else np.zeros(0, np.bool_)

    finite = np.isfinite(xywh).all(axis=1)
    xywh[~finite] = 0
    raw = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    limit = np.array([(i.width, i.height, i.width, i.height) for i in coco.images], np.float64)[owner]
    boxes = np.clip(raw, 0, limit)
    sides = boxes[:, 2:] - boxes[:, :2]
    tiny = finite & ~(sides >= _MIN_SIDE_PX).all(axis=1)
    clipped = finite & ~tiny & (np.abs(boxes - raw) > _CLIP_TOLERANCE_PX).any(axis=1)
    # `area` is the object's (mask) area: it is unknown when not given, and at most the box's where the box was cut.
    box_areas = sides.prod(axis=1)
    areas = np.where(np.isfinite(areas) & (areas > 0), areas, box_areas)
    areas = np.where(clipped, np.minimum(areas, box_areas), areas)

    keep = np.flatnonzero(finite & ~tiny & readable)
    keep = keep[np.argsort(owner[keep], kind="stable")]
    bounds = np.searchsorted(owner[keep], np.arange(len(coco.images) + 1))
    records = []
    for i, (image, check) in enumerate(zip(coco.images, found, strict=True)):
        if check.problem is None:
            mine = keep[bounds[i] : bounds[i + 1]]
            records.append(
                ImageRecord(
                    id=image.id,
                    path=split.image_path(image),
                    size=(image.height, image.width),
                    boxes=boxes[mine].astype(np.float32),
                    labels=labels[mine],
                    areas=areas[mine].astype(np.float32),
                    crowd=crowd[mine],
                )
            )
    counts = {
        "boxes reaching outside their image clipped": clipped,
        f"boxes with a side under {_MIN_SIDE_PX:g} px inside their image dropped": tiny,
        "boxes with a coordinate that is no number dropped": ~finite,
    }
    notes = [f"{split.name}: {int((m & readable).sum())} {what}" for what, m in counts.items() if (m & readable).any()]
    return tuple(records), notes


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
