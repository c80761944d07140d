"""Words with a fixed set of values that several packages and the command line share. No torch."""

from __future__ import annotations

from typing import Literal

Precision = Literal["fp32", "tf32", "fp16", "bf16"]
MemoryFormat = Literal["contiguous", "channels_last"]
Mode = Literal["eager", "compiled", "cuda_graph"]
CacheState = Literal["warm", "cold"]
"""How a model is run, see `fpn_bench.profiling.Execution`."""

AdapterName = Literal["simple", "taps", "none"]
"""What makes the levels that a backbone lacks, see `fpn_bench.create_backbone`."""
