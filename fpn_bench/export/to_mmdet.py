"""Files for MMDetection: a module that registers backbone and neck, and a config that trains FCOS on them.

MMDetection itself is never run here: what is checked is the module, with a registry that only keeps what it is given.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from fpn_bench.candidates.model import ImageDetector
from fpn_bench.detection.detector import RANGE_OF_LEVEL, Standardise, head_groups
from fpn_bench.export import parts
from fpn_bench.export.bundle import Bundle
from fpn_bench.export.checks import Written, compare, imported, noise
from fpn_bench.export.source import write_neck
from fpn_bench.export.text import module_text, prefixed, provenance, timm_text, trunk_class

MODULE = "fpn_bench_neck"
_ABOUT = """\
Registers FpnBenchBackbone and FpnBenchNeck with MMDetection 3; `fcos.py`, beside this file, is a config that uses them.
Put both where `custom_imports` finds them (PYTHONPATH), and weights.pt where the config says."""

_MODULES = '''
{trunk}


def _weights(path: str, part: str) -> dict[str, torch.Tensor]:
    state = torch.load(path, weights_only=True)
    return {{k.removeprefix(part): v for k, v in state.items() if k.startswith(part)}}


@MODELS.register_module()
class FpnBenchBackbone(nn.Module):
    """The backbone's maps, finest first; frozen, as in the training of the neck, unless `frozen` is False."""

    def __init__(self, weights: str | None = None, frozen: bool = True, init_cfg: object = None) -> None:
        super().__init__()
        self.trunk = trunk()
        if weights is not None:
            self.load_state_dict(_weights(weights, "backbone."))
        self.frozen = frozen
        self.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> FpnBenchBackbone:
        super().train(mode and not self.frozen)
        return self

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.trunk(images))


@MODELS.register_module()
class FpnBenchNeck(nn.Module):
    """The neck behind the constants that its inputs are shifted and scaled by."""

    def __init__(self, weights: str | None = None, init_cfg: object = None) -> None:
        super().__init__()
        self.standardise = Standardise({channels})
        self.neck = Neck()
        if weights is not None:
            self.load_state_dict(_weights(weights, "neck."))

    def forward(self, features: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return self.neck(self.standardise(features))
'''

_CONFIG = """
custom_imports = dict(imports=[{module!r}], allow_failed_imports=False)
default_scope = "mmdet"

weights = "weights.pt"
image_scale = {scale!r}  # (width, height)

model = dict(
    type="FCOS",
    data_preprocessor=dict(
        type="DetDataPreprocessor", mean={mean!r}, std={std!r}, bgr_to_rgb=True, pad_size_divisor=1
    ),
    backbone=dict(type="FpnBenchBackbone", weights=weights),
    neck=dict(type="FpnBenchNeck", weights=weights),
    # A new head: MMDetection's points lie half a stride beside those that the trained one was made for.
    bbox_head=dict(
        type="FCOSHead",
        num_classes={classes},
        in_channels={width},
        feat_channels={width},
        stacked_convs={convs},
        strides={strides!r},
        regress_ranges={ranges!r},
        norm_cfg=dict(type="GN", num_groups={groups}, requires_grad=True),
        norm_on_bbox=True,
        centerness_on_reg=True,
        center_sampling=True,
        center_sample_radius=1.5,
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=1.0),
        loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
    ),
    test_cfg=dict(
        nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type="nms", iou_threshold=0.6), max_per_img=100
    ),
)

metainfo = dict(classes={names!r})
pack = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=image_scale, keep_ratio=False),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=image_scale, keep_ratio=False),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=pack),
]
"""


def write(model: ImageDetector, folder: Path) -> Written:
    """``fpn_bench_neck.py``, ``fcos.py`` and ``weights.pt``."""
    spec, backbone = model.spec, model.backbone
    bundle = Bundle()
    neck = write_neck(model.detector.neck, bundle)
    bundle.add(trunk_class(model))
    bundle.add(Standardise)
    bundle.add_imports("import timm\nfrom mmdet.registry import MODELS")
    channels = tuple(s.channels for s in spec.graph.inputs)
    text = _MODULES.format(trunk=timm_text(model), channels=channels)
    bundle.add_text("FpnBenchNeck", text.strip(), like=parts.__name__)
    module = module_text("A backbone and a neck for MMDetection 3.", model, _ABOUT, bundle)
    strides = [s.stride for s in spec.graph.out_features]
    ranges = [(round(RANGE_OF_LEVEL[0] * s), round(RANGE_OF_LEVEL[1] * s)) for s in strides]
    ranges[0] = (-1, ranges[0][1])
    ranges[-1] = (ranges[-1][0], 100_000_000)
    width = spec.graph.out_features[0].channels
    config = _CONFIG.format(
        module=MODULE,
        scale=spec.image_size[::-1],
        mean=[255 * value for value in backbone.mean],
        std=[255 * value for value in backbone.std],
        classes=len(spec.classes),
        names=spec.classes,
        width=width,
        convs=spec.head.convs,
        strides=strides,
        ranges=tuple(ranges),
        groups=head_groups(width),
    )
    words = "\n".join(f"# {' '.join(line.split())}" for line in provenance(model))
    files = (folder / f"{MODULE}.py", folder / "fcos.py", folder / "weights.pt")
    files[0].write_text(module, encoding="utf-8")
    files[1].write_text(words + "\n" + config, encoding="utf-8")
    state = {
        **prefixed("backbone.trunk.model", backbone.model.state_dict()),
        **prefixed("neck.standardise", model.detector.standardise.state_dict()),
        **prefixed("neck.neck", neck),
    }
    torch.save(state, files[2])
    notes = (
        "MMDetection itself was not run: the module was, with a stand-in for the registry",
        "the head is to be trained anew: MMDetection's FCOS has its points half a stride beside torchvision's",
    )
    return Written(files, _check(model, files), notes)


class _Registry:
    """Keeps the classes that register themselves, by name."""

    def __init__(self) -> None:
        self.classes: dict[str, Any] = {}

    def register_module(self) -> Any:
        def keep(cls: type) -> type:
            self.classes[cls.__name__] = cls
            return cls

        return keep


@torch.no_grad()
def _check(model: ImageDetector, files: tuple[Path, Path, Path]) -> float:
    """The pyramid that the config's modules give, against the source's."""
    config: dict[str, Any] = {}
    exec(compile(files[1].read_text(encoding="utf-8"), files[1].name, "exec"), config)
    registry = _Registry()
    stand_ins = {"mmdet": ModuleType("mmdet"), "mmdet.registry": ModuleType("mmdet.registry")}
    stand_ins["mmdet.registry"].MODELS = registry  # type: ignore[attr-defined]
    before = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        imported(files[0])
    finally:
        for name, known in before.items():
            if known is None:
                del sys.modules[name]
            else:
                sys.modules[name] = known
    made = []
    for part in ("backbone", "neck"):
        options = {**config["model"][part], "weights": str(files[2])}
        made.append(registry.classes[options.pop("type")](**options).eval())
    images = noise(2, 3, model.spec.image_size)
    wanted = model.detector.pyramid(model.backbone.maps(images))
    return compare("MMDetection's module", made[1](made[0](images)), wanted)
