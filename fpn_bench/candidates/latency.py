"""Latency of candidates: measured, and predicted from timings of steps that necks share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import TypeVar

from torch import nn

from fpn_bench.candidates.backbone import LoadedBackbone
from fpn_bench.candidates.candidate import BackboneId, Candidate
from fpn_bench.candidates.costs import common_width
from fpn_bench.detection.detector import Detector, Head
from fpn_bench.errors import MeasurementError, TrialError
from fpn_bench.latency import Latency, latency_of
from fpn_bench.latency.prediction import LatencyTable, PredictedLatency
from fpn_bench.profiling import Execution, translate_torch_errors
from fpn_bench.pyramid import level_sizes

_log = logging.getLogger(__name__)

_T = TypeVar("_T")


class LatencyMeter:
    """Measures and predicts latencies on one device.

    Args:
        execution: how detectors are run.
        num_classes: of the head.
        budget_s: seconds of sampling a latency.
        table: timings on this device under this execution; None is the table in the user's cache folder, shared with
            other studies.
    """

    def __init__(
        self, execution: Execution, num_classes: int, budget_s: float, table: LatencyTable | None = None
    ) -> None:
        """See the class."""
        self.execution = execution
        self.num_classes = num_classes
        self.budget_s = budget_s
        self._backbone_ms: dict[BackboneId, float] = {}
        self._head_ms: dict[Hashable, float] = {}
        self._logged: set[str] = set()
        self._given_table = table

    def measure(self, candidate: Candidate, loaded: LoadedBackbone, detector: Detector) -> Latency:
        """Time of backbone, neck and head on a batch; box decoding and NMS, which depend on the image, left out.

        Raises:
            MeasurementError: it cannot be run like that, e.g. because memory runs out.
        """
        execution = self.execution
        with translate_torch_errors():
            trunk, placed = loaded.on_device(execution), execution.place(detector)
            (images,) = execution.inputs([(3, *candidate.image_size)])
            call = execution.call(nn.Sequential(trunk, placed), images)
            return latency_of(call, execution, budget_s=self.budget_s)

    def predict(self, candidate: Candidate, loaded: LoadedBackbone) -> PredictedLatency | None:
        """Prediction of `measure`; the neck is not built. The backbone and the head are timed once for all necks, on
        the first call. None if it cannot be predicted; the reason is logged, and a search continues without it.
        """
        return self._optional(lambda: self._predict(candidate, loaded, time_missing=False))

    def learn(self, candidate: Candidate, loaded: LoadedBackbone, latency: Latency) -> None:
        """Improve later predictions by a measurement; the neck's steps are timed one by one for that."""

        def learn() -> None:
            identity = candidate.backbone
            self._table.learn(
                candidate.graph,
                loaded.sizes,
                latency.clock_ms,
                base_ms=self._base_ms(candidate, loaded),
                base_id=f"{identity.name} {identity.levels} {identity.adapter} {candidate.head}",
                speed=latency.speed,
            )
            self._predict(candidate, loaded, time_missing=True)  # times what the table lacks

        self._optional(learn)

    def _predict(self, candidate: Candidate, loaded: LoadedBackbone, *, time_missing: bool) -> PredictedLatency:
        base_ms = self._base_ms(candidate, loaded)
        return self._table.predict(candidate.graph, loaded.sizes, base_ms=base_ms, time_missing=time_missing)

    def _optional(self, call: Callable[[], _T]) -> _T | None:
        """The result of `call`; None if it fails, which is logged once a reason and says nothing of other candidates.
        Errors that end a trial, such as its time limit, pass through.
        """
        try:
            return call()
        except Exception as error:
            if isinstance(error, TrialError) and not isinstance(error, MeasurementError):
                raise
            if str(error) not in self._logged:
                self._logged.add(str(error))
                _log.warning("the latency of a candidate is not predicted: %s", error)
            return None

    @cached_property
    def _table(self) -> LatencyTable:
        run = self.execution
        return self._given_table or LatencyTable(device=run.device, threads=run.threads, settings_id=run.label)

    def _base_ms(self, candidate: Candidate, loaded: LoadedBackbone) -> float:
        """Latency of the backbone and of the head on such maps, each timed once."""
        execution = self.execution
        levels = [spec.level for spec in candidate.graph.out_features]
        sizes, width = level_sizes(loaded.sizes, levels), common_width(candidate.graph.out_features)
        maps = tuple((width, *sizes[level]) for level in levels)

        def timed(module: nn.Module, *arguments: object) -> float:
            return latency_of(execution.call(module, *arguments), execution, budget_s=self.budget_s).median_ms

        key = (candidate.head, maps)
        if candidate.backbone not in self._backbone_ms:
            images = execution.inputs([(3, *candidate.image_size)])
            self._backbone_ms[candidate.backbone] = timed(loaded.on_device(execution), *images)
        if key not in self._head_ms:
            head = execution.place(Head(width, self.num_classes, candidate.head.convs))
            self._head_ms[key] = timed(head, execution.inputs(maps))
        return self._backbone_ms[candidate.backbone] + self._head_ms[key]
