"""`search`: a space, a data set and a backbone in, a study out."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fpn_bench.assess import BackboneSource, Workbench
from fpn_bench.cache_home import cache_home
from fpn_bench.detection import formats
from fpn_bench.detection.dataset import DetectionDataset
from fpn_bench.detection.samples import sample_images
from fpn_bench.detection.synthetic import write_synthetic
from fpn_bench.errors import DataError, InputError, ProtocolError, TrialError, UnknownNameError
from fpn_bench.graph import graph_tokens
from fpn_bench.profiling import Execution, machine
from fpn_bench.redact import shell_command
from fpn_bench.search import driver
from fpn_bench.search.driver import Event, OnProgress
from fpn_bench.search.ledger import DETECTIONS
from fpn_bench.search.records import Described
from fpn_bench.search.space import BackboneEntry, Space, SyntheticData
from fpn_bench.search.store import DATABASE, is_url, open_study, storage_errors
from fpn_bench.search.study import Study, load_study, run_study, shared_rows
from fpn_bench.search.workers import Executor

_log = logging.getLogger(__name__)

OnLoad = Callable[[int, int], None]
"""Called with (images read, images in all) while a data set is read or drawn."""


_RUN = ("batch", "precision", "memory_format", "mode", "cache")
"""Of an `Execution`, what stands in the row beside the device and its threads."""


class DetectorEvaluator:
    """The driver's evaluator over a workbench: choices become candidates, answers become columns of the table."""

    def __init__(self, space: Space, bench: Workbench) -> None:
        self.space = space
        self.bench = bench

    def describe(self, choices: Mapping[str, Any]) -> Described:
        """See `fpn_bench.search.driver.Evaluator`."""
        source = source_of(self.space.backbone(choices))
        backbone = self.bench.mount(source)
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
        """See `fpn_bench.search.driver.Evaluator`."""
        found = self.bench.predict_latency(described.candidate)
        if found is None or not math.isfinite(found.median_ms):
            return {}
        columns = {"latency_predicted_ms": found.median_ms}
        if math.isfinite(found.high_ms):
            columns |= {"latency_predicted_low_ms": found.low_ms, "latency_predicted_high_ms": found.high_ms}
        return columns

    def measure(self, described: Described) -> Mapping[str, Any]:
        """See `fpn_bench.search.driver.Evaluator`."""
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
        }

    def train(self, described: Described, seed: int, epochs: int, on_progress: OnProgress) -> Mapping[str, Any]:
        """See `fpn_bench.search.driver.Evaluator`."""
        rungs = self.space.rungs.epochs
        try:
            result = self.bench.train(described.candidate, seed, on_progress, epochs=epochs, ap_epochs=rungs)
        except TrialError:
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
            "cached": self.bench.cached(described.candidate.backbone),
            "cache_hit": self.bench.cache_hit(described.candidate.backbone),
        }
        if result.epochs == self.space.full_epochs:
            columns[DETECTIONS] = json.dumps(result.samples, separators=(",", ":"))
        return columns


