"""Every column that can be an objective or a bound, once: its name, unit and direction, when it is known, how it
scatters, and what two of its values must have in common to be compared.

Spaces, tables, reports, comparisons and chances read this registry and know no such column by name, except where one is
special (AP has a learning curve, latency is predicted). `register` adds a metric.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fpn_bench.errors import InputError, UnknownNameError

Direction = Literal["maximize", "minimize"]
Known = Literal["static", "measured", "trained"]
Noise = Literal["none", "interval", "seeds", "repeats"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A column that can be an objective or a bound. Its values are finite and not negative.

    Attributes:
        name: of the column, with its unit where it has one: ``"latency_ms"``.
        label: for people.
        direction: which way is better.
        known: ``"static"`` (without building anything), ``"measured"`` (on the device, before the training) or
            ``"trained"``. What is trained cannot be a bound: nothing would be saved.
        meaning: one line for the table's description.
        kind: of its values.
        unit, scale, digits: it is shown as ``value * scale`` with so many digits after the point, and the unit.
        noise: what one value scatters by: ``"none"`` (counted), ``"interval"`` (the 95 % interval in the columns
            `interval`), ``"seeds"`` (from training to training: a candidate has the mean over its seeds) or
            ``"repeats"`` (from measurement to measurement: a candidate has its first).
        interval: columns of the interval's two ends, where it is measured.
        prior_sd: standard deviation between seeds as it is known before any candidate has two, in the column's unit;
            NaN where it is not known.
        margin: difference that does not matter, in the column's unit.
        tolerance: share by which two values may differ and still be taken for one cost; measurements repeat no better.
        conditions: columns that must agree for two values to be compared, beside the protocol.
        compute: the value from a row's columns as far as they are known by then, ``graph`` (the neck as JSON) among
            them; None where the evaluator gives it.
        later: tables written before there was the column lack it.
    """

    name: str
    label: str
    direction: Direction
    known: Known
    meaning: str = ""
    kind: Literal["int", "float"] = "float"
    unit: str = ""
    scale: float = 1.0
    digits: int = 2
    noise: Noise = "none"
    interval: tuple[str, str] = ("", "")
    prior_sd: float = math.nan
    margin: float = 0.0
    tolerance: float = 0.0
    conditions: tuple[str, ...] = ()
    compute: Callable[[Mapping[str, Any]], float] | None = None
    later: bool = True


_METRICS: dict[str, Metric] = {}


