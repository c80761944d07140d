"""Peak memory of an inference or a training step, as measured."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from torch import nn

from fpn_bench._compat import tree_leaves
from fpn_bench.profiling.device_lock import exclusive_device
from fpn_bench.profiling.execution import Execution
from fpn_bench.profiling.failure import ANY_ERROR, translate_torch_errors
from fpn_bench.profiling.isolation import isolated

Task = Literal["inference", "training"]
_MIB = float(1 << 20)


@dataclass(frozen=True, slots=True)
class Memory:
    """Peak memory of one call, in MiB.

    Attributes:
        task: ``"inference"``, or ``"training"``: forward and backward, without an optimiser's state.
        peak_mib: of everything there was at the peak: on CUDA what torch's allocator had given out on the device, on
            the CPU the resident set of a fresh process, libraries included.
        rise_mib: how much of that the call itself added to the weights and images that were there: activations,
            gradients and workspaces.
        method: ``"cuda_allocator"`` or ``"process_resident_set"``.
    """

    task: Task
    peak_mib: float
    rise_mib: float
    method: Literal["cuda_allocator", "process_resident_set"]


def measure_memory(
    module: nn.Module, shapes: Sequence[Sequence[int]], execution: Execution, task: Task = "inference"
) -> Memory:
    """Peak memory of one call of a module: the first on CPU, in a process of its own; the second on CUDA.

    The first call on CUDA allocates workspaces that stay, so the second is measured.

    Args:
        module: takes tensors of `shapes`, one argument each; left as it is. For ``"training"`` the parameters that have
            gradients get them; it must have some.
        shapes: without the batch.
        execution: how it is run. Compiled and captured code is not measured in training.
        task: what is measured.

    Raises:
        MeasurementError: it cannot be run, e.g. because memory runs out.
    """
    with translate_torch_errors(ANY_ERROR):
        if execution.torch_device.type == "cuda":
            with exclusive_device(execution.torch_device):
                return _on_cuda(module, shapes, execution, task)
        return isolated(_on_cpu, module, [tuple(s) for s in shapes], execution, task)


def _step(module: nn.Module, shapes: Sequence[Sequence[int]], execution: Execution, task: Task) -> Any:
    """The call that is measured, prepared."""
    placed = execution.place(module)
    inputs = execution.inputs(shapes)
    if task == "inference":
        return execution.call(placed, *inputs)
    for ours, theirs in zip(placed.parameters(), module.parameters(), strict=True):
        ours.requires_grad_(theirs.requires_grad)
    placed.train()

    def train() -> None:
        placed.zero_grad(set_to_none=True)
        with execution.settings():
            outputs = [x for x in tree_leaves(placed(*inputs)) if isinstance(x, torch.Tensor) and x.requires_grad]
            # Means, not sums: a half would overflow.
            torch.stack([x.float().mean() for x in outputs]).sum().backward()  # type: ignore[no-untyped-call]

    return train


def _on_cuda(module: nn.Module, shapes: Sequence[Sequence[int]], execution: Execution, task: Task) -> Memory:
    device = execution.torch_device
    gc.collect()
    torch.cuda.empty_cache()
    elsewhere = torch.cuda.memory_allocated(device)
    with execution.settings():
        call = _step(module, shapes, execution, task)
        call()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    return Memory(task, (peak - elsewhere) / _MIB, (peak - before) / _MIB, "cuda_allocator")


def _on_cpu(module: nn.Module, shapes: Sequence[Sequence[int]], execution: Execution, task: Task) -> Memory:
    """Runs in a process that has done nothing yet."""
    with execution.settings():
        call = _step(module, shapes, replace(execution, cache="warm"), task)
        gc.collect()
        resets = _reset_peak()
        before = psutil.Process().memory_info().rss
        call()
        peak = max(_peak_bytes(resets), before)
    return Memory(task, peak / _MIB, (peak - before) / _MIB, "process_resident_set")


def _reset_peak() -> bool:
    """Reset the system's record of this process's peak memory; only Linux can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_bytes(reset: bool) -> int:
    status = Path("/proc/self/status")
    if reset and status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) << 10
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # Unix alone has it

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
