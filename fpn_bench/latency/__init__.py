"""How long a model takes: one alone, several in turns, at a reference speed, and predicted; and the whole profile of a
model, which puts latency beside what is counted."""

from fpn_bench.latency.profile import Model, Profile, backbone_parts, profile, profile_all
from fpn_bench.latency.rounds import Comparison, Rounds, latency_of, measure_rounds
from fpn_bench.latency.single import Latency, measure_latency

__all__ = [
    "Comparison",
    "Latency",
    "Model",
    "Profile",
    "Rounds",
    "backbone_parts",
    "latency_of",
    "measure_latency",
    "measure_rounds",
    "profile",
    "profile_all",
]
