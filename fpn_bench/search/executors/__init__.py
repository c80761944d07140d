"""Several workers on one study: processes of this machine, or tasks of a Ray cluster.

Nothing is handed to a worker but where the study is and what makes its evaluator: each runs the whole loop of
`fpn_bench.search.worker` for itself, and what it finds goes into the study.
"""

from fpn_bench.search.executors.base import MAX_DEATHS, Executor, Handle, Job, run_worker_job
from fpn_bench.search.executors.overseer import oversee
from fpn_bench.search.executors.processes import LocalExecutor
from fpn_bench.search.executors.ray_cluster import RayExecutor

__all__ = ["MAX_DEATHS", "Executor", "Handle", "Job", "LocalExecutor", "RayExecutor", "oversee", "run_worker_job"]
