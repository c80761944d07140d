"""`profile`: what a backbone, a neck and a head cost together, part by part; `profile_all`: several, side by side."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fpn_bench.errors import FailureStatus, InputError, MeasurementError
from fpn_bench.latency.rounds import TOLERANCE, Comparison, check_tolerance, measure_rounds
from fpn_bench.latency.single import Latency, check_budget
from fpn_bench.profiling.execution import Execution, shallow_copy
from fpn_bench.profiling.failure import ANY_ERROR, translate_torch_errors
from fpn_bench.profiling.fvcore_counter import MacReport, count_macs_fvcore
from fpn_bench.profiling.machine import MachineRecord, machine
from fpn_bench.profiling.memory import Memory, Task, measure_memory
from fpn_bench.profiling.static import StaticProfile, static_profile_in_a_row
from fpn_bench.pyramid import ImageSize

SCHEMA_VERSION = 2


@dataclass(frozen=True, slots=True)
class Model:
    """What is profiled.

    Attributes:
        backbone: images [N, 3, H, W] -> maps, finest first; on any device, meta included. One whose ``adapter`` is a
            module runs that last: it is a part of its own.
        neck: takes those maps.
        head: takes the list of the neck's maps; None leaves it out.
    """

    backbone: nn.Module
    neck: nn.Module
    head: nn.Module | None = None

    @property
    def parts(self) -> dict[str, nn.Module]:
        """``backbone``, ``adapter`` where it has one, ``neck``, ``head`` where there is one."""
        return backbone_parts(self.backbone) | {"neck": self.neck} | ({} if self.head is None else {"head": self.head})


@dataclass(frozen=True, slots=True)
class Profile:
    """Costs of a backbone and what stands behind it.

    Attributes:
        image_size: (height, width) in pixels.
        static: what can be counted for one image, by part; None where that failed.
        execution: how it was run; None where nothing was.
        latency: of all parts in a row on one batch; None where it was not asked for or failed.
        comparison: of that latency with the first model's; None for the first, or where one of them has none.
        memory: task -> peak memory, as far as asked for and measured.
        fvcore: the second counter's answer; None where it was not asked for or failed.
        failures: what failed (``"build"``, ``"static"``, ``"latency"``, ``"memory inference"``, ``"memory training"``,
            ``"fvcore"``) -> why.
        machine: where it was run.
    """

    image_size: ImageSize
    static: StaticProfile | None
    execution: Execution | None = None
    latency: Latency | None = None
    comparison: Comparison | None = None
    memory: Mapping[Task, Memory] = field(default_factory=dict)
    fvcore: MacReport | None = None
    failures: Mapping[str, MeasurementError] = field(default_factory=dict)
    machine: MachineRecord = field(default_factory=machine)

    @property
    def status(self) -> FailureStatus | str:
        """``"ok"``, or the status of the first failure."""
        return next((failure.status for failure in self.failures.values()), "ok")

    @property
    def reason(self) -> str:
        """What failed and why, on one line; empty where nothing did."""
        return "; ".join(f"{what}: {failure}" for what, failure in self.failures.items())

    @property
    def predicted_peak_mib(self) -> float | None:
        """Peak of the maps of an inference as it was run, counted without running; None where that failed.

        Workspaces of the device's libraries come on top.
        """
        if self.static is None:
            return None
        run = self.execution or Execution()
        return self.static.peak_activation_bytes * run.batch * run.bytes_per_value / 4 / (1 << 20)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with a schema version."""
        static = self.static
        return {
            "schema_version": SCHEMA_VERSION,
            "status": self.status,
            "reason": self.reason,
            "image_size": list(self.image_size),
            "static": None
            if static is None
            else {
                "params": static.params,
                "trainable_params": static.trainable_params,
                "macs": static.macs,
                "macs_fvcore_style": static.macs_fvcore_style,
                "other_ops": static.other_ops,
                "activation_elements": static.activation_elements,
                "param_bytes": static.param_bytes,
                "uncounted": static.uncounted,
                "parts": {name: dataclasses.asdict(part) for name, part in static.parts.items()},
            },
            "execution": None if self.execution is None else dataclasses.asdict(self.execution),
            "latency": None if self.latency is None else dataclasses.asdict(self.latency),
            "comparison": None if self.comparison is None else dataclasses.asdict(self.comparison),
            "predicted_peak_mib": self.predicted_peak_mib,
            "memory": {task: dataclasses.asdict(memory) for task, memory in self.memory.items()},
            "fvcore": None if self.fvcore is None else dataclasses.asdict(self.fvcore),
            "machine": self.machine.to_dict(),
        }


