"""A detector on top of a neck: torchvision's FCOS head, its loss and its post-processing, for any pyramid range.

FCOS: Tian et al. 2019, "FCOS: Fully Convolutional One-Stage Object Detection" (arXiv:1904.01355), in the form of
`torchvision.models.detection.FCOS`: centre sampling, GIoU loss, scores ``sqrt(class * centre-ness)``. torchvision's own
class insists on transforming the images, so its head modules are used as they are and its matching, loss and
post-processing are written here for a whole batch at once; a test holds both against torchvision's class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection.fcos import (
    FCOSClassificationHead,
    FCOSHead,
    FCOSRegressionHead,
)
from torchvision.ops import (
    batched_nms,
    clip_boxes_to_image,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)

from fpn_bench.errors import InputError
from fpn_bench.nn.norms import make_group_norm
from fpn_bench.pyramid import FeatureSpec, ImageSize

if TYPE_CHECKING:
    from fpn_bench.nn.neck import Neck

Target = Mapping[str, Tensor]
"""``boxes`` float [M, 4] (x1 y1 x2 y2, input pixels) and ``labels`` int64 [M] of one image; M may be 0."""

CENTER_SAMPLING_RADIUS = 1.5  # in strides, around the centre of a box
INITIAL_DISTANCE = 2.0  # in strides, from a point to each side of its box before any training
MATCHED_AT_ONCE = 2**20  # pairs of point and box: some 60 MB of what is computed on the way
RANGE_OF_LEVEL = (4.0, 8.0)  # a level regresses boxes whose farthest side is 4 to 8 strides away


class HeadOptions(Protocol):
    """What the detector reads of a head's configuration (`fpn_bench.training.HeadConfig` has it)."""

    @property
    def convs(self) -> int:
        """3x3 convolutions in each of the two towers."""


def head_groups(channels: int) -> int:
    """Groups of the head's group norms, before what `make_group_norm` does on maps of one pixel."""
    return math.gcd(32, channels)


class Head(FCOSHead):  # type: ignore[misc]
    """torchvision's FCOS head with two changes that leave its computation alone.

    Any width: GroupNorm has gcd(32, channels) groups instead of always 32. Initial weights for a short training:
    He's in the towers instead of N(0, 0.01), whose first Adam steps are a fifth of a weight, and a box of
    `INITIAL_DISTANCE` around every point instead of an empty one, half of which the final ReLU leaves without gradient.
    """

    def __init__(self, channels: int, num_classes: int, convs: int) -> None:
        with torch.device("meta"):  # both heads are replaced: no memory, no random numbers
            super().__init__(32, 1, num_classes, num_convs=0)
        norm = partial(make_group_norm, head_groups(channels))
        self.classification_head = FCOSClassificationHead(channels, 1, num_classes, convs, norm_layer=norm)
        self.regression_head = FCOSRegressionHead(channels, 1, convs, norm_layer=norm)
        for layer in (*self.classification_head.conv, *self.regression_head.conv):
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.constant_(self.regression_head.bbox_reg.bias, INITIAL_DISTANCE)


