"""The detector against torchvision's own FCOS: same weights, same features, same images."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator

from fpn_bench.detection import detector as detector_module
from fpn_bench.detection.detector import Detector, Points
from fpn_bench.errors import InputError
from fpn_bench.pyramid import FeatureSpec

CLASSES = 3
HEAD = SimpleNamespace(convs=2)


class PassThrough(nn.Module):
    """A neck that returns the maps it is given."""

    def __init__(self, specs: tuple[FeatureSpec, ...]) -> None:
        super().__init__()
        self.out_features = specs
        self.graph = SimpleNamespace(inputs=specs)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, ...]:
        return tuple(features)


class Maps(nn.Module):
    """A backbone for torchvision's FCOS that returns given maps, whatever the image."""

    def __init__(self, maps: list[Tensor], channels: int) -> None:
        super().__init__()
        self.maps, self.out_channels = maps, channels

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict((str(k), m) for k, m in enumerate(self.maps))


def make(levels: tuple[int, ...], size: tuple[int, int], images: int, channels: int = 32, seed: int = 0):
    """A detector and torchvision's FCOS with the same weights over the same maps."""
    torch.manual_seed(seed)
    specs = tuple(FeatureSpec(level, channels, 2**level) for level in levels)
    maps = [torch.randn(images, channels, size[0] // s.stride, size[1] // s.stride) * 3 for s in specs]
    detector = Detector(PassThrough(specs), CLASSES, HEAD)
    with torch.no_grad():  # wide scores and boxes, so that thresholds, NMS and clipping all have work
        for p in detector.head.parameters():
            p.add_(torch.randn_like(p) * 0.05)
        detector.head.classification_head.cls_logits.bias.fill_(-0.5)
        detector.head.regression_head.bbox_reg.bias.fill_(1.5)
    anchors = AnchorGenerator(tuple((s.stride,) for s in specs), ((1.0,),) * len(specs))
    reference = FCOS(
        Maps(maps, channels), CLASSES, anchor_generator=anchors, head=detector.head,
        min_size=min(size), max_size=max(size), fixed_size=(size[1], size[0]), score_thresh=0.05,
    )  # fmt: skip
    return detector, reference, maps


def random_targets(images: int, size: tuple[int, int], most: int, seed: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for count in torch.randint(0, most + 1, (images,), generator=generator).tolist():
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([size[1], size[0]]) * 0.8
        extent = torch.exp(torch.rand(count, 2, generator=generator) * 4.5) + 1
        boxes = torch.cat([corner, torch.minimum(corner + extent, torch.tensor([size[1], size[0]]))], dim=1)
        targets.append({"boxes": boxes, "labels": torch.randint(0, CLASSES, (count,), generator=generator)})
    return targets


@settings(max_examples=15, deadline=None)
@given(
    levels=st.sampled_from([(3, 4, 5), (2, 3), (3, 4, 5, 6, 7), (5,), (2, 3, 4, 5, 6, 7)]),
    most=st.sampled_from([0, 1, 12]),
    seed=st.integers(0, 10**6),
)
def test_loss_equals_torchvision(levels: tuple[int, ...], most: int, seed: int) -> None:
    size, images = (128, 256), 3
    detector, reference, maps = make(levels, size, images, seed=seed)
    targets = random_targets(images, size, most, seed)
    expected = reference.train()([torch.rand(3, *size)] * images, [dict(t) for t in targets])
    got = detector.loss(maps, targets)
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-5)


def test_loss_gradients_equal_torchvision() -> None:
    size, images = (128, 128), 4
    detector, reference, maps = make((3, 4, 5), size, images)
    targets = random_targets(images, size, 6, 1)
    sum(reference.train()([torch.rand(3, *size)] * images, targets).values()).backward()
    expected = [p.grad.clone() for p in detector.head.parameters()]
    detector.zero_grad()
    sum(detector.loss(maps, targets).values()).backward()
    for p, grad in zip(detector.head.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("levels", [(3, 4, 5), (2, 3, 4, 5, 6, 7), (6,)])
def test_detections_equal_torchvision(levels: tuple[int, ...]) -> None:
    size, images = (128, 256), 3
    detector, reference, maps = make(levels, size, images)
    with torch.no_grad():
        expected = reference.eval()([torch.rand(3, *size)] * images)
    got = detector.eval().detect(maps, size, score_threshold=0.05)
    assert sum(len(e["boxes"]) for e in expected) > 20
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a["scores"], b["scores"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(a["boxes"], b["boxes"], rtol=1e-5, atol=1e-4)
        assert torch.equal(a["labels"], b["labels"])


def test_forward_shapes_and_no_detections() -> None:
    detector, _, maps = make((3, 4), (64, 128), 2)
    outputs = detector(maps)
    points = 8 * 16 + 4 * 8
    assert outputs["cls_logits"].shape == (2, points, CLASSES)
    assert outputs["bbox_regression"].shape == (2, points, 4)
    assert outputs["bbox_ctrness"].shape == (2, points, 1)
    found = detector.detect(maps, (64, 128), score_threshold=2.0)
    assert [f["boxes"].shape for f in found] == [(0, 4), (0, 4)]


def test_boxes_are_inside_the_input() -> None:
    detector, _, maps = make((3, 4, 5), (128, 256), 2)
    for found in detector.detect(maps, (100, 200)):
        boxes = found["boxes"]
        assert len(boxes)
        assert boxes.min() >= 0
        assert boxes[:, 0::2].max() <= 200
        assert boxes[:, 1::2].max() <= 100


@pytest.mark.parametrize("channels", [1, 6, 24, 48, 64])
def test_any_width(channels: int) -> None:
    detector, _, maps = make((3, 4), (64, 64), 1, channels=channels)
    assert torch.isfinite(detector(maps)["cls_logits"]).all()


def test_points_of_odd_sizes_lie_at_the_nominal_stride() -> None:
    points = Points((FeatureSpec(3, 8, 8), FeatureSpec(4, 8, 16)), [(3, 43), (2, 22)], torch.device("cpu"))
    assert points.counts == [129, 44]
    assert points.centres[42].tolist() == [336.0, 0.0]
    assert points.centres[-1].tolist() == [336.0, 16.0]
    assert points.anchors[0].tolist() == [-4.0, -4.0, 4.0, 4.0]


def test_matching_against_a_slow_truth() -> None:
    """Every point and box by hand, in Python's floats."""
    specs = (FeatureSpec(3, 8, 8), FeatureSpec(4, 8, 16), FeatureSpec(5, 8, 32))
    points = Points(specs, [(16, 16), (8, 8), (4, 4)], torch.device("cpu"))
    targets = random_targets(4, (128, 128), 9, seed=3)
    targets[0] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    padded = nn.utils.rnn.pad_sequence([t["boxes"] for t in targets], batch_first=True)
    matched = points.match(padded)
    limits = {8: (0.0, 64.0), 16: (64.0, 128.0), 32: (128.0, float("inf"))}
    found = 0
    for image, target in enumerate(targets):
        for a, ((x, y), stride) in enumerate(zip(points.centres.tolist(), points.strides.tolist(), strict=True)):
            claims = []
            for m, (x0, y0, x1, y1) in enumerate(target["boxes"].tolist()):
                sides = (x - x0, y - y0, x1 - x, y1 - y)
                low, high = limits[int(stride)]
                off_centre = max(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2))
                if min(sides) > 0 and low < max(sides) < high and off_centre < 1.5 * stride:
                    claims.append(((x1 - x0) * (y1 - y0), m))
            assert matched[image, a] == (min(claims)[1] if claims else -1)
            found += bool(claims)
    assert found > 50


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 40), st.integers(1, 6))
def test_matching_a_few_boxes_at_a_time_is_matching_all(seed: int, images: int, count: int, at_once: int) -> None:
    torch.manual_seed(seed)
    specs = (FeatureSpec(3, 8, 4), FeatureSpec(4, 16, 4))
    points = Points(specs, [(8, 8), (4, 4)], torch.device("cpu"))
    low = torch.randint(0, 8, (images, count, 2)) * 8.0  # coarse, so that areas tie
    boxes = torch.cat([low, low + torch.randint(0, 5, (images, count, 2)) * 8.0], dim=-1)
    whole = points.match(boxes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector_module, "MATCHED_AT_ONCE", at_once * images * len(points.centres))
        assert torch.equal(points.match(boxes), whole)


def test_levels_of_different_width_are_refused() -> None:
    specs = (FeatureSpec(3, 32, 8), FeatureSpec(4, 64, 16))
    with pytest.raises(InputError, match=r"'P3': 32, 'P4': 64.*one width"):
        Detector(PassThrough(specs), CLASSES, HEAD)
