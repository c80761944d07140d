"""Profiling: parameters, MACs, latency and the machine. Each measures one thing and says what it leaves out."""

from fpn_bench.profiling.fvcore_counter import MacReport, count_macs_fvcore
from fpn_bench.profiling.latency import Latency, check_device, measure_latency
from fpn_bench.profiling.machine import MachineRecord, machine
from fpn_bench.profiling.profile import Profile, backbone_parts, profile
from fpn_bench.profiling.static import (
    ModuleProfile,
    PartProfile,
    StaticProfile,
    count_macs,
    count_params,
    static_profile,
)

__all__ = [
    "Latency",
    "MacReport",
    "MachineRecord",
    "ModuleProfile",
    "PartProfile",
    "Profile",
    "StaticProfile",
    "backbone_parts",
    "check_device",
    "count_macs",
    "count_macs_fvcore",
    "count_params",
    "machine",
    "measure_latency",
    "profile",
    "static_profile",
]
