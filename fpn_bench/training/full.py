"""The full training of a detector: on images, by the recipe of `FullRecipe`, in one process or in several.

Everything that is drawn (order, views, what the model draws) is a function of the seed and of the place in the
training, so that nothing depends on how many workers load images, and a training goes on from any step as if it had
never ended.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Sampler

from fpn_bench.backbones import Backbone
from fpn_bench.backbones.split import joined, split_backbone
from fpn_bench.data.dataset import ImageRecord
from fpn_bench.detection.detector import Detector, Target
from fpn_bench.errors import DataError, InputError, ProtocolError, TrialError
from fpn_bench.profiling import shared_device
from fpn_bench.pyramid import ImageSize
from fpn_bench.training.augment import TrainingImages, collate, step_seed
from fpn_bench.training.cache import FeatureSource
from fpn_bench.training.checkpoint import Checkpoint
from fpn_bench.training.full_recipe import FullRecipe
from fpn_bench.training.optimizers import create_optimizer
from fpn_bench.training.processes import Processes
from fpn_bench.training.train import (
    WeightAverage,
    channel_statistics,
    evaluate_detector,
    load_tensors,
    one_cycle,
    tensor_shapes,
)

PARTS: Final = ("classification", "bbox_regression", "bbox_ctrness")
"""Of the loss, in the order of `FullTraining`'s sums."""
_AUTOCAST: Final = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_BATCH_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_LOOK_EVERY: Final = 20
"""Steps between two looks at the loss, where looking makes the device wait."""

Row = dict[str, Any]
"""An epoch, with the columns of `fpn_bench.training.log`."""


