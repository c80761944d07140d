"""Reading and writing data sets in YOLO format: one text file an image, with boxes in parts of its width and height.

Source: the detection format of Ultralytics (https://docs.ultralytics.com/datasets/detect/). ``data.yaml`` names the
splits and the classes; a label file lies where its image does, with the last folder ``images`` of the path replaced
by ``labels``, and has a row ``class cx cy w h`` for each object. LabelImg's simpler form, ``classes.txt`` instead
of ``data.yaml``, is read too.

- **Segmentation rows** (``class x y x y x y ...``) and oriented boxes become the box around their points.
- **YOLO 1.1**, as CVAT exports it: ``obj.data`` names lists of images and ``obj.names``, as darknet's files do.
- **No label file, or an empty one**, is an image without boxes; a split without a single label file is refused.
- **Turned pictures**: Ultralytics turns an image as its EXIF orientation says, and fpn_bench does not. One that has
  such an orientation is refused, for nothing in the files says in which of the two its boxes are.
- Neither areas of objects nor regions to ignore can be told.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fpn_bench.analysis.rows import parse_number
from fpn_bench.data.annotations import (
    SPLITS,
    UNSPLIT,
    AnnotatedImage,
    AnnotatedSet,
    AnnotatedSplit,
    annotated_image,
    check_class_names,
    check_classes,
    complete_splits,
    read_class_list,
    read_text,
)
from fpn_bench.data.dataset import DetectionDataset
from fpn_bench.data.images import IMAGE_SUFFIXES
from fpn_bench.data.paths import AllowedFolders, Folders, find_by_suffix, listing, split_of
from fpn_bench.data.settings import FolderData
from fpn_bench.errors import DataError
from fpn_bench.yaml_text import dump_yaml, load_yaml, scalar

LAYOUT = "data.yaml with train:, val: and names: (or classes.txt beside images/{train,val} and labels/{train,val})"
IMAGE_FOLDER = "images/{split}"
CLASS_LIST = "classes.txt"
_CONFIGS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_SPLIT_KEYS: Mapping[str, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
# Rounding of points at the border; further out, the numbers are no parts of the image at all.
_OVERSHOOT = 0.01


class _Plan(NamedTuple):
    """What is to be read: the file that says so, class names, and the images of each split with what lists them."""

    source: Path
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[Path, list[Path]]]
    lists: frozenset[Path]
    notes: tuple[str, ...]


class _Row(NamedTuple):
    label: int
    box: tuple[float, float, float, float]
    is_outline: bool


class YoloData(FolderData):
    """A data set in YOLO format; `root` is the folder of ``data.yaml``, or that file."""

    kind: Literal["yolo"]


def recognises_yolo(root: Path) -> bool:
    """Whether a folder, or a YAML file, looks like a data set in YOLO format."""
    if root.is_file():
        return root.suffix.lower() in (".yaml", ".yml")
    if _find_config(root) is not None:
        return True
    return _find_class_list(root) is not None and any(
        path.name != CLASS_LIST
        for names in _SPLIT_KEYS.values()
        for name in names
        for folder in (root / "labels" / name, root / name / "labels", root / name)
        for path in folder.glob("*.txt")
    )


def recognises_other_yolo(root: Path) -> bool:
    """Whether a folder looks like an export of CVAT (``obj.data``) or Label Studio (``classes.txt``, no splits)."""
    if root.is_file():
        return root.suffix.lower() == ".data"
    if any(root.glob("*.data")) and any(root.glob("*.names")):
        return True
    return _find_class_list(root) is not None and any((root / "labels").glob("*.txt"))


def read_yolo(
    root: str | os.PathLike[str], *, val_fraction: float | None = None, allow_images_from: AllowedFolders = ()
) -> AnnotatedSet:
    """The annotations of a data set in YOLO format.

    Args:
        root: a ``data.yaml``, or the folder it lies in; or a folder with ``classes.txt`` and images in
            ``images/train``, ``train/images`` or ``train``, and so for ``val`` (``valid``). Paths in ``data.yaml`` are
            looked for under its ``path:``, then where it lies; ``train:`` and the others name a folder, a list of
            folders, or text files that list images. Or a folder with ``obj.data`` (YOLO 1.1).
        val_fraction: share of the images of train, or of a folder without splits, that become val.
        allow_images_from: folders outside the data set's own that files may be read from.

    Raises:
        DataError: a file is missing, lies outside, or says what this format does not; a bad row is named with file and
            line.
    """
    base = Path(root)
    if not base.exists():
        raise DataError(f"data set {base} does not exist; expected {LAYOUT}")
    folders = Folders([base.parent if base.is_file() else base], allow_images_from)
    plan = _plan(base, folders)
    notes = list(plan.notes)
    read = []
    used: set[Path] = set()
    for split, (source, paths) in plan.splits.items():
        labels = [_label_path(path) for path in paths]
        images, problems, outlines, missing = [], [], 0, 0
        for number, (path, label) in enumerate(zip(paths, labels, strict=True), start=1):
            rows: list[_Row] = []
            folders.check(path, source)
            if has_rows := os.path.lexists(label):  # a pipe or a dangling link is no image without boxes
                folders.check(label, source)
                used.add(label)
                for row in _rows(label, plan.classes):
                    if isinstance(row, _Row):
                        rows.append(row)
                    else:
                        problems.append(row)
            else:
                missing += 1
            outlines += sum(row.is_outline for row in rows)
            images.append(_annotated_image(number, path, label if has_rows else source, rows))
        if problems:
            more = f" (and {len(problems) - 1} more bad rows in {split})" if len(problems) > 1 else ""
            raise DataError(problems[0] + more)
        if missing == len(images):
            if split == "test":  # published sets keep its labels to themselves
                notes.append(f"test: left out, for none of its {len(images)} images has a label file")
                continue
            raise DataError(
                f"none of the {len(images)} images of {source} has a label file: looked for {labels[0]} and so on"
            )
        if missing:
            notes.append(f"{split}: {missing} images have no label file, thus no boxes")
        if outlines:
            notes.append(f"{split}: {outlines} outlines became the boxes around them")
        read.append(AnnotatedSplit(split, source, tuple(images)))
    complete, held = complete_splits(
        read, val_fraction, f"data set {plan.source}", "name its images as {missing}: FOLDER in data.yaml"
    )
    known = used | plan.lists
    orphans = [
        path
        for folder in sorted({label.parent for label in used})
        for path in sorted(folder.glob("*.txt"))
        if path not in known and path.name != CLASS_LIST
    ]
    name = (base if base.is_dir() else base.parent).resolve().name
    return AnnotatedSet(name, plan.classes, complete, (*notes, *held), tuple(orphans))


def write_yolo(dataset: DetectionDataset, folder: Path, images: Mapping[str, Sequence[Path]]) -> None:
    """Write the annotations of a data set whose images lie in the folder already.

    Numbers have as many decimals as it takes to read the same boxes again. Lists of images keep their order. Regions to
    ignore are left out, and areas are lost: the format has neither.

    Args:
        dataset: what is written.
        folder: gets ``data.yaml``, a list ``SPLIT.txt`` and ``labels/SPLIT`` for each split.
        images: split -> path of each record's image under ``folder``; unlike stems.

    Raises:
        DataError: a class has no name.
    """
    check_class_names(dataset.classes, "YOLO")
    for split, records in dataset.splits.items():
        (folder / "labels" / split).mkdir(parents=True)
        for record, path in zip(records, images[split], strict=True):
            height, width = record.size
            lines = []
            for (x1, y1, x2, y2), label, crowd in zip(
                record.boxes.tolist(), record.labels.tolist(), record.crowd.tolist(), strict=True
            ):
                if not crowd:
                    row = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
                    lines.append(" ".join([str(label), *map(repr, row)]) + "\n")
            (folder / "labels" / split / f"{path.stem}.txt").write_text("".join(lines), encoding="utf-8")
        listed = "".join(f"./{path.relative_to(folder).as_posix()}\n" for path in images[split])
        (folder / f"{split}.txt").write_text(listed, encoding="utf-8")
    # No `path:`, which Ultralytics would take from the folder it is run in; without, paths begin at this file.
    config = {**{split: f"{split}.txt" for split in dataset.splits}, "names": dict(enumerate(dataset.classes))}
    (folder / "data.yaml").write_text(dump_yaml(config), encoding="utf-8")


# --------------------------------------------------------------------------------------------------------------
# Finding the files


def _find_config(root: Path) -> Path | None:
    found = [root / name for name in _CONFIGS if (root / name).is_file()]
    if len(found) > 1:
        raise DataError(f"data set {root} has {' and '.join(p.name for p in found)}: name the one that is meant")
    return found[0] if found else None


def _find_class_list(root: Path) -> Path | None:
    folders = (root, root / "labels", root / "train", root / "train" / "labels", root / "labels" / "train")
    return next((path for folder in folders if (path := folder / CLASS_LIST).is_file()), None)


def _plan(base: Path, folders: Folders) -> _Plan:
    if base.is_file() and base.suffix.lower() == ".data":
        return _read_darknet(base, folders)
    config = base if base.is_file() else _find_config(base)
    if config is not None:
        return _read_config(config, folders)
    darknet = sorted(base.glob("*.data"))
    return _read_darknet(darknet[0], folders) if len(darknet) == 1 else _plan_without_config(base, folders)


def _read_darknet(path: Path, folders: Folders) -> _Plan:
    """The plan of a file of lines ``key = value``, whose paths begin in a folder that only darknet knows."""
    lines = (line.partition("=") for line in read_text(path, "data set file").splitlines())
    config = {key.strip(): value.strip() for key, _, value in lines if value.strip()}
    base = path.parent
    notes = [f"splits and classes are read from {path.name}"]

    def find(key: str) -> Path | None:
        place = find_by_suffix(config[key], [base]) if key in config else None
        if place is not None:
            folders.check(place, path)
        return place

    names = find("names") or next(iter(sorted(base.glob("*.names"))), None)
    if names is None:
        raise DataError(f"{path}: names: no list of class names; expected names = obj.names (found: {listing(base)})")
    folders.check(names, path)
    splits = {}
    for split, keys in _SPLIT_KEYS.items():
        place = next((place for key in keys if (place := find(key)) is not None), None)
        place = place or next((p for p in sorted(base.glob("*.txt")) if split_of(p.stem) == split), None)
        if place is not None:
            splits[split] = (place, _images_in(place, [base], folders, notes))
    return _Plan(path, read_class_list(names), splits, frozenset(place for place, _ in splits.values()), tuple(notes))


def _read_config(path: Path, folders: Folders) -> _Plan:
    config = _load_yaml(path)
    if "kpt_shape" in config:
        raise DataError(
            f"{path} describes key points (kpt_shape); expected boxes: remove the key points from the labels"
        )
    classes = _class_names(config, path)
    bases = [path.parent]
    if text := _text(config, "path", path):
        bases.insert(0, path.parent / text)
    splits: dict[str, tuple[Path, list[Path]]] = {}
    lists: set[Path] = set()
    notes = []
    for split in SPLITS:
        key = next((key for key in _SPLIT_KEYS[split] if config.get(key)), split)
        entries = _entries(config, key, path)
        places = [_find(entry, bases, folders) for entry in entries]
        absent = [entry for entry, place in zip(entries, places, strict=True) if place is None]
        if absent and split == "test":
            notes.append(f"test: left out, for {absent[0]} of {path.name} does not exist")
            continue
        if absent:
            looked = ", ".join(dict.fromkeys(str(base) for base in bases))
            raise DataError(f"{path}: {key}: {absent[0]} does not exist (looked in {looked}); correct it, or path:")
        found = [place for place in places if place is not None]
        for place in found:
            folders.check(place, path)
        if found:
            paths = [image for place in found for image in _images_in(place, bases, folders, notes)]
            image, count = Counter(map(os.path.normpath, paths)).most_common(1)[0]
            if count > 1:
                raise DataError(f"{path}: {key}: expected each image once, got {image} {count} times")
            splits[split] = (found[0] if len(found) == 1 else path, paths)
            lists.update(place for place in found if place.is_file())
    return _Plan(path, classes, splits, frozenset(lists), tuple(notes))


def _plan_without_config(root: Path, allowed: Folders) -> _Plan:
    class_list = _find_class_list(root)
    if class_list is None:
        raise DataError(
            f"data set {root} has neither data.yaml nor classes.txt: expected {LAYOUT}, got {listing(root)}"
        )
    splits = {}
    notes: list[str] = []
    for split, names in _SPLIT_KEYS.items():
        folders = [f for name in names for f in (root / "images" / name, root / name / "images", root / name)]
        folder = next((folder for folder in folders if folder.is_dir()), None)
        if folder is not None:
            splits[split] = (folder, _images_in(folder, [root], allowed, notes))
    if not splits:
        images = root / "images" if (root / "images").is_dir() else root
        splits[UNSPLIT] = (images, _images_in(images, [root], allowed, notes))
    return _Plan(root, read_class_list(class_list), splits, frozenset(), tuple(notes))


def _load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a file; values are strings, lists and mappings, so that a class may be called ``no``."""
    config = load_yaml(read_text(path, "data set file"), str(path), error=DataError, strings=True)
    if not isinstance(config, dict):
        raise DataError(f"{path} holds no mapping of keys; expected train:, val: and names:")
    return config


