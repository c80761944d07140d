"""Reading and writing COCO-format detection data (Lin et al. 2014, https://cocodataset.org/#format-data)."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fpn_bench.data.annotations import (
    SPLITS,
    UNSPLIT,
    AnnotatedImage,
    AnnotatedSet,
    AnnotatedSplit,
    OnProgress,
    annotated_image,
    assemble,
    complete_splits,
)
from fpn_bench.data.dataset import DetectionDataset
from fpn_bench.data.paths import (
    AllowedFolders,
    Folders,
    find_by_suffix,
    listing,
    regular_bytes,
    split_of,
)
from fpn_bench.data.settings import FolderData
from fpn_bench.errors import DataError

LAYOUT = (
    "annotations/train.json and annotations/val.json (or annotations/instances_train*.json and "
    "annotations/instances_val*.json) beside images/"
)
IMAGE_FOLDER = "images"
_REMEDY = (
    "put the file at annotations/{missing}.json or name the files in the space's data: "
    "{splits: {train: [JSON, FOLDER], val: [JSON, FOLDER]}}"
)

SplitPaths = Mapping[str, tuple[str | os.PathLike[str], str | os.PathLike[str]]]
"""Split name -> (annotation file, image folder)."""


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
    area: Annotated[float, Field(allow_inf_nan=False)] | None = None
    iscrowd: bool = False


class _Category(_Read):
    id: int
    name: str
    supercategory: Any = None


class _CocoFile(_Read):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


class _Split(NamedTuple):
    """One annotation file and the folders its images may be in, the most likely first."""

    name: str
    annotation_path: Path
    image_dirs: tuple[Path, ...]
    coco: _CocoFile


def load_coco(
    root: str | os.PathLike[str] | None = None,
    *,
    splits: SplitPaths | None = None,
    val_fraction: float | None = None,
    allow_images_from: AllowedFolders = (),
    skip_unreadable: bool = False,
    name: str | None = None,
    on_progress: OnProgress | None = None,
) -> DetectionDataset:
    """Read a data set in COCO format, checking every image: `read_coco`, then `assemble`, which says what is changed.

    Args:
        root, splits, val_fraction, allow_images_from: see `read_coco`.
        skip_unreadable: leave out images that are missing or cannot be decoded, instead of refusing the data set.
        name: for people; the name of the root folder when omitted.
        on_progress: called as the images are checked.

    Raises:
        DataError: a file is missing, is no COCO file, contradicts another file or itself, or an image cannot be used.
    """
    annotated = read_coco(root, splits=splits, val_fraction=val_fraction, allow_images_from=allow_images_from)
    return assemble(annotated, skip_unreadable=skip_unreadable, name=name, on_progress=on_progress)


class CocoData(FolderData):
    """A data set in COCO format.

    Attributes:
        splits: split -> [annotation file, image folder], relative to `root` where that is given; for other layouts.
    """

    kind: Literal["coco"]
    splits: dict[str, tuple[str, str]] | None = None


def recognises_coco(root: Path) -> bool:
    """Whether a folder looks like a data set in COCO format."""
    return any((root / "annotations").glob("*.json"))


def recognises_other_coco(root: Path) -> bool:
    """Whether a folder without ``annotations/``, or a JSON file, looks like an export in COCO format."""
    if root.is_file():
        return _looks_like_coco(root)
    return bool(_beside_images(root)) or any(_looks_like_coco(path) for path in root.glob("*.json"))


def read_coco(
    root: str | os.PathLike[str] | None = None,
    *,
    splits: SplitPaths | None = None,
    val_fraction: float | None = None,
    allow_images_from: AllowedFolders = (),
) -> AnnotatedSet:
    """The annotations of a data set in COCO format.

    Category ids become labels 0 .. C - 1 in the order of the ids. Segmentations are not read. Beside COCO's own layout
    those of Roboflow (``train/_annotations.coco.json``), CVAT (``annotations/instances_Train.json``) and one file
    without splits are found; an image that is not where its path says is looked for by the end of its path.

    Args:
        root: folder with ``annotations/`` and the images, or a JSON file; not needed when ``splits`` has the paths.
        splits: split name -> (annotation file, image folder), relative to ``root`` when that is given; ``train`` and
            ``val`` at least.
        val_fraction: share of the images of train, or of the only file, that become val.
        allow_images_from: folders outside the data set's own that files may be read from.

    Raises:
        DataError: a file is missing, is no COCO file, contradicts another file or itself, or names an image outside.
    """
    base = Path(root) if root is not None else Path()
    notes: list[str] = []
    if splits is not None:
        paths = {split: (base / annotation, base / images) for split, (annotation, images) in splits.items()}
        own = [*([base] if root is not None else []), *(images for _, images in paths.values())]
        read = [
            _Split(split, annotation, (images,), _read_annotations(annotation))
            for split, (annotation, images) in paths.items()
        ]
    elif root is not None:
        own = [base.parent if base.is_file() else base]
        read = _find_splits(base, Folders(own, allow_images_from), notes)
    else:
        raise DataError(f"expected a data set, got none: give a folder with {LAYOUT}, or splits=...")
    folders = Folders(own, allow_images_from)
    read = _without_empty_namesakes(read, notes)
    classes = _check_classes(read) if read else ()
    annotated = [AnnotatedSplit(s.name, s.annotation_path, _annotated_images(s, folders, notes)) for s in read]
    what = f"data set {base if root is not None else 'given by splits'}"
    complete, held = complete_splits(annotated, val_fraction, what, _REMEDY)
    name = base.resolve().name if root is not None else read[0].annotation_path.stem
    return AnnotatedSet(name, classes, complete, (*notes, *held))


def write_coco(dataset: DetectionDataset, folder: Path, images: Mapping[str, Sequence[Path]]) -> None:
    """Write the annotations of a data set whose images lie in the folder already; nothing is lost.

    Args:
        dataset: what is written. Label k becomes category id k + 1.
        folder: gets ``annotations/``.
        images: split -> path of each record's image under ``folder``.
    """
    (folder / "annotations").mkdir()
    categories = [{"id": i, "name": name} for i, name in enumerate(dataset.classes, start=1)]
    for split, records in dataset.splits.items():
        listed: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for record, path in zip(records, images[split], strict=True):
            name = path.relative_to(folder / IMAGE_FOLDER).as_posix()
            listed.append({"id": record.id, "file_name": name, "height": record.size[0], "width": record.size[1]})
            for (x1, y1, x2, y2), label, area, crowd in zip(
                record.boxes.tolist(), record.labels.tolist(), record.areas.tolist(), record.crowd.tolist(), strict=True
            ):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": record.id,
                        "category_id": label + 1,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": area,
                        "iscrowd": int(crowd),
                    }
                )
        text = json.dumps({"images": listed, "annotations": annotations, "categories": categories})
        (folder / "annotations" / f"{split}.json").write_text(text, encoding="utf-8")


def _annotated_images(split: _Split, folders: Folders, notes: list[str]) -> tuple[AnnotatedImage, ...]:
    coco = split.coco
    paths, elsewhere = {}, []
    for image in coco.images:
        paths[image.id] = split.image_dirs[0] / image.file_name
        if os.path.isfile(paths[image.id]) and folders.holds(paths[image.id]):
            continue
        if (found := find_by_suffix(image.file_name, split.image_dirs)) is not None:
            paths[image.id] = found
            elsewhere.append(f"{found.name} for {image.file_name}")
        folders.check(paths[image.id], split.annotation_path)
    if elsewhere:
        notes.append(f"{split.name}: {len(elsewhere)} images found by the end of their path ({elsewhere[0]})")
    label = {category_id: i for i, category_id in enumerate(sorted(c.id for c in coco.categories))}
    owned: dict[int, list[_Annotation]] = {image.id: [] for image in coco.images}
    for annotation in coco.annotations:
        owned[annotation.image_id].append(annotation)
    return tuple(
        annotated_image(
            image.id,
            paths[image.id],
            split.annotation_path,
            [(x, y, x + w, y + h) for x, y, w, h in (a.bbox for a in owned[image.id])],
            [label[a.category_id] for a in owned[image.id]],
            areas=[math.nan if a.area is None else a.area for a in owned[image.id]],
            crowd=[a.iscrowd for a in owned[image.id]],
            size=(image.height, image.width),
        )
        for image in coco.images
    )


def _find_splits(root: Path, folders: Folders, notes: list[str]) -> list[_Split]:
    """The splits that lie in ``root``, required ones first; one called `UNSPLIT` where there is one file without."""
    if root.is_file():
        return [_open_split(root.parent, UNSPLIT, root, folders)]
    if not root.is_dir():
        raise DataError(f"data set folder {root} does not exist; expected a folder with {LAYOUT}")
    files = {split: paths for split in SPLITS if (paths := _named_files(root, split))}
    if not {"train", "val"} <= files.keys():
        other = _beside_images(root) or _spelled_files(root)
        if other and not files.keys() - other.keys():
            names = ", ".join(str(path.relative_to(root)) for paths in other.values() for path in paths)
            notes.append(f"splits are read from {names}")
            files = other
    for split, paths in files.items():
        if len(paths) > 1:
            raise DataError(
                f"data set {root} has {len(paths)} {split} files ({', '.join(p.name for p in paths)}): "
                "say which in the space: data: {splits: {train: [JSON, FOLDER], val: [JSON, FOLDER]}}"
            )
    if not files:
        raise DataError(
            f"data set {root} has no annotation file: expected {LAYOUT}, got {listing(root)}"
            + (f" and annotations/: {listing(root / 'annotations')}" if (root / "annotations").is_dir() else "")
        )
    return [_open_split(root, split, files[split][0], folders) for split in (*SPLITS, UNSPLIT) if split in files]


def _named_files(root: Path, split: str) -> list[Path]:
    """COCO's own names."""
    plain = root / "annotations" / f"{split}.json"
    # instances_train2017.json, but not instances_trainval2017.json
    named = [
        path
        for path in sorted((root / "annotations").glob(f"instances_{split}*.json"))
        if not any(path.stem.startswith(f"instances_{split}{other}") for other in SPLITS)
    ]
    return [plain] if plain.is_file() else named


