"""Tables for the tests of analysis and reports: deterministic, shaped like those of a real search."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import pandas as pd

from fpn_bench.analysis import make_table
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo import create_graph

FEATURES = (FeatureSpec(3, 40, 8), FeatureSpec(4, 112, 16), FeatureSpec(5, 320, 32))

OBJECTIVES = [{"name": "ap", "direction": "maximize"}, {"name": "macs", "direction": "minimize"}]
PUBLISHED = (("fpn", 64), ("pafpn", 64), ("channel_mapper", 64), ("top_only", 64), ("fpn", 256))
GAIN = {"fpn": 4.6, "pafpn": 5.2, "channel_mapper": 0.0, "top_only": 0.8}


def row(trial: int = 0, **values: Any) -> dict[str, Any]:
    """One complete row; ``values`` replace its fields."""
    return {
        "study": "vehicles",
        "trial": trial,
        "candidate": f"c{trial:011x}",
        "status": "complete",
        "reason": "",
        "source": "sampled",
        "neck": "fpn",
        "neck_label": f"fpn {32 + trial}ch P3-P5",
        "seed": 0,
        "protocol": "1f0c5a7e9b21",
        "dataset": "oi_vehicles",
        "image_height": 256,
        "image_width": 256,
        "backbone": "tf_efficientnet_lite0",
        "weights": "pip:8d1c2a",
        "weights_random": False,
        "head": "fcos-2",
        "epochs": 8,
        "ap": 20.0,
        "ap50": 38.0,
        "ap75": 19.0,
        "ap_s": 4.0,
        "ap_m": 16.0,
        "ap_l": 31.0,
        "params": 3_900_000,
        "macs": 1_200_000_000,
        "neck_params": 200_000,
        "neck_macs": 150_000_000,
        "latency_ms": 14.0,
        "latency_low_ms": 13.8,
        "latency_high_ms": 14.3,
        "latency_p90_ms": 15.1,
        "latency_device": "cpu",
        "train_s": 43.0,
        "total_s": 46.0,
        "overhead_s": 0.2,
        "cache_hit": True,
        "started_at": "2026-02-03T10:00:00+00:00",
        "machine": "a91b",
        "machine_label": "AMD EPYC 7B13, 2 cores",
        "torch": "2.15.0",
        "fpn_bench": "0.1.0",
        "graph": "",
    } | values


UNTRAINED = dict.fromkeys(("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l", "train_s", "cache_hit"))


@functools.cache
def graph_json(neck: str, channels: int, coarsest: int = 5, merge: str = "sum", repeats: int = 1) -> str:
    """The graph of a neck on lite0's levels as JSON."""
    options: dict[str, Any] = {"fpn": {"merge": merge, "repeats": repeats}, "pafpn": {"merge": merge}}.get(neck, {})
    graph = create_graph(neck, FEATURES, tuple(range(3, coarsest + 1)), channels, **options)
    return json.dumps(graph.to_dict())


