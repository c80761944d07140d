"""Assessing candidates: costs without building, latency, short training, AP.

A `Workbench` is everything that candidates of one study share: the data set, the backbones with their features on
disk, the protocol, the device. It answers the three questions about a candidate separately, cheapest first, so that a
search can stop after any of them; `assess` asks all three.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fpn_bench.backbones import Backbone, create_backbone
from fpn_bench.backbones.split import joined, split_backbone
from fpn_bench.cache_home import cache_home
from fpn_bench.candidate import BackboneId, Candidate
from fpn_bench.detection.dataset import DetectionDataset
from fpn_bench.detection.detector import Detector, Head
from fpn_bench.errors import InputError
from fpn_bench.graph import NeckGraph, adapter_nodes, compose, cost
from fpn_bench.model import DetectorSpec, ImageDetector
from fpn_bench.neck import build_neck
from fpn_bench.prediction import LatencyTable, PredictedLatency
from fpn_bench.profiling import (
    Execution,
    Latency,
    backbone_parts,
    check_device,
    count_macs,
    count_params,
    failures_told,
    latency_of,
)
from fpn_bench.pyramid import FeatureSpec, ImageSize, level_sizes
from fpn_bench.training.cache import FeatureCache, FeatureProvider, FeatureSource
from fpn_bench.training.checkpoint import Checkpoint
from fpn_bench.training.protocol import Freeze, HeadConfig, Protocol, TrainingRecipe
from fpn_bench.training.train import TrainingResult, seeded, train_detector

_log = logging.getLogger(__name__)

OnProgress = Callable[[Mapping[str, Any]], None]
"""Called with what is under way: ``phase`` ("cache" or "train"), ``done``, ``total`` and, in training, ``loss``."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Static costs of a detector for one image: `params`, and `macs` (one multiply-add is one).

    Attributes:
        params, macs: of the whole.
        adapter_params, adapter_macs: of what the neck reads of the backbone's adapter.
        neck_params, neck_macs: of the neck, without the adapter.
    """

    params: int
    macs: int
    adapter_params: int
    adapter_macs: int
    neck_params: int
    neck_macs: int


@dataclass(frozen=True, slots=True)
class Assessment:
    """Everything `assess` finds out about a candidate."""

    candidate: Candidate
    costs: Costs
    latency: Latency
    training: TrainingResult


@dataclass(frozen=True)
class BackboneSource:
    """How a backbone is found.

    Attributes:
        name: timm name.
        weights: None (random), a file, ``"hub"`` or ``"pip:PACKAGE"``.
        levels: pyramid levels it hands to the neck.
        adapter: what makes those that the model lacks, see `fpn_bench.create_backbone`.
    """

    name: str
    weights: str | None = None
    levels: tuple[int, ...] = (3, 4, 5)
    adapter: Literal["simple", "taps", "none"] = "simple"


class _Mounted:
    """A backbone on the bench: its trunk's costs, sizes of maps and parts, and its features once they are asked for.

    The adapter belongs to the candidate's graph, where it is costed, trained and timed with the neck.
    """

    def __init__(self, backbone: Backbone, adapter: str, freeze: Freeze, image_size: ImageSize) -> None:
        self.backbone = backbone
        self.split = split_backbone(backbone, freeze, image_size)
        used = "none" if backbone.adapter is None else adapter
        self.identity = BackboneId(backbone.name, backbone.weights.id, backbone.levels, used)
        trunk = backbone_parts(backbone)["backbone"]
        self.params = count_params(trunk)
        image = torch.zeros(1, 3, *image_size)
        self.macs = count_macs(trunk, (image,))
        with torch.inference_mode():
            maps = backbone.trunk(image)
        self.sizes: dict[int, ImageSize] = {
            spec.level: (x.shape[-2], x.shape[-1]) for spec, x in zip(backbone.trunk_features, maps, strict=True)
        }
        self.features: tuple[FeatureProvider, FeatureProvider] | None = None
        self.placed: nn.Module | None = None  # a copy of the trunk, as latency is measured on it
        self.variant: dict[str, Any] = dict(self.split.variant)
        if (padded := backbone.recipe.padded(image_size)) != image_size:
            self.variant["padded_size"] = list(padded)
        if self.identity.adapter == "taps":  # which depth a level is depends on how many there are
            self.variant["taps"] = [spec.level for spec in backbone.trunk_features]

    @property
    def adapter_graph(self) -> NeckGraph | None:
        """What makes the levels that the trunk lacks."""
        return None if self.backbone.adapter is None else self.backbone.adapter.graph


class Workbench:
    """What the candidates of one study share.

    Args:
        dataset: with the splits ``train`` and ``val``.
        image_size: (height, width) in pixels that images are resized to.
        head: the detection head.
        training: the short training.
        device: where latency is measured and detectors are trained.
        execution: how detectors are run while latency is measured, on `device`; one image in fp32 when None.
        cache_root: folder of the feature cache; None is the user's cache folder.
        cache_gib: bound on that folder; 0 keeps no features and runs the backbone on each batch anew, which is slow.
        latency_budget_s: seconds of sampling a latency.
        checkpoints: folder of trainings that are not whole; None is ``checkpoints`` in the user's cache folder, or in
            ``cache_root`` where that is given.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        *,
        image_size: ImageSize,
        head: HeadConfig | None = None,
        training: TrainingRecipe | None = None,
        device: str = "cpu",
        execution: Execution | None = None,
        cache_root: str | Path | None = None,
        cache_gib: float = 20.0,
        latency_budget_s: float = 1.0,
        checkpoints: str | Path | None = None,
    ) -> None:
        self.dataset = dataset
        self.protocol = Protocol(
            dataset=dataset.name,
            dataset_hash=dataset.hash,
            image_size=image_size,
            head=head or HeadConfig(),
            training=training or TrainingRecipe(),
        )
        self.device = str(check_device(device))
        self.execution = replace(execution or Execution(), device=self.device)
        self.cache_root = cache_root
        self.cache_gib = cache_gib
        self.latency_budget_s = latency_budget_s
        self.checkpoints = Path(checkpoints or Path(cache_root or cache_home()) / "checkpoints")
        self._mounted: dict[BackboneSource, _Mounted] = {}
        self._by_id: dict[BackboneId, _Mounted] = {}
        self._timed: dict[Hashable, float] = {}  # backbones and heads alone, in milliseconds
        self._unpredictable = False

    def mount(self, source: BackboneSource) -> Backbone:
        """The backbone, created once and kept.

        Raises:
            InputError: no such backbone, or it lacks a level, cannot take the image size or cannot be frozen like that.
            WeightsError: the weights do not fit or cannot be had.
        """
        if source not in self._mounted:
            from_hub = source.weights == "hub"
            backbone = create_backbone(
                source.name,
                source.levels,
                pretrained=from_hub,
                weights=None if from_hub else source.weights,
                image_size=self.protocol.image_size,
                adapter=source.adapter,
            )
            freeze = self.protocol.training.freeze
            mounted = _Mounted(backbone, source.adapter, freeze, self.protocol.image_size)
            self._mounted[source] = self._by_id[mounted.identity] = mounted
        return self._mounted[source].backbone

    def candidate(self, source: BackboneSource, graph: NeckGraph) -> Candidate:
        """The candidate of a backbone and a neck over its features.

        Raises:
            GraphError: the neck does not fit behind the backbone's adapter.
        """
        self.mount(source)
        mounted = self._mounted[source]
        adapter = mounted.adapter_graph
        whole = graph if adapter is None else compose(adapter, graph)
        return Candidate(mounted.identity, whole, self.protocol.head, self.protocol.image_size)

    def costs(self, candidate: Candidate) -> Costs:
        """Params and MACs, adapter's and neck's in closed form: about a millisecond, nothing is built."""
        mounted = self._by_id[candidate.backbone]
        whole = cost(candidate.graph, input_sizes=mounted.sizes)
        adapter = mounted.adapter_graph
        theirs = frozenset() if adapter is None else adapter_nodes(adapter)
        in_adapter = [node for node in whole.nodes if node.name in theirs]
        adapter_params, adapter_macs = sum(n.params for n in in_adapter), sum(n.macs for n in in_adapter)
        levels = [spec.level for spec in candidate.graph.out_features]
        sizes = level_sizes(mounted.sizes, levels)
        width = _common_width(candidate.graph.out_features)
        head_params, macs_a_point = _head_cost(width, len(self.dataset.classes), candidate.head.convs)
        points = sum(sizes[level][0] * sizes[level][1] for level in levels)
        return Costs(
            params=mounted.params + whole.params + head_params,
            macs=mounted.macs + whole.macs + macs_a_point * points,
            adapter_params=adapter_params,
            adapter_macs=adapter_macs,
            neck_params=whole.params - adapter_params,
            neck_macs=whole.macs - adapter_macs,
        )

    def detector(self, candidate: Candidate, seed: int = 0) -> Detector:
        """Adapter, neck and head on the trunk's maps, with initial weights drawn from `seed`."""
        with seeded(seed):
            neck = build_neck(candidate.graph, self._by_id[candidate.backbone].backbone.trunk_features)
            return Detector(neck, len(self.dataset.classes), candidate.head)

    def latency(self, candidate: Candidate, *, learn: bool = False) -> Latency:
        """Time of backbone, neck and head on a batch; box decoding and NMS, which depend on the image, left out.

        Args:
            candidate: made by `candidate`.
            learn: let the next `predict_latency` know: its neck's steps are timed one by one too.

        Raises:
            MeasurementError: it cannot be run like that, e.g. because memory runs out.
        """
        mounted, execution = self._by_id[candidate.backbone], self.execution
        with failures_told():
            if mounted.placed is None:  # once for all candidates
                mounted.placed = execution.place(_Trunk(mounted.backbone))
            detector = execution.place(self.detector(candidate))
            (images,) = execution.inputs([(3, *candidate.image_size)])
            call = execution.call(nn.Sequential(mounted.placed, detector), images)
            latency = latency_of(call, execution, budget_s=self.latency_budget_s)
        if learn:
            self._optional(self._learn, candidate, latency)
        return latency

    def predict_latency(self, candidate: Candidate) -> PredictedLatency | None:
        """What `latency` will find, from timings of steps that other necks share with this one; nothing is built.

        The backbone and the head are timed once for all necks, on the first call. None where nothing can be predicted,
        for a reason that is logged once: a search can do without.
        """
        found: PredictedLatency | None = self._optional(self._predict, candidate, False)
        return found

    def _predict(self, candidate: Candidate, time_missing: bool) -> PredictedLatency:
        sizes, base_ms = self._by_id[candidate.backbone].sizes, self._base_ms(candidate)
        return self._table.predict(candidate.graph, sizes, base_ms=base_ms, time_missing=time_missing)

    def _learn(self, candidate: Candidate, latency: Latency) -> None:
        identity = candidate.backbone
        self._table.learn(
            candidate.graph,
            self._by_id[identity].sizes,
            latency.clock_ms,
            base_ms=self._base_ms(candidate),
            base_id=f"{identity.name} {identity.levels} {identity.adapter} {candidate.head}",
            speed=latency.speed,
        )
        self._predict(candidate, True)  # times what the table lacks

    def _optional(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What it gives; None from the first failure on, which is logged and ends predictions."""
        if self._unpredictable:
            return None
        try:
            return call(*arguments)
        except Exception as error:
            self._unpredictable = True
            _log.warning("latency is no longer predicted: %s", error)
            return None

    @cached_property
    def _table(self) -> LatencyTable:
        """What was timed on this device, run like this; shared with other studies."""
        run = self.execution
        return LatencyTable(device=run.device, threads=run.threads, settings_id=run.label)

    def _base_ms(self, candidate: Candidate) -> float:
        """Latency of the backbone and of the head on such maps, each timed once."""
        mounted, execution = self._by_id[candidate.backbone], self.execution
        levels = [spec.level for spec in candidate.graph.out_features]
        sizes, width = level_sizes(mounted.sizes, levels), _common_width(candidate.graph.out_features)
        if mounted.placed is None:
            mounted.placed = execution.place(_Trunk(mounted.backbone))
        maps = tuple((width, *sizes[level]) for level in levels)

        def timed(module: nn.Module, *arguments: Any) -> float:
            return latency_of(execution.call(module, *arguments), execution, budget_s=self.latency_budget_s).median_ms

        key = (candidate.backbone, candidate.head, maps)
        if candidate.backbone not in self._timed:
            images = execution.inputs([(3, *candidate.image_size)])
            self._timed[candidate.backbone] = timed(mounted.placed, *images)
        if key not in self._timed:
            head = execution.place(Head(width, len(self.dataset.classes), candidate.head.convs))
            self._timed[key] = timed(head, execution.inputs(maps))
        return self._timed[candidate.backbone] + self._timed[key]

    def features(
        self, backbone: BackboneId, on_progress: OnProgress | None = None
    ) -> tuple[FeatureProvider, FeatureProvider]:
        """What training starts from, of the training split (and its mirror) and of the validation split.

        The maps of a frozen backbone, what the frozen part of another gives, or images; read from disk or computed.

        Raises:
            CacheError: they do not fit.
        """
        mounted = self._by_id[backbone]
        if mounted.features is None:
            mounted.backbone.to(self.device)
            splits, mirror = self.dataset.splits, self.protocol.training.mirror
            in_train = len(splits["train"]) * (2 if mirror else 1)
            total = in_train + len(splits["val"])
            mounted.features = (
                self._split(mounted, "train", mirror, 0, total, on_progress),
                self._split(mounted, "val", False, in_train, total, on_progress),
            )
        return mounted.features

    def _split(
        self, mounted: _Mounted, split: str, mirror: bool, before: int, total: int, on_progress: OnProgress | None
    ) -> FeatureProvider:
        records, image_size = self.dataset.splits[split], self.protocol.image_size
        if not self.cache_gib or mounted.split.reason:
            return FeatureSource(mounted.split.prefix, records, image_size=image_size, mirror=mirror)

        def progress(done: int, _: int) -> None:
            if on_progress is not None:
                on_progress({"phase": "cache", "done": before + done, "total": total})

        return FeatureCache.open_or_build(
            mounted.split.prefix,
            records,
            dataset_hash=self.dataset.hash,
            split=split,
            image_size=image_size,
            root=self.cache_root,
            mirror=mirror,
            max_gib=self.cache_gib,
            variant=mounted.variant,
            on_progress=progress,
        )

    def train(
        self,
        candidate: Candidate,
        seed: int,
        on_progress: OnProgress | None = None,
        epochs: int | None = None,
        ap_epochs: Collection[int] = (),
    ) -> TrainingResult:
        """The protocol's short training on the cached features, with what is not frozen of the backbone; AP on val.

        A training that was paused, or broken off, goes on from where it was last kept.

        Args:
            candidate: made by `candidate`.
            seed: of the initial weights and the training.
            on_progress: see `OnProgress`.
            epochs: pause after so many of the protocol's epochs; None trains all.
            ap_epochs: see `train_detector`.

        Raises:
            InputError: the protocol has fewer than ``epochs``.
            TrialError: the loss is no longer finite, or (`MeasurementError`) it cannot be run, e.g. because memory runs
                out.
            CacheError: the features cannot be kept.
        """
        return self._fit(candidate, seed, on_progress, epochs, ap_epochs)[2]

    def trained(
        self, candidate: Candidate, seed: int, on_progress: OnProgress | None = None
    ) -> tuple[ImageDetector, TrainingResult]:
        """What `train` gives, and the detector that it trained, backbone and all, with the weights that were evaluated.

        On the CPU, with as many threads, it is the one behind a study's row of this candidate and seed.
        """
        detector, suffix, result = self._fit(candidate, seed, on_progress, None, ())
        whole = joined(self._by_id[candidate.backbone].backbone, suffix)
        return ImageDetector(self.spec(candidate), whole, detector).cpu().eval(), result

    def spec(self, candidate: Candidate) -> DetectorSpec:
        """What the candidate's detector is made of."""
        backbone = candidate.backbone
        return DetectorSpec(
            backbone=backbone.name,
            levels=backbone.levels,
            adapter=backbone.adapter,  # type: ignore[arg-type]  # the words of `BackboneSource`
            weights=backbone.weights,
            graph=candidate.graph,
            head=candidate.head,
            image_size=candidate.image_size,
            classes=self.dataset.classes,
        )

    def _fit(
        self,
        candidate: Candidate,
        seed: int,
        on_progress: OnProgress | None,
        epochs: int | None,
        ap_epochs: Collection[int],
    ) -> tuple[Detector, nn.Module, TrainingResult]:
        train, val = self.features(candidate.backbone, on_progress)
        self._by_id[candidate.backbone].placed = None  # room for the training

        def epoch(done: int, total: int, loss: float) -> None:
            if on_progress is not None:
                on_progress({"phase": "train", "done": done, "total": total, "loss": loss})

        detector = self.detector(candidate, seed)
        suffix = copy.deepcopy(self._by_id[candidate.backbone].split.suffix)
        with failures_told():
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
                checkpoint=self._checkpoint(candidate, seed),
                ap_epochs=ap_epochs,
            )
        return detector, suffix, result

    def forget(self, candidate: Candidate, seed: int) -> None:
        """Throw away what is kept of a training that is not whole; nothing happens where there is none."""
        self._checkpoint(candidate, seed).delete()

    def _checkpoint(self, candidate: Candidate, seed: int) -> Checkpoint:
        name = f"{self.protocol.id}-{candidate.id}-{seed}"
        return Checkpoint(self.checkpoints / f"{name}.pt", f"protocol {self.protocol.id}, {candidate.id}, seed {seed}")

    def cached(self, backbone: BackboneId) -> str:
        """What of the backbone's work is kept on disk: ``"all"``, ``"up to Ck"`` or ``"nothing"``."""
        if not self.cache_gib or self._by_id[backbone].split.reason:
            return "nothing"
        freeze = self.protocol.training.freeze
        return "all" if freeze == "all" else f"up to C{freeze}"

    def cache_hit(self, backbone: BackboneId) -> bool:
        """Whether the features were on disk before this bench asked for them."""
        features = self._by_id[backbone].features
        return features is not None and all(isinstance(f, FeatureCache) and f.hit for f in features)

    @property
    def warnings(self) -> list[str]:
        """What a reader of the results must know: frozen backbones with random weights, and work that is not kept."""
        random = [
            f"the backbone {identity.name} has random weights ({identity.weights}): its frozen features carry little, "
            "and AP says hardly anything about the necks; give it weights"
            for identity, mounted in self._by_id.items()
            if mounted.backbone.weights.is_random and self.protocol.training.freeze != "none"
        ]
        uncached = [
            f"{mounted.split.reason}: the whole backbone runs on every batch, and nothing of it is cached"
            for mounted in self._by_id.values()
            if mounted.split.reason
        ]
        return random + uncached