@dataclass(frozen=True, slots=True)
class FullProgress:
    """How far a full training has come.

    Attributes:
        epoch, epochs: the one under way, from 1, and how many there are.
        step, steps: optimiser steps done, and in all.
        loss: mean of this epoch so far.
        images_per_s: of this epoch so far, of all processes together.
        left_s: seconds still to go, evaluations among them; None before anything is known.
        row: the epoch that has just ended; None in its midst.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    images_per_s: float
    left_s: float | None
    row: Mapping[str, Any] | None = None


class FullTraining:
    """A full training under way: all that its next step depends on.

    Args:
        detector: its initial weights are the caller's; trained in place.
        backbone: frozen, with the weights to begin with; what is trained of it is a copy, see `trained_backbone`.
        train, val: images of the two splits.
        image_size: (height, width) of the network's input.
        recipe: the training.
        seed: of everything that is drawn. On the CPU, with as many threads and processes, the result is its function.
        device: of this process.
        processes: that train together; they must have been joined.

    Raises:
        InputError: the backbone cannot be frozen like that, or a batch has fewer images than there are processes.
    """

    def __init__(
        self,
        detector: Detector,
        backbone: Backbone,
        train: Sequence[ImageRecord],
        val: Sequence[ImageRecord],
        *,
        image_size: ImageSize,
        recipe: FullRecipe,
        seed: int,
        device: str | torch.device = "cpu",
        processes: Processes | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.recipe, self.seed = recipe, seed
        self.processes = processes or Processes()
        self.images = TrainingImages(train, image_size, backbone, recipe, seed)
        self.steps_per_epoch = math.ceil(len(train) / recipe.batch_size)
        self.steps = recipe.epochs * self.steps_per_epoch
        if len(train) // self.steps_per_epoch < self.processes.count:
            raise InputError(
                f"expected an image of every batch for each of {self.processes.count} processes, got batches of "
                f"{recipe.batch_size} of {len(train)} images; raise batch_size (--batch-size), or start fewer"
            )
        self.detector = detector.to(self.device)
        self._backbone = backbone.to(self.device)
        split = split_backbone(backbone, recipe.freeze, image_size)
        self.prefix, self.suffix = split.prefix, split.suffix.to(self.device)
        self._train = FeatureSource(self.prefix, train, image_size=image_size, mirror=False)
        self._val = FeatureSource(self.prefix, val, image_size=image_size, mirror=False)
        self.optimizer = create_optimizer(detector, self.suffix, recipe)
        self._peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.modules = nn.ModuleList([self.detector, self.suffix])
        self.parameters = [p for p in self.modules.parameters() if p.requires_grad]
        self.average = WeightAverage(self.modules, recipe.ema_decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.amp == "fp16")
        self.step = 0
        self.rows: list[Row] = []
        self.sums = torch.zeros(len(PARTS), dtype=torch.float64, device=self.device)  # of this epoch's losses
        self.seconds = 0.0  # of this epoch's training

    @property
    def best(self) -> Row | None:
        """The first of the epochs with the best AP; None before one was evaluated."""
        return max((row for row in self.rows if row["ap"] is not None), key=lambda row: row["ap"], default=None)

    def trained_backbone(self) -> Backbone:
        """The whole backbone with the weights that it has now; a copy, on the CPU."""
        return joined(self._backbone, self.suffix).cpu()

    def begin(self, checkpoint: Checkpoint | None = None) -> None:
        """Stand where the checkpoint does, or at the beginning where it holds nothing. Once, before `run`.

        Args:
            checkpoint: all processes read the same one.

        Raises:
            ProtocolError: it is of a detector with other weights.
        """
        state = None if checkpoint is None else checkpoint.read()
        if checkpoint is not None and state is not None:
            if state["layout"] != tensor_shapes(self.modules):
                raise ProtocolError(f"{checkpoint.path} is of a detector with other weights: give another folder")
            self._restore(state)
        elif self.recipe.standardise:
            self.detector.standardise.set(channel_statistics(self._train, self.suffix.eval(), self.device))

    def run(
        self,
        *,
        checkpoint: Checkpoint | None = None,
        eval_every: int = 1,
        workers: int = 0,
        on_progress: Callable[[FullProgress], None] | None = None,
        on_evaluated: Callable[[], None] | None = None,
    ) -> list[Row]:
        """Train to the end. The averaged weights are left in place, in eval mode.

        Args:
            checkpoint: kept after every epoch, and in its midst when it is due.
            eval_every: AP after every so many epochs, and after the last; the training does not notice.
            workers: processes that load images; 0 loads them in this one.
            on_progress: called after each step, in the first process (on CUDA after some).
            on_evaluated: called after each evaluation with the averaged weights in place, in the first process.

        Returns:
            a row an epoch, see `fpn_bench.training.log.COLUMNS`; AP in the first process only.

        Raises:
            TrialError: the loss is no longer finite.
            DataError: an image cannot be read any more.
        """
        self.processes.wait()  # nobody writes before all have begun, which reads
        losses: nn.Module = _Losses(self.detector, self.suffix, counted=self.processes.count > 1)
        if self.processes.count > 1:
            losses = DistributedDataParallel(losses, static_graph=True)  # static: a graph may have dead nodes
        loader = DataLoader(
            self.images,
            batch_sampler=_Batches(len(self.images), self.recipe, self.seed, self.step, self.processes),
            num_workers=workers,
            collate_fn=collate,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # it draws a seed for its workers, which use none
        )
        started, first_step = time.perf_counter(), self.step
        mark = started
        self._train_mode()
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            for images, targets in _readable(loader):
                self._take_step(losses, images, targets)
                ends = self.step % self.steps_per_epoch == 0
                if not (ends or self.device.type == "cpu" or self.step % _LOOK_EVERY == 0):
                    continue
                now = time.perf_counter()
                self.seconds += now - mark
                left_s = (now - started) / (self.step - first_step) * (self.steps - self.step)
                progress = self._progress(left_s)
                if ends:
                    progress = self._end_epoch(progress, eval_every, on_evaluated)
                if self.processes.is_first:
                    if checkpoint is not None and (ends or checkpoint.due):
                        checkpoint.write(self.state())
                    if on_progress is not None:  # of what is kept
                        on_progress(progress)
                mark = time.perf_counter()
        self.average.apply()
        self.modules.eval()
        return self.rows

    def _train_mode(self) -> None:
        self.modules.train()
        for module in self.suffix.modules():
            if isinstance(module, _BATCH_NORMS):
                module.eval()

    def _take_step(self, losses: nn.Module, images: Tensor, targets: Sequence[Target]) -> None:
        recipe, device = self.recipe, self.device
        share = one_cycle(self.step, self.steps, recipe.warmup_fraction)
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share
        torch.manual_seed(step_seed(self.seed, self.step, self.processes.rank))
        with shared_device(device):
            images = images.to(device, non_blocking=True)
            with torch.autocast(device.type, _AUTOCAST[recipe.amp], enabled=recipe.amp != "none"):
                parts, foreground = losses(self.prefix.trunk(images), targets)
            if self.processes.count > 1:
                # As one process does with the whole batch: over its foreground, not over each share's own; and times
                # the processes, for of their gradients the mean is taken.
                own = foreground.clamp(min=1)
                told = self.processes.summed(torch.cat([foreground[None], parts.detach() * own]))
                everywhere = told[0].clamp(min=1)
                parts = parts * (own / everywhere * self.processes.count)
                shown = told[1:] / everywhere
            else:
                shown = parts.detach()
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(parts.sum()).backward()
            if recipe.grad_clip_norm:
                self.scaler.unscale_(self.optimizer)
                torch.nn.utils.clip_grad_norm_(self.parameters, recipe.grad_clip_norm, foreach=True)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.average.update()
        self.sums += shown
        self.step += 1

    def _progress(self, left_s: float) -> FullProgress:
        """How far it is.

        Raises:
            TrialError: the loss is no longer finite; all processes find that at the same step.
        """
        in_epoch = (self.step - 1) % self.steps_per_epoch + 1
        loss = float(self.sums.sum()) / in_epoch
        epoch = (self.step - 1) // self.steps_per_epoch + 1
        if not math.isfinite(loss):
            raise TrialError(
                f"the loss became {loss} in epoch {epoch} of {self.recipe.epochs}; try a learning rate below "
                f"{self.recipe.learning_rate:g} in another folder (--learning-rate, --out), or a neck with norm layers"
            )
        images = len(self.images) * in_epoch / self.steps_per_epoch
        pace = images / max(self.seconds, 1e-9)
        return FullProgress(epoch, self.recipe.epochs, self.step, self.steps, loss, pace, left_s)

    def _end_epoch(
        self, progress: FullProgress, eval_every: int, on_evaluated: Callable[[], None] | None
    ) -> FullProgress:
        parts = (self.sums / self.steps_per_epoch).tolist()
        row: Row = {
            "epoch": progress.epoch,
            "loss": progress.loss,
            **{f"loss_{name}": value for name, value in zip(PARTS, parts, strict=True)},
            "ap": None,
            "ap50": None,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": self.seconds,
            "images_per_s": progress.images_per_s,
        }
        self.rows.append(row)
        self.sums.zero_()
        self.seconds = 0.0
        if self.processes.is_first and (progress.epoch % eval_every == 0 or self.step == self.steps):
            with self.average.applied():
                ap = evaluate_detector(self.detector, self._val, device=self.device, backbone=self.suffix)
                row["ap"], row["ap50"] = ap.ap, ap.ap50
                if on_evaluated is not None:
                    on_evaluated()
            self._train_mode()
        return replace(progress, row=row)

    def state(self) -> dict[str, Any]:
        """All of it that changes, as plain values and tensors. Tensors are the live ones."""
        return {
            "layout": tensor_shapes(self.modules),
            "modules": dict(self.modules.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.mean,
            "average_steps": self.average.steps,
            "step": self.step,
            "rows": self.rows,
            "sums": self.sums,
            "seconds": self.seconds,
        }

    @torch.no_grad()
    def _restore(self, state: Mapping[str, Any]) -> None:
        load_tensors(self.modules, state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.average.restore(state["average"], state["average_steps"])
        self.step, self.rows, self.seconds = state["step"], state["rows"], state["seconds"]
        self.sums.copy_(state["sums"])


class _Losses(nn.Module):
    """What is trained, as one call: from what the frozen part gives to the loss. DistributedDataParallel wants that."""

    def __init__(self, detector: Detector, suffix: nn.Module, *, counted: bool) -> None:
        super().__init__()
        self.detector, self.suffix, self.counted = detector, suffix, counted

    def forward(self, inputs: Sequence[Tensor], targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
        """The loss's `PARTS` [3], each divided by the foreground points, at least 1; and their number where counted."""
        maps = self.detector.pyramid(self.suffix(inputs))
        points = self.detector.points([(m.shape[2], m.shape[3]) for m in maps], maps[0].device)
        parts = self.detector.compute_loss(self.detector.head(list(maps)), targets, points)
        foreground = torch.zeros((), device=maps[0].device)
        if self.counted:
            boxes = pad_sequence([t["boxes"].to(maps[0].device) for t in targets], batch_first=True)  # [N, M, 4]
            if boxes.shape[1]:
                foreground += (points.match(boxes) >= 0).sum()
        return torch.stack([parts[name] for name in PARTS]), foreground


class _Batches(Sampler[list[tuple[int, int]]]):
    """This process's share of every batch from a step on, as (epoch, image): each image once an epoch."""

    def __init__(self, images: int, recipe: FullRecipe, seed: int, first: int, processes: Processes) -> None:
        self.images, self.seed, self.first, self.processes = images, seed, first, processes
        self.steps_per_epoch = math.ceil(images / recipe.batch_size)
        self.epochs = recipe.epochs

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        begun, skipped = divmod(self.first, self.steps_per_epoch)
        for epoch in range(begun, self.epochs):
            order = np.random.default_rng([self.seed, epoch]).permutation(self.images)
            for batch in np.array_split(order, self.steps_per_epoch)[skipped if epoch == begun else 0 :]:
                yield [(epoch, int(i)) for i in batch[self.processes.rank :: self.processes.count]]


def _readable(loader: DataLoader[Any]) -> Iterator[Any]:
    """Its batches; what a worker process could not read is said in one line, without the worker's traceback."""
    try:
        yield from loader
    except DataError as error:
        last = str(error).strip().splitlines()[-1]
        raise DataError(last.removeprefix(f"{DataError.__module__}.{DataError.__name__}: ")) from error
