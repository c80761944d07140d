"""Reading and writing data sets in Pascal VOC format: one XML file an image.

Source: Everingham, Van Gool, Williams, Winn and Zisserman 2010, "The Pascal Visual Object Classes (VOC) Challenge",
IJCV 88(2), and its development kit (devkit_doc, http://host.robots.ox.ac.uk/pascal/VOC/), whose folder is read, and
beside it the simpler ones that annotation tools write.

- **Pixels.** The devkit's are counted from 1 and boxes include their last pixel: the top left pixel alone is (1, 1, 1,
  1), and its evaluation computes a width as ``xmax - xmin + 1``. Here a box goes from corner to corner, so that x1 =
  xmin - 1 and x2 = xmax. Some tools write corners from 0 instead (x1 = xmin, x2 = xmax): ``one_based=False`` reads
  those.
- **Difficult objects** are ignored by the devkit's evaluation: finding one is no error, missing one neither. They
  become regions to ignore (COCO's crowd), the one thing of that kind that COCO's rules know. What differs: a crowd
  region ignores every detection that lies in it, by the share of the detection, where VOC wants an overlap
  (intersection over union) above one half. ``difficult="keep"`` makes ordinary objects of them.
- **Parts** of an object (head, hand, foot) have boxes of their own within it; they are not read.
- **Classes** are named by the objects alone, so they are sorted by name, as VOC's own are, unless a ``classes.txt`` in
  the folder names them, one a line.
- **Areas** of objects are not told: they are the boxes'.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

from fpn_bench.analysis.rows import parse_number
from fpn_bench.data.annotations import (
    SPLITS,
    UNSPLIT,
    AnnotatedImage,
    AnnotatedSet,
    AnnotatedSplit,
    annotated_image,
    check_class_names,
    complete_splits,
    read_class_list,
    read_text,
)
from fpn_bench.data.dataset import DetectionDataset, ImageRecord
from fpn_bench.data.images import IMAGE_SUFFIXES
from fpn_bench.data.paths import AllowedFolders, Folders, listing, regular_bytes, split_of
from fpn_bench.data.settings import FolderData
from fpn_bench.errors import DataError, UnknownNameError

LAYOUT = (
    "ImageSets/Main/train.txt and val.txt beside Annotations/ and JPEGImages/ (or train/ and val/ of images with an "
    "XML file each)"
)
IMAGE_FOLDER = "JPEGImages"
CLASS_LIST = "classes.txt"
SPLIT_FOLDERS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
"""What tools call the folder of a split."""

Difficult = Literal["ignore", "keep"]


class _Object(NamedTuple):
    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


class _Annotation(NamedTuple):
    """What is read of one XML file; corners as written."""

    size: tuple[int, int] | None
    file_name: str | None
    objects: tuple[_Object, ...]


class _Listed(NamedTuple):
    """An image of a split: its name without suffix, its XML file if it has one, and itself if it was found."""

    stem: str
    xml: Path | None
    image: Path | None
    image_folder: Path


class _Split(NamedTuple):
    name: str
    source: Path
    listed: list[_Listed]


class VocData(FolderData):
    """A data set in Pascal VOC format.

    Attributes:
        one_based: pixels are counted from 1 and boxes include their last one, as in VOC itself; false where a tool
            wrote corners counted from 0.
        difficult: ``"ignore"`` makes difficult objects regions to ignore, ``"keep"`` ordinary objects.
    """

    kind: Literal["voc"]
    one_based: bool = True
    difficult: Difficult = "ignore"


def recognises_voc(root: Path) -> bool:
    """Whether a folder looks like a data set in VOC format."""
    if (root / "ImageSets" / "Main").is_dir() or _devkit_years(root):
        return True
    folders = [root, *(root / name for names in SPLIT_FOLDERS.values() for name in names)]
    return any(
        any(folder.glob(pattern))
        for folder in folders
        for pattern in ("Annotations/*.xml", "annotations/*.xml", *(["*.xml"] if folder != root else []))
    )


def recognises_other_voc(root: Path) -> bool:
    """Whether a folder holds images with an XML file each, and no splits."""
    return any(root.glob("*.xml"))


def read_voc(
    root: str | os.PathLike[str],
    *,
    one_based: bool = True,
    difficult: Difficult = "ignore",
    val_fraction: float | None = None,
    allow_images_from: AllowedFolders = (),
) -> AnnotatedSet:
    """The annotations of a data set in VOC format.

    Args:
        root: folder with ``ImageSets/Main/{train,val}.txt``, ``Annotations/`` and ``JPEGImages/``, or one that holds it
            as ``VOC2007``; or with the folders ``train`` and ``val`` (``valid``), where images and XML files lie side
            by side or in ``images`` (``JPEGImages``) and ``Annotations``. There an image without XML file has no boxes.
            One list of all images (``default.txt``, ``trainval.txt``), or no list, wants a ``val_fraction``.
        one_based: pixels are counted from 1 and boxes include their last pixel, as in the devkit; if not, coordinates
            are corners counted from 0.
        difficult: ``"ignore"`` makes difficult objects regions to ignore, ``"keep"`` ordinary objects.
        val_fraction: share of the images of train, or of the only list, that become val.
        allow_images_from: folders outside the data set's own that files may be read from.

    Raises:
        DataError: a file is missing, lies outside, is no XML of this kind, or names a class that ``classes.txt`` lacks.
    """
    if difficult not in ("ignore", "keep"):
        raise DataError(f"expected difficult to be 'ignore' or 'keep', got {difficult!r}")
    base = _devkit_root(Path(root))
    folders = Folders([base], allow_images_from)
    notes: list[str] = []
    splits = _find_splits(base, notes)
    for split in splits:
        for one in split.listed:
            for path in (one.xml, one.image):
                if path is not None:
                    folders.check(path, split.source)
    annotations = {split.name: [_read_xml(one.xml) for one in split.listed] for split in splits}
    named = {o.name for found in annotations.values() for a in found for o in a.objects}
    class_list = base / CLASS_LIST
    classes = read_class_list(class_list) if class_list.is_file() else tuple(sorted(named))
    if splits and not classes:
        raise DataError(f"data set {base} has no boxes: no XML file has an <object>")
    label = {name: i for i, name in enumerate(classes)}
    read = []
    for split in splits:
        images = [
            _annotated_image(number, one, split.source, annotation, label, one_based, difficult)
            for number, (one, annotation) in enumerate(zip(split.listed, annotations[split.name], strict=True), start=1)
        ]
        notes += _notes(split, annotations[split.name], one_based, difficult)
        read.append(AnnotatedSplit(split.name, split.source, tuple(images)))
    complete, held = complete_splits(
        read,
        val_fraction,
        f"data set {base}",
        "list the images of each, one name without suffix a line, in ImageSets/Main/{missing}.txt, or put them into a "
        f"folder {{missing}}/ with an XML file each (found were {listing(base)})",
    )
    return AnnotatedSet(base.resolve().name, classes, complete, (*notes, *held))


def write_voc(dataset: DetectionDataset, folder: Path, images: Mapping[str, Sequence[Path]]) -> None:
    """Write the annotations of a data set whose images lie in the folder already, as the devkit has them.

    Coordinates that are no whole pixels are written as decimals. Regions to ignore become difficult objects; areas are
    lost. ``classes.txt`` keeps the order of the classes, and those without boxes.

    Args:
        dataset: what is written.
        folder: gets ``Annotations/``, ``ImageSets/Main/`` and ``classes.txt``.
        images: split -> path of each record's image under ``folder``; unlike stems.

    Raises:
        DataError: a class has a name that cannot stand in a line of text.
    """
    check_class_names(dataset.classes, "VOC")
    for name in dataset.classes:
        if not name.isprintable() or name != name.strip():
            raise DataError(f"class {name!r} cannot be written as VOC: a name is one line without spaces around it")
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / CLASS_LIST).write_text("".join(f"{name}\n" for name in dataset.classes), encoding="utf-8")
    for split, records in dataset.splits.items():
        for record, path in zip(records, images[split], strict=True):
            tree = ElementTree.ElementTree(_xml(record, path.name, dataset.classes))
            ElementTree.indent(tree)
            tree.write(folder / "Annotations" / f"{path.stem}.xml", encoding="utf-8")
        stems = "".join(f"{path.stem}\n" for path in images[split])
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(stems, encoding="utf-8")


# --------------------------------------------------------------------------------------------------------------
# Finding the files


def _devkit_years(root: Path) -> list[Path]:
    """The sets that a devkit folder holds, such as ``VOC2007``."""
    return [path for path in sorted(root.glob("VOC*")) if (path / "ImageSets" / "Main").is_dir()]


def _devkit_root(root: Path) -> Path:
    if not root.is_dir():
        raise DataError(f"data set folder {root} does not exist; expected a folder with {LAYOUT}")
    years = _devkit_years(root)
    if (root / "ImageSets").is_dir() or not years:
        return root
    if len(years) > 1:
        raise DataError(f"{root} holds {len(years)} data sets ({', '.join(p.name for p in years)}): name one of them")
    return years[0]


def _find_splits(root: Path, notes: list[str]) -> list[_Split]:
    lists = _find_lists(root / "ImageSets" / "Main", notes)
    if lists:
        images = _by_stem([root / IMAGE_FOLDER])
        return [
            _Split(split, path, _list(path, root / "Annotations", images, root / IMAGE_FOLDER))
            for split, path in lists.items()
        ]
    found = []
    for split in SPLITS:
        folders = [root / name for name in SPLIT_FOLDERS[split] if (root / name).is_dir()]
        if len(folders) > 1:
            raise DataError(
                f"data set {root} has {len(folders)} {split} folders ({', '.join(p.name for p in folders)})"
            )
        found += [_Split(split, folder, _scan(folder)) for folder in folders]
    if not found and any(any(root.glob(f"{name}*.xml")) for name in ("", "Annotations/", "annotations/")):
        found.append(_Split(UNSPLIT, root, _scan(root)))
    return found


def _find_lists(folder: Path, notes: list[str]) -> dict[str, Path]:
    """Split -> the file that lists its images; `UNSPLIT` where there is one list of all."""
    lists = {split: folder / f"{split}.txt" for split in SPLITS}
    listed = {split: path for split, path in lists.items() if path.is_file()}
    if {"train", "val"} <= listed.keys() or not folder.is_dir():
        return listed
    texts = sorted(folder.glob("*.txt"))
    spelled = {split: path for path in reversed(texts) if (split := split_of(path.stem)) is not None} | listed
    if "train" not in spelled:  # devkits have lists of single classes too
        whole = [folder / name for name in ("default.txt", "trainval.txt") if (folder / name).is_file()] or texts
        spelled |= {UNSPLIT: whole[0]} if len(whole) == 1 or whole[0].name == "default.txt" else {}
    ordered = {split: spelled[split] for split in (*SPLITS, UNSPLIT) if split in spelled}
    if ordered != listed:
        notes.append(f"splits are read from {', '.join(path.name for path in ordered.values())}")
    return ordered


def _list(path: Path, annotations: Path, images: Mapping[str, Path], image_folder: Path) -> list[_Listed]:
    stems = [line.strip() for line in read_text(path, "image list").splitlines() if line.strip()]
    if not stems:
        raise DataError(f"{path}: expected at least one image, got none")
    stem, count = Counter(stems).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: expected each image once, got {stem!r} {count} times")
    return [_Listed(stem, annotations / f"{stem}.xml", images.get(stem), image_folder) for stem in stems]


def _scan(folder: Path) -> list[_Listed]:
    """The images of a split's folder, by name; those of which there is only the XML file too."""
    image_folders = [path for name in ("", IMAGE_FOLDER, "images") if (path := folder / name).is_dir()]
    images = _by_stem(image_folders)
    xmls = {
        path.stem: path for name in ("", "Annotations", "annotations") for path in sorted((folder / name).glob("*.xml"))
    }
    stems = sorted(images.keys() | xmls.keys())
    if not stems:
        raise DataError(
            f"{folder}: expected at least one image, with an XML file beside it or in Annotations/, got none"
        )
    return [_Listed(stem, xmls.get(stem), images.get(stem), image_folders[-1]) for stem in stems]