def assess(
    candidate: Candidate, bench: Workbench, *, seed: int = 0, on_progress: OnProgress | None = None
) -> Assessment:
    """Costs, latency and AP of one candidate.

    Args:
        candidate: made by `Workbench.candidate`.
        bench: what it is assessed on.
        seed: of the training.
        on_progress: see `OnProgress`.

    Raises:
        TrialError: the training diverged.
    """
    costs = bench.costs(candidate)
    latency = bench.latency(candidate)
    return Assessment(candidate, costs, latency, bench.train(candidate, seed, on_progress))


class _Trunk(nn.Module):
    """A backbone without its adapter, which belongs to the candidate's graph."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone_parts(backbone)["backbone"]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        assert isinstance(self.backbone, Backbone)
        return self.backbone.trunk(images)


def _common_width(features: tuple[FeatureSpec, ...]) -> int:
    widths = {spec.channels for spec in features}
    if len(widths) != 1:
        raise InputError(f"the neck's levels have widths {sorted(widths)}; the head is shared, so one width is wanted")
    return widths.pop()


@lru_cache(maxsize=1024)
def _head_cost(channels: int, num_classes: int, convs: int) -> tuple[int, int]:
    """(params, MACs a point of its maps) of the head, counted once on the meta device."""
    with torch.device("meta"):
        head: nn.Module = Head(channels, num_classes, convs)
        four_points = torch.empty(1, channels, 2, 2)  # one alone would be too few for the group norms
    return count_params(head), count_macs(head, ([four_points],)) // 4