def _beside_images(root: Path) -> dict[str, list[Path]]:
    """Annotation files in the folder of a split, as Roboflow exports them."""
    found: dict[str, list[Path]] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else ():
        path = folder / "_annotations.coco.json"
        if path.is_file():
            found.setdefault(split_of(folder.name) or UNSPLIT, []).append(path)
    if (path := root / "_annotations.coco.json").is_file():
        found.setdefault(UNSPLIT, []).append(path)
    return {split: paths for split, paths in found.items() if split != UNSPLIT} or found


def _spelled_files(root: Path) -> dict[str, list[Path]]:
    """Annotation files named for a split in another way (``valid.json``, ``instances_Train.json``), else all that look
    like COCO, as `UNSPLIT`."""
    found: dict[str, list[Path]] = {}
    for path in [*sorted((root / "annotations").glob("*.json")), *sorted(root.glob("*.json"))]:
        stem = path.stem.lower().removesuffix("_annotations").removesuffix(".coco").strip("_")
        if (split := split_of(stem.removeprefix("instances_"))) is not None:
            found.setdefault(split, []).append(path)
    if found:
        return found
    files = [p for f in (root / "annotations", root) for p in sorted(f.glob("*.json")) if _looks_like_coco(p)]
    return {UNSPLIT: files} if files else {}


