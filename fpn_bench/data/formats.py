"""The annotation formats, and reading and writing a data set in any of them.

A format is a `Format`: how its folder is recognised, what a space may say of it, a reader that turns its files into an
`AnnotatedSet`, and a writer where it has one. A new one is a file and a `register` below.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fpn_bench.data import coco, voc, yolo
from fpn_bench.data.annotations import AnnotatedSet, OnProgress, assemble
from fpn_bench.data.dataset import DetectionDataset
from fpn_bench.data.paths import listing
from fpn_bench.data.settings import FolderData
from fpn_bench.errors import DataError, InputError, UnknownNameError

_LOOKED_AT = 200  # folders below one that is no data set

ImagePaths = Mapping[str, Sequence[Path]]
"""Split -> where the image of each record lies."""


@dataclass(frozen=True, slots=True)
class Format:
    """One way in which data sets are written down.

    Attributes:
        name: what `load_dataset` and a space's ``kind:`` call it.
        layout: what its folder holds, for messages.
        settings: what stands under a space's ``data:`` beside what all formats have: the reader's options.
        recognises: whether a folder looks like it.
        recognises_other: whether a folder that looks like no format looks like what tools export as it; asked second,
            so that a set of one format with a stray file of another stays what it is.
        read: its reader; what it takes by keyword are the format's options.
        write: writes annotations beside images that are there already; None where that is not to be had.
        image_folder: where images lie under the folder; ``{split}`` stands for the split's name.
        holds_areas: areas of objects other than their boxes' can be written.
        holds_crowd: regions to ignore can be written.
    """

    name: str
    layout: str
    settings: type[FolderData]
    recognises: Callable[[Path], bool]
    read: Callable[..., AnnotatedSet]
    recognises_other: Callable[[Path], bool] = lambda root: False
    write: Callable[[DetectionDataset, Path, ImagePaths], None] | None = None
    image_folder: str = "images/{split}"
    holds_areas: bool = False
    holds_crowd: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """Names of what the reader takes by keyword."""
        parameters = inspect.signature(self.read).parameters.values()
        return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


FORMATS: dict[str, Format] = {}
"""The formats by name."""


def register(new: Format) -> None:
    """Make a format known: to `load_dataset`, `fpn-bench data`, and the ``data:`` block of spaces.

    Raises:
        InputError: another format has its name, or its settings are not the options of its reader.
    """
    if new.name in FORMATS:
        raise InputError(f"expected a format under a name of its own, got {new.name} a second time")
    settings = set(new.settings.model_fields) - {"kind", "root", "skip_unreadable"}
    if settings != set(new.options):
        raise InputError(
            f"expected the settings of {new.name} to be the keywords of its reader, {', '.join(sorted(new.options))}; "
            f"got {', '.join(sorted(settings))}"
        )
    FORMATS[new.name] = new


register(
    Format(
        "coco",
        coco.LAYOUT,
        coco.CocoData,
        coco.recognises_coco,
        coco.read_coco,
        coco.recognises_other_coco,
        coco.write_coco,
        coco.IMAGE_FOLDER,
        holds_areas=True,
        holds_crowd=True,
    )
)
register(
    Format(
        "voc",
        voc.LAYOUT,
        voc.VocData,
        voc.recognises_voc,
        voc.read_voc,
        voc.recognises_other_voc,
        voc.write_voc,
        voc.IMAGE_FOLDER,
        holds_crowd=True,
    )
)
register(
    Format(
        "yolo",
        yolo.LAYOUT,
        yolo.YoloData,
        yolo.recognises_yolo,
        yolo.read_yolo,
        yolo.recognises_other_yolo,
        yolo.write_yolo,
        yolo.IMAGE_FOLDER,
    )
)


def find_format(root: str | os.PathLike[str], prefer: str | None = None) -> Format:
    """The format a folder is in, by what lies in it.

    Args:
        root: the folder, or a ``data.yaml``.
        prefer: taken where the folder can be read as several.

    Raises:
        DataError: none or several fit; the message says what was looked for.
    """
    path = Path(root)
    known = "; ".join(f"{f.name}: {f.layout}" for f in FORMATS.values())
    if not path.exists():
        raise DataError(f"data set folder {path} does not exist; expected a folder in one of these formats: {known}")
    found = _recognised(path)
    if not found:
        raise DataError(f"data set {path} is in no known format{_below(path)}; expected one of these: {known}")
    preferred = [f for f in found if f.name == prefer] or found
    if len(preferred) == 1:
        return preferred[0]
    raise DataError(
        f"data set {path} can be read as {' and as '.join(f.name for f in found)}: say which, with "
        f"format={found[0].name!r} (--format {found[0].name}; data: {{kind: {found[0].name}}} in a space)"
    )


def _recognised(path: Path) -> list[Format]:
    return [f for f in FORMATS.values() if f.recognises(path)] or [
        f for f in FORMATS.values() if f.recognises_other(path)
    ]


def _below(path: Path) -> str:
    """What lies in a folder that is no data set, and which of its folders are."""
    if not path.is_dir():
        return ""
    folders = sorted(child for pattern in ("*", "*/*") for child in path.glob(pattern) if child.is_dir())
    sets: dict[Path, str] = {}
    for child in folders[:_LOOKED_AT]:
        if child.parent not in sets and (found := _recognised(child)):
            sets[child] = f"{child} ({found[0].name})"
    meant = f"; did you mean {' or '.join(list(sets.values())[:3])}?" if sets else ""
    return f" (found: {listing(path)}){meant}"


def read_annotations(root: str | os.PathLike[str] | None, format: str | None = None, **options: Any) -> AnnotatedSet:
    """The annotations of a data set, no image opened. Arguments and errors as for `load_dataset`."""
    if format is None:
        if root is None:
            raise DataError(f"expected a data set, got none: give a folder, e.g. with {coco.LAYOUT}")
        chosen = find_format(root)
    elif format in FORMATS:
        chosen = FORMATS[format]
    else:
        raise UnknownNameError("data set format", format, FORMATS)
    for name in options:
        if name not in chosen.options:
            raise UnknownNameError(f"option of {chosen.name} data sets", name, chosen.options)
    if root is None and not options.get("splits"):
        raise DataError(f"expected a data set, got none: give a folder with {chosen.layout}")
    return chosen.read(root, **options)


def load_dataset(
    root: str | os.PathLike[str] | None,
    format: str | None = None,
    *,
    skip_unreadable: bool = False,
    name: str | None = None,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> DetectionDataset:
    """Read a data set in one of the registered formats, checking every image.

    Each image file is read and decoded once: what is returned can be trained on, and its hash stands for the pixels.
    What is changed on the way (`fpn_bench.data.annotations.assemble` has the rules) stands in the notes.

    Args:
        root: folder of the data set; or a ``data.yaml``, a COCO JSON file, or an ``obj.data``.
        format: ``"coco"``, ``"voc"`` or ``"yolo"``; found out from the folder when omitted.
        skip_unreadable: leave out images that are missing or cannot be decoded, instead of refusing the data set.
        name: for people; the name of the folder when omitted.
        on_progress: called with (images checked, images in all).
        options: what the format's reader takes: ``val_fraction``, a share of the images that becomes val where there is
            none; ``allow_images_from``, folders outside the data set's own that files may be read from; ``splits`` for
            COCO in another layout (``root`` may then be None), ``one_based`` and ``difficult`` for VOC.

    Raises:
        DataError: the folder is in no known format or in several; a file is missing, says what the format does not, or
            contradicts another; or an image cannot be used.
        UnknownNameError: there is no such format or option.
    """
    annotated = read_annotations(root, format, **options)
    return assemble(annotated, skip_unreadable=skip_unreadable, name=name, on_progress=on_progress)


def write_dataset(
    dataset: DetectionDataset, root: str | os.PathLike[str], format: str, *, on_progress: OnProgress | None = None
) -> tuple[str, ...]:
    """Write a data set, its images copied, in one of the formats.

    What is read again has the same boxes to the last bit, in the same order, with the same labels. COCO holds
    everything; VOC and YOLO no areas of objects, which become their boxes' (AP by object size may move, AP does not);
    YOLO no regions to ignore, which are left out (what is found there counts as wrong). Image files keep their names
    where those are unlike in all splits. The folder appears complete or not at all.

    Args:
        dataset: what is written.
        root: folder that is made; nothing, or an empty folder, may be there.
        format: ``"coco"``, ``"voc"`` or ``"yolo"``.
        on_progress: called with (images copied, images in all).

    Returns:
        What was lost, with counts, one line each.

    Raises:
        DataError: the folder is not empty or cannot be written, or the format cannot hold a class's name.
        UnknownNameError: there is no such format.
    """
    if format not in FORMATS:
        raise UnknownNameError("data set format", format, FORMATS)
    chosen = FORMATS[format]
    if chosen.write is None:
        written = [known.name for known in FORMATS.values() if known.write is not None]
        raise DataError(f"expected a format that can be written, got {format}; try {' or '.join(written)}")
    target = Path(root)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target} is there already and not empty: name a folder that is not")
    draft: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        chosen.write(dataset, draft, _copy_images(dataset, draft, chosen, on_progress))
        draft.chmod(0o755)
        with contextlib.suppress(OSError):
            target.rmdir()  # an empty one: only POSIX renames onto it
        draft.rename(target)
    except OSError as error:
        raise DataError(f"data set cannot be written at {target}: {error.strerror or error}") from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return _losses(dataset, chosen)


def _copy_images(
    dataset: DetectionDataset, folder: Path, chosen: Format, on_progress: OnProgress | None
) -> dict[str, list[Path]]:
    names = _file_names(dataset)
    done, total = 0, sum(len(records) for records in dataset.splits.values())
    copied: dict[str, list[Path]] = {}
    for split, records in dataset.splits.items():
        place = folder / chosen.image_folder.format(split=split)
        place.mkdir(parents=True, exist_ok=True)
        copied[split] = [place / name for name in names[split]]
        for record, path in zip(records, copied[split], strict=True):
            shutil.copyfile(record.path, path)
            done += 1
            if on_progress is not None:
                on_progress(done, total)
    return copied


def _file_names(dataset: DetectionDataset) -> dict[str, list[str]]:
    """The name of each image: its own, or, where that would not do in every format, one made of split and position.

    Stems are unlike in all of the data set, also for file systems that know no case: VOC and YOLO pair files by them.
    """
    own = [record.path for records in dataset.splits.values() for record in records]
    stems = [path.stem.casefold() for path in own]
    repeated = len(set(stems)) < len(stems)
    # One file list breaks at line ends, and loses spaces around a name.
    if repeated or any(not path.name.isprintable() or path.stem != path.stem.strip() for path in own):
        return {
            split: [f"{split}_{i:06d}{record.path.suffix}" for i, record in enumerate(records, start=1)]
            for split, records in dataset.splits.items()
        }
    return {split: [record.path.name for record in records] for split, records in dataset.splits.items()}


def _losses(dataset: DetectionDataset, chosen: Format) -> tuple[str, ...]:
    lost = []
    for split, records in dataset.splits.items():
        crowd = sum(int(record.crowd.sum()) for record in records)
        if crowd and not chosen.holds_crowd:
            lost.append(f"{split}: {crowd} regions to ignore left out, which {chosen.name} cannot tell")
        others = 0
        for record in records:
            sides = record.boxes[:, 2:].astype(np.float64) - record.boxes[:, :2]
            kept = np.ones(len(sides), np.bool_) if chosen.holds_crowd else ~record.crowd
            others += int((~np.isclose(record.areas, sides.prod(axis=1), rtol=1e-4) & kept).sum())
        if others and not chosen.holds_areas:
            lost.append(f"{split}: areas of {others} objects became their boxes', for {chosen.name} has none")
    return tuple(lost)
