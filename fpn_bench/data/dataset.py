"""A detection data set in memory: records of images and boxes, whatever format they were read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class ImageRecord:
    """One image and its ground truth, in pixels of the image file.

    Attributes:
        id: the id in the annotation file.
        path: image file.
        size: (height, width) of the file in pixels.
        boxes: float32 [N, 4], x1 y1 x2 y2.
        labels: int64 [N], index into `DetectionDataset.classes`.
        areas: float32 [N], the annotation's own `area` (COCO sorts small / medium / large by it), pixels^2.
        crowd: bool [N], regions to ignore.
    """

    id: int
    path: Path
    size: tuple[int, int]
    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    areas: npt.NDArray[np.float32]
    crowd: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class DetectionDataset:
    """A data set with at least the splits ``train`` and ``val``.

    Attributes:
        name: for people.
        classes: class names; a label is an index into them.
        splits: split name -> images in file order.
        hash: sha256 (hex) over classes, boxes and image bytes: what the protocol and the cache are keyed by.
        notes: what the reader changed (boxes clipped or dropped, images skipped), with counts, one line each.
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[ImageRecord, ...]]
    hash: str
    notes: tuple[str, ...] = field(default=())