def profile(
    backbone: nn.Module,
    neck: nn.Module,
    head: nn.Module | None = None,
    *,
    image_size: ImageSize,
    device: str | None = None,
    execution: Execution | None = None,
    budget_s: float = 1.0,
    memory: Collection[Task] = (),
    verify: bool = False,
) -> Profile:
    """Parameters and MACs of a backbone, a neck and maybe a head, and what they take on a device where one is named.

    All are profiled in eval mode, and left as they were and where they were.

    Args:
        backbone, neck, head: see `Model`.
        image_size: (height, width) in pixels.
        device: measure latency there (``"cpu"``, ``"cuda"``): short for ``execution=Execution(device=...)``.
        execution: measure latency run like this. Neither measures none.
        budget_s: seconds of sampling the latency.
        memory: measure peak memory of these tasks, ``"inference"`` and ``"training"``, as well.
        verify: count MACs by fvcore as well, on real values.

    Raises:
        InputError: an impossible image size, device or budget; both device and execution; or a measurement or `verify`
            asked of a module on meta.
        Exception: the parts do not fit together; whatever else fails stands in `Profile.failures`.
    """
    if device is not None:
        if execution is not None:
            raise InputError(
                f"expected device or execution, which names a device, got both: leave out device={device!r}"
            )
        execution = Execution(device=device)
    model = Model(backbone, neck, head)
    found = profile_all(
        {"": model}, image_size=image_size, execution=execution, budget_s=budget_s, memory=memory, verify=verify
    )[""]
    if failure := found.failures.get("static"):
        raise failure.__cause__ or failure
    return found


def profile_all(
    models: Mapping[str, Model | Callable[[], Model]],
    *,
    image_size: ImageSize,
    execution: Execution | None = None,
    budget_s: float = 1.0,
    tolerance: float = TOLERANCE,
    memory: Collection[Task] = (),
    verify: bool = False,
    latency: bool = True,
    on_progress: Callable[[str, float], object] | None = None,
) -> dict[str, Profile]:
    """Profiles of several models, their latencies taken in interleaved rounds and compared with the first one's.

    What fails for one model stands in its profile; the others go on.

    Args:
        models: name -> model, or a function that builds it, whose failure then stands in the profile; the first is the
            baseline.
        image_size: (height, width) in pixels.
        execution: how they are run; None measures no latency, and memory as a plain `Execution` has it.
        budget_s: seconds of sampling the latency of each.
        tolerance: relative difference below which two latencies count as the same.
        memory: tasks to measure the peak memory of, each in a process of its own on the CPU.
        verify: count MACs by fvcore as well, on real values.
        latency: False leaves latency out, whatever the execution.
        on_progress: called with what is under way and the share of it that is done.

    Raises:
        InputError: no models, an impossible image size, budget or tolerance, or a measurement or `verify` asked of a
            module on meta.
    """
    if not models:
        raise InputError("expected at least one model to profile, name -> Model(backbone, neck), got none")
    if min(image_size) < 1:
        raise InputError(f"expected image_size as (height, width) of at least 1 pixel each, got {image_size}")
    if execution is not None:
        check_budget(budget_s)
        check_tolerance(tolerance)
    tell = on_progress or (lambda what, share: None)
    runs = execution is not None or verify or bool(memory)
    how = execution or Execution()
    profiling = _Profiling(models, image_size)
    profiling.build(to_run=runs)
    for i, name in enumerate(profiling.built):
        tell("static", i / len(profiling.built))
        profiling.count(name, verify)
        for task in memory:
            tell(f"memory, {task}", i / len(profiling.built))
            profiling.measure_memory(name, how, task)
    if execution is not None and latency:
        profiling.time(execution, budget_s, tolerance, lambda share: tell("latency", share))
    return profiling.profiles(how if runs else None)


