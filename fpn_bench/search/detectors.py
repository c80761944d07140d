"""Real detectors behind a search: the evaluator over a context, and what a run on this machine needs to have one."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fpn_bench.candidates.backbone import BackboneSource
from fpn_bench.candidates.context import EvaluationContext
from fpn_bench.data import formats
from fpn_bench.data.dataset import DetectionDataset
from fpn_bench.data.synthetic import write_synthetic
from fpn_bench.errors import DataError, InputError, ProtocolError, TrialError
from fpn_bench.graph import graph_tokens
from fpn_bench.paths import cache_home
from fpn_bench.profiling import Execution, machine
from fpn_bench.profiling.telemetry import energy_j
from fpn_bench.redact import shell_command
from fpn_bench.search.records import DETECTIONS, Described, OnProgress
from fpn_bench.search.signals import TrialTimeout
from fpn_bench.search.space import BackboneEntry, Space, SyntheticData

_log = logging.getLogger(__name__)

OnLoad = Callable[[int, int], None]
"""Called with (images read, images in all) while a data set is read or drawn."""


_RUN = ("batch", "precision", "memory_format", "mode", "cache")
"""Of an `Execution`, what stands in the row beside the device and its threads."""


class DetectorEvaluator:
    """The evaluator of a search over a context: choices become candidates, answers become columns of the table."""

    def __init__(self, space: Space, bench: EvaluationContext) -> None:
        self.space = space
        self.bench = bench

    def describe(self, choices: Mapping[str, Any]) -> Described:
        """See `fpn_bench.search.records.Evaluator`."""
        source = backbone_source(self.space.backbone(choices))
        backbone = self.bench.load_backbone(source)
        candidate = self.bench.candidate(source, self.space.to_graph(choices, backbone.features))
        head = candidate.head
        padded = backbone.recipe.padded(candidate.image_size)
        return Described(
            id=candidate.id,
            label=self.space.label(choices),
            neck=str(self.space.settings(choices)["family"]),
            graph_json=candidate.graph.to_json(),
            facts={
                **dataclasses.asdict(self.bench.costs(candidate)),
                "backbone": backbone.name,
                "weights": backbone.weights.id,
                "weights_random": backbone.weights.is_random,
                "adapter": candidate.backbone.adapter,
                "image_mean": _channels(backbone.mean),
                "image_std": _channels(backbone.std),
                "interpolation": backbone.interpolation,
                "padded_height": padded[0],
                "padded_width": padded[1],
                "head": f"{head.kind} {head.convs} convs",
            },
            candidate=candidate,
            tokens=graph_tokens(candidate.graph),
        )

    def predict(self, described: Described) -> Mapping[str, Any]:
        """See `fpn_bench.search.records.Evaluator`."""
        found = self.bench.predict_latency(described.candidate)
        if found is None or not math.isfinite(found.median_ms):
            return {}
        columns = {"latency_predicted_ms": found.median_ms}
        if math.isfinite(found.high_ms):
            columns |= {"latency_predicted_low_ms": found.low_ms, "latency_predicted_high_ms": found.high_ms}
        return columns

    def measure(self, described: Described) -> Mapping[str, Any]:
        """See `fpn_bench.search.records.Evaluator`."""
        latency = self.bench.latency(described.candidate, learn=self.space.predicts_latency)
        run, seen = self.bench.execution, latency.telemetry
        threads = f", {latency.threads} threads" if latency.device == "cpu" else ""
        return {
            "latency_ms": latency.median_ms,
            "latency_low_ms": latency.low_ms,
            "latency_high_ms": latency.high_ms,
            "latency_p90_ms": latency.p90_ms,
            "latency_device": latency.device + threads,
            "latency_clock_ms": latency.clock_ms,
            "latency_speed": latency.speed,
            "latency_samples": latency.samples,
            "latency_converged": latency.converged,
            **{f"latency_{name}": getattr(run, name) for name in _RUN},
            "latency_clock_mhz": seen.clock_mhz,
            "latency_temperature_c": seen.temperature_c,
            "latency_power_w": seen.power_w,
            "latency_throttled_samples": seen.throttled_samples,
            "energy_j": latency.energy_j,
            **self._memory(described),
        }

    def _memory(self, described: Described) -> dict[str, float]:
        """Peak memory, which takes a process of its own and is measured where it is asked for."""
        if "peak_mib" not in self.space.measured:
            return {}
        return {"peak_mib": self.bench.memory(described.candidate).peak_mib}

    def train(self, described: Described, seed: int, epochs: int, on_progress: OnProgress) -> Mapping[str, Any]:
        """See `fpn_bench.search.records.Evaluator`."""
        each = range(1, self.space.full_epochs)
        try:
            result = self.bench.train(described.candidate, seed, on_progress, epochs=epochs, ap_epochs=each)
        except (TrialError, TrialTimeout):
            self.bench.forget(described.candidate, seed)  # it will not go on
            raise
        ap = result.ap
        columns = {
            "ap": ap.ap,
            "ap50": ap.ap50,
            "ap75": ap.ap75,
            "ap_s": ap.ap_s,
            "ap_m": ap.ap_m,
            "ap_l": ap.ap_l,
            "train_s": result.train_s,
            "epochs": result.epochs,
            "epochs_trained": result.epochs_trained,
            "ap_curve": [list(pair) for pair in result.aps],
            "val_loss_curve": [list(pair) for pair in result.val_losses],
            "cached": self.bench.cached(described.candidate.backbone),
            "cache_hit": self.bench.cache_hit(described.candidate.backbone),
        }
        if result.epochs == self.space.full_epochs:
            columns[DETECTIONS] = json.dumps(result.samples, separators=(",", ":"))
        return columns


@dataclasses.dataclass(frozen=True)
class WorkerPreparation:
    """Makes the evaluator of a worker in its own process, on whatever machine that is."""

    space: Space
    device: str
    cache: str | None
    cache_gib: float
    latency_threads: int
    protocol: str
    conditions: Mapping[str, Any]

    @classmethod
    def like(
        cls,
        bench: EvaluationContext,
        space: Space,
        device: str,
        cache: str | Path | None,
        cache_gib: float,
        conditions: Mapping[str, Any],
    ) -> WorkerPreparation:
        """Workers whose rows compare with those of a context."""
        threads = bench.execution.threads or torch.get_num_threads()
        folder = None if cache is None else str(cache)
        return cls(space, device, folder, cache_gib, threads, bench.protocol.id, conditions)

    def __call__(self, number: int) -> tuple[DetectorEvaluator, Mapping[str, Any]]:
        device = self.device
        if device == "cuda":
            device = f"cuda:{number % max(1, torch.cuda.device_count())}"
        bench, metadata = prepare(
            self.space,
            device=device,
            cache=self.cache,
            cache_gib=self.cache_gib,
            latency_threads=self.latency_threads,
            weights_ids=self.conditions["weights"],
        )
        here = {"protocol": bench.protocol.id, "weights": metadata["weights"]}
        wanted = {"protocol": self.protocol, "weights": self.conditions["weights"]}
        if self.space.measured:
            here["latency_device"], wanted["latency_device"] = (
                metadata["latency_device"],
                self.conditions["latency_device"],
            )
        if here != wanted:
            raise ProtocolError(f"worker {number} has {here}, the study has {wanted}; their rows do not compare")
        return DetectorEvaluator(self.space, bench), run_columns(self.space, bench, metadata)


def run_columns(space: Space, bench: EvaluationContext, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Columns equal in every row that a worker writes."""
    return {
        "dataset": bench.dataset.name,
        "image_height": space.image_size[0],
        "image_width": space.image_size[1],
        "machine": metadata["machine"]["id"],
        "machine_label": metadata["machine"]["label"],
        "torch": metadata["versions"]["torch"],
        "fpn_bench": metadata["versions"]["fpn_bench"],
    }


