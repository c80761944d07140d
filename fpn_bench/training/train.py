"""The short training of a detector, and of its backbone's trained part if it has one, and the AP on another split."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from fpn_bench.detection.average_precision import AP, evaluate_ap
from fpn_bench.detection.dataset import ImageRecord
from fpn_bench.detection.detector import Detector
from fpn_bench.errors import InputError, TrialError
from fpn_bench.profiling import working_on
from fpn_bench.pyramid import ImageSize
from fpn_bench.training.cache import FeatureProvider
from fpn_bench.training.protocol import TrainingRecipe

OnEpoch = Callable[[int, int, float], None]
"""Called after each epoch with (epochs done, epochs in all, mean loss)."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training gave.

    Attributes:
        ap: of the averaged weights (the last ones where the recipe averages none), on the val split.
        curve: (epoch from 1, mean loss) of each epoch.
        train_s: seconds of the training alone.
        evaluate_s: seconds of detection on val and its AP.
        steps: optimiser steps taken.
    """

    ap: AP
    curve: tuple[tuple[int, float], ...]
    train_s: float
    evaluate_s: float
    steps: int


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw torch's random numbers (initial weights) from ``seed`` inside, and leave the generator as it was."""
    # Weights are drawn on the CPU; torch.manual_seed would move the other devices' generators too.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def train_detector(
    detector: Detector,
    train: FeatureProvider,
    val: FeatureProvider,
    *,
    recipe: TrainingRecipe,
    seed: int,
    device: str | torch.device = "cpu",
    on_epoch: OnEpoch | None = None,
    backbone: nn.Module | None = None,
) -> TrainingResult:
    """Train in place, then evaluate. The detector is left with the weights that were evaluated, in eval mode.

    Args:
        detector: its initial weights are the caller's (see `seeded`).
        train, val: the maps of the two splits.
        recipe: the short training.
        seed: of the order of the images and of which are mirrored. On the CPU the result is its function alone.
        device: where the detector is trained and evaluated.
        on_epoch: called after each epoch.
        backbone: its trained part, from what ``train`` and ``val`` hold to the detector's maps; trained in place with
            the detector, at `TrainingRecipe.backbone_lr_factor` of its rate. None where the backbone is frozen.

    Raises:
        InputError: the recipe mirrors images and ``train`` holds no mirrors.
        TrialError: the loss is no longer finite.
    """
    device = torch.device(device)
    started = time.perf_counter()
    backbone = nn.Identity() if backbone is None else backbone
    detector.to(device)
    backbone.to(device)
    curve, steps = _fit(detector, backbone, train, recipe, seed, device, on_epoch)
    trained = time.perf_counter()
    ap = evaluate_detector(detector, val, device=device, backbone=backbone)
    return TrainingResult(ap, tuple(curve), trained - started, time.perf_counter() - trained, steps)


def evaluate_detector(
    detector: Detector,
    val: FeatureProvider,
    *,
    batch_size: int = 16,
    device: str | torch.device = "cpu",
    backbone: nn.Module | None = None,
) -> AP:
    """AP of the detector, behind the trained part of its backbone if it has one, on a split.

    By COCO's rules, in pixels of the image files.
    """
    backbone = nn.Identity() if backbone is None else backbone
    detector.eval()
    backbone.eval()
    detections: list[dict[str, Tensor]] = []
    with torch.no_grad():
        for start in range(0, len(val.records), batch_size):
            indices = np.arange(start, min(start + batch_size, len(val.records)))
            with working_on(torch.device(device)):
                maps = backbone([m.to(device) for m in val.batch(indices)])
                detections += detector.detect(maps, val.image_size)
    for record, found in zip(val.records, detections, strict=True):
        scale = _scale(val.image_size, record.size).to(found["boxes"].device)
        found["boxes"] = found["boxes"] * scale
    found_on_cpu = [{name: value.cpu() for name, value in found.items()} for found in detections]
    return evaluate_ap(found_on_cpu, val.records, detector.num_classes)


def input_targets(records: Sequence[ImageRecord], image_size: ImageSize, *, mirrored: bool) -> list[dict[str, Tensor]]:
    """Boxes to train on, in pixels of the network's input; crowd regions are left out."""
    targets = []
    for record in records:
        boxes = torch.from_numpy(record.boxes[~record.crowd]) * _scale(record.size, image_size)
        if mirrored:
            left, top, right, bottom = boxes.unbind(1)
            boxes = torch.stack([image_size[1] - right, top, image_size[1] - left, bottom], dim=1)
        targets.append({"boxes": boxes, "labels": torch.from_numpy(record.labels[~record.crowd])})
    return targets


def _scale(source: ImageSize, target: ImageSize) -> Tensor:
    """Factors [4] that take x1 y1 x2 y2 from an image of one (height, width) to another."""
    y, x = target[0] / source[0], target[1] / source[1]
    return torch.tensor([x, y, x, y])