def _text(config: Mapping[str, Any], key: str, path: Path) -> str:
    value = config.get(key, "")
    if not isinstance(value, str):
        raise DataError(f"{path}: {key}: expected a path, got a {type(value).__name__}")
    return "" if value in ("~", "null") else value


def _entries(config: Mapping[str, Any], key: str, path: Path) -> list[str]:
    """The folders or lists that a split's key names; none where it is missing or empty."""
    value = config.get(key, "")
    if isinstance(value, list) and value and all(isinstance(entry, str) and entry for entry in value):
        return value
    if isinstance(value, list):
        raise DataError(f"{path}: {key}: expected a folder, a list of folders, or text files of image paths")
    text = _text(config, key, path)
    return [text] if text else []


def _class_names(config: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    names = config.get("names")
    if isinstance(names, dict):
        numbered = {_whole(key): name for key, name in names.items()}
        if numbered.keys() != set(range(len(names))):
            raise DataError(f"{path}: names: expected the numbers 0 to {len(names) - 1}, each with a name")
        names = [numbered[number] for number in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: names: expected a list of class names, or a mapping of numbers to names")
    check_classes(names, path)
    count = config.get("nc")
    if count is not None and _whole(count) is None:
        raise DataError(f"{path}: nc: expected the number of classes, {len(names)}, got {str(count)[:20]!r}")
    if count is not None and _whole(count) != len(names):
        raise DataError(
            f"{path}: nc: expected {len(names)}, the number of names, got {str(count)[:20]}: correct one of them"
        )
    return tuple(names)


def _whole(text: object) -> int | None:
    """A whole number as YAML has it, also written ``2.0``; None where it is none."""
    try:
        value = scalar(text) if isinstance(text, str) else None
    except ValueError:
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def _find(entry: str, bases: Sequence[Path], folders: Folders) -> Path | None:
    """Where an entry lies. Exported files often begin with ``../`` though the folder lies beside them."""
    # Of os.path, as below: a name that cannot be one (too long, a NUL in it) is no file there, and an error in pathlib.
    spellings = [entry, entry.removeprefix("../")]
    found = [p for base in bases for spelling in spellings if os.path.exists(p := base / spelling)]
    return next((path for path in found if folders.holds(path)), found[0] if found else None)


def _images_in(place: Path, bases: Sequence[Path], folders: Folders, notes: list[str]) -> list[Path]:
    """The images of a folder and those below it, by name, or those that a text file lists, in its order.

    Raises:
        DataError: there are none.
    """
    if place.is_dir():
        paths = sorted(path for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    else:
        lines = [line.strip() for line in read_text(place, "image list").splitlines() if line.strip()]
        paths = [_listed(line, place.parent, bases) for line in lines]
        elsewhere = []
        for i, (line, path) in enumerate(zip(lines, paths, strict=True)):
            if os.path.isfile(path) and folders.holds(path):
                continue
            if (found := find_by_suffix(line, bases)) is not None:
                paths[i] = found
                elsewhere.append(f"{found.name} for {line}")
        if elsewhere:
            notes.append(f"{place.name}: {len(elsewhere)} images found by the end of their path ({elsewhere[0]})")
    if not paths:
        raise DataError(f"{place}: expected at least one image, got none")
    return paths


def _listed(line: str, folder: Path, bases: Sequence[Path]) -> Path:
    """Where an image of a list lies: ``./`` begins at the list, anything else at the data set or at the list."""
    if line.startswith("./"):
        return folder / line[2:]
    return next((path for base in (*bases, folder) if os.path.isfile(path := base / line)), folder / line)


def _label_path(image: Path) -> Path:
    """Where the labels of an image lie: beside it, where no folder of its path is called ``images``."""
    *folders, _ = image.parts
    beside = image.parent / f"{image.stem}.txt"
    if "images" not in folders:
        return beside
    last = len(folders) - 1 - folders[::-1].index("images")
    replaced = Path(*folders[:last], "labels", *folders[last + 1 :], beside.name)
    return beside if os.path.isfile(beside) and not os.path.isfile(replaced) else replaced


# --------------------------------------------------------------------------------------------------------------
# Reading a label file


def _rows(path: Path, classes: Sequence[str]) -> Iterator[_Row | str]:
    """Each row of a label file, or what is wrong with it, with file and line."""
    for number, line in enumerate(read_text(path, "label file").splitlines(), start=1):
        if parts := line.split():
            row = _row(parts, len(classes))
            yield row if isinstance(row, _Row) else f"{path}, line {number}: {row}"


def _row(parts: Sequence[str], num_classes: int) -> _Row | str:
    try:
        label, *values = (parse_number(part) for part in parts)
    except ValueError:
        return f"expected numbers, class cx cy w h, got {' '.join(parts)[:60]!r}"
    if not label.is_integer() or not 0 <= label < num_classes:
        return f"expected a class from 0 to {num_classes - 1}, the number of a name, got {parts[0][:20]}"
    if not all(math.isfinite(value) for value in values):
        return f"expected finite numbers, class cx cy w h, got {' '.join(parts)[:60]!r}"
    if not all(-_OVERSHOOT <= value <= 1 + _OVERSHOOT for value in values):
        worst = max(values, key=lambda value: abs(value - 0.5))
        return f"expected parts of the image's width and height, from 0 to 1, not pixels, got {worst:g}"
    if len(values) == 4:
        cx, cy, w, h = values
        return _Row(int(label), (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), False)
    if len(values) < 6 or len(values) % 2:
        return f"expected 5 values, class cx cy w h, or a class and three or more points x y, got {len(parts)} values"
    xs, ys = values[::2], values[1::2]
    return _Row(int(label), (min(xs), min(ys), max(xs), max(ys)), True)


def _annotated_image(number: int, path: Path, source: Path, rows: Sequence[_Row]) -> AnnotatedImage:
    return annotated_image(number, path, source, [row.box for row in rows], [row.label for row in rows], relative=True)
