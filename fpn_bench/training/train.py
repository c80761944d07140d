"""The short training of a detector, and of its backbone's trained part if it has one, and the AP on another split."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fpn_bench.data.dataset import ImageRecord
from fpn_bench.detection.average_precision import AP, evaluate_ap
from fpn_bench.detection.detector import Detector
from fpn_bench.detection.samples import Boxes, sample_detections
from fpn_bench.errors import InputError, TrialError
from fpn_bench.profiling import shared_device
from fpn_bench.pyramid import ImageSize
from fpn_bench.training.cache import FeatureProvider
from fpn_bench.training.checkpoint import Checkpoint
from fpn_bench.training.optimizers import create_optimizer
from fpn_bench.training.protocol import TrainingRecipe

OnEpoch = Callable[[int, int, float], None]
"""Called after each epoch with (epochs done, epochs in all, mean loss)."""
_Detections = list[dict[str, Tensor]]
"""One dict an image, best first: ``boxes`` [D, 4], ``scores`` [D], ``labels`` [D]."""
_EVALUATION_BATCH = 16


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training gave.

    Attributes:
        ap: of the averaged weights (the last ones where the recipe averages none), on the val split.
        curve: (epoch from 1, mean loss) of each epoch since the training began.
        train_s: seconds of this call's training alone.
        evaluate_s: seconds of this call's detection on val and its AP.
        steps: optimiser steps taken in this call.
        epochs: reached; fewer than the recipe's where the training is paused.
        epochs_trained: in this call: those that it was spared by a checkpoint are not among them.
        aps: (epoch, AP in percent points) of each epoch that was evaluated since the training began, the last included.
        val_losses: (epoch, loss on val, mean over batches) of the same epochs.
        samples: what the evaluation behind `ap` found on the sample images, by position in the val split; see
            `fpn_bench.detection.samples.sample_detections`.
    """

    ap: AP
    curve: tuple[tuple[int, float], ...]
    train_s: float
    evaluate_s: float
    steps: int
    epochs: int
    epochs_trained: int
    aps: tuple[tuple[int, float], ...]
    val_losses: tuple[tuple[int, float], ...]
    samples: Mapping[int, Boxes]


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
    epochs: int | None = None,
    checkpoint: Checkpoint | None = None,
    ap_epochs: Collection[int] = (),
) -> TrainingResult:
    """Train in place, then evaluate. The detector is left with the weights that were evaluated, in eval mode.

    A training can pause after any epoch and go on from its checkpoint in a later call, whatever happened in between: on
    the CPU, with as many threads, it gives to the bit what it would have given unbroken.

    Args:
        detector: its initial weights are the caller's (see `seeded`).
        train, val: the maps of the two splits.
        recipe: the short training.
        seed: of the order of the images and of which are mirrored. On the CPU the result is its function alone.
        device: where the detector is trained and evaluated.
        on_epoch: called after each epoch.
        backbone: its trained part, from what ``train`` and ``val`` hold to the detector's maps; trained in place with
            the detector, at `TrainingRecipe.backbone_lr_factor` of its rate. None where the backbone is frozen.
        epochs: pause after so many of the recipe's epochs, whose schedule stays that of the whole; None trains all.
        checkpoint: where the training goes on from, and where it is kept while it is not whole. One that is further
            than ``epochs`` is evaluated where it stands.
        ap_epochs: evaluate after these too, as far as this call trains them; the training does not notice.

    Raises:
        InputError: the recipe mirrors images and ``train`` holds no mirrors, or it has fewer than ``epochs``.
        TrialError: the loss is no longer finite.
    """
    wanted = _epochs_to_train(recipe, train, epochs)
    started = time.perf_counter()
    evaluate_s = 0.0
    with seeded(seed):
        training = _Training(detector, nn.Identity() if backbone is None else backbone, train, recipe, seed, device)
        training.begin(checkpoint)

        def evaluate() -> tuple[AP, _Detections]:
            nonlocal evaluate_s
            evaluation_started = time.perf_counter()
            evaluated = training.evaluate(val)
            evaluate_s += time.perf_counter() - evaluation_started
            return evaluated

        before = training.epoch
        while training.epoch < wanted:
            loss = training.run_epoch()
            if on_epoch is not None:
                on_epoch(training.epoch, recipe.epochs, loss)
            if training.epoch < wanted:
                if training.epoch in ap_epochs:
                    evaluate()
                if checkpoint is not None and checkpoint.due:
                    checkpoint.write(training.state())
        ap, detections = evaluate()
        if checkpoint is not None and training.epoch < recipe.epochs:
            checkpoint.write(training.state())
        elif checkpoint is not None:
            checkpoint.delete()
        training.average.apply()
    trained = training.epoch - before
    return TrainingResult(
        ap=ap,
        curve=tuple(training.curve),
        train_s=time.perf_counter() - started - evaluate_s,
        evaluate_s=evaluate_s,
        steps=trained * training.steps_per_epoch,
        epochs=training.epoch,
        epochs_trained=trained,
        aps=tuple(sorted(training.aps.items())),
        val_losses=tuple(sorted(training.val_losses.items())),
        samples=sample_detections(detections, val.records),
    )


