"""COCO AP against pycocotools, against values worked out by hand, and on bad input."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fpn_bench.data.coco import load_coco
from fpn_bench.data.dataset import ImageRecord
from fpn_bench.detection.average_precision import AP, evaluate_ap
from fpn_bench.errors import DataError


def record(boxes=(), labels=(), areas=None, crowd=None, *, size=(100, 100), number=7) -> ImageRecord:
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    n = len(corners)
    return ImageRecord(
        id=number,
        path=Path("unused.png"),
        size=size,
        boxes=corners,
        labels=np.array(labels, np.int64).reshape(n),
        areas=(corners[:, 2:] - corners[:, :2]).prod(1) if areas is None else np.array(areas, np.float32),
        crowd=np.zeros(n, bool) if crowd is None else np.array(crowd, bool),
    )


def detection(boxes=(), scores=(), labels=()) -> dict[str, np.ndarray]:
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "scores": np.array(scores, np.float32),
        "labels": np.array(labels, np.int64),
    }


def reference_ap(detections, records, num_classes) -> AP:
    """pycocotools' own way, from annotation dictionaries to precision."""
    truth = COCO()
    truth.dataset = {
        "images": [{"id": r.id, "height": r.size[0], "width": r.size[1]} for r in records],
        "categories": [{"id": k, "name": str(k)} for k in range(num_classes)],
        "annotations": [],
    }
    for r in records:
        for box, label, area, crowd in zip(r.boxes.astype(float), r.labels, r.areas, r.crowd, strict=True):
            truth.dataset["annotations"].append(
                {
                    "id": len(truth.dataset["annotations"]) + 1,
                    "image_id": r.id,
                    "category_id": int(label),
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "area": float(area),
                    "iscrowd": int(crowd),
                }
            )
    truth.createIndex()
    rows = [
        [r.id, *box[:2], *(box[2:] - box[:2]), score, label]
        for r, d in zip(records, detections, strict=True)
        for box, score, label in zip(d["boxes"].astype(float), d["scores"].astype(float), d["labels"], strict=True)
    ]
    if rows:
        found = truth.loadRes(np.array(rows, np.float64))
    else:
        found = COCO()
        found.dataset = {**truth.dataset, "annotations": []}
        found.createIndex()
    evaluation = COCOeval(truth, found, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][..., -1]

    def percent(values):
        values = values[values > -1]
        return 100 * values.mean() if values.size else math.nan

    return AP(
        percent(precision[..., 0]),
        percent(precision[0, ..., 0]),
        percent(precision[5, ..., 0]),
        *(percent(precision[..., size]) for size in (1, 2, 3)),
        tuple(percent(precision[:, :, k, 0]) for k in range(num_classes)),
    )


def assert_equal(ours: AP, reference: AP) -> None:
    for name in ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l"):
        assert getattr(ours, name) == pytest.approx(getattr(reference, name), abs=1e-9, nan_ok=True), name
    assert ours.per_class == pytest.approx(reference.per_class, abs=1e-9, nan_ok=True)