class _Profiling:
    """What `profile_all` found so far: of each model, by name; what failed stands in `failures` and is missing here."""

    def __init__(self, models: Mapping[str, Model | Callable[[], Model]], image_size: ImageSize) -> None:
        self.models, self.image_size, self.shape = models, image_size, (3, *image_size)
        self.built: dict[str, Model] = {}
        self.statics: dict[str, StaticProfile] = {}
        self.fvcores: dict[str, MacReport] = {}
        self.memories: dict[str, dict[Task, Memory]] = {name: {} for name in models}
        self.latencies: Mapping[str, Latency] = {}
        self.comparisons: Mapping[str, Comparison] = {}
        self.failures: dict[str, dict[str, MeasurementError]] = {name: {} for name in models}

    @contextlib.contextmanager
    def _attempt(self, name: str, what: str) -> Iterator[None]:
        """Keeps a failure of what is done inside; an InputError goes through."""
        try:
            with translate_torch_errors(ANY_ERROR, but=(InputError,)):
                yield
        except MeasurementError as failure:
            self.failures[name][what] = failure

    def build(self, *, to_run: bool) -> None:
        for name, model in self.models.items():
            with self._attempt(name, "build"):
                self.built[name] = model if isinstance(model, Model) else model()
        for name, made in self.built.items():
            if to_run and any(t.is_meta for t in _tensors(_InARow(made))):
                raise InputError(
                    f"{f'model {name!r}' if name else 'a backbone or neck'} is on meta, which holds no values to run: "
                    "build it on the cpu, or leave out device, execution, memory and verify"
                )

    def count(self, name: str, verify: bool) -> None:
        model = self.built[name]
        whole = _InARow(model)
        with _eval_mode(whole):
            image = torch.zeros(1, *self.shape)
            with self._attempt(name, "static"):
                self.statics[name] = static_profile_in_a_row(model.parts, image)
            if verify:
                with self._attempt(name, "fvcore"):
                    self.fvcores[name] = count_macs_fvcore(whole, (image.to(_device(whole)),))

    def measure_memory(self, name: str, execution: Execution, task: Task) -> None:
        with self._attempt(name, f"memory {task}"):
            self.memories[name][task] = measure_memory(_InARow(self.built[name]), [self.shape], execution, task)

    def time(self, execution: Execution, budget_s: float, tolerance: float, tell: Callable[[float], object]) -> None:
        copies: dict[int, Any] = {}  # parts that several models share are placed once
        calls = {}
        for name, model in self.built.items():
            with self._attempt(name, "latency"):
                placed = execution.place(_InARow(model), copies)
                calls[name] = execution.call(placed, *execution.inputs([self.shape]))
        if not calls:
            return
        baseline = next(iter(self.built))
        found = measure_rounds(
            calls,
            execution=execution,
            budget_s=budget_s,
            baseline=baseline if baseline in calls else None,
            tolerance=tolerance,
            on_round=lambda _, share: tell(share),
        )
        for name, failure in found.failures.items():
            self.failures[name]["latency"] = failure
        self.latencies = found.latencies
        if baseline in found.latencies:
            others = [name for name in found.latencies if name != baseline]
            self.comparisons = {name: found.compare(name, baseline, tolerance) for name in others}

    def profiles(self, execution: Execution | None) -> dict[str, Profile]:
        return {
            name: Profile(
                self.image_size,
                self.statics.get(name),
                execution=execution,
                latency=self.latencies.get(name),
                comparison=self.comparisons.get(name),
                memory=self.memories[name],
                fvcore=self.fvcores.get(name),
                failures=self.failures[name],
            )
            for name in self.models
        }


def backbone_parts(backbone: nn.Module) -> dict[str, nn.Module]:
    """The parts of a backbone, in the order they run: ``backbone``, then ``adapter`` where it has one.

    Args:
        backbone: one whose ``adapter``, where it is a module, runs last and may be None.
    """
    adapter = getattr(backbone, "adapter", None)
    if not isinstance(adapter, nn.Module):
        return {"backbone": backbone}
    trunk = shallow_copy(backbone)
    trunk.register_module("adapter", None)
    return {"backbone": trunk, "adapter": adapter}


def _device(module: nn.Module) -> torch.device:
    """Where its tensors are; the CPU where it has none."""
    return next((t.device for t in _tensors(module)), torch.device("cpu"))


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
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.backbone, self.neck, self.head = model.backbone, model.neck, model.head

    def forward(self, image: torch.Tensor) -> Any:
        maps = self.neck(self.backbone(image))
        return maps if self.head is None else self.head(list(maps))
