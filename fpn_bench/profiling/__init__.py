"""Profiling: parameters, MACs, latency, memory and the machine. Each measures one thing and says what it leaves out."""

from fpn_bench.profiling.device import check_device
from fpn_bench.profiling.device_lock import alone_on, working_on
from fpn_bench.profiling.execution import Execution
from fpn_bench.profiling.failure import failure_of, failures_told
from fpn_bench.profiling.fvcore_counter import MacReport, count_macs_fvcore
from fpn_bench.profiling.latency import Latency, measure_latency
from fpn_bench.profiling.machine import MachineRecord, machine
from fpn_bench.profiling.memory import Memory, measure_memory
from fpn_bench.profiling.profile import Model, Profile, backbone_parts, profile, profile_all
from fpn_bench.profiling.rounds import Comparison, Rounds, latency_of, measure_rounds
from fpn_bench.profiling.static import (
    ModuleProfile,
    PartProfile,
    StaticProfile,
    count_macs,
    count_params,
    static_profile,
    static_profile_in_a_row,
)
from fpn_bench.profiling.telemetry import Telemetry

__all__ = [
    "Comparison",
    "Execution",
    "Latency",
    "MacReport",
    "MachineRecord",
    "Memory",
    "Model",
    "ModuleProfile",
    "PartProfile",
    "Profile",
    "Rounds",
    "StaticProfile",
    "Telemetry",
    "alone_on",
    "backbone_parts",
    "check_device",
    "count_macs",
    "count_macs_fvcore",
    "count_params",
    "failure_of",
    "failures_told",
    "latency_of",
    "machine",
    "measure_latency",
    "measure_memory",
    "measure_rounds",
    "profile",
    "profile_all",
    "static_profile",
    "static_profile_in_a_row",
    "working_on",
]