def random_detections(rng: np.random.Generator, records, num_classes: int, per_image: int, digits: int = 2):
    """Boxes near the ground truth and elsewhere, right and wrong labels, tied scores."""
    detections = []
    for r in records:
        n = int(rng.integers(0, per_image + 1))
        low = rng.uniform(0, 0.9 * min(r.size), (n, 2))
        boxes = np.concatenate([low, low + rng.uniform(1, 0.6 * max(r.size), (n, 2))], axis=1)
        labels = rng.integers(0, num_classes, n)
        if len(r.boxes):
            near = rng.random(n) < 0.7
            pick = rng.integers(0, len(r.boxes), n)
            shaken = r.boxes[pick] + rng.normal(0, 0.05, (n, 4)) * (r.boxes[pick, 2:] - r.boxes[pick, :2]).repeat(2, 1)
            boxes[near], labels[near] = shaken[near], r.labels[pick][near]
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 0.5)
        detections.append(detection(boxes, np.round(rng.random(n), digits), labels))
    return detections


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 6),
    num_classes=st.integers(1, 4),
    most=st.integers(0, 8),
    per_image=st.sampled_from([0, 5, 40, 350]),
    digits=st.sampled_from([0, 1, 2]),
)
def test_equals_pycocotools_on_random_detections(capfd, seed, images, num_classes, most, per_image, digits):
    """With ids in any order, and nearly all scores equal: ties are in the order of the ids."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(1000, images, replace=False)
    records = []
    for i in range(images):
        n = int(rng.integers(0, most + 1))
        low = rng.uniform(0, 250, (n, 2))
        boxes = np.concatenate([low, low + rng.uniform(2, 150, (n, 2))], axis=1)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) * rng.uniform(0.3, 1, n)
        records.append(
            record(
                boxes, rng.integers(0, num_classes, n), areas, rng.random(n) < 0.15, size=(400, 400), number=int(ids[i])
            )
        )
    detections = random_detections(rng, records, num_classes, per_image, digits)
    assert_equal(evaluate_ap(detections, records, num_classes), reference_ap(detections, records, num_classes))


def test_equals_pycocotools_on_real_coco_annotations(shared: Path):
    data = load_coco(shared / "data" / "coco_tiny")
    records = data.splits["val"]
    assert any(r.crowd.any() for r in records)
    detections = random_detections(np.random.default_rng(0), records, len(data.classes), 60)
    ours = evaluate_ap(detections, records, len(data.classes))
    assert_equal(ours, reference_ap(detections, records, len(data.classes)))
    assert 0 < ours.ap < 100
    assert sum(map(math.isnan, ours.per_class)) == 80 - len({label for r in records for label in r.labels[~r.crowd]})


def test_says_nothing_on_stdout_and_stderr(capfd):
    evaluate_ap([detection([[0, 0, 10, 10]], [1.0], [0])], [record([[0, 0, 10, 10]], [0])], 1)
    assert capfd.readouterr() == ("", "")


class TestByHand:
    def test_perfect(self):
        records = [record([[0, 0, 10, 10], [20, 20, 90, 90]], [0, 1]), record([[5, 5, 50, 50]], [1])]
        detections = [detection(r.boxes, [0.9] * len(r.boxes), r.labels) for r in records]
        got = evaluate_ap(detections, records, 3)
        assert (got.ap, got.ap50, got.ap75, got.ap_s, got.ap_m) == (100, 100, 100, 100, 100)
        assert math.isnan(got.ap_l)
        assert got.per_class[:2] == (100, 100)
        assert math.isnan(got.per_class[2])

    def test_one_threshold_after_another_is_lost(self):
        # IoU 80 * 100 / 100 * 100 = .80: found at .50 .. .80, seven thresholds of ten.
        got = evaluate_ap([detection([[0, 0, 80, 100]], [1.0], [0])], [record([[0, 0, 100, 100]], [0])], 1)
        assert got.ap == pytest.approx(70)
        assert (got.ap50, got.ap75, got.ap_l) == (100, 100, pytest.approx(70))

    def test_half_of_the_objects_found(self):
        # Precision 1 up to recall .5: 51 of 101 recall points.
        records = [record([[0, 0, 40, 40], [50, 50, 90, 90]], [0, 0])]
        got = evaluate_ap([detection([[0, 0, 40, 40]], [1.0], [0])], records, 1)
        assert got.ap == pytest.approx(100 * 51 / 101)

    def test_a_false_alarm_scored_higher_halves_precision(self):
        records = [record([[0, 0, 40, 40]], [0])]
        got = evaluate_ap([detection([[50, 50, 90, 90], [0, 0, 40, 40]], [0.9, 0.8], [0, 0])], records, 1)
        assert got.ap == pytest.approx(50)

    def test_the_annotations_own_area_decides_the_size(self):
        # A box of 40 x 40 whose object covers 900 pixels is small.
        got = evaluate_ap([detection([[0, 0, 40, 40]], [1.0], [0])], [record([[0, 0, 40, 40]], [0], [900])], 1)
        assert got.ap_s == 100
        assert math.isnan(got.ap_m)

    def test_detections_in_a_crowd_are_ignored(self):
        records = [record([[0, 0, 40, 40], [50, 50, 90, 90]], [0, 0], crowd=[False, True])]
        boxes = [[50, 50, 60, 60], [60, 60, 70, 70], [0, 0, 40, 40]]
        assert evaluate_ap([detection(boxes, [0.9, 0.8, 0.7], [0, 0, 0])], records, 1).ap == 100

    def test_only_the_best_hundred_count(self):
        records = [record([[0, 0, 40, 40]], [0])]
        boxes = [[50, 50, 90, 90]] * 100 + [[0, 0, 40, 40]]
        scores = [0.9] * 100 + [0.1]
        assert evaluate_ap([detection(boxes, scores, [0] * 101)], records, 1).ap == 0


def test_no_ground_truth_is_nan_and_no_detection_is_zero():
    nothing = evaluate_ap([detection()], [record()], 2)
    assert all(math.isnan(v) for v in (nothing.ap, nothing.ap50, nothing.ap75, *nothing.per_class))
    missed = evaluate_ap([detection()], [record([[0, 0, 20, 20]], [1])], 2)
    assert (missed.ap, missed.ap_s, missed.per_class[1]) == (0, 0, 0)
    assert math.isnan(missed.per_class[0])
    assert math.isnan(evaluate_ap([], [], 1).ap)


def test_takes_tensors_and_image_ids_that_repeat():
    records = [record([[0, 0, 20, 20]], [0]), record([[30, 30, 60, 60]], [0])]
    detections = [
        {"boxes": torch.tensor(r.boxes), "scores": torch.ones(1, requires_grad=True), "labels": torch.tensor([0])}
        for r in records
    ]
    assert evaluate_ap(detections, records, 1).ap == 100


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        ([], "each of 1 images, got 0"),
        ([detection(), detection()], "each of 1 images, got 2"),
        ([{"boxes": np.zeros((0, 4)), "scores": np.zeros(0)}], "lack 'labels'"),
        ([{"boxes": np.zeros((1, 5)), "scores": np.ones(1), "labels": np.zeros(1)}], r"boxes \(1, 5\)"),
        ([{"boxes": np.zeros((1, 4)), "scores": np.ones(2), "labels": np.zeros(1)}], r"scores \(2,\)"),
        ([{"boxes": np.zeros((1, 4)), "scores": np.float64(1), "labels": np.zeros(1)}], r"scores \(\)"),
        ([detection([[0, 0, math.nan, 1]], [1], [0])], "no number"),
        ([detection([[0, 0, 1, 1]], [math.inf], [0])], "no number"),
        ([detection([[0, 0, 1, 1]], [1], [2])], "expected labels from 0 to 1, got 2 to 2"),
        ([detection([[0, 0, 1, 1]], [1], [-1])], "from 0 to 1, got -1 to -1"),
    ],
)
def test_bad_detections_are_one_clear_line(detections, message):
    with pytest.raises(DataError, match=message) as caught:
        evaluate_ap(detections, [record([[0, 0, 20, 20]], [0])], 2)
    assert "\n" not in str(caught.value)
