"""One ONNX file: RGB images in 0..1 to boxes and scores, of any size and number where the backbone allows it.

torch's exporter by tracing is used: the one by `torch.export` reasons about every size that a backbone's padding
computes, and takes minutes for the smallest of them. Tracing records sizes as they are computed, so the file is checked
at sizes that it was not traced at.
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import batched_nms

import fpn_bench
from fpn_bench import nn as layers
from fpn_bench.candidates.model import DetectorSpec, ImageDetector
from fpn_bench.errors import ExportError, InputError, MeasurementError
from fpn_bench.export import parts
from fpn_bench.export.bundle import Bundle
from fpn_bench.export.checks import Written, compare, compare_found, imported, noise
from fpn_bench.export.text import trunk_arguments, trunk_class
from fpn_bench.export.to_python import add_detector
from fpn_bench.profiling import ANY_ERROR, translate_torch_errors
from fpn_bench.pyramid import ImageSize

if TYPE_CHECKING:
    from fpn_bench.backbones import Backbone

OPSET = 18
_SUBSTITUTES = {layers.DeformableConv: parts.DeformableConv, layers.AdaptivePool: parts.AdaptivePool}
_KEY = "fpn_bench"


class _Whole(nn.Module):
    """Images to boxes and scores, of parts that can be traced without knowing a size."""

    def __init__(self, model: ImageDetector, folder: Path) -> None:
        super().__init__()
        bundle = Bundle()
        state = add_detector(model, bundle, _SUBSTITUTES)
        source = folder / "traced.py"
        source.write_text("from __future__ import annotations\n\n" + bundle.text(), encoding="utf-8")
        self.detector: Any = imported(source).Detector()
        self.detector.load_state_dict(state)
        self.trunk = trunk_class(model)(model.backbone.model, **trunk_arguments(model))
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(model.backbone.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(model.backbone.std)[:, None, None])
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """float [N, 3, H, W] in 0..1 -> boxes [N, A, 4], scores [N, A, K]."""
        maps = self.trunk((images - self.mean) / self.std)
        found: tuple[Tensor, Tensor] = self.detector.boxes(maps, (images.shape[-2], images.shape[-1]))
        return found


def write(model: ImageDetector, folder: Path) -> Written:
    """``detector.onnx``."""
    try:
        import onnx
        import onnxruntime  # noqa: F401
    except ImportError as missing:
        raise InputError(
            f"{missing.name} is not installed, which `--to onnx` needs: pip install 'fpn-bench[onnx]'"
        ) from None
    path = folder / "detector.onnx"
    with tempfile.TemporaryDirectory() as temporary:
        whole = _Whole(model, Path(temporary))
        size, built_for = model.spec.image_size, model.backbone.recipe.built_for
        reason = None if built_for is None else f"the backbone was built for {_hxw(built_for)}"
        if reason is None:
            try:
                with translate_torch_errors(
                    ANY_ERROR
                ):  # models refuse sizes, and the exporter operations, by any exception
                    _trace(whole, path, size, dynamic=True)
                    error = check(model, path, _sizes(size))
            except MeasurementError as failure:
                reason = failure.reason
        if reason is not None:
            try:
                _trace(whole, path, size, dynamic=False)
                error = check(model, path, [size])
            except ExportError:
                raise
            except Exception as failure:
                raise ExportError(f"it cannot be written as ONNX: {_short(failure)}") from failure
    proto = onnx.load(str(path))
    told = {"spec": model.spec.to_dict(), "about": model.about, "interpolation": model.backbone.interpolation}
    facts = {
        _KEY: json.dumps(told),
        "producer": f"fpn_bench {fpn_bench.__version__}",
        "classes": json.dumps(model.spec.classes),
        "image_size": json.dumps(model.spec.image_size),
        "input": "RGB, float32 in 0..1, NCHW; normalisation is inside",
        "output": "boxes x1 y1 x2 y2 in pixels of the input, clipped; scores of each class; before NMS",
    }
    onnx.helper.set_model_props(proto, facts)
    onnx.checker.check_model(proto)
    onnx.save(proto, str(path))
    note = (
        "batch, height and width are free"
        if reason is None
        else f"the batch is free, height and width are {_hxw(size)}: {reason}"
    )
    return Written([path], error, (note,), OnnxDetector(path).detect)


def _resize(mode: str) -> Any:
    """What torch's exporter lacks: antialiased interpolation, by which vision transformers fit their positions."""

    def symbolic(g: Any, x: Any, size: Any, _corners: Any, *_scales: Any) -> Any:
        zero, two = (g.op("Constant", value_t=torch.tensor([k])) for k in (0, 2))
        if size.node().kind() == "prim::ListConstruct":
            size = g.op("Concat", *(g.op("Unsqueeze", side, zero) for side in size.node().inputs()), axis_i=0)
        kept = g.op("Slice", g.op("Shape", x), zero, two, zero)
        sizes = g.op("Concat", kept, g.op("Cast", size, to_i=7), axis_i=0)  # 7: int64
        none = g.op("Constant", value_t=torch.tensor([], dtype=torch.float32))
        return g.op(
            "Resize",
            x,
            none,
            none,
            sizes,
            mode_s=mode,
            antialias_i=1,
            exclude_outside_i=1,
            cubic_coeff_a_f=-0.5,
            coordinate_transformation_mode_s="half_pixel",
        )

    return symbolic


def _short(failure: Exception) -> str:
    """Its message on a line that is not too long."""
    return " ".join(str(failure).split())[:200] or type(failure).__name__


