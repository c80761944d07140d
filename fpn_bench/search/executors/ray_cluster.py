"""Workers as tasks of a Ray cluster."""

from __future__ import annotations

import os
from typing import Any

from fpn_bench.errors import FpnBenchError, InputError
from fpn_bench.search.executors.base import MAX_DEATHS, Handle, Job, run_worker_job
from fpn_bench.search.records import RunResult


class RayExecutor:
    """Each worker a task of a Ray cluster, which places it, and starts it anew where its node is lost.

    Joins the cluster that the environment variable ``RAY_ADDRESS`` or this machine's Ray names; where there is none, a
    local one is started.

    Args:
        gpus: of each worker; a fraction shares one.
        cpus: of each worker.
        address: of the cluster.

    Raises:
        InputError: Ray is not installed, or the cluster does not answer.
    """

    def __init__(self, *, gpus: float = 0.0, cpus: float = 1.0, address: str | None = None) -> None:
        """See the class."""
        try:
            import ray
        except ImportError:
            raise InputError('the executor ray needs Ray: `pip install "fpn-bench[ray]"`') from None
        self._ray = ray
        if not ray.is_initialized():
            try:
                ray.init(address=address or os.environ.get("RAY_ADDRESS") or None, log_to_driver=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise InputError(f"the Ray cluster at {address} does not answer: {error}") from error
        # Its end is no failure of its own: Ray runs it again where a node was lost.
        self._work = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=MAX_DEATHS)(run_worker_job)

    def start(self, job: Job, number: int) -> Handle:
        """See `Executor`."""
        return _RayTask(self._ray, self._work.remote(job, number))


class _RayTask:
    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray, self._reference = ray, reference

    def ended(self) -> RunResult | BaseException | None:
        ready, _ = self._ray.wait([self._reference], timeout=0)
        if not ready:
            return None
        try:
            result: RunResult = self._ray.get(self._reference)
            return result
        except self._ray.exceptions.TaskCancelledError:
            return KeyboardInterrupt()
        except self._ray.exceptions.RayTaskError as error:
            return FpnBenchError(str(error.cause))
        except self._ray.exceptions.RayError:
            return EOFError()

    def stop(self) -> None:
        self._ray.cancel(self._reference, force=False)

    def kill(self) -> None:
        self._ray.cancel(self._reference, force=True)