def _epochs_to_train(recipe: TrainingRecipe, train: FeatureProvider, epochs: int | None) -> int:
    wanted = recipe.epochs if epochs is None else epochs
    if not 1 <= wanted <= recipe.epochs:
        raise InputError(f"expected epochs from 1 to the recipe's {recipe.epochs}, got epochs={epochs}")
    if recipe.mirror and not train.mirror:
        raise InputError(
            "the recipe mirrors images and these maps have no mirrors; open them with mirror=True or set "
            "training.mirror: false"
        )
    return wanted


def evaluate_detector(
    detector: Detector,
    val: FeatureProvider,
    *,
    batch_size: int = _EVALUATION_BATCH,
    device: str | torch.device = "cpu",
    backbone: nn.Module | None = None,
) -> AP:
    """AP of the detector, behind the trained part of its backbone if it has one, on a split.

    By COCO's rules, in pixels of the image files.
    """
    backbone = nn.Identity() if backbone is None else backbone
    detections = _detect(detector, backbone, val, batch_size, torch.device(device))
    return evaluate_ap(detections, val.records, detector.num_classes)


def _detect(
    detector: Detector,
    backbone: nn.Module,
    val: FeatureProvider,
    batch_size: int,
    device: torch.device,
    targets: Sequence[Mapping[str, Tensor]] = (),
    losses: list[float] | None = None,
) -> _Detections:
    """What is found on each image of a split, on the CPU, in pixels of the image files.

    Where ``targets`` of each image are given, the loss of each batch is appended to ``losses``.
    """
    detector.eval()
    backbone.eval()
    detections: _Detections = []
    with torch.no_grad():
        for start in range(0, len(val.records), batch_size):
            indices = np.arange(start, min(start + batch_size, len(val.records)))
            with shared_device(device):
                maps = backbone([m.to(device) for m in val.batch(indices)])
                outputs, points = detector.raw(maps)
                detections += detector.decode(outputs, points, val.image_size)
                if losses is not None:
                    parts = detector.compute_loss(outputs, [targets[int(i)] for i in indices], points)
                    losses.append(float(torch.stack(list(parts.values())).sum()))
    for record, found in zip(val.records, detections, strict=True):
        scale = box_scale(val.image_size, record.size).to(found["boxes"].device)
        found["boxes"] = found["boxes"] * scale
    return [{name: value.cpu() for name, value in found.items()} for found in detections]


