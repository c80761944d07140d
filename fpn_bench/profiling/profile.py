"""`profile`: what a backbone and a neck cost together, part by part."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fpn_bench.errors import InputError
from fpn_bench.profiling.latency import Latency, check_device, measure_latency
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

    Both are profiled in eval mode; afterwards each module is in the mode it was in. Nothing is changed but the device.

    Args:
        backbone: images [N, 3, H, W] -> maps, finest first; on any device, meta included.
        neck: takes those maps.
        image_size: (height, width) in pixels.
        device: measure latency there (``"cpu"``, ``"cuda"``); both modules are left on it. None measures none.
        budget_s: seconds of sampling the latency.
        verify: count MACs by fvcore as well, on real values, on `device` or the backbone's own; both are left there.

    Raises:
        InputError: an impossible image size or device, or a latency or `verify` asked of a module on meta.
    """
    if min(image_size) < 1:
        raise InputError(f"image_size {image_size} came; (height, width) of at least 1 pixel is wanted")
    target = None if device is None else check_device(device)
    both = _InARow(backbone, neck)
    if (target is not None or verify) and any(t.is_meta for t in _tensors(both)):
        asked = f"device={str(device)!r}" if target is not None else "verify=True"
        raise InputError(
            f"{asked} came with a backbone or neck on meta, which holds no values to run: "
            "build both on the cpu, or leave out device and verify"
        )
    with _eval_mode(both):
        own = next((t.device for t in _tensors(backbone)), torch.device("cpu"))
        image = torch.zeros(1, 3, *image_size, device=own)
        with torch.inference_mode():
            maps = [torch.empty_like(x, device="meta") for x in backbone(image)]
        static = static_profile({"backbone": (backbone, (image,)), "neck": (neck, (maps,))})
        if target is not None or verify:
            both.to(target or own)
            image = image.to(target or own)

        def forward() -> None:
            with torch.inference_mode():
                both(image)

        latency = None if target is None else measure_latency(forward, device=target, budget_s=budget_s)
        fvcore = count_macs_fvcore(both, (image,)) if verify else None
    return Profile(image_size, static, latency, fvcore, machine())


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    return itertools.chain(module.parameters(), module.buffers())


@contextlib.contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode meanwhile; then every submodule's own mode again: they may differ (frozen parts of a trained whole)."""
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in before:
            part.training = mode


class _InARow(nn.Module):
    def __init__(self, backbone: nn.Module, neck: nn.Module) -> None:
        super().__init__()
        self.backbone, self.neck = backbone, neck

    def forward(self, image: torch.Tensor) -> Any:
        return self.neck(self.backbone(image))