def register(metric: Metric) -> Metric:
    """Make a metric known by its name; gives it back.

    Raises:
        InputError: the name is no lower-case identifier, or is taken; or it is trained and said to be exact.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", metric.name):
        raise InputError(f"expected a lower-case name of a metric such as 'node_count', got {metric.name!r}")
    if metric.name in _METRICS:
        raise InputError(f"expected the name of a new metric, got {metric.name!r}, which is registered already")
    if metric.known == "trained" and metric.noise == "none":
        raise InputError(f"expected noise='seeds' of {metric.name!r}, for two trainings differ, got noise='none'")
    _METRICS[metric.name] = metric
    return metric


def unregister(name: str) -> None:
    """Take a metric out again. Raises UnknownNameError where there is none of that name."""
    if _METRICS.pop(name, None) is None:
        raise UnknownNameError("metric", name, _METRICS)


def metrics(*known: Known) -> tuple[Metric, ...]:
    """The registered metrics, of these times alone where some are given; in the order of their registration."""
    return tuple(metric for metric in _METRICS.values() if not known or metric.known in known)


def metric_of(name: str) -> Metric:
    """The metric of a column; of a plain number of the table one that says no more than its name."""
    if name in _METRICS:
        return _METRICS[name]
    conditions = LATENCY_CONDITIONS if name.startswith("latency_") else ()
    return Metric(name, name, "minimize", "trained", noise="repeats", conditions=conditions)


def computed(row: Mapping[str, Any], known: Known) -> dict[str, float]:
    """What metrics of this time compute from the columns of a row."""
    return {metric.name: metric.compute(row) for metric in metrics(known) if metric.compute is not None}


# --------------------------------------------------------------------------------------------------------------
# The metrics of the package

LATENCY_CONDITIONS = (
    "machine",
    "latency_device",
    "latency_batch",
    "latency_precision",
    "latency_memory_format",
    "latency_mode",
    "latency_cache",
)
"""Columns in which two latencies must agree to be compared; a value that only one of them has is a difference."""


def _ap(name: str, label: str, meaning: str, sd: float) -> None:
    own: dict[str, Any] = {"digits": 1, "noise": "seeds", "prior_sd": sd, "margin": 0.5, "later": False}
    register(Metric(name, label, "maximize", "trained", meaning, **own))


def _count(name: str, label: str, meaning: str, shown: tuple[str, float, int]) -> None:
    unit, scale, digits = shown
    register(Metric(name, label, "minimize", "static", meaning, "int", unit, scale, digits, later=False))


# Known of seeds beforehand. AP: 1.05 over the 344 networks of the table `curves`, two seeds each. The shipped suites,
# three seeds each, lie around it: 1.08 (necks, 30 candidates), 0.93 and 0.70 (ablation, 20 each), 1.20, 1.06 and 0.67
# (backbones, 6 each). `results/seed_spread.csv` has 0.8 to 1.5. The parts: pooled over the suites on `oi_vehicles`
# (ap50 1.3 to 2.0, ap75 2.0 to 2.3, ap_m 0.8 to 1.3, ap_l 1.1 to 1.8); ap_s has its value from AP, for hardly any small
# object is found there (0.06).
_ap("ap", "AP", "COCO AP, percent points 0..100; NaN when undefined or not trained", 1.05)
_ap("ap50", "AP50", "AP at IoU 0.5, percent points", 1.8)
_ap("ap75", "AP75", "AP at IoU 0.75, percent points", 2.1)
_ap("ap_s", "AP small", "AP of small objects, percent points", 1.0)
_ap("ap_m", "AP medium", "AP of medium objects, percent points", 1.2)
_ap("ap_l", "AP large", "AP of large objects, percent points", 1.6)
_count("params", "Parameters", "parameters of the whole detector", ("M", 1e-6, 2))
_count("macs", "MACs", "multiply-adds of the whole detector for one image", ("G", 1e-9, 3))
_adapter = "parameters of the backbone's adapter, as far as the neck reads it"
_count("adapter_params", "Adapter parameters", _adapter, ("M", 1e-6, 3))
_count("adapter_macs", "Adapter MACs", "multiply-adds of the backbone's adapter for one image", ("G", 1e-9, 3))
_count("neck_params", "Neck parameters", "parameters of the neck, without the adapter", ("M", 1e-6, 3))
_count("neck_macs", "Neck MACs", "multiply-adds of the neck for one image, without the adapter", ("G", 1e-9, 3))
register(
    Metric(
        "latency_ms",
        "Latency",
        "minimize",
        "measured",
        "median forward time of one batch, at the device's reference speed",
        unit="ms",
        noise="interval",
        interval=("latency_low_ms", "latency_high_ms"),
        tolerance=0.05,
        conditions=LATENCY_CONDITIONS,
        later=False,
    )
)
register(
    Metric(
        "energy_j",
        "Energy",
        "minimize",
        "measured",
        "energy of one image; missing where the device reports none",
        unit="J",
        digits=3,
        noise="repeats",
        tolerance=0.05,
        conditions=LATENCY_CONDITIONS,
    )
)
register(
    Metric(
        "peak_mib",
        "Peak memory",
        "minimize",
        "measured",
        "peak memory of one batch: on CUDA what torch gave out, on the CPU the resident set of a process of its own",
        unit="MiB",
        digits=1,
        noise="repeats",
        tolerance=0.05,
        conditions=(*LATENCY_CONDITIONS[:-1], "torch"),
    )
)
