"""Parameters, MACs, memory, the machine and how a model is run on it. Each module measures one thing and says what it
leaves out."""

from fpn_bench.profiling.device import check_device
from fpn_bench.profiling.device_lock import exclusive_device, shared_device
from fpn_bench.profiling.execution import Execution, shallow_copy
from fpn_bench.profiling.failure import ANY_ERROR, failure_of, translate_torch_errors
from fpn_bench.profiling.fvcore_counter import MacReport, count_macs_fvcore
from fpn_bench.profiling.machine import MachineRecord, machine
from fpn_bench.profiling.memory import Memory, measure_memory
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
    "ANY_ERROR",
    "Execution",
    "MacReport",
    "MachineRecord",
    "Memory",
    "ModuleProfile",
    "PartProfile",
    "StaticProfile",
    "Telemetry",
    "check_device",
    "count_macs",
    "count_macs_fvcore",
    "count_params",
    "exclusive_device",
    "failure_of",
    "machine",
    "measure_memory",
    "shallow_copy",
    "shared_device",
    "static_profile",
    "static_profile_in_a_row",
    "translate_torch_errors",
]
