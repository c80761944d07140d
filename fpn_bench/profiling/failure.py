"""Turns exceptions of torch into a status and a one-line reason, as table rows have them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

from fpn_bench.errors import FailureStatus, MeasurementError

# torch has exception types for few of its failures; the others are recognised by their message, first match wins.
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
    """The MeasurementError for an exception that a measured model raised."""
    if isinstance(error, MeasurementError):
        return error
    text = " ".join(str(error).split())
    reason = text[:200] + "..." * (len(text) > 200) if text else type(error).__name__
    return MeasurementError(_status(error, text), reason)


@contextlib.contextmanager
def translate_torch_errors(
    kinds: tuple[type[Exception], ...] = _TORCH_ERRORS, *, but: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Raise exceptions from inside the block as MeasurementError, with a status and a one-line reason.

    Args:
        kinds: exceptions to translate; `ANY_ERROR` where a model's own code runs, which may raise anything.
        but: exceptions among these kinds that pass unchanged.

    Raises:
        MeasurementError: instead of the exception.
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
