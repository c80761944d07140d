"""A module that gives torchvision's detectors on the exported pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import one_hot

from fpn_bench.candidates.model import ImageDetector
from fpn_bench.detection.detector import Head, Standardise
from fpn_bench.errors import InputError
from fpn_bench.export import torchvision_parts
from fpn_bench.export.bundle import Bundle
from fpn_bench.export.checks import Detect, Written, compare, compare_found, imported, noise
from fpn_bench.export.source import write_neck
from fpn_bench.export.text import constants, module_text, prefixed, timm_text, trunk_class

_ABOUT = """\
    model = fcos().eval()  # the trained weights, beside this file
    found = model([image])  # float [3, H, W] RGB in 0..1, of any size -> boxes in its pixels, scores, labels
    losses = fcos().train()(images, targets)  # targets: boxes [M, 4] in pixels, labels int64 [M]

`retinanet()` and `faster_rcnn()` have the same trunk and neck, and heads that are still to be trained. A label is an
index into CLASSES; Faster R-CNN's labels begin at 1, for 0 is its background."""

_IMPORTS = """
import timm
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.ops import MultiScaleRoIAlign
"""

_DETECTORS = '''
{constants}
WEIGHTS = Path(__file__).with_name("weights.pt")


{trunk}


def pyramid(weights: str | Path | None = WEIGHTS, *, frozen: bool = True) -> Pyramid:
    """Trunk and neck; `frozen`: the trunk is not trained."""
    backbone = Pyramid(trunk(), Standardise({channels}), Neck(), {width}, frozen)
    if weights is not None:
        state = torch.load(weights, weights_only=True)
        own = {{k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}}
        backbone.load_state_dict(own)
    return backbone


def transform() -> Stretch:
    """Images as in training."""
    return Stretch(IMAGE_SIZE, {mean}, {std}, {mode!r})


def fcos(weights: str | Path | None = WEIGHTS, *, frozen: bool = True, **options: Any) -> FCOS:
    """The detector as it was trained; `options` are those of torchvision's FCOS."""
    model = FCOS(
        pyramid(None, frozen=frozen),
        len(CLASSES),
        anchor_generator=PyramidAnchors([(s,) for s in STRIDES], (1.0,), STRIDES),
        head=Head({width}, len(CLASSES), {convs}),
        **{{"score_thresh": 0.05, **options}},
    )
    model.transform = transform()
    if weights is not None:
        model.load_state_dict(torch.load(weights, weights_only=True))
    return model


def retinanet(
    num_classes: int = len(CLASSES), *, weights: str | Path | None = WEIGHTS, frozen: bool = True, **options: Any
) -> RetinaNet:
    """RetinaNet with a new head; three anchors of each ratio a level, from four strides."""
    sizes = [[4 * s * 2 ** (k / 3) for k in range(3)] for s in STRIDES]
    anchors = PyramidAnchors(sizes, (0.5, 1.0, 2.0), STRIDES)
    model = RetinaNet(pyramid(weights, frozen=frozen), num_classes, anchor_generator=anchors, **options)
    model.transform = transform()
    return model


def faster_rcnn(
    num_classes: int = len(CLASSES) + 1, *, weights: str | Path | None = WEIGHTS, frozen: bool = True, **options: Any
) -> FasterRCNN:
    """Faster R-CNN with new heads; `num_classes` counts the background, which is label 0."""
    anchors = PyramidAnchors([(8 * s,) for s in STRIDES], (0.5, 1.0, 2.0), STRIDES)
    names = [str(k) for k in range(len(STRIDES))]
    pool = MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2)
    model = FasterRCNN(
        pyramid(weights, frozen=frozen), num_classes, rpn_anchor_generator=anchors, box_roi_pool=pool, **options
    )
    model.transform = transform()
    return model
'''


def write(model: ImageDetector, folder: Path) -> Written:
    """``detector.py`` and ``weights.pt``."""
    spec, backbone = model.spec, model.backbone
    if backbone.interpolation not in ("bilinear", "bicubic", "nearest"):
        raise InputError(
            f"backbone {spec.backbone!r} needs images resized by {backbone.interpolation}, which torch has not: "
            "expected bilinear, bicubic or nearest; try `--to onnx`, which leaves resizing outside"
        )
    bundle = Bundle()
    neck = write_neck(model.detector.neck, bundle)
    named = (torchvision_parts.Pyramid, torchvision_parts.Stretch, torchvision_parts.PyramidAnchors)
    for part in (trunk_class(model), Standardise, Head, *named):
        bundle.add(part)
    bundle.add_imports(_IMPORTS)
    text = _DETECTORS.format(
        constants=constants(model),
        trunk=timm_text(model),
        channels=tuple(s.channels for s in spec.graph.inputs),
        width=spec.graph.out_features[0].channels,
        convs=spec.head.convs,
        mean=backbone.mean,
        std=backbone.std,
        mode=backbone.interpolation,
    )
    bundle.add_text("fcos", text.strip(), like=__name__)
    files = (folder / "detector.py", folder / "weights.pt")
    title = f"torchvision's detectors on {spec.backbone} and a neck."
    files[0].write_text(module_text(title, model, _ABOUT, bundle), encoding="utf-8")
    detector = model.detector
    state = {
        **prefixed("backbone.trunk.model", backbone.model.state_dict()),
        **prefixed("backbone.standardise", detector.standardise.state_dict()),
        **prefixed("backbone.neck", neck),
        **prefixed("head", detector.head.state_dict()),
    }
    torch.save(state, files[1])
    fcos = imported(files[0]).fcos().eval()
    return Written(files, _check(model, fcos), detect=_detect(fcos))


@torch.no_grad()
def _check(model: ImageDetector, fcos: Any) -> float:
    """Raw outputs, and detections on images that need no resizing."""
    size = model.spec.image_size
    raw = model(noise(2, 3, size))
    got = fcos.head(list(fcos.backbone(noise(2, 3, size)).values()))
    error = compare("torchvision's FCOS", [got[name] for name in raw], list(raw.values()))
    pixels = (noise(2, 3, size) * 255).byte()
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
    what, threshold = "what torchvision's FCOS finds", fcos.score_thresh
    fcos.score_thresh = 0.0  # few boxes of a detector are sure of themselves on noise
    for a, b in zip(_detect(fcos)(images), model.detect(images, score_threshold=0.0), strict=True):
        scores = one_hot(a["labels"], len(model.spec.classes)) * a["scores"][:, None]
        error = max(error, compare(what, [a["scores"]], [b["scores"]]), compare_found(what, a["boxes"], scores, b))
    fcos.score_thresh = threshold
    return error


def _detect(fcos: Any) -> Detect:
    @torch.no_grad()
    def detect(images: Sequence[Image.Image]) -> list[dict[str, Tensor]]:
        tensors = [torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255 for image in images]
        found: list[dict[str, Tensor]] = fcos(tensors)
        return found

    return detect
