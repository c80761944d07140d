"""The short training of candidates: its cached features and its checkpoints."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fpn_bench.candidates.backbone import LoadedBackbone
from fpn_bench.candidates.candidate import Candidate
from fpn_bench.data.dataset import DetectionDataset
from fpn_bench.detection.average_precision import AP
from fpn_bench.detection.detector import Detector
from fpn_bench.profiling import translate_torch_errors
from fpn_bench.training.cache import (
    FeatureCache,
    FeatureProvider,
    FeatureSource,
    default_cache_root,
)
from fpn_bench.training.cache_store import CacheBoundError, cache_bytes
from fpn_bench.training.checkpoint import Checkpoint, CheckpointFolder
from fpn_bench.training.protocol import Protocol
from fpn_bench.training.train import TrainingResult, evaluate_detector, train_detector

_log = logging.getLogger(__name__)

OnProgress = Callable[[Mapping[str, Any]], None]
"""Called with what is under way: ``phase`` ("cache" or "train"), ``done``, ``total`` and, in training, ``loss``."""

_CHECKPOINT_SHARE = 0.1
"""Share of the cache's bound that is reserved for checkpoints, as long as the features of a study fit into the rest."""
_UNCACHED_CHECKPOINTS_GIB = 1.0
"""Bound on checkpoints where no features are kept."""


class ShortTraining:
    """Trains the detectors of one study, and keeps checkpoints that a later trial may continue from.

    Features and checkpoints together stay within ``cache_gib``: the least recently written checkpoints are deleted
    first.

    Args:
        dataset: with the splits ``train`` and ``val``.
        protocol: recipe and image size.
        device: where detectors are trained.
        cache_root: folder of the feature cache; None is the user's cache folder.
        cache_gib: bound on features and checkpoints; 0 keeps no features.
        checkpoints: folder of unfinished trainings.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        protocol: Protocol,
        *,
        device: str,
        cache_root: str | Path | None,
        cache_gib: float,
        checkpoints: Path,
    ) -> None:
        """See the class."""
        self.dataset = dataset
        self.protocol = protocol
        self.device = device
        self.cache_root = Path(cache_root) if cache_root is not None else default_cache_root()
        self.cache_gib = cache_gib
        self.checkpoints = CheckpointFolder(checkpoints)

    # -- features -------------------------------------------------------------------------------------------------

    def features(
        self, loaded: LoadedBackbone, on_progress: OnProgress | None = None
    ) -> tuple[FeatureProvider, FeatureProvider]:
        """Inputs of the training, for the training split (and its mirror) and the validation split: the maps of a
        frozen backbone, the outputs of a backbone's frozen part, or images; read from disk or computed.

        Raises:
            CacheError: they do not fit.
        """
        if loaded.features is None:
            loaded.backbone.to(self.device)
            splits, mirror = self.dataset.splits, self.protocol.training.mirror
            in_train = len(splits["train"]) * (2 if mirror else 1)
            total = in_train + len(splits["val"])
            loaded.features = (
                self._split(loaded, "train", mirror, 0, total, on_progress),
                self._split(loaded, "val", False, in_train, total, on_progress),
            )
        return loaded.features

    def evaluate(
        self,
        split: str,
        loaded: LoadedBackbone,
        detector: Detector,
        suffix: nn.Module,
        on_progress: OnProgress | None = None,
    ) -> AP:
        """AP of a trained detector, behind the backbone's trained part, on any split of the data set."""
        with translate_torch_errors():
            provider = self._split(loaded, split, False, 0, len(self.dataset.splits[split]), on_progress)
            return evaluate_detector(detector, provider, device=self.device, backbone=suffix)

    def _split(
        self, loaded: LoadedBackbone, split: str, mirror: bool, before: int, total: int, on_progress: OnProgress | None
    ) -> FeatureProvider:
        records, image_size = self.dataset.splits[split], self.protocol.image_size
        if not self.is_cached(loaded):
            return FeatureSource(loaded.split.prefix, records, image_size=image_size, mirror=mirror)

        def progress(done: int, _: int) -> None:
            if on_progress is not None:
                on_progress({"phase": "cache", "done": before + done, "total": total})

        def build(share: float) -> FeatureProvider:
            """With so much of the bound left to checkpoints."""
            self.checkpoints.trim(int(share * self._bound))
            return FeatureCache.open_or_build(
                loaded.split.prefix,
                records,
                dataset_hash=self.dataset.hash,
                split=split,
                image_size=image_size,
                root=self.cache_root,
                mirror=mirror,
                max_gib=(1 - share) * self.cache_gib,
                variant=loaded.variant,
                on_progress=progress,
            )

        try:
            return build(_CHECKPOINT_SHARE)
        except CacheBoundError:
            return build(0.0)

    @property
    def _bound(self) -> int:
        return int(2**30 * (self.cache_gib or _UNCACHED_CHECKPOINTS_GIB))

    def is_cached(self, loaded: LoadedBackbone) -> bool:
        """Whether any part of the backbone is cached on disk."""
        return bool(self.cache_gib) and not loaded.split.reason

    def cached(self, loaded: LoadedBackbone) -> str:
        """Which part of the backbone is cached on disk: ``"all"``, ``"up to Ck"`` or ``"nothing"``."""
        if not self.is_cached(loaded):
            return "nothing"
        freeze = self.protocol.training.freeze
        return "all" if freeze == "all" else f"up to C{freeze}"

    # -- training -------------------------------------------------------------------------------------------------

    def train(
        self,
        candidate: Candidate,
        seed: int,
        loaded: LoadedBackbone,
        detector: Detector,
        on_progress: OnProgress | None = None,
        epochs: int | None = None,
        ap_epochs: Collection[int] = (),
    ) -> tuple[nn.Module, TrainingResult]:
        """Train a detector in place; see `EvaluationContext.train`. Returns the backbone's trained part too."""
        train, val = self.features(loaded, on_progress)
        loaded.leave_device()

        def epoch(done: int, total: int, loss: float) -> None:
            if on_progress is not None:
                on_progress({"phase": "train", "done": done, "total": total, "loss": loss})

        suffix = copy.deepcopy(loaded.split.suffix)
        checkpoint = self.checkpoint(candidate, seed)
        try:
            with translate_torch_errors():
                result = train_detector(
                    detector,
                    train,
                    val,
                    recipe=self.protocol.training,
                    seed=seed,
                    device=self.device,
                    on_epoch=epoch,
                    backbone=suffix,
                    epochs=epochs,
                    checkpoint=checkpoint,
                    ap_epochs=ap_epochs,
                )
        finally:
            self._trim_checkpoints()
        return suffix, result

    def _trim_checkpoints(self) -> None:
        """Delete checkpoints until they fit into the bound beside the features of all studies."""
        features = cache_bytes(self.cache_root) if self.cache_gib else 0
        self.checkpoints.trim(max(self._bound - features, 0))

    def checkpoint(self, candidate: Candidate, seed: int) -> Checkpoint:
        """Checkpoint of an unfinished training."""
        name = f"{self.protocol.id}-{candidate.id}-{seed}.pt"
        return self.checkpoints.checkpoint(name, f"protocol {self.protocol.id}, {candidate.id}, seed {seed}")
