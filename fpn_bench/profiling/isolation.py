"""Runs a function in its own process, so that its memory use and its crashes stay there."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from fpn_bench.errors import MeasurementError
from fpn_bench.paths import open_atomic
from fpn_bench.profiling.failure import ANY_ERROR, translate_torch_errors

T = TypeVar("T")


def isolated(fn: Callable[..., T], *arguments: Any, timeout_s: float | None = None) -> T:
    """``fn(*arguments)`` in a fresh process with this one's environment and number of threads.

    Args:
        fn: a function at the top level of a module that can be imported.
        *arguments: what can be pickled; modules of classes from the script that is run itself cannot be.
        timeout_s: then the process is killed.

    Returns:
        What `fn` returned.

    Raises:
        MeasurementError: `fn` raised (with the status of its error), or the process was killed or ran out of time.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "asked"), Path(folder, "answered")
        # Written by us a moment ago, in a folder that only this user can read: no foreign pickle is ever loaded.
        with asked.open("wb") as file:
            pickle.dump((fn, arguments, torch.get_num_threads()), file)
        paths = os.pathsep.join(p for p in sys.path if p)
        try:
            done = subprocess.run(
                [sys.executable, "-c", _CHILD, str(asked), str(answered)],
                env={**os.environ, "PYTHONPATH": paths},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise MeasurementError("timed_out", f"no answer within {timeout_s:g} s") from None
        if not answered.exists():
            raise _death(done.returncode, done.stderr)
        with answered.open("rb") as file:
            good, value = pickle.load(file)
    if good:
        return value  # type: ignore[no-any-return]
    raise MeasurementError(*value)


_CHILD = "import sys; from fpn_bench.profiling.isolation import _main; _main(*sys.argv[1:])"


def _death(returncode: int, stderr: bytes) -> MeasurementError:
    if returncode < 0:
        name = signal.Signals(-returncode).name
        why = ": the system does so where memory runs out" if returncode == -signal.SIGKILL else ""
        return MeasurementError("killed", f"the process was killed by {name}{why}")
    lines = stderr.decode(errors="replace").strip().splitlines()
    return MeasurementError(
        "failed", f"the process ended with {returncode}" + (f": {lines[-1][:200]}" if lines else "")
    )


def _main(asked: str, answered: str) -> None:
    """Runs in the child process."""
    answer: tuple[bool, Any]
    try:
        with translate_torch_errors(ANY_ERROR):
            with open(asked, "rb") as file:
                fn, arguments, threads = pickle.load(file)
            torch.set_num_threads(threads)
            answer = (True, fn(*arguments))
    except MeasurementError as failure:
        answer = (False, (failure.status, failure.reason))
    with open_atomic(answered) as stream:  # a process that dies here has not answered
        pickle.dump(answer, stream)
