"""How a model is run while it is measured: device, batch, precision, memory format, eager or compiled."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from fpn_bench.errors import InputError
from fpn_bench.profiling.device import check_device
from fpn_bench.vocabulary import CacheState, MemoryFormat, Mode, Precision

_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_COMPILE_TAKES = inspect.signature(torch.compile).parameters  # not the same in all versions
_CUDA_WARM_UPS = 3  # calls before a capture, so that libraries have chosen their algorithms


@dataclass(frozen=True, slots=True)
class Execution:
    """How a model is run. Latencies of two executions are not comparable; every row states its own.

    Attributes:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        batch: images a call.
        precision: ``"fp32"``; ``"tf32"``: fp32 with products in TF32, CUDA only; ``"fp16"`` and ``"bf16"``: weights and
            maps are cast, nothing is left in fp32.
        memory_format: of weights and images.
        mode: ``"eager"``; ``"compiled"``: by `torch.compile` with its default settings; ``"cuda_graph"``: eager,
            captured once and replayed, CUDA only.
        cache: ``"warm"``: each call finds in the caches what the one before it left; ``"cold"``: they are overwritten
            before each call, as by other work between two images.
        threads: CPU threads torch may use; None leaves its setting.

    Raises:
        InputError: one of these is not among the values listed, or does not exist on the device.
    """

    device: str = "cpu"
    batch: int = 1
    precision: Precision = "fp32"
    memory_format: MemoryFormat = "contiguous"
    mode: Mode = "eager"
    cache: CacheState = "warm"
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, kind in (
            ("precision", Precision),
            ("memory_format", MemoryFormat),
            ("mode", Mode),
            ("cache", CacheState),
        ):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise InputError(f"expected {name} to be one of {known}, got {getattr(self, name)!r}")
        for name in ("batch", "threads"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InputError(f"expected {name} to be a whole number of 1 or more, got {value!r}")
        place = check_device(self.device)
        object.__setattr__(self, "device", str(place))
        if place.type != "cuda":
            if self.precision == "tf32":
                raise InputError(f"expected a CUDA device for precision='tf32', got {self.device!r}; try fp32 or bf16")
            if self.mode == "cuda_graph":
                raise InputError(
                    f"expected a CUDA device for mode='cuda_graph', got {self.device!r}; try eager or compiled"
                )

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def bytes_per_value(self) -> int:
        """Of weights and maps."""
        return _DTYPES[self.precision].itemsize

    @property
    def label(self) -> str:
        """For people and file names, e.g. ``"cpu-b1-fp32-contiguous-eager-warm-1t"``."""
        threads = "" if self.threads is None else f"-{self.threads}t"
        place = self.device.replace(":", "")
        return f"{place}-b{self.batch}-{self.precision}-{self.memory_format}-{self.mode}-{self.cache}{threads}"

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        """Set torch's global switches for this execution, and restore them at the end."""
        before = torch.get_num_threads()
        matmul, conv = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = self.precision == "tf32"
        try:
            yield
        finally:
            torch.set_num_threads(before)
            torch.set_float32_matmul_precision(matmul)
            torch.backends.cudnn.allow_tf32 = conv

    def place(self, module: nn.Module, copies: dict[int, Any] | None = None) -> nn.Module:
        """A copy of the module as it is run: in eval mode, without gradients. The module itself does not change.

        Args:
            module: what is copied.
            copies: one dict for several modules, so that parts which they share stay shared.
        """
        twin = copy.deepcopy(module, copies).eval().requires_grad_(False)
        twin = twin.to(device=self.torch_device, dtype=_DTYPES[self.precision])
        # Only four-dimensional weights have a memory format.
        for tensor in (*twin.parameters(), *twin.buffers()):
            if tensor.dim() == 4:
                tensor.data = tensor.data.to(memory_format=_FORMATS[self.memory_format])
        return twin

    def inputs(self, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Normally distributed values of these shapes (without batch), the same ones every time.

        Not zeros, on which some devices draw less power and run faster.
        """
        generator = torch.Generator().manual_seed(0)
        made = []
        for shape in shapes:
            x = torch.randn(self.batch, *shape, generator=generator).to(self.torch_device, _DTYPES[self.precision])
            made.append(x.contiguous(memory_format=_FORMATS[self.memory_format]) if x.dim() == 4 else x)
        return made

    def call(self, module: nn.Module, *arguments: Any) -> Callable[[], Any]:
        """One inference of a module that was placed, as a function of nothing.

        Compiling or capturing happens here, not at the first call.

        Args:
            module: from `place`.
            *arguments: what it is called with, tensors from `inputs`.
        """
        run: Callable[..., Any] = module
        if self.mode == "compiled":
            # Without this, models of one class share torch's limit on recompilations and run eagerly beyond it.
            apart: Any = {"isolate_recompiles": True} if "isolate_recompiles" in _COMPILE_TAKES else {}
            run = torch.compile(module, dynamic=False, **apart)

        def forward() -> Any:
            with torch.inference_mode():
                return run(*arguments)

        with self.settings():
            if self.mode == "compiled":
                forward()
            if self.mode == "cuda_graph":
                return self._captured(forward)
        return forward

    def _captured(self, forward: Callable[[], Any]) -> Callable[[], Any]:
        with torch.cuda.device(self.torch_device):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_CUDA_WARM_UPS):
                    forward()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = forward()

        def replay() -> Any:
            graph.replay()
            return outputs

        return replay

    def between_calls(self) -> Callable[[], None] | None:
        """What runs, untimed, before each timed call: nothing, or a sweep over more memory than the caches hold."""
        if self.cache == "warm":
            return None
        place = self.torch_device
        if place.type == "cuda":
            held = torch.cuda.get_device_properties(place).L2_cache_size
        else:
            held = _largest_cpu_cache_bytes()
        sweep = torch.zeros(2 * held // 4, dtype=torch.float32, device=place)

        def flush() -> None:
            sweep.add_(1.0)

        return flush


def _largest_cpu_cache_bytes() -> int:
    """Size of the first CPU's largest cache as Linux reports it; else 64 MiB, more than most have."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        scale = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
        digits = text.rstrip("KMG")
        if digits.isdigit():
            sizes.append(int(digits) * scale)
    return max(sizes, default=64 << 20)


def shallow_copy(module: nn.Module) -> nn.Module:
    """A new module object around the same submodules and tensors: setting or deleting there does not change the
    first."""
    held = (*module.children(), *module.parameters(recurse=False), *module.buffers(recurse=False))
    return copy.deepcopy(module, {id(part): part for part in held})