def _looks_like_coco(path: Path) -> bool:
    try:
        data = regular_bytes(path)
    except OSError:
        return False
    return path.suffix.lower() == ".json" and all(
        b'"%s"' % k in data for k in (b"images", b"annotations", b"categories")
    )


def _open_split(root: Path, split: str, path: Path, folders: Folders) -> _Split:
    """A split with the customary folders of its images, the first that holds any of them in front."""
    folders.check(path, root)
    coco = _read_annotations(path)
    folder = path.stem.removeprefix("instances_")
    candidates = [root / "images" / folder, root / folder, root / "images", root / split, root]
    beside = [] if path.parent in (root, root / "annotations") else [path.parent]
    dirs = [candidate for candidate in (*beside, *candidates) if candidate.is_dir()]
    holding = [d for d in dirs if any(os.path.isfile(d / image.file_name) for image in coco.images)]
    ordered = dict.fromkeys((*holding[:1], root / "images", *dirs))
    return _Split(split, path, tuple(ordered), coco)


def _without_empty_namesakes(splits: Sequence[_Split], notes: list[str]) -> list[_Split]:
    """Of categories of one name only those that have boxes anywhere.

    Roboflow writes a root category beside the classes, and calls it like one of them.
    """
    used = {annotation.category_id for split in splits for annotation in split.coco.annotations}
    kept, dropped = [], set()
    for split in splits:
        counts = Counter(category.name for category in split.coco.categories)
        named = {c.name for c in split.coco.categories if c.id in used}
        without = [c for c in split.coco.categories if counts[c.name] > 1 and c.id not in used and c.name in named]
        dropped |= {(c.id, c.name) for c in without}
        categories = [c for c in split.coco.categories if c not in without]
        _check_unique(split.annotation_path, "category name", (category.name for category in categories))
        kept.append(split._replace(coco=split.coco.model_copy(update={"categories": categories})))
    notes += [f"category {i} ({name!r}) without boxes left out: a class has its name" for i, name in sorted(dropped)]
    return kept