def _by_stem(folders: Sequence[Path]) -> dict[str, Path]:
    """Name without suffix -> image file."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.suffix.lower() in IMAGE_SUFFIXES:
                if path.stem in found:
                    raise DataError(
                        f"images {found[path.stem]} and {path} differ by their suffix alone, and VOC pairs by the "
                        "name: rename one, and its XML file"
                    )
                found[path.stem] = path
    return found


# --------------------------------------------------------------------------------------------------------------
# Reading an XML file


def _read_xml(path: Path | None) -> _Annotation:
    if path is None:
        return _Annotation(None, None, ())
    root = _parse(path)
    if root.tag != "annotation":
        raise DataError(f"annotation file {path} is XML but not VOC: expected <annotation>, got <{root.tag}>")
    width, height = (_side(path, root.findtext(f"size/{name}")) for name in ("width", "height"))
    objects = [
        _object(path, number, element)
        for number, element in enumerate(root.findall("object"), start=1)
        if (element.findtext("deleted") or "").strip() != "1"  # LabelMe keeps what was deleted
    ]
    file_name = (root.findtext("filename") or "").strip() or None
    return _Annotation((height, width) if width and height else None, file_name, tuple(objects))


def _parse(path: Path) -> ElementTree.Element:
    """The tree of an XML file. One with a document type is refused unread: VOC has none, and entities, of which files
    can be made that swell without bound or fetch others, are declared nowhere else.
    """
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_: object) -> None:
        raise DataError(
            f"annotation file {path} declares a document type, which VOC files have not: remove <!DOCTYPE ...>"
        )

    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(regular_bytes(path), True)
    except FileNotFoundError:
        raise DataError(f"annotation file {path} does not exist; expected an XML file for each listed image") from None
    except OSError as error:
        raise DataError(f"annotation file {path} cannot be read: {error.strerror}") from error
    # An encoding that is none is a LookupError, one of several bytes a character a ValueError.
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise DataError(f"annotation file {path} is not XML: {error}") from None
    return builder.close()


def _side(path: Path, text: str | None) -> int:
    """Pixels; 0 where the file does not say, as tools do that have not seen the image."""
    text = (text or "").strip()
    try:
        return max(int(parse_number(text)), 0) if text else 0
    except (ValueError, OverflowError):
        raise DataError(f"{path}: expected width and height in pixels in <size>, got {text[:40]!r}") from None


def _object(path: Path, number: int, element: ElementTree.Element) -> _Object:
    where = f"{path}: object {number}"
    name = (element.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{where} has no <name>; expected its class")
    box = element.find("bndbox")  # of the object itself: those of its parts lie a level deeper
    if box is None:
        raise DataError(f"{where} ({name}) has no <bndbox>; expected xmin, ymin, xmax, ymax")
    corners = []
    for key in ("xmin", "ymin", "xmax", "ymax"):
        text = (box.findtext(key) or "").strip()
        try:
            corners.append(parse_number(text))
        except ValueError:
            got = repr(text[:40]) if text else "nothing"
            raise DataError(f"{where} ({name}): expected a number of pixels in <{key}>, got {got}") from None
    difficult = (element.findtext("difficult") or "").strip().lower() in ("1", "true")
    x1, y1, x2, y2 = corners
    return _Object(name, (x1, y1, x2, y2), difficult)


def _annotated_image(
    number: int,
    listed: _Listed,
    source: Path,
    annotation: _Annotation,
    label: Mapping[str, int],
    one_based: bool,
    difficult: Difficult,
) -> AnnotatedImage:
    first = 1 if one_based else 0
    for one in annotation.objects:
        if one.name not in label:
            raise DataError(f"{listed.xml}: {UnknownNameError('class', one.name, label)}; {CLASS_LIST} has them all")
    name = Path(annotation.file_name or f"{listed.stem}.jpg").name
    return annotated_image(
        number,
        listed.image or listed.image_folder / name,
        listed.xml or source,
        [(x1 - first, y1 - first, x2, y2) for x1, y1, x2, y2 in (o.corners for o in annotation.objects)],
        [label[o.name] for o in annotation.objects],
        crowd=[o.difficult and difficult == "ignore" for o in annotation.objects],
        size=annotation.size,
    )


def _notes(split: _Split, annotations: Sequence[_Annotation], one_based: bool, difficult: Difficult) -> list[str]:
    objects = [o for annotation in annotations for o in annotation.objects]
    ignored = sum(o.difficult for o in objects) if difficult == "ignore" else 0
    from_0 = sum(min(o.corners[:2]) == 0 for o in objects) if one_based else 0
    bare = sum(one.xml is None for one in split.listed)
    counts = {
        "difficult objects are regions to ignore": ignored,
        "boxes begin at pixel 0, which VOC, counting from 1, has not: if the tool counted from 0, say one_based: false "
        "(--zero-based)": from_0,
        "images have no XML file, thus no boxes": bare,
    }
    return [f"{split.name}: {n} {what}" for what, n in counts.items() if n]


# --------------------------------------------------------------------------------------------------------------
# Writing one


def _xml(record: ImageRecord, file_name: str, classes: Sequence[str]) -> ElementTree.Element:
    root = ElementTree.Element("annotation")

    def add(parent: ElementTree.Element, **texts: object) -> None:
        for key, value in texts.items():
            ElementTree.SubElement(parent, key).text = str(value)

    add(root, folder=IMAGE_FOLDER, filename=file_name)
    add(ElementTree.SubElement(root, "size"), width=record.size[1], height=record.size[0], depth=3)
    add(root, segmented=0)
    for box, label, crowd in zip(record.boxes.tolist(), record.labels.tolist(), record.crowd.tolist(), strict=True):
        element = ElementTree.SubElement(root, "object")
        add(element, name=classes[label], pose="Unspecified", truncated=0, difficult=int(crowd))
        x1, y1, x2, y2 = box
        texts = (repr(value).removesuffix(".0") for value in (x1 + 1, y1 + 1, x2, y2))
        add(
            ElementTree.SubElement(element, "bndbox"), **dict(zip(("xmin", "ymin", "xmax", "ymax"), texts, strict=True))
        )
    return root
