"""A trained detector in one file: images in, boxes out.

The short training of a search works on the maps of a frozen backbone. Here backbone, neck and head are one module
again, with their specification as data, so that the module can be rebuilt without its study.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fpn_bench.backbones import Backbone, create_backbone
from fpn_bench.detection.detector import Detector, Target
from fpn_bench.errors import FormatVersionError, InputError
from fpn_bench.graph import NeckGraph
from fpn_bench.json_text import parse_json
from fpn_bench.nn.neck import build_neck
from fpn_bench.paths import write_bytes_atomic
from fpn_bench.pyramid import ImageSize
from fpn_bench.training.cache import device_of, to_input
from fpn_bench.training.protocol import HeadConfig
from fpn_bench.training.train import box_scale
from fpn_bench.vocabulary import AdapterName

MODEL_SCHEMA: Final = 1
_METADATA = "fpn_bench"


@dataclass(frozen=True)
class DetectorSpec:
    """What a detector is made of, without its weights.

    Attributes:
        backbone: timm name.
        levels: pyramid levels that were asked of it, finest first.
        adapter: what makes those that it lacks, see `fpn_bench.create_backbone`; that is a part of `graph`.
        weights: `WeightsRecord.id` of the weights that the backbone started from.
        graph: the neck over the backbone's own maps.
        head: the detection head.
        image_size: (height, width) in pixels that images are resized to.
        classes: names; a label is an index into them.
    """

    backbone: str
    levels: tuple[int, ...]
    adapter: AdapterName
    weights: str
    graph: NeckGraph
    head: HeadConfig
    image_size: ImageSize
    classes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**plain, "graph": self.graph.to_dict(), "head": self.head.model_dump(mode="json")}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DetectorSpec:
        """From what `to_dict` gave.

        Raises:
            InputError: a key is missing or holds something else.
        """
        try:
            listed: dict[str, Any] = {name: tuple(data[name]) for name in ("levels", "image_size", "classes")}
            plain = {name: data[name] for name in ("backbone", "adapter", "weights")}
            graph, head = NeckGraph.from_dict(data["graph"]), HeadConfig.model_validate(data["head"])
            return cls(**plain, **listed, graph=graph, head=head)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"this is no description of a detector: {' '.join(str(error).split())}") from error


class ImageDetector(nn.Module):
    """Backbone, neck and head in one: images in, boxes out.

    Args:
        spec: what it is made of.
        backbone: its trunk is used; whatever adapter it has is a part of `detector`'s neck.
        detector: on the trunk's maps.
        about: what is known of its training, as plain values for JSON (study, trial, seed, epochs, AP ...).
    """

    def __init__(
        self, spec: DetectorSpec, backbone: Backbone, detector: Detector, about: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone
        self.backbone.adapter = None
        self.detector = detector
        self.about = dict(about or {})

    @classmethod
    def build(cls, spec: DetectorSpec, *, weights: str | None = None, seed: int = 0) -> ImageDetector:
        """With weights that are still to be trained.

        Args:
            spec: what it is made of.
            weights: of the backbone, see `fpn_bench.create_backbone`; None is random.
            seed: of the initial weights of neck and head.

        Raises:
            InputError: the backbone cannot be made like that.
            WeightsError: the weights do not fit or cannot be had.
        """
        backbone = create_backbone(
            spec.backbone, spec.levels, weights=weights, image_size=spec.image_size, adapter=spec.adapter
        )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            neck = build_neck(spec.graph, backbone.trunk_features)
            detector = Detector(neck, len(spec.classes), spec.head)
        return cls(spec, backbone, detector)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Raw outputs of the head, see `fpn_bench.detection.detector.Detector.forward`.

        Args:
            images: float [N, 3, H, W], normalised, see `inputs`.
        """
        outputs: dict[str, Tensor] = self.detector(self.backbone.maps(images))
        return outputs

    def loss(self, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The losses, see `Detector.loss`.

        Args:
            images: float [N, 3, H, W], normalised, see `inputs`.
            targets: boxes in pixels of these images.
        """
        return self.detector.loss(self.backbone.maps(images), targets)

    def inputs(self, images: Sequence[Image.Image]) -> Tensor:
        """Images as the network wants them: resized, normalised; float [N, 3, H, W], on its device."""
        batch = [to_input(image.convert("RGB"), self.spec.image_size, self.backbone) for image in images]
        return torch.stack(batch).to(device_of(self.backbone))

    @torch.no_grad()
    def detect(self, images: Sequence[Image.Image], *, score_threshold: float = 0.05) -> list[dict[str, Tensor]]:
        """What is on the images.

        Args:
            images: of any size.
            score_threshold: lowest score kept.

        Returns:
            one dict per image, best first: ``boxes`` [D, 4] (x1 y1 x2 y2, pixels of that image), ``scores`` [D],
            ``labels`` int64 [D]; on the CPU.
        """
        maps = self.backbone.maps(self.inputs(images))
        found = self.detector.detect(maps, self.spec.image_size, score_threshold=score_threshold)
        detections = []
        for image, boxes in zip(images, found, strict=True):
            scaled = boxes["boxes"].cpu() * box_scale(self.spec.image_size, (image.height, image.width))
            detections.append({"boxes": scaled, "scores": boxes["scores"].cpu(), "labels": boxes["labels"].cpu()})
        return detections

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write weights, `spec` and `about` into one .safetensors file, whole or not at all."""
        told = {"schema_version": MODEL_SCHEMA, "spec": self.spec.to_dict(), "about": self.about}
        # Shared weights are stored once for each node, as in the state dict.
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in self.state_dict().items()}
        return write_bytes_atomic(path, save(tensors, metadata={_METADATA: json.dumps(told)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ImageDetector:
        """From a file that `save` wrote; in eval mode, on the CPU.

        Raises:
            InputError: there is no such file, or it is not a detector.
            FormatVersionError: it was written by a newer fpn_bench.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"no detector at {path}; expected a file written by `fpn-bench train` or `export`")
        try:
            with safe_open(path, framework="pt") as file:
                told = parse_json((file.metadata() or {})[_METADATA])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
            version = told["schema_version"]
            if version > MODEL_SCHEMA:
                raise FormatVersionError(
                    f"{path}: expected schema_version {MODEL_SCHEMA} or lower, got {version}; upgrade fpn-bench"
                )
            described, about = told["spec"], dict(told["about"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} is no detector of fpn_bench ({' '.join(str(error).split())}): expected a file written "
                "by `fpn-bench train` or `export`"
            ) from error
        model = cls.build(DetectorSpec.from_dict(described))
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise InputError(f"{path}: its weights do not fit its description: {str(error).splitlines()[0]}") from error
        model.about = about
        return model.eval()
