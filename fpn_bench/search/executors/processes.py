"""Workers as processes of this machine."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from fpn_bench.errors import FpnBenchError, InputError
from fpn_bench.host import usable_cores
from fpn_bench.search.executors.base import Handle, Job, run_worker_job
from fpn_bench.search.records import RunResult

_logger = logging.getLogger(__name__)


class LocalExecutor:
    """Each worker a process.

    Args:
        threads: CPU threads of each; None shares the cores evenly.
        workers: how many there will be.
    """

    def __init__(self, workers: int, threads: int | None = None) -> None:
        """See the class."""
        self._threads = threads or max(1, usable_cores() // workers)

    def start(self, job: Job, number: int) -> Handle:
        """See `Executor`."""
        context = multiprocessing.get_context("spawn")  # a fork would carry torch's threads along, dead
        theirs, ours = context.Pipe()
        process = context.Process(target=_process, args=(job, number, theirs), name=f"fpn_bench worker {number}")
        with _environment(OMP_NUM_THREADS=str(self._threads), MKL_NUM_THREADS=str(self._threads)):
            process.start()
        theirs.close()
        return _Process(process, ours)


def _process(job: Job, number: int, pipe: Connection) -> None:
    outcome: RunResult | BaseException
    try:
        outcome = run_worker_job(job, number)
    except KeyboardInterrupt:
        return
    except Exception as error:
        _logger.debug("worker %d ended", number, exc_info=True)
        # By its text: errors with arguments of their own do not travel.
        known = isinstance(error, FpnBenchError)
        kind = InputError if isinstance(error, InputError) else FpnBenchError
        outcome = kind(str(error) if known else f"{type(error).__name__}: {error}")
    pipe.send(outcome)


class _Process:
    def __init__(self, process: Any, pipe: Connection) -> None:
        self._process, self._pipe = process, pipe
        self._outcome: RunResult | BaseException | None = None

    def ended(self) -> RunResult | BaseException | None:
        if self._outcome is None and (self._pipe.poll() or not self._process.is_alive()):
            try:
                self._outcome = self._pipe.recv() if self._pipe.poll() else EOFError()
            except (EOFError, OSError):
                self._outcome = EOFError()
            self._process.join()
        return self._outcome

    def stop(self) -> None:
        if self._process.is_alive():
            self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
