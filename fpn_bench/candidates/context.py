"""What the candidates of one study share: the data set, the backbones with their features on disk, the protocol.

An `EvaluationContext` answers the questions about a candidate separately, cheapest first, so that a search can stop
after any of them: `costs`, `latency`, `train`. `fpn_bench.assess` asks all of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from fpn_bench.backbones import Backbone, create_backbone
from fpn_bench.backbones.split import joined
from fpn_bench.candidates.backbone import BackboneSource, LoadedBackbone, known_as
from fpn_bench.candidates.candidate import BackboneId, Candidate
from fpn_bench.candidates.costs import Costs, costs_of
from fpn_bench.candidates.latency import LatencyMeter
from fpn_bench.candidates.model import DetectorSpec, ImageDetector
from fpn_bench.candidates.training import OnProgress, ShortTraining
from fpn_bench.data.dataset import DetectionDataset
from fpn_bench.detection.average_precision import AP
from fpn_bench.detection.detector import Detector
from fpn_bench.errors import InputError
from fpn_bench.graph import NeckGraph, compose
from fpn_bench.latency import Latency
from fpn_bench.latency.prediction import PredictedLatency
from fpn_bench.nn.neck import build_neck
from fpn_bench.paths import cache_home
from fpn_bench.profiling import Execution, Memory, check_device, measure_memory
from fpn_bench.pyramid import ImageSize
from fpn_bench.training.cache import FeatureCache, FeatureProvider
from fpn_bench.training.protocol import HeadConfig, Protocol, TrainingRecipe
from fpn_bench.training.train import TrainingResult, seeded


class EvaluationContext:
    """What the candidates of one study share.

    Args:
        dataset: with the splits ``train`` and ``val``.
        image_size: (height, width) in pixels that images are resized to.
        head: the detection head.
        training: the short training.
        device: where latency is measured and detectors are trained.
        execution: how detectors are run while latency is measured, on `device`; one image in fp32 when None.
        cache_root: folder of the feature cache; None is the user's cache folder.
        cache_gib: bound on that folder and on checkpoints together; 0 keeps no features and runs the backbone on each
            batch, which is slow.
        latency_budget_s: seconds of sampling a latency.
        checkpoints: folder of unfinished trainings; None is ``checkpoints`` in the user's cache folder, or in
            ``cache_root`` where that is given.
        weights_ids: backbone -> id of the weights that a study was started with. Weights of the same content keep that
            id whatever their file's name is here.
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
        weights_ids: Mapping[str, str] | None = None,
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
        self.weights_ids = dict(weights_ids or {})
        self.short_training = ShortTraining(
            dataset,
            self.protocol,
            device=self.device,
            cache_root=cache_root,
            cache_gib=cache_gib,
            checkpoints=Path(checkpoints or Path(cache_root or cache_home()) / "checkpoints"),
        )
        self._meter = LatencyMeter(self.execution, len(dataset.classes), latency_budget_s)
        self._loaded: dict[BackboneSource, LoadedBackbone] = {}
        self._by_id: dict[BackboneId, LoadedBackbone] = {}

    # -- backbones and candidates ---------------------------------------------------------------------------------

    def load_backbone(self, source: BackboneSource) -> Backbone:
        """The backbone, created once and kept.

        Raises:
            InputError: no such backbone, or it lacks a level, cannot take the image size or cannot be frozen like that.
            WeightsError: the weights do not fit or cannot be had.
        """
        if source not in self._loaded:
            from_hub = source.weights == "hub"
            backbone = create_backbone(
                source.name,
                source.levels,
                pretrained=from_hub,
                weights=None if from_hub else source.weights,
                image_size=self.protocol.image_size,
                adapter=source.adapter,
            )
            backbone.weights = known_as(backbone.weights, self.weights_ids.get(backbone.name))
            freeze = self.protocol.training.freeze
            loaded = LoadedBackbone(backbone, source.adapter, freeze, self.protocol.image_size)
            self._loaded[source] = self._by_id[loaded.identity] = loaded
        return self._loaded[source].backbone

    def mount(self, source: BackboneSource) -> Backbone:
        """Deprecated name of `load_backbone`."""
        warnings.warn("`mount` is now called `load_backbone`", DeprecationWarning, stacklevel=2)
        return self.load_backbone(source)

    def candidate(self, source: BackboneSource, graph: NeckGraph) -> Candidate:
        """The candidate of a backbone and a neck over its features.

        Raises:
            GraphError: the neck does not fit behind the backbone's adapter.
        """
        self.load_backbone(source)
        loaded = self._loaded[source]
        adapter = loaded.adapter_graph
        whole = graph if adapter is None else compose(adapter, graph)
        return Candidate(loaded.identity, whole, self.protocol.head, self.protocol.image_size)

    def detector(self, candidate: Candidate, seed: int = 0) -> Detector:
        """Adapter, neck and head on the trunk's maps, with initial weights drawn from `seed`."""
        with seeded(seed):
            neck = build_neck(candidate.graph, self._by_id[candidate.backbone].backbone.trunk_features)
            return Detector(neck, len(self.dataset.classes), candidate.head)

    def spec(self, candidate: Candidate) -> DetectorSpec:
        """Specification of the candidate's detector."""
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

    # -- costs and latency ----------------------------------------------------------------------------------------

    def costs(self, candidate: Candidate) -> Costs:
        """Params and MACs, adapter's and neck's in closed form: about a millisecond, nothing is built.

        Raises:
            InputError: the neck's levels have several widths.
        """
        return costs_of(candidate, self._by_id[candidate.backbone], len(self.dataset.classes))

    def latency(self, candidate: Candidate, *, learn: bool = False) -> Latency:
        """Time of backbone, neck and head on a batch; box decoding and NMS, which depend on the image, left out.

        Args:
            candidate: made by `candidate`.
            learn: time the neck's steps one by one too, for later calls of `predict_latency`.

        Raises:
            MeasurementError: it cannot be run like that, e.g. because memory runs out.
        """
        loaded = self._by_id[candidate.backbone]
        latency = self._meter.measure(candidate, loaded, self.detector(candidate))
        if learn:
            self._meter.learn(candidate, loaded, latency)
        return latency

    def memory(self, candidate: Candidate) -> Memory:
        """Peak memory of backbone, neck and head on a batch, run as latency is measured.

        Raises:
            MeasurementError: it cannot be run like that, e.g. because memory runs out.
        """
        trunk = self._by_id[candidate.backbone].on_device(self.execution)
        whole = nn.Sequential(trunk, self.detector(candidate))
        return measure_memory(whole, [(3, *candidate.image_size)], self.execution)

    def predict_latency(self, candidate: Candidate) -> PredictedLatency | None:
        """Prediction of `latency` from timings of steps that other necks share with this one; nothing is built. None if
        it cannot be predicted; the reason is logged, and a search continues without it.
        """
        return self._meter.predict(candidate, self._by_id[candidate.backbone])

    # -- training -------------------------------------------------------------------------------------------------

    def features(
        self, backbone: BackboneId, on_progress: OnProgress | None = None
    ) -> tuple[FeatureProvider, FeatureProvider]:
        """What training starts from, see `ShortTraining.features`.

        Raises:
            CacheError: they do not fit.
        """
        return self.short_training.features(self._by_id[backbone], on_progress)

    def train(
        self,
        candidate: Candidate,
        seed: int,
        on_progress: OnProgress | None = None,
        epochs: int | None = None,
        ap_epochs: Collection[int] = (),
    ) -> TrainingResult:
        """The protocol's short training on the cached features, with what is not frozen of the backbone; AP on val.

        A training that was paused or interrupted continues from its last checkpoint.

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
        loaded, detector = self._by_id[candidate.backbone], self.detector(candidate, seed)
        return self.short_training.train(candidate, seed, loaded, detector, on_progress, epochs, ap_epochs)[1]

    def trained(
        self, candidate: Candidate, seed: int, on_progress: OnProgress | None = None
    ) -> tuple[ImageDetector, TrainingResult]:
        """The result of `train`, and the trained detector with its backbone and the weights that were evaluated.

        On the CPU, with as many threads, it equals the detector behind a study's row of this candidate and seed.
        """
        loaded, detector = self._by_id[candidate.backbone], self.detector(candidate, seed)
        suffix, result = self.short_training.train(candidate, seed, loaded, detector, on_progress)
        whole = joined(loaded.backbone, suffix)
        return ImageDetector(self.spec(candidate), whole, detector).cpu().eval(), result

    def test(self, candidate: Candidate, seed: int, on_progress: OnProgress | None = None) -> tuple[AP, int]:
        """AP on the data set's held-out ``test`` split of what `train` gives, and how many images that has.

        Raises:
            InputError: the data set has no such split.
        """
        if "test" not in self.dataset.splits:
            raise InputError(f"expected a data set with a test split, got {self.dataset.name!r} without one")
        loaded, detector = self._by_id[candidate.backbone], self.detector(candidate, seed)
        suffix, _ = self.short_training.train(candidate, seed, loaded, detector, on_progress)
        loaded.backbone.to(self.device)
        ap = self.short_training.evaluate("test", loaded, detector, suffix, on_progress)
        return ap, len(self.dataset.splits["test"])

    def forget(self, candidate: Candidate, seed: int) -> None:
        """Delete the checkpoint of an unfinished training, if there is one."""
        self.short_training.checkpoint(candidate, seed).delete()

    def cached(self, backbone: BackboneId) -> str:
        """Which part of the backbone is cached on disk: ``"all"``, ``"up to Ck"`` or ``"nothing"``."""
        return self.short_training.cached(self._by_id[backbone])

    def cache_hit(self, backbone: BackboneId) -> bool:
        """Whether the features were on disk before this context asked for them."""
        features = self._by_id[backbone].features
        return features is not None and all(isinstance(f, FeatureCache) and f.hit for f in features)

    @property
    def warnings(self) -> list[str]:
        """Warnings for readers of the results: frozen backbones with random weights, and backbones that are not
        cached."""
        random = [
            f"the backbone {identity.name} has random weights ({identity.weights}): its frozen features carry little, "
            "and AP says hardly anything about the necks; give it weights"
            for identity, loaded in self._by_id.items()
            if loaded.backbone.weights.is_random and self.protocol.training.freeze != "none"
        ]
        uncached = [
            f"{loaded.split.reason}: the whole backbone runs on every batch, and nothing of it is cached"
            for loaded in self._by_id.values()
            if loaded.split.reason
        ]
        return random + uncached
