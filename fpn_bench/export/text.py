"""What the texts of all targets have in common."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import torch
from torch import Tensor

import fpn_bench
from fpn_bench.backbones.grid import is_on_grid
from fpn_bench.backbones.models import intermediate_maps
from fpn_bench.export.bundle import Bundle
from fpn_bench.export.parts import SampledTrunk, Trunk
from fpn_bench.export.source import WIDTH
from fpn_bench.model import ImageDetector


def provenance(model: ImageDetector) -> list[str]:
    """What a detector is and where it comes from, a line each."""
    spec = model.spec
    height, width = spec.image_size
    lines = [
        f"Written by fpn_bench {fpn_bench.__version__}.",
        f"Neck: graph {spec.graph.id}. Backbone: {spec.backbone}, weights {spec.weights}.",
        f"Images: {height}x{width} (height x width) pixels. Classes: {', '.join(spec.classes)}.",
    ]
    if model.about:
        lines.append("Training: " + json.dumps(model.about, sort_keys=True, default=str))
    return lines


def module_text(title: str, model: ImageDetector, about: str, bundle: Bundle) -> str:
    """The whole file: what it is, in words, and what the bundle holds."""
    words = [line for part in provenance(model) for line in textwrap.wrap(part, WIDTH)]
    # Names of classes and files come from outside.
    safe = "\n".join([title, "", about.strip("\n"), "", *words]).replace("\\", "\\\\").replace('"""', "'''")
    return f'"""{safe}\n"""\n\nfrom __future__ import annotations\n\n{bundle.text()}'


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights below a name."""
    return {f"{prefix}.{name}": value.detach().cpu().clone() for name, value in state.items()}


def constants(model: ImageDetector) -> str:
    """What a file knows of its detector, as assignments."""
    spec = model.spec
    return "\n".join(
        [
            f"CLASSES = {spec.classes!r}",
            f"IMAGE_SIZE = {spec.image_size!r}  # (height, width) in pixels",
            f"STRIDES = {tuple(s.stride for s in spec.graph.out_features)!r}  # of the pyramid's levels",
        ]
    )


def trunk_arguments(model: ImageDetector) -> dict[str, Any]:
    """Arguments of `parts.Trunk` behind the model itself."""
    backbone = model.backbone
    maps = tuple((source.index, source.level, source.stride) for source in backbone.sources)
    return {"maps": maps, "multiple": backbone.recipe.multiple, "square": backbone.recipe.square}


def trunk_class(model: ImageDetector) -> type[Trunk]:
    """Whether the maps lie on the grids of their levels."""
    backbone, size = model.backbone, model.spec.image_size
    padded = backbone.recipe.padded(size)
    indices = sorted({source.index for source in backbone.sources})
    with torch.no_grad():
        shapes = [x.shape[2:] for x in intermediate_maps(backbone.model, torch.zeros(1, 3, *padded), indices)]
    sizes = {index: (shape[0], shape[1]) for index, shape in zip(indices, shapes, strict=True)}
    on_grid = all(is_on_grid(sizes[s.index], padded, s.level, s.stride) for s in backbone.sources)
    return Trunk if on_grid else SampledTrunk


def timm_text(model: ImageDetector) -> str:
    """A function of the file that makes the trunk."""
    backbone = model.backbone
    arguments = trunk_arguments(model)
    indices = sorted({index for index, _, _ in arguments["maps"]})
    options = "".join(f", {key}={value!r}" for key, value in backbone.recipe.options.items())
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return textwrap.dedent(f'''
        def trunk() -> {trunk_class(model).__name__}:
            """timm's {backbone.name}, cut down to the maps that are read; weights are to be loaded."""
            model = timm.create_model({backbone.name!r}, pretrained=False{options})
            model.prune_intermediate_layers({indices!r}, prune_norm=True, prune_head=True)
            return {trunk_class(model).__name__}(model, {given})
    ''').strip()