def _read_annotations(path: Path) -> _CocoFile:
    """Read and check one annotation file on its own."""
    try:
        data = regular_bytes(path)
    except FileNotFoundError as error:
        raise DataError(f"annotation file {path} does not exist; expected a COCO detection file (JSON)") from error
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
        problem = "is missing" if first["type"] == "missing" else f"is {str(first['input'])[:60]!r}: {first['msg']}"
        raise DataError(
            f"annotation file {path} is JSON but not COCO: {f'key {where}' if where else 'the whole'} {problem}; "
            "expected {images: [{id, file_name, height, width}], annotations: [{image_id, category_id, bbox}], "
            "categories: [{id, name}]}"
        ) from None
    if not coco.images:
        raise DataError(f"annotation file {path}: expected at least one image, got none")
    _check_unique(path, "image id", (image.id for image in coco.images))
    _check_unique(path, "category id", (category.id for category in coco.categories))
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
            f"{path}: expected each {what} once, got {repeated[0]!r} more than once ({len(repeated)} repeated values)"
        )


def _check_classes(splits: Sequence[_Split]) -> tuple[str, ...]:
    """Class names in the order of the category ids, the same in every split."""
    first, *others = splits
    wanted = {category.id: category.name for category in first.coco.categories}
    for split in others:
        other = {category.id: category.name for category in split.coco.categories}
        if other == wanted:
            continue
        only = [
            f"only {s.annotation_path} has {', '.join(map(repr, sorted(set(a.values()) - set(b.values()))))}"
            for s, a, b in ((first, wanted, other), (split, other, wanted))
            if set(a.values()) - set(b.values())
        ]
        moved = [
            f"{name!r} has id {next(i for i, n in wanted.items() if n == name)} in {first.annotation_path} and {i} in "
            f"{split.annotation_path}"
            for i, name in other.items()
            if name in wanted.values() and wanted.get(i) != name
        ]
        raise DataError(
            f"classes differ between splits {first.name} and {split.name}: {'; '.join(only or moved[:1])}; give both "
            "files the same categories, with the same ids"
        )
    return tuple(wanted[i] for i in sorted(wanted))