class Standardise(nn.Module):
    """Shifts and scales each channel of the backbone's maps by constants; the identity until `set` gives them.

    Frozen backbones hand over maps of very different scale from level to level and channel to channel. With zero mean
    and unit variance a neck without norm layers starts, and trains, alike whatever the backbone.

    Args:
        channels: of each map.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        for k, width in enumerate(channels):
            self.register_buffer(f"mean{k}", torch.zeros(width, 1, 1))
            self.register_buffer(f"scale{k}", torch.ones(width, 1, 1))

    def set(self, statistics: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take (mean [C], standard deviation [C]) of each level."""
        for k, (mean, std) in enumerate(statistics):
            self.get_buffer(f"mean{k}").copy_(mean[:, None, None])
            self.get_buffer(f"scale{k}").copy_(1 / std[:, None, None])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps [N, C, H, W], finest first -> the same sizes."""
        # The second step in place: a large map's new memory costs more than its arithmetic.
        return [(x - self.get_buffer(f"mean{k}")).mul_(self.get_buffer(f"scale{k}")) for k, x in enumerate(maps)]


def decode_boxes(distances: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """Boxes [..., A, 4] (x1 y1 x2 y2, pixels), not clipped.

    Args:
        distances: [..., A, 4], from each point to the left, top, right and bottom side, in strides.
        centres: [A, 2], the points (x, y) in pixels.
        strides: [A, 1] or [A, 2], pixels.
    """
    return torch.cat([centres - distances[..., :2] * strides, centres + distances[..., 2:] * strides], dim=-1)


def decode_scores(logits: Tensor, centreness: Tensor) -> Tensor:
    """Class logits [N, A, K] and centre-ness logits [N, A, 1] -> scores [N, A, K]."""
    return torch.sqrt(logits.float().sigmoid() * centreness.float().sigmoid())


class Detector(nn.Module):
    """Neck and FCOS head; works on the backbone's maps, so that a frozen backbone need not run.

    Args:
        neck: its ``out_features`` name levels, strides and one common width.
        num_classes: classes of the data set (no background class; FCOS scores each class with a sigmoid).
        head: the head's configuration.

    Raises:
        InputError: the neck's levels differ in width.
    """

    def __init__(self, neck: Neck, num_classes: int, head: HeadOptions) -> None:
        super().__init__()
        self.standardise = Standardise([spec.channels for spec in neck.graph.inputs])
        self.neck = neck
        self.num_classes = num_classes
        self.out_features: tuple[FeatureSpec, ...] = tuple(neck.out_features)
        widths = {f"P{spec.level}": spec.channels for spec in self.out_features}
        if len(set(widths.values())) != 1:
            raise InputError(
                f"the neck's levels have widths {widths}; the head is shared, so give all levels one width"
            )
        self.head = Head(self.out_features[0].channels, num_classes, head.convs)
        self._points: dict[tuple[object, ...], Points] = {}

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """Raw head outputs, levels concatenated finest first into A = sum(H * W) points.

        Args:
            features: the backbone's maps [N, C, H, W], finest first.

        Returns:
            ``cls_logits`` [N, A, num_classes], ``bbox_regression`` [N, A, 4] (distances in strides) and
            ``bbox_ctrness`` [N, A, 1].
        """
        outputs: dict[str, Tensor] = self.head(list(self.pyramid(features)))
        return outputs

    @property
    def predictors(self) -> tuple[nn.Module, ...]:
        """The layers that give the outputs: classes, boxes, centre-ness."""
        regression = self.head.regression_head
        return self.head.classification_head.cls_logits, regression.bbox_reg, regression.bbox_ctrness

    def pyramid(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The neck's maps, finest first."""
        maps: tuple[Tensor, ...] = self.neck(self.standardise(features))
        return maps

    def points(self, sizes: Sequence[ImageSize], device: torch.device) -> Points:
        """The points of maps of these (height, width), made once per set of sizes."""
        key = (*sizes, device)
        if key not in self._points:
            self._points[key] = Points(self.out_features, sizes, device)
        return self._points[key]

    def loss(self, features: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """FCOS losses, each summed over the batch and divided by its number of foreground points.

        Args:
            features: the backbone's maps [N, C, H, W], finest first.
            targets: one per image.

        Returns:
            ``classification`` (focal), ``bbox_regression`` (GIoU) and ``bbox_ctrness`` (binary cross-entropy).
        """
        outputs, points = self.raw(features)
        return self.compute_loss(outputs, targets, points)

    def raw(self, features: Sequence[Tensor]) -> tuple[dict[str, Tensor], Points]:
        """Raw head outputs as `forward` gives them, and the points that they belong to."""
        maps = self.pyramid(features)
        points = self.points([(m.shape[2], m.shape[3]) for m in maps], maps[0].device)
        return self.head(list(maps)), points

    def compute_loss(
        self, outputs: Mapping[str, Tensor], targets: Sequence[Target], points: Points
    ) -> dict[str, Tensor]:
        """The losses of raw head outputs, see `loss`."""
        device = points.anchors.device
        # An image without boxes is padded with one box of zero area, which no point can lie in.
        boxes = pad_sequence([t["boxes"].to(device) for t in targets], batch_first=True)  # [N, M, 4]
        labels = pad_sequence([t["labels"].to(device) for t in targets], batch_first=True)  # [N, M]
        if boxes.shape[1] == 0:
            boxes, labels = boxes.new_zeros(len(targets), 1, 4), labels.new_zeros(len(targets), 1)
        matched = points.match(boxes)  # [N, A]
        image, point = torch.where(matched >= 0)  # F foreground points
        box = matched[image, point]
        gt_boxes = boxes[image, box]  # [F, 4]
        anchors = points.anchors[point]  # [F, 4]
        foreground = max(1, len(image))

        logits = outputs["cls_logits"].float()  # [N, A, K]
        gt_classes = torch.zeros_like(logits)
        gt_classes[image, point, labels[image, box]] = 1.0
        distances = outputs["bbox_regression"][image, point].float()
        predicted = decode_boxes(distances, points.centres[point], points.strides[point, None])
        distances = self.head.box_coder.encode(anchors, gt_boxes)  # [F, 4]: left, top, right, bottom
        left_right, top_bottom = distances[:, 0::2], distances[:, 1::2]
        centreness = torch.sqrt(left_right.amin(1) / left_right.amax(1) * (top_bottom.amin(1) / top_bottom.amax(1)))
        return {
            "classification": sigmoid_focal_loss(logits, gt_classes, reduction="sum") / foreground,
            "bbox_regression": generalized_box_iou_loss(predicted, gt_boxes, reduction="sum") / foreground,
            "bbox_ctrness": nn.functional.binary_cross_entropy_with_logits(
                outputs["bbox_ctrness"][image, point, 0].float(), centreness, reduction="sum"
            )
            / foreground,
        }

    @torch.no_grad()
    def detect(
        self,
        features: Sequence[Tensor],
        image_size: ImageSize,
        *,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.6,
        candidates_per_level: int = 1000,
        detections_per_image: int = 100,
    ) -> list[dict[str, Tensor]]:
        """Boxes after per-class NMS, best first.

        Args:
            features: the backbone's maps [N, C, H, W], finest first.
            image_size: of the network's input, in pixels; boxes are clipped to it.
            score_threshold: lowest score kept, ``sqrt(class probability * centre-ness)``.
            nms_threshold: IoU above which the lower-scored of two boxes of a class is dropped.
            candidates_per_level: scores that go into NMS from each level.
            detections_per_image: boxes kept after NMS (COCO's own limit).

        Returns:
            one dict per image: ``boxes`` [D, 4] (x1 y1 x2 y2, input pixels), ``scores`` [D], ``labels`` int64 [D].
        """
        outputs, points = self.raw(features)
        return self.decode(
            outputs,
            points,
            image_size,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            candidates_per_level=candidates_per_level,
            detections_per_image=detections_per_image,
        )

    @torch.no_grad()
    def decode(
        self,
        outputs: Mapping[str, Tensor],
        points: Points,
        image_size: ImageSize,
        *,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.6,
        candidates_per_level: int = 1000,
        detections_per_image: int = 100,
    ) -> list[dict[str, Tensor]]:
        """`detect`, from the outputs of `raw`."""
        scores = decode_scores(outputs["cls_logits"], outputs["bbox_ctrness"])
        distances = outputs["bbox_regression"].float()
        boxes = clip_boxes_to_image(decode_boxes(distances, points.centres, points.strides[:, None]), image_size)
        detections = []
        for image_scores, image_boxes in zip(scores, boxes, strict=True):
            kept = []  # flat indices into [A, K] of each level's best
            offset = 0
            for level in image_scores.split(points.counts):  # [H * W, K]
                flat = level.flatten()
                candidates = torch.where(flat > score_threshold)[0]
                best = flat[candidates].topk(min(candidates_per_level, len(candidates))).indices
                kept.append(candidates[best] + offset)
                offset += flat.numel()
            index = torch.cat(kept)
            point, labels = index // self.num_classes, index % self.num_classes
            candidate_boxes, candidate_scores = image_boxes[point], image_scores[point, labels]
            keep = batched_nms(candidate_boxes, candidate_scores, labels, nms_threshold)[:detections_per_image]
            detections.append(
                {"boxes": candidate_boxes[keep], "scores": candidate_scores[keep], "labels": labels[keep]}
            )
        return detections


class Points:
    """The A points of a pyramid's maps, at (column, row) * stride, and which boxes each is responsible for.

    torchvision divides the image's size by the map's to get the stride; here it is the level's nominal one, which is
    the same where the image is a multiple of it and right where it is not.

    Attributes:
        counts: points of each level.
        anchors: float [A, 4], a square of one stride around each point, input pixels.
    """

    def __init__(self, specs: Sequence[FeatureSpec], sizes: Sequence[ImageSize], device: torch.device) -> None:
        self.counts = [height * width for height, width in sizes]
        centres, strides, lower, upper = [], [], [], []
        for k, (spec, (height, width)) in enumerate(zip(specs, sizes, strict=True)):
            rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            centres.append(torch.stack([columns, rows], dim=-1).reshape(-1, 2) * float(spec.stride))
            strides.append(torch.full((height * width,), float(spec.stride)))
            # The finest level takes every smaller box too, the coarsest every larger one.
            lower.append(torch.full((height * width,), spec.stride * RANGE_OF_LEVEL[0] if k > 0 else 0.0))
            last = k == len(specs) - 1
            upper.append(torch.full((height * width,), math.inf if last else spec.stride * RANGE_OF_LEVEL[1]))
        self.centres = torch.cat(centres).to(device)  # [A, 2]
        self.strides = torch.cat(strides).to(device)  # [A]
        self.lower, self.upper = torch.cat(lower).to(device), torch.cat(upper).to(device)
        half = self.strides[:, None] / 2
        self.anchors = torch.cat([self.centres - half, self.centres + half], dim=1)

    def match(self, boxes: Tensor) -> Tensor:
        """Index of the box each point regresses, -1 for background; the smallest box where several claim a point.

        Boxes are taken `MATCHED_AT_ONCE` pairs at a time, so that memory does not grow with their number.

        Args:
            boxes: float [N, M, 4], x1 y1 x2 y2 in input pixels; boxes of zero area match nothing.

        Returns:
            int64 [N, A].
        """
        at_once = max(1, MATCHED_AT_ONCE // (len(boxes) * len(self.centres)))
        first, *others = torch.split(boxes, at_once, dim=1)
        best, index = self._preferred(first)
        for k, part in enumerate(others, start=1):
            better, there = self._preferred(part)
            index = torch.where(better > best, there + k * at_once, index)  # the first of equals, as `max` has it
            best = torch.maximum(best, better)
        return torch.where(best < 1e-5, -1, index)

    def _preferred(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """How much each point prefers the best of the boxes [N, M, 4], and which that is: [N, A] each."""
        boxes = boxes[:, None]  # [N, 1, M, 4]
        centres = self.centres[:, None]  # [A, 1, 2]
        distances = torch.cat([centres - boxes[..., :2], boxes[..., 2:] - centres], dim=-1)  # [N, A, M, 4]
        inside = distances.amin(-1) > 0
        farthest = distances.amax(-1)
        in_range = (farthest > self.lower[:, None]) & (farthest < self.upper[:, None])
        off_centre = (centres - (boxes[..., :2] + boxes[..., 2:]) / 2).abs().amax(-1)  # [N, A, M]
        central = off_centre < CENTER_SAMPLING_RADIUS * self.strides[:, None]
        areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])  # [N, 1, M]
        # torchvision's rounding of near-equal areas is kept: the same float32 expression decides ties.
        preference = (inside & in_range & central).to(areas.dtype) * (1e8 - areas)
        best, index = preference.max(dim=-1)
        return best, index