def search(
    space: Space | str | Path = "quickstart",
    *,
    data: str | Path | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    trials: int | None = None,
    name: str | None = None,
    results: str | Path = "results",
    storage: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    cache: str | Path | None = None,
    cache_gib: float = 20.0,
    skip_unreadable: bool = False,
    val_fraction: float | None = None,
    allow_images_from: Sequence[str | Path] | None = None,
    share: bool = True,
    workers: int = 1,
    executor: Executor | None = None,
    on_load: OnLoad | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Study:
    """Search a space, or go on with the search of the same name, until its budget is spent.

    Args:
        space: a `Space`, a YAML file, or the name of a shipped space.
        data: folder of a data set in COCO, VOC or YOLO format, instead of the space's own.
        backbone: timm name, instead of the space's; its weights are random unless `weights` says more.
        weights: of the backbone: a file, ``"hub"`` or ``"pip:PACKAGE"``.
        trials: whole trainings to pay for in all, instead of the space's budget.
        name: of the study; the space's by default. It lives in ``results/name``.
        results: folder of studies.
        storage: URL of a database server instead of SQLite in the study's folder.
        seed: of the trainings.
        device: where latency is measured and detectors are trained.
        cache: folder of features and drawn data; None is `fpn_bench.cache_home.cache_home`.
        cache_gib: bound on the features kept there; 0 keeps none and runs the backbone on each batch, which is slow.
        skip_unreadable: leave out images that cannot be read, instead of refusing the data set.
        val_fraction: share of the images held out as val, of a data set that has none.
        allow_images_from: folders outside the data set's own that files may be read from.
        share: take over what other studies there have trained under this protocol, instead of training it again.
        workers: how many candidates are assessed at a time. Each shares the machine's cores, and on ``"cuda"`` has a
            GPU in turn; latency is measured by one at a time, with as many threads as a single worker would have.
        executor: where they run; None is this machine. See `fpn_bench.search.workers`.
        on_load: called while the data set is read.
        on_event: called with what happens, for display.

    Returns:
        The study; `Study.result` says how the run ended.

    Raises:
        InputError: anything that was given and cannot be used; nothing was changed.
    """
    space = space if isinstance(space, Space) else Space.load(space)
    reading = {
        "skip_unreadable": skip_unreadable or None,
        "val_fraction": val_fraction,
        "allow_images_from": [str(folder) for folder in allow_images_from or ()] or None,
    }
    space = adapted(space, data, backbone, weights, {k: v for k, v in reading.items() if v is not None})
    bench, study_metadata = prepare(space, device=device, cache=cache, cache_gib=cache_gib, on_load=on_load)
    latency_threads = bench.execution.threads or torch.get_num_threads()
    study, result = run_study(
        space,
        DetectorEvaluator(space, bench),
        bench.protocol,
        Path(results) / (name or space.name),
        storage=storage,
        name=name or space.name,
        budget=trials,
        seed=seed,
        columns=_columns(space, bench, study_metadata),
        metadata=study_metadata,
        samples=partial(sample_images, bench.dataset),
        share=share,
        workers=workers,
        executor=executor,
        prepare=_Prepare(
            *(space, device, None if cache is None else str(cache), cache_gib, latency_threads),
            *(bench.protocol.id, study_metadata),
        ),
        on_event=on_event,
    )
    study.result = result
    return study


def bench(
    suite: Space | str | Path = "smoke",
    *,
    seeds: int | None = None,
    weights: Mapping[str, str] | None = None,
    **given: Any,
) -> Study:
    """Train what a suite lists, each candidate with each seed, or go on with the study of the same name.

    Args:
        suite: a `Space` that lists its candidates (``necks:``), a YAML file, or the name of a shipped suite.
        seeds: trainings of each candidate, instead of the suite's. A study can be given more of them later.
        weights: backbone -> where its weights are, instead of the suite's: a file, ``"hub"`` or ``"pip:PACKAGE"``.
        given: ``data``, ``name``, ``results``, ``workers`` and whatever else `search` takes.

    Returns:
        The study; `Study.result` says how the run ended.

    Raises:
        InputError: it is no suite, or anything else that was given cannot be used; nothing was changed.
    """
    space = suite if isinstance(suite, Space) else Space.load(suite)
    if not space.listed:
        raise InputError(
            f"{space.name!r} is a search space, and a suite is wanted, which lists its candidates under `necks:`; "
            f"`fpn-bench search {space.name}` searches it"
        )
    changes: dict[str, Any] = {} if seeds is None else {"seeds": seeds}
    if weights:
        known = [entry.name for entry in space.backbones]
        for name in weights:
            if name not in known:
                raise UnknownNameError(f"backbone of suite {space.name!r}", name, known)
        entries = [entry.model_dump(mode="json") for entry in space.backbones]
        changed = [{**entry, "weights": weights.get(entry["name"], entry["weights"])} for entry in entries]
        changes["backbone"] = changed if isinstance(space.raw["backbone"], list) else changed[0]
    return search(space.replace(**changes) if changes else space, **given)


def join(
    storage: str | Path,
    *,
    name: str | None = None,
    data: str | Path | None = None,
    weights: str | None = None,
    trials: int | None = None,
    number: int | None = None,
    device: str = "cpu",
    cache: str | Path | None = None,
    cache_gib: float = 20.0,
    on_load: OnLoad | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Study:
    """Be a worker of a study that was begun elsewhere, until its budget is spent.

    The plan (budget, seed, sampler, rungs) is that of the last `search` on it.

    Args:
        storage: URL of the database server, or folder or file of the study.
        name: of the study, where the storage holds several.
        data: where its data set lies on this machine, if elsewhere than where the search was begun.
        weights: of its backbone on this machine, likewise.
        trials: whole trainings to pay for in all, instead of what the last search said.
        number: of this worker, unlike those of others; part of the sampler's seed. Drawn when None.
        device, cache, cache_gib, on_load, on_event: see `search`.

    Raises:
        InputError: there is no such study.
        ProtocolError: what is here is not what the study was begun with: data set, weights, latency device.
    """
    found = load_study(storage, name)
    plan = found.last_run()
    space = adapted(Space.parse(plan["space"], source=f"study {found.name!r}"), data, None, weights, {})
    bench, here = prepare(space, device=device, cache=cache, cache_gib=cache_gib, on_load=on_load)
    target: str | Path = storage if is_url(storage) else (found.path or Path(storage)) / DATABASE
    study = open_study(target, space, bench.protocol, name=found.name, metadata=here)
    columns = {"protocol": bench.protocol.id, "study": found.name, **_columns(space, bench, here)}
    folder = found.path or Path("results") / found.name
    with storage_errors(target):
        found.result = driver.run(
            space,
            study,
            DetectorEvaluator(space, bench),
            budget=plan["budget"] if trials is None else trials,
            seed=plan["seed"],
            columns=columns,
            shared=shared_rows(target, folder, found.name, bench.protocol.id, plan["seed"]),
            worker=number if number is not None else random.SystemRandom().randrange(1, 10**6),
            on_event=on_event,
        )
    return found


@dataclasses.dataclass(frozen=True)
class _Prepare:
    """Makes the evaluator of a worker in its own process, on whatever machine that is."""

    space: Space
    device: str
    cache: str | None
    cache_gib: float
    latency_threads: int
    protocol: str
    conditions: Mapping[str, Any]

    def __call__(self, number: int) -> tuple[DetectorEvaluator, Mapping[str, Any]]:
        device = self.device
        if device == "cuda":
            device = f"cuda:{number % max(1, torch.cuda.device_count())}"
        bench, metadata = prepare(
            self.space, device=device, cache=self.cache, cache_gib=self.cache_gib, latency_threads=self.latency_threads
        )
        here = {"protocol": bench.protocol.id, "weights": metadata["weights"]}
        wanted = {"protocol": self.protocol, "weights": self.conditions["weights"]}
        if self.space.needs_latency:
            here["latency_device"], wanted["latency_device"] = (
                metadata["latency_device"],
                self.conditions["latency_device"],
            )
        if here != wanted:
            raise ProtocolError(f"worker {number} has {here}, the study has {wanted}; their rows do not compare")
        return DetectorEvaluator(self.space, bench), _columns(self.space, bench, metadata)


def _columns(space: Space, bench: Workbench, metadata: Mapping[str, Any]) -> dict[str, Any]:
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
    on_load: OnLoad | None = None,
) -> tuple[Workbench, dict[str, Any]]:
    """The workbench of a space, its backbones mounted, and the study's metadata (machine, versions, notes, warnings).

    Latency is measured with the space's number of threads, else with ``latency_threads``, else with torch's.

    Raises:
        InputError: the space's data set, backbones or device cannot be used.
    """
    dataset = load_dataset(space, cache=cache, on_load=on_load)
    run = space.latency.model_dump(exclude={"predict"})
    bench = Workbench(
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
    )
    weights = {}
    for entry in space.backbones:
        backbone = bench.mount(source_of(entry))
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


def _latency_device(bench: Workbench, gpu: str) -> str:
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


def source_of(entry: BackboneEntry) -> BackboneSource:
    return BackboneSource(entry.name, entry.weights, entry.levels, entry.adapter)


def _channels(values: Sequence[float]) -> str:
    """One value a channel, as it stands in the table."""
    return " ".join(f"{value:g}" for value in values)


def _command() -> str:
    """What was typed, when this process is the command line."""
    typed = Path(sys.argv[0]).name
    return shell_command(["fpn-bench", *sys.argv[1:]]) if typed == "fpn-bench" else "fpn_bench.search(...)"


def adapted(
    space: Space, data: str | Path | None, backbone: str | None, weights: str | None, reading: Mapping[str, Any]
) -> Space:
    """The space with what the caller said instead of the file; ``reading`` has keys of the space's ``data``."""
    changes: dict[str, Any] = {}
    if backbone is not None or weights is not None:
        if len(space.backbones) > 1 and backbone is None:
            names = ", ".join(entry.name for entry in space.backbones)
            raise InputError(f"weights came for a space of several backbones ({names}): say which with --backbone")
        entry = space.backbones[0]
        changes["backbone"] = {
            "name": backbone or entry.name,
            "weights": weights,
            "levels": list(entry.levels),
            "adapter": entry.adapter,
        }
    if data is not None:
        changes["data"] = {**_told_of_data(space, data), "root": str(data)}
    if reading and "data" not in changes and not isinstance(space.data, SyntheticData):
        changes["data"] = space.data.model_dump(exclude_none=True)
    if "data" in changes:
        changes["data"] |= reading
    return space.replace(**changes) if changes else space


def _told_of_data(space: Space, root: str | Path) -> dict[str, Any]:
    """What the space says of data in the format of a folder: all of it where that is the space's own format, otherwise
    no more than whether images may be skipped."""
    if isinstance(space.data, SyntheticData):
        return {"kind": formats.find_format(root).name, "skip_unreadable": False}
    told = space.data.model_dump(exclude_none=True)
    if "splits" in told:  # they say where everything lies, so there is no layout to recognise
        return told
    kind = formats.find_format(root, prefer=space.data.kind).name
    return told if kind == space.data.kind else {"kind": kind, "skip_unreadable": space.data.skip_unreadable}
