"""A few images of the val split for people to look at, and what a detector found on them.

They are chosen by the annotations alone, so that every neck of a data set is seen on the same ones. Nothing that has
an id depends on them.
"""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from fpn_bench.data.dataset import DetectionDataset, ImageRecord
from fpn_bench.data.images import load_image
from fpn_bench.errors import DataError

_log = logging.getLogger(__name__)

IMAGES = 4
DETECTIONS = 12
"""So many of an image, the most confident."""
LONGEST_SIDE = 320
"""In pixels, of an image as it is kept."""
_JPEG_QUALITY = 75

Boxes = list[list[float]]
"""``[x1, y1, x2, y2, label]`` each, and a score behind it where it was found: pixels of the image file."""


def sample_positions(records: Sequence[ImageRecord]) -> list[int]:
    """Positions of the sample images: of those with a box that is no crowd, `IMAGES` evenly spaced or all of fewer."""
    shown = [position for position, record in enumerate(records) if not record.crowd.all()]
    chosen = np.linspace(0, len(shown) - 1, min(IMAGES, len(shown))).astype(int)
    return [shown[k] for k in chosen]


def sample_images(dataset: DetectionDataset) -> dict[str, Any] | None:
    """The sample images of the val split with their truth, as plain data for JSON; None when there are none.

    An image that cannot be read is left out.

    Returns:
        ``classes`` (names), and ``images``, each with its ``position`` in the split, ``name``, ``width`` and ``height``
        of the file in pixels, ``jpeg`` (base64, RGB, longest side at most `LONGEST_SIDE`), and ``truth``: `Boxes`
        without crowd regions.
    """
    records = dataset.splits["val"]
    images = []
    for position in sample_positions(records):
        record = records[position]
        try:
            jpeg = _small_jpeg(load_image(record))
        except (DataError, OSError, ValueError) as error:  # a search can do without a picture
            _log.warning("sample image %s is left out: %s", record.path, error)
            continue
        truth = [
            [*_rounded(box, 1), int(label)]
            for box, label in zip(record.boxes[~record.crowd], record.labels[~record.crowd], strict=True)
        ]
        height, width = record.size
        name = record.path.name
        images.append(
            {"position": position, "name": name, "width": width, "height": height, "jpeg": jpeg, "truth": truth}
        )
    return {"classes": list(dataset.classes), "images": images} if images else None


def sample_detections(detections: Sequence[Mapping[str, Tensor]], records: Sequence[ImageRecord]) -> dict[int, Boxes]:
    """Of an evaluation, what was found on the sample images: at most `DETECTIONS` of each, best first.

    Args:
        detections: one mapping an image, best first, as `Detector.detect` gives them but in pixels of the image files:
            ``boxes`` [D, 4], ``scores`` [D], ``labels`` [D].
        records: the images.

    Returns:
        position in the split -> `Boxes` with scores: pixels to one decimal, scores to three.
    """
    found = {}
    for position in sample_positions(records):
        best = {name: values[:DETECTIONS].tolist() for name, values in detections[position].items()}
        parts = zip(best["boxes"], best["labels"], best["scores"], strict=True)
        found[position] = [[*_rounded(box, 1), label, round(score, 3)] for box, label, score in parts]
    return found


def _rounded(values: Sequence[float] | np.ndarray[Any, Any], digits: int) -> list[float]:
    return [round(float(value), digits) for value in values]


def _small_jpeg(image: Image.Image) -> str:
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    image.info.clear()  # a comment in the file would be written again
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
