"""From what torch raises to what stands in a row: a status and a reason of one line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

from fpn_bench.errors import FailureStatus, MeasurementError

# torch has a type for few of its refusals: the others are known by their words, the first that fits.
_WORDS: tuple[tuple[FailureStatus, str], ...] = (
    ("out_of_memory", r"out of memory|can't allocate memory|not enough memory|alloc_failed|cannot allocate"),
    ("not_traceable", r"captur|cudagraph|torch\.compile|dynamo|inductor|tracing|data-dependent"),
    ("unsupported", r"status_not_supported|no kernel image|invalid argument|invalid configuration|arch_mismatch"),
    (
        "device_lost",
        r"cuda error|cudnn_status_|no cuda gpus|device-side assert|nvml error|hip error",
    ),
    (
        "unsupported",
        r"not implemented for|not supported|unsupported|could not run .* with arguments|no kernel"
        r"|same dtype|scalar type|should be the same|dtype",
    ),
)
_TORCH_ERRORS = (RuntimeError, NotImplementedError, MemoryError)
ANY_ERROR = (Exception,)
_BY_WORDS = tuple((status, re.compile(words, re.IGNORECASE)) for status, words in _WORDS)


def failure_of(error: BaseException) -> MeasurementError:
    """The failure that an exception of a measured model stands for."""
    if isinstance(error, MeasurementError):
        return error
    text = " ".join(str(error).split())
    reason = text[:200] + "..." * (len(text) > 200) if text else type(error).__name__
    return MeasurementError(_status(error, text), reason)


@contextlib.contextmanager
def translate_torch_errors(
    kinds: tuple[type[Exception], ...] = _TORCH_ERRORS, *, but: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """What torch raises inside, as the status and the line that stand in a row or are said.

    Args:
        kinds: what is translated; `ANY_ERROR` where a model's own code runs, which may raise whatever there is.
        but: of these kinds, what goes through as it is.

    Raises:
        MeasurementError: in the place of it.
    """
    try:
        yield
    except kinds as error:
        if isinstance(error, (MeasurementError, *but)):
            raise
        raise failure_of(error) from error


def _status(error: BaseException, text: str) -> FailureStatus:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return "out_of_memory"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "torch.fx", "torch._export")):
        return "not_traceable"
    if isinstance(error, NotImplementedError):
        return "unsupported"
    return next((status for status, words in _BY_WORDS if words.search(text)), "failed")