def prepare(
    space: Space,
    *,
    device: str = "cpu",
    cache: str | Path | None = None,
    cache_gib: float = 20.0,
    latency_threads: int | None = None,
    weights_ids: Mapping[str, str] | None = None,
    on_load: OnLoad | None = None,
) -> tuple[EvaluationContext, dict[str, Any]]:
    """The context of a space, its backbones loaded, and the study's metadata (machine, versions, notes, warnings).

    Latency is measured with the space's number of threads, else with ``latency_threads``, else with torch's.
    ``weights_ids`` are those of a study that is there, see `EvaluationContext`.

    Raises:
        InputError: the space's data set, backbones or device cannot be used.
    """
    dataset = load_dataset(space, cache=cache, on_load=on_load)
    run = space.latency.model_dump(exclude={"predict"})
    bench = EvaluationContext(
        dataset,
        image_size=space.image_size,
        head=space.head,
        training=space.training,
        device=device,
        execution=Execution(
            device, **{**run, "threads": run["threads"] or (latency_threads if device == "cpu" else None)}
        ),
        cache_root=None if cache is None else Path(cache) / "features",
        checkpoints=None if cache is None else Path(cache) / "checkpoints",
        cache_gib=cache_gib,
        weights_ids=weights_ids,
    )
    if "energy_j" in space.measured and energy_j(torch.device(bench.device)) is None:
        raise InputError(
            f"{space.source}: expected a device that reports its energy, for energy_j is an objective or a bound; got "
            f"{bench.device}, which does not (a CPU tells root alone on many machines); leave energy_j out, or run on "
            "another device"
        )
    weights = {}
    for entry in space.backbones:
        backbone = bench.load_backbone(backbone_source(entry))
        space.check(backbone.features)
        weights[backbone.name] = backbone.weights.id
    for warning in bench.warnings:
        _log.warning(warning)
    here = machine().to_dict()
    return bench, {
        "machine": here,
        "latency_device": _latency_device(bench, here["gpu"]),
        "versions": {"python": here["python"], **here["versions"]},
        "notes": list(dataset.notes),
        "weights": weights,
        "warnings": bench.warnings,
        "commands": [_command()],
    }