def input_targets(records: Sequence[ImageRecord], image_size: ImageSize, *, mirrored: bool) -> list[dict[str, Tensor]]:
    """Boxes to train on, in pixels of the network's input; crowd regions are left out."""
    targets = []
    for record in records:
        boxes = torch.from_numpy(record.boxes[~record.crowd]) * box_scale(record.size, image_size)
        if mirrored:
            left, top, right, bottom = boxes.unbind(1)
            boxes = torch.stack([image_size[1] - right, top, image_size[1] - left, bottom], dim=1)
        targets.append({"boxes": boxes, "labels": torch.from_numpy(record.labels[~record.crowd])})
    return targets


def box_scale(source: ImageSize, target: ImageSize) -> Tensor:
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


class _Training:
    """A training under way: all that its next epoch depends on."""

    def __init__(
        self,
        detector: Detector,
        backbone: nn.Module,
        train: FeatureProvider,
        recipe: TrainingRecipe,
        seed: int,
        device: str | torch.device,
    ) -> None:
        self.device = torch.device(device)
        self.detector, self.backbone = detector.to(self.device), backbone.to(self.device)
        self.train, self.recipe = train, recipe
        self.epoch = 0
        self.curve: list[tuple[int, float]] = []
        self.aps: dict[int, float] = {}
        self.val_losses: dict[int, float] = {}
        self.val_targets: list[dict[str, Tensor]] | None = None
        self.images = len(train.records)
        self.steps_per_epoch = math.ceil(self.images / recipe.batch_size)
        self.targets = [
            [{name: value.to(self.device) for name, value in target.items()} for target in side]
            for side in (input_targets(train.records, train.image_size, mirrored=m) for m in (False, True))
        ]
        self.modules = nn.ModuleList([detector, backbone])
        self.parameters = [p for p in self.modules.parameters() if p.requires_grad]
        self.optimizer = create_optimizer(detector, backbone, recipe)
        steps = recipe.epochs * self.steps_per_epoch
        self.schedule = LambdaLR(self.optimizer, lambda step: one_cycle(step, steps, recipe.warmup_fraction))
        self.average = WeightAverage(self.modules, recipe.ema_decay)
        self.rng = np.random.default_rng(seed)
        # Each image is mirrored every second epoch: the two are seen equally often, the start is drawn.
        self.first_side: npt.NDArray[np.bool_] = self.rng.random(self.images) < 0.5

    def begin(self, checkpoint: Checkpoint | None) -> None:
        """Go on from what the checkpoint holds, or from the beginning where it holds nothing that fits."""
        state = None if checkpoint is None else checkpoint.read()
        if checkpoint is not None and state is not None:
            if state["layout"] == tensor_shapes(self.modules):
                self._restore(state)
                return
            # The same network may be spelt in another way: its modules then have other names.
            checkpoint.refuse("has other weights than this detector")
        if self.recipe.standardise:
            # By the weights it starts with: constants in front of the neck all the same.
            statistics = channel_statistics(self.train, self.backbone.eval(), self.device)
            self.detector.standardise.set(statistics)

    def state(self) -> dict[str, Any]:
        """All of it that changes, as plain values and tensors. Tensors are the live ones."""
        return {
            "layout": tensor_shapes(self.modules),
            "modules": dict(self.modules.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": self.average.mean,
            "average_steps": self.average.steps,
            "numpy": self.rng.bit_generator.state,
            "torch": torch.get_rng_state(),
            "epoch": self.epoch,
            "curve": self.curve,
            "aps": self.aps,
            "val_losses": self.val_losses,
        }

    @torch.no_grad()
    def _restore(self, state: Mapping[str, Any]) -> None:
        load_tensors(self.modules, state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.average.restore(state["average"], state["average_steps"])
        self.rng.bit_generator.state = state["numpy"]
        torch.set_rng_state(state["torch"])
        self.epoch, self.curve, self.aps = state["epoch"], state["curve"], state["aps"]
        self.val_losses = state.get("val_losses", {})  # checkpoints of before lack it

    def run_epoch(self) -> float:
        """One more pass over the training split; its mean loss.

        Raises:
            TrialError: that is not finite.
        """
        recipe, device, train = self.recipe, self.device, self.train
        self.detector.train()
        self.backbone.train()
        epoch = self.epoch + 1
        losses = []
        order = self.rng.permutation(self.images)
        mirrored = (self.first_side ^ bool(epoch % 2)) if recipe.mirror else np.zeros(self.images, dtype=np.bool_)
        for indices in np.array_split(order, self.steps_per_epoch):
            with shared_device(device):
                maps = [m.to(device, non_blocking=True) for m in train.batch(indices, mirrored[indices])]
                with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                    parts = self.detector.loss(
                        self.backbone(maps), [self.targets[int(mirrored[i])][i] for i in indices]
                    )
                loss = torch.stack(list(parts.values())).sum()
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                if recipe.grad_clip_norm:
                    torch.nn.utils.clip_grad_norm_(self.parameters, recipe.grad_clip_norm, foreach=True)
                self.optimizer.step()
                self.schedule.step()
                self.average.update()
                losses.append(loss.detach())
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise TrialError(
                f"the loss became {mean} in epoch {epoch} of {recipe.epochs}; try training.learning_rate below "
                f"{recipe.learning_rate:g}, or a neck with norm layers"
            )
        self.epoch = epoch
        self.curve.append((epoch, mean))
        return mean

    def evaluate(self, val: FeatureProvider) -> tuple[AP, _Detections]:
        """AP of the averaged weights, and what they found; their loss is noted. The live weights are as before."""
        if self.val_targets is None:
            self.val_targets = input_targets(val.records, val.image_size, mirrored=False)
        losses: list[float] = []
        with self.average.applied():
            detections = _detect(
                self.detector, self.backbone, val, _EVALUATION_BATCH, self.device, self.val_targets, losses
            )
        ap = evaluate_ap(detections, val.records, self.detector.num_classes)
        self.aps[self.epoch] = ap.ap
        self.val_losses[self.epoch] = float(np.mean(losses))
        return ap, detections


def tensor_shapes(modules: nn.Module) -> dict[str, list[int]]:
    """The shape of each tensor of the modules, in their order, which the optimiser's and the average's follow."""
    return {name: list(value.shape) for name, value in modules.state_dict().items()}


@torch.no_grad()
def load_tensors(modules: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give the modules what a checkpoint kept of them, of one layout with it."""
    for name, value in modules.state_dict().items():  # load_state_dict asks for what a split backbone dropped
        value.copy_(tensors[name])


class WeightAverage:
    """Exponential moving average of a module's floating-point state (weights and norm statistics).

    Bias-corrected as Adam's moments are: after t steps the weights of the mean's terms sum to one over those t states,
    and the initial weights are no part of it.
    """

    # Not torch's AveragedModel: it copies the whole module, orders tensors otherwise and takes 16 times as long a step.
    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        # A state dict names weights that two nodes share twice; averaged twice a step, they would decay twice as fast.
        state = {t.data_ptr(): t for t in module.state_dict().values() if t.is_floating_point()}
        self.live = list(state.values())
        self.mean = copy.deepcopy(self.live) if decay else []
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        if self.decay:
            self.steps += 1
            share = (1 - self.decay) / (1 - self.decay**self.steps)
            get_ema_multi_avg_fn(1 - share)(self.mean, self.live, None)  # type: ignore[no-untyped-call]

    def apply(self) -> None:
        """Put the average into the module."""
        _copy(self.mean, self.live)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The average is in the module inside, and what was there comes back."""
        live = [tensor.clone() for tensor in self.live] if self.decay else []
        self.apply()
        try:
            yield
        finally:
            _copy(live, self.live)

    def restore(self, mean: Sequence[Tensor], steps: int) -> None:
        """Go on from the average over so many steps."""
        self.steps = steps
        _copy(mean, self.mean)


@torch.no_grad()
def _copy(values: Sequence[Tensor], into: Sequence[Tensor]) -> None:
    """Overwrite the second tensors by the first; no values leave them as they are."""
    if values:
        for value, tensor in zip(values, into, strict=True):
            tensor.copy_(value)
