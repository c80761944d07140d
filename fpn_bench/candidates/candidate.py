"""A candidate: one detector that could be trained, as data with an identity."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

from fpn_bench.graph import NeckGraph
from fpn_bench.pyramid import ImageSize
from fpn_bench.training.protocol import HeadConfig


@dataclass(frozen=True)
class BackboneId:
    """Identity of a backbone: which model with which weights, not where these are found.

    Attributes:
        name: timm name.
        weights: `WeightsRecord.id`, e.g. ``"file:resnet50.safetensors#1a2b3c4d"``.
        levels: pyramid levels it hands over, finest first.
        adapter: what makes the levels that the model itself lacks; ``"none"`` where it has them all.
    """

    name: str
    weights: str
    levels: tuple[int, ...]
    adapter: str = "none"


@dataclass(frozen=True)
class Candidate:
    """Backbone, neck, head and input size. Two spellings of one network are one candidate.

    Attributes:
        backbone: which, with which weights.
        graph: the neck as data, over the model's own maps: behind the adapter where there is one.
        head: the detection head.
        image_size: (height, width) of the network's input in pixels.
    """

    backbone: BackboneId
    graph: NeckGraph
    head: HeadConfig
    image_size: ImageSize

    @cached_property
    def id(self) -> str:
        """16 hex digits over everything, the neck by its canonical id."""
        identity = self.backbone
        data = {
            "backbone": [
                *(identity.name, identity.weights, list(identity.levels)),
                # Without an adapter the text is that of versions before adapters.
                *([] if identity.adapter == "none" else [identity.adapter]),
            ],
            "neck": self.graph.id,
            "head": self.head.model_dump(mode="json"),
            "image_size": list(self.image_size),
        }
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