def one_cycle(step: int, steps: int, warmup_fraction: float) -> float:
    """Share of the peak rate at ``step`` of ``steps``: a linear rise from 1/25, then a cosine down towards 0.

    Smith & Topin 2018, "Super-Convergence" (arXiv:1708.07120), with the cosine that is usual by now.
    """
    warmup = warmup_fraction * steps
    if step < warmup:
        return 0.04 + 0.96 * step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, steps - warmup)))


@torch.no_grad()
def channel_statistics(
    train: FeatureProvider, backbone: nn.Module, device: torch.device, images: int = 32
) -> list[tuple[Tensor, Tensor]]:
    """Mean [C] and standard deviation [C] of each level's channels over evenly spaced images of the split.

    The variance is raised by a thousandth of its level's mean, so that a dead channel is not blown up.

    Args:
        train: the split.
        backbone: in eval mode, on `device`; from what `train` holds to the maps.
        device: where the maps are computed.
        images: how many; all of a smaller split.
    """
    indices = np.unique(np.linspace(0, len(train.records) - 1, min(images, len(train.records))).astype(int))
    statistics = []
    for level in backbone([m.to(device) for m in train.batch(indices)]):
        variance, mean = torch.var_mean(level.double(), dim=(0, 2, 3), correction=0)
        std = torch.sqrt(variance + 1e-3 * variance.mean() + 1e-12)
        statistics.append((mean.float(), std.float()))
    return statistics


def _fit(
    detector: Detector,
    backbone: nn.Module,
    train: FeatureProvider,
    recipe: TrainingRecipe,
    seed: int,
    device: torch.device,
    on_epoch: OnEpoch | None,
) -> tuple[list[tuple[int, float]], int]:
    """The training; returns the curve and the number of steps."""
    if recipe.mirror and not train.mirror:
        raise InputError(
            "the recipe mirrors images and these maps have no mirrors; open them with mirror=True or set "
            "training.mirror: false"
        )
    if recipe.standardise:
        # By the weights it starts with: constants in front of the neck all the same.
        detector.standardise.set(channel_statistics(train, backbone.eval(), device))
    detector.train()
    backbone.train()
    images = len(train.records)
    targets = [
        [{name: value.to(device) for name, value in target.items()} for target in side]
        for side in (input_targets(train.records, train.image_size, mirrored=m) for m in (False, True))
    ]
    steps_per_epoch = math.ceil(images / recipe.batch_size)
    groups = [
        *_parameter_groups(detector, recipe.learning_rate, recipe.weight_decay),
        *_parameter_groups(backbone, recipe.learning_rate * recipe.backbone_lr_factor, recipe.weight_decay),
    ]
    parameters = [p for module in (detector, backbone) for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(groups, fused=True)
    steps = recipe.epochs * steps_per_epoch
    schedule = LambdaLR(optimizer, lambda step: one_cycle(step, steps, recipe.warmup_fraction))
    average = _WeightAverage(nn.ModuleList([detector, backbone]), recipe.ema_decay)
    rng = np.random.default_rng(seed)
    # Each image is mirrored every second epoch: the two are seen equally often, the start is drawn.
    first_side: npt.NDArray[np.bool_] = rng.random(images) < 0.5
    curve = []
    for epoch in range(1, recipe.epochs + 1):
        losses = []
        order = rng.permutation(images)
        mirrored = (first_side ^ bool(epoch % 2)) if recipe.mirror else np.zeros(images, dtype=np.bool_)
        for indices in np.array_split(order, steps_per_epoch):
            with working_on(device):
                maps = [m.to(device, non_blocking=True) for m in train.batch(indices, mirrored[indices])]
                with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                    parts = detector.loss(backbone(maps), [targets[int(mirrored[i])][i] for i in indices])
                loss = torch.stack(list(parts.values())).sum()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                if recipe.grad_clip_norm:
                    torch.nn.utils.clip_grad_norm_(parameters, recipe.grad_clip_norm, foreach=True)
                optimizer.step()
                schedule.step()
                average.update()
                losses.append(loss.detach())
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise TrialError(
                f"the loss became {mean} in epoch {epoch} of {recipe.epochs}; try training.learning_rate below "
                f"{recipe.learning_rate:g}, or a neck with norm layers"
            )
        curve.append((epoch, mean))
        if on_epoch is not None:
            on_epoch(epoch, recipe.epochs, mean)
    average.apply()
    return curve, steps


def _parameter_groups(module: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """What is trained of a module, for the optimiser; none where nothing is."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "lr": learning_rate, "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "lr": learning_rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class _WeightAverage:
    """Exponential moving average of a module's floating-point state (weights and norm statistics).

    Bias-corrected as Adam's moments are: after t steps the weights of the mean's terms sum to one over those t states,
    and the initial weights are no part of it.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = [t for t in module.state_dict().values() if t.is_floating_point()]
        self.mean = copy.deepcopy(self.live) if decay else []
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        if self.decay:
            self.steps += 1
            torch._foreach_lerp_(self.mean, self.live, (1 - self.decay) / (1 - self.decay**self.steps))

    @torch.no_grad()
    def apply(self) -> None:
        """Put the average into the module."""
        if self.decay:
            torch._foreach_copy_(self.live, self.mean)