def realistic_rows(trials: int = 60, *, seeds: int = 1, random_state: int = 7) -> list[dict[str, Any]]:
    """Rows of a search over widths, levels, merge ops and repeats: the published necks first, then sampled ones.

    About one in eight is rejected for its latency, one in twenty-five fails, one in twenty repeats an earlier one.
    """
    rng = np.random.default_rng(random_state)
    rows: list[dict[str, Any]] = []
    for trial in range(trials):
        published = trial < len(PUBLISHED)
        if published:
            neck, channels = PUBLISHED[trial]
            repeats, merge, levels = 1, "sum", "P3-P5"
        else:
            neck = str(rng.choice(["fpn", "pafpn"]))
            channels = int(rng.choice([24, 32, 48, 64, 80, 96, 128, 160, 192, 256]))
            repeats = int(rng.integers(1, 4)) if neck == "fpn" else 1
            merge = str(rng.choice(["sum", "fast_normalised", "concat", "max"]))
            levels = str(rng.choice(["P3-P5", "P3-P6", "P3-P7"]))
        neck_macs = int(90_000 * channels**1.6 * repeats * (1.7 if merge == "concat" else 1.0))
        neck_params = int(8 * channels**1.8 * repeats)
        macs = 420_000_000 + 3 * neck_macs + 900_000 * channels
        latency = 7.5 + macs / 1.6e8 + float(rng.normal(0, 0.25))
        label = f"{neck} {channels}ch {levels}" + (f" x{repeats} {merge}" if not published else "")
        fields = {
            "candidate": f"{neck[:2]}{channels:03d}{repeats}{merge[:1]}{levels[-1]}{trial:04d}",
            "neck": neck,
            "neck_label": label,
            "source": "published" if published else "sampled",
            "macs": macs,
            "params": 3_400_000 + 3 * neck_params,
            "neck_macs": neck_macs,
            "neck_params": neck_params,
            "latency_ms": latency,
            "latency_low_ms": latency * 0.985,
            "latency_high_ms": latency * 1.02,
            "latency_p90_ms": latency * 1.08,
            "choice.channels": channels,
            "choice.merge": merge,
            "choice.repeats": repeats if neck == "fpn" and not published else None,
            "choice.levels": levels,
            "started_at": f"2026-02-03T{10 + trial // 60 % 12:02d}:{trial % 60:02d}:00+00:00",
            "graph": graph_json(neck, channels, int(levels[-1]), merge, repeats),
        }
        draw = rng.random()
        if latency > 24:
            reason = f"latency_ms {latency:.2f} > 24"
            rows.append(row(trial, **fields, **UNTRAINED, status="rejected", reason=reason, total_s=0.06))
        elif not published and draw < 0.04:
            reason = "loss became NaN in epoch 3"
            rows.append(row(trial, **fields, **UNTRAINED, status="failed", reason=reason, total_s=18.0))
        elif not published and draw < 0.09 and len(rows) > 8:
            first = rows[5]
            rows.append(
                first | {"trial": trial, "status": "repeat", "reason": f"same candidate as trial {first['trial']}"}
            )
        else:
            merit = 16 + GAIN[neck] + 2.1 * np.log2(channels / 64) - 0.35 * (np.log2(channels / 64)) ** 2
            merit += 0.7 * (repeats - 1) + {"sum": 0.0, "fast_normalised": 0.4, "concat": 0.6, "max": -0.8}[merge]
            for seed in range(seeds):
                ap = float(merit + rng.normal(0, 0.8))
                parts = {
                    "ap": ap,
                    "ap50": ap * 1.8,
                    "ap75": ap * 0.95,
                    "ap_s": ap * 0.2,
                    "ap_m": ap * 0.8,
                    "ap_l": ap * 1.5,
                }
                rows.append(row(trial, **fields, **parts, seed=seed))
    return rows


def realistic_table(trials: int = 60, *, seeds: int = 1, random_state: int = 7) -> pd.DataFrame:
    """`realistic_rows` as a checked table."""
    return make_table(realistic_rows(trials, seeds=seeds, random_state=random_state))


def study_meta(**values: Any) -> dict[str, Any]:
    """Metadata of the study behind `realistic_table`."""
    return {
        "name": "vehicles",
        "objectives": OBJECTIVES,
        "constraints": ["latency_ms <= 24"],
        "protocol": {
            "dataset": "oi_vehicles",
            "dataset_hash": "5b7f" * 16,
            "image_size": [256, 256],
            "head": {"kind": "fcos", "convs": 2},
            "training": {"epochs": 8, "batch_size": 16, "learning_rate": 0.002},
        },
        "space": "backbone: tf_efficientnet_lite0\nneck:\n  family: [fpn, pafpn]\n  channels: [24, 256]\n",
        "machine": {"id": "a91b", "cpu": "AMD EPYC 7B13", "cores": 2, "os": "Linux 6.1"},
        "notes": ["3 boxes of zero area dropped", "train 600 images, val 200 images, 6 classes"],
        "warnings": [],
        "versions": {"fpn_bench": "0.1.0", "torch": "2.15.0", "torchvision": "0.29.2", "timm": "1.0.31"},
        "created_at": "2026-02-03T10:00:00+00:00",
        "commands": ["fpn-bench search vehicles.yaml --data data/oi_vehicles --trials 60"],
    } | values
