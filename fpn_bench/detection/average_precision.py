"""Average precision by COCO rules (Lin et al. 2014, https://cocodataset.org/#detection-eval)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval import COCO, COCOeval_faster

from fpn_bench.data.dataset import ImageRecord
from fpn_bench.errors import DataError


@dataclass(frozen=True, slots=True)
class AP:
    """Average precision in percent points, 0 .. 100; NaN where there is no ground truth to find.

    Attributes:
        ap: mean over IoU .50:.05:.95 and classes.
        ap50: at IoU .50.
        ap75: at IoU .75.
        ap_s: objects whose area is at most 32^2 pixels.
        ap_m: from 32^2 to 96^2.
        ap_l: from 96^2.
        per_class: `ap` of each class, in the order of the labels.
    """

    ap: float
    ap50: float
    ap75: float
    ap_s: float
    ap_m: float
    ap_l: float
    per_class: tuple[float, ...]


def evaluate_ap(detections: Sequence[Mapping[str, Any]], records: Sequence[ImageRecord], num_classes: int) -> AP:
    """AP of the detections against the ground truth of the records.

    101 recall points, IoU .50:.05:.95, the best 100 detections of a class in an image, crowd regions ignored, sizes
    by the records' ``areas``: equal to ``pycocotools`` up to rounding, also in the order of equal scores, which is that
    of the records' ids.

    Args:
        detections: one mapping an image, in the order of the records: ``boxes`` [N, 4] x1 y1 x2 y2 in pixels of the
            image file, ``scores`` [N], ``labels`` [N]; arrays or tensors on any device.
        records: the images with their ground truth.
        num_classes: C; labels are 0 .. C - 1.

    Raises:
        DataError: not one entry an image, shapes that do not fit together, a label out of range, or a score or
            coordinate that is no number.
    """
    if len(detections) != len(records):
        raise DataError(f"expected one entry of detections for each of {len(records)} images, got {len(detections)}")
    # pycocotools goes through the images by their ids, and sorts scores stably.
    order = sorted(range(len(records)), key=lambda position: records[position].id)
    records = [records[position] for position in order]
    found: list[dict[str, Any]] = []
    for position, (at, record) in enumerate(zip(order, records, strict=True)):
        found += _annotations(position, *_arrays(detections[at], record, num_classes))
    truth: list[dict[str, Any]] = []
    for position, record in enumerate(records):
        truth += _annotations(position, record.boxes, None, record.labels, record.areas, record.crowd)

    evaluation = COCOeval_faster(_coco(truth, records, num_classes), _coco(found, records, num_classes), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    # [IoU threshold, recall point, class, area range, limit on detections]; -1 where a class has no ground truth
    precision: npt.NDArray[np.float64] = np.asarray(evaluation.eval["precision"])[..., -1]
    precision = precision.reshape(10, 101, num_classes, 4)
    return AP(
        ap=_percent(precision[..., 0]),
        ap50=_percent(precision[0, ..., 0]),
        ap75=_percent(precision[5, ..., 0]),
        ap_s=_percent(precision[..., 1]),
        ap_m=_percent(precision[..., 2]),
        ap_l=_percent(precision[..., 3]),
        per_class=tuple(_percent(precision[:, :, k, 0]) for k in range(num_classes)),
    )


def _percent(precision: npt.NDArray[np.float64]) -> float:
    defined = precision[precision > -1]
    return 100 * float(defined.mean()) if defined.size else float("nan")


def _arrays(
    detection: Mapping[str, Any], record: ImageRecord, num_classes: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Boxes [N, 4], scores [N], labels [N] of one image, checked."""
    missing = [key for key in ("boxes", "scores", "labels") if key not in detection]
    if missing:
        raise DataError(f"detections on image {record.id} lack {missing[0]!r}; expected boxes, scores and labels")
    boxes, scores, labels = (_numpy(detection[key]) for key in ("boxes", "scores", "labels"))
    n = len(scores) if scores.ndim else -1
    if boxes.shape != (n, 4) or scores.shape != (n,) or labels.shape != (n,):
        raise DataError(
            f"detections on image {record.id}: expected shapes [N, 4], [N] and [N], got boxes "
            f"{boxes.shape}, scores {scores.shape} and labels {labels.shape}"
        )
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise DataError(f"detections on image {record.id} have a box or score that is no number")
    if n and (labels.min() < 0 or labels.max() >= num_classes):
        raise DataError(
            f"detections on image {record.id}: expected labels from 0 to {num_classes - 1}, got {labels.min()} to "
            f"{labels.max()}"
        )
    return boxes.astype(np.float64), scores.astype(np.float64), labels.astype(np.int64)


def _numpy(values: Any) -> npt.NDArray[Any]:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _annotations(
    image: int,
    boxes: npt.NDArray[np.floating[Any]],
    scores: npt.NDArray[np.float64] | None,
    labels: npt.NDArray[np.int64],
    areas: npt.NDArray[np.floating[Any]] | None = None,
    crowd: npt.NDArray[np.bool_] | None = None,
) -> list[dict[str, Any]]:
    """COCO annotations of one image, without ids. Detections have scores; ground truth may be crowd."""
    corners = boxes.astype(np.float64)
    sides = corners[:, 2:] - corners[:, :2]
    xywh = np.concatenate([corners[:, :2], sides], axis=1).tolist()
    own = (sides.prod(axis=1) if areas is None else areas.astype(np.float64)).tolist()
    score = [0.0] * len(xywh) if scores is None else scores.tolist()
    ignore = [0] * len(xywh) if crowd is None else crowd.astype(int).tolist()
    return [
        {"image_id": image, "category_id": label, "bbox": box, "area": area, "iscrowd": flag, "score": s}
        for label, box, area, flag, s in zip(labels.tolist(), xywh, own, ignore, score, strict=True)
    ]


def _coco(annotations: list[dict[str, Any]], records: Sequence[ImageRecord], num_classes: int) -> COCO:
    """Images are known by their position here: ids of two splits put together may repeat."""
    for number, annotation in enumerate(annotations, start=1):  # id 0 would mean "unmatched"
        annotation["id"] = number
    images = [{"id": i, "height": r.size[0], "width": r.size[1]} for i, r in enumerate(records)]
    categories = [{"id": k, "name": str(k)} for k in range(num_classes)]
    return COCO({"images": images, "annotations": annotations, "categories": categories})