def _latency_device(bench: EvaluationContext, gpu: str) -> str:
    """What all latencies of a study must have been measured on, and how: the default says no more than the device."""
    run = bench.execution
    threads = run.threads or torch.get_num_threads()
    device = gpu if bench.device.startswith("cuda") else f"cpu, {threads} threads"
    usual = Execution(run.device)
    settings = [f"{name} {getattr(run, name)}" for name in _RUN if getattr(run, name) != getattr(usual, name)]
    return ", ".join([device, *settings])


def load_dataset(space: Space, *, cache: str | Path | None = None, on_load: OnLoad | None = None) -> DetectionDataset:
    """The data set a space names, read and checked; a synthetic one is drawn first where it is not there.

    Raises:
        DataError: it cannot be read.
        InputError: the space names no folder.
    """
    if isinstance(space.data, SyntheticData):
        given = space.data.model_dump(exclude={"kind"}, exclude_none=True)
        root = Path(cache) if cache is not None else cache_home()
        folder = write_synthetic(root / "data", **given, on_progress=on_load)
        return formats.load_dataset(folder, "coco", name="synthetic", on_progress=on_load)
    given = space.data.model_dump(exclude={"kind", "root"}, exclude_none=True)
    if space.data.root is None and "splits" not in given:
        raise InputError(f"space {space.name!r} searches on your own data: give its folder with --data DIR (data=...)")
    if space.data.root is not None and not Path(space.data.root).exists():
        raise DataError(
            f"data set {space.data.root} of {space.name!r} does not exist; if it was moved, say where it lies now with "
            "--data DIR (data=...)"
        )
    return formats.load_dataset(space.data.root, space.data.kind, **given, on_progress=on_load)


def backbone_source(entry: BackboneEntry) -> BackboneSource:
    return BackboneSource(entry.name, entry.weights, entry.levels, entry.adapter)


def _channels(values: Sequence[float]) -> str:
    """One value a channel, as it stands in the table."""
    return " ".join(f"{value:g}" for value in values)


def _command() -> str:
    """What was typed, when this process is the command line."""
    typed = Path(sys.argv[0]).name
    return shell_command(["fpn-bench", *sys.argv[1:]]) if typed == "fpn-bench" else "fpn_bench.search(...)"


def reading_options(
    skip_unreadable: bool, val_fraction: float | None, allow_images_from: Sequence[str | Path] | None
) -> dict[str, Any]:
    """How a data set is read, as keys of a space's ``data``; what is not given is not among them.

    Args:
        skip_unreadable: leave out images that cannot be read, instead of refusing the data set.
        val_fraction: share of the images held out as val, of a data set that has none.
        allow_images_from: folders outside the data set's own that files may be read from.
    """
    options = {
        "skip_unreadable": skip_unreadable or None,
        "val_fraction": val_fraction,
        "allow_images_from": [str(folder) for folder in allow_images_from or ()] or None,
    }
    return {name: value for name, value in options.items() if value is not None}


def with_overrides(
    space: Space, data: str | Path | None, backbone: str | None, weights: str | None, reading: Mapping[str, Any]
) -> Space:
    """The space with what the caller said instead of the file; ``reading`` has keys of the space's ``data``."""
    changes: dict[str, Any] = {}
    if backbone is not None or weights is not None:
        if len(space.backbones) > 1 and backbone is None:
            names = ", ".join(entry.name for entry in space.backbones)
            raise InputError(
                f"expected --backbone with weights for a space of several backbones ({names}), got none; choose one"
            )
        entry = space.backbones[0]
        changes["backbone"] = {
            "name": backbone or entry.name,
            "weights": weights,
            "levels": list(entry.levels),
            "adapter": entry.adapter,
        }
    if data is not None:
        changes["data"] = {**_data_metadata(space, data), "root": str(data)}
    if reading and "data" not in changes and not isinstance(space.data, SyntheticData):
        changes["data"] = space.data.model_dump(exclude_none=True)
    if "data" in changes:
        changes["data"] |= reading
    return space.replace(**changes) if changes else space


def _data_metadata(space: Space, root: str | Path) -> dict[str, Any]:
    """What the space says of data in the format of a folder: all of it where that is the space's own format, otherwise
    no more than whether images may be skipped."""
    if isinstance(space.data, SyntheticData):
        return {"kind": formats.find_format(root).name, "skip_unreadable": False}
    told = space.data.model_dump(exclude_none=True)
    if "splits" in told:  # they say where everything lies, so there is no layout to recognise
        return told
    kind = formats.find_format(root, prefer=space.data.kind).name
    return told if kind == space.data.kind else {"kind": kind, "skip_unreadable": space.data.skip_unreadable}
