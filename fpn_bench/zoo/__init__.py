"""The published necks as data: one paper a file, each function returning a `NeckGraph`. No torch."""

from fpn_bench.zoo import baselines, fpn, pafpn  # noqa: F401  (imported to register)
from fpn_bench.zoo.registry import create_graph, describe, list_necks, options

__all__ = ["create_graph", "describe", "list_necks", "options"]