def _hxw(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _sizes(size: ImageSize) -> list[ImageSize]:
    """Where a file of free size is checked: its own, a larger odd and an oblong smaller one."""
    height, width = size
    return [size, (height + 37, width + 11), (height, max(33, width * 3 // 4) | 1)]


def _trace(whole: nn.Module, path: Path, size: ImageSize, *, dynamic: bool) -> None:
    axes: dict[str, dict[int, str]] = {name: {0: "batch"} for name in ("images", "boxes", "scores")}
    if dynamic:
        axes["images"] |= {2: "height", 3: "width"}
        axes["boxes"][1] = axes["scores"][1] = "points"
        size = (size[0] + 5, size[1] + 14)  # so that nothing is taken for constant because it divides evenly
    missing = {"aten::_upsample_bilinear2d_aa": _resize("linear"), "aten::_upsample_bicubic2d_aa": _resize("cubic")}
    for name, symbolic in missing.items():
        torch.onnx.register_custom_op_symbolic(name, symbolic, OPSET)  # type: ignore[attr-defined]
    exporter = logging.getLogger("torch.onnx")
    before = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # that sizes are recorded as constants; the file is checked afterwards
            torch.onnx.export(
                whole,
                (noise(2, 3, size),),
                str(path),
                dynamo=False,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["boxes", "scores"],
                dynamic_axes=axes,
            )
    finally:
        exporter.setLevel(before)
        for name in missing:
            torch.onnx.unregister_custom_op_symbolic(name, OPSET)  # type: ignore[attr-defined]


@torch.no_grad()
def check(model: ImageDetector, path: Path, sizes: Sequence[ImageSize]) -> float:
    """The largest difference between onnxruntime and the source, at each size and batches of 1 and 2."""
    run = _session(path)
    backbone, detector = model.backbone, model.detector
    strides = [s.stride for s in detector.out_features]
    mean, std = (torch.tensor(values)[:, None, None] for values in (backbone.mean, backbone.std))
    error = 0.0
    for number, size in enumerate(sizes):
        for batch in (1, 2):
            images = noise(batch, 3, size, seed=number)
            maps = backbone.maps((images - mean) / std)
            raw = detector(maps)
            shapes = [(m.shape[-2], m.shape[-1]) for m in detector.pyramid(maps)]
            outputs = (raw["cls_logits"], raw["bbox_regression"], raw["bbox_ctrness"])
            wanted = parts.decode(*outputs, shapes, strides, size)
            got = [torch.from_numpy(x) for x in run.run(None, {"images": images.numpy()})]
            what = f"the ONNX file at {_hxw(size)}, batch {batch},"
            found = detector.detect(maps, size, score_threshold=0.0)[0]
            error = max(error, compare(what, got, wanted), compare_found(what, got[0][0], got[1][0], found))
    return error


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class OnnxDetector:
    """An exported ONNX file as a detector, by onnxruntime on the CPU.

    Args:
        path: a file that `export` wrote.

    Attributes:
        spec: what it was made of.

    Raises:
        InputError: there is no such file, or it is none of these, or onnxruntime is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not path.is_file():
            raise InputError(f"no detector at {path}; expected a file written by `fpn-bench export --to onnx`")
        try:
            self._session = _session(path)
            told = json.loads(self._session.get_modelmeta().custom_metadata_map[_KEY])
            self.spec = DetectorSpec.from_dict(told["spec"])
            self._as = _Unnormalised(told["interpolation"])
        except ImportError:
            raise InputError(
                f"{path} needs onnxruntime, which is not installed: pip install 'fpn-bench[onnx]'"
            ) from None
        except Exception as error:  # onnxruntime's errors have no class of their own in common
            raise InputError(
                f"{path} is no detector of fpn_bench ({' '.join(str(error).split())[:160]}): expected a file "
                "written by `fpn-bench export --to onnx`"
            ) from error

    def detect(self, images: Sequence[Image.Image], *, score_threshold: float = 0.05) -> list[dict[str, Tensor]]:
        """What is on the images, see `fpn_bench.candidates.model.ImageDetector.detect`."""
        from fpn_bench.training.cache import to_input
        from fpn_bench.training.train import box_scale

        size = self.spec.image_size
        backbone: Backbone = self._as  # type: ignore[assignment]
        inputs = torch.stack([to_input(image.convert("RGB"), size, backbone) for image in images])
        found = []
        for image, boxes, scores in zip(images, *self._session.run(None, {"images": inputs.numpy()}), strict=True):
            kept = select(torch.from_numpy(boxes), torch.from_numpy(scores), score_threshold)
            kept["boxes"] *= box_scale(size, (image.height, image.width))
            found.append(kept)
        return found


class _Unnormalised:
    """What `to_input` reads of a backbone, for one that normalises by itself."""

    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)

    def __init__(self, interpolation: str) -> None:
        self.interpolation = interpolation


def select(
    boxes: Tensor,
    scores: Tensor,
    score_threshold: float,
    *,
    nms_threshold: float = 0.6,
    candidates: int = 5000,
    detections: int = 100,
) -> dict[str, Tensor]:
    """What is left of the file's outputs for one image: scores above the threshold, NMS by class, best first.

    Args:
        boxes: [A, 4].
        scores: [A, K].
        score_threshold: lowest score kept.
        nms_threshold: IoU above which the lower-scored of two boxes of a class is dropped.
        candidates: scores that go into NMS, the best.
        detections: boxes kept after it.

    Returns:
        ``boxes`` [D, 4], ``scores`` [D], ``labels`` int64 [D].
    """
    point, label = torch.where(scores > score_threshold)
    best = scores[point, label].topk(min(candidates, len(point))).indices
    point, label = point[best], label[best]
    keep = batched_nms(boxes[point], scores[point, label], label, nms_threshold)[:detections]
    return {"boxes": boxes[point[keep]], "scores": scores[point[keep], label[keep]], "labels": label[keep]}
