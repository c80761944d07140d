"""`profile`: what a backbone and a neck cost together, part by part."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fpn_bench.errors import InputError
from fpn_bench.profiling.latency import Latency, measure_latency
from fpn_bench.profiling.machine import MachineRecord, machine
from fpn_bench.profiling.static import MacReport, StaticProfile, count_macs_fvcore, static_profile
from fpn_bench.pyramid import ImageSize

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Profile:
    """Costs of backbone and neck for one image.

    Attributes:
        image_size: (height, width) in pixels.
        static: parameters and MACs of each part and of both. Convolutions and matrix products are counted, one
            multiply-add as one MAC; norms, activations, pooling and resampling are left out.
        latency: of both in a row on one image; None when it was not asked for.
        fvcore: the second counter's answer; None when it was not asked for.
        machine: where the latency was measured.
    """

    image_size: ImageSize
    static: StaticProfile
    latency: Latency | None
    fvcore: MacReport | None
    machine: MachineRecord

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with a schema version."""
        return {
            "schema_version": SCHEMA_VERSION,
            "image_size": list(self.image_size),
            "params": self.static.params,
            "macs": self.static.macs,
            "uncounted": self.static.uncounted,
            "parts": {name: dataclasses.asdict(part) for name, part in self.static.parts.items()},
            "latency": None if self.latency is None else dataclasses.asdict(self.latency),
            "fvcore": None if self.fvcore is None else dataclasses.asdict(self.fvcore),
            "machine": self.machine.to_dict(),
        }


def profile(
    backbone: nn.Module,
    neck: nn.Module,
    *,
    image_size: ImageSize,
    device: str | None = None,
    budget_s: float = 1.0,
    verify: bool = False,
) -> Profile:
    """Parameters and MACs of a backbone and a neck, and their latency where a device is named.

    Args:
        backbone: images [N, 3, H, W] -> maps, finest first.
        neck: takes those maps.
        image_size: (height, width) in pixels.
        device: measure latency there (``"cpu"``, ``"cuda"``); both modules are left on it. None measures none.
        budget_s: seconds of sampling the latency.
        verify: count MACs by fvcore as well, on real values.

    Raises:
        InputError: an impossible image size or device.
    """
    if min(image_size) < 1:
        raise InputError(f"image_size {image_size} came; (height, width) of at least 1 pixel is wanted")
    backbone, neck = backbone.eval(), neck.eval()
    image = torch.zeros(1, 3, *image_size)
    with torch.inference_mode():
        maps = [torch.empty_like(x, device="meta") for x in backbone(image)]
    static = static_profile({"backbone": (backbone, (image,)), "neck": (neck, (maps,))})
    both = _InARow(backbone, neck)
    latency = None
    if device is not None:
        both.to(device)
        on_device = image.to(device)

        def forward() -> None:
            with torch.inference_mode():
                both(on_device)

        latency = measure_latency(forward, device=device, budget_s=budget_s)
    fvcore = count_macs_fvcore(both, (image.to(device or "cpu"),)) if verify else None
    return Profile(image_size, static, latency, fvcore, machine())


class _InARow(nn.Module):
    def __init__(self, backbone: nn.Module, neck: nn.Module) -> None:
        super().__init__()
        self.backbone, self.neck = backbone, neck

    def forward(self, image: torch.Tensor) -> Any:
        return self.neck(self.backbone(image))
