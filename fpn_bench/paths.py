"""Where everything that can be made again is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_home() -> Path:
    """``$FPN_BENCH_CACHE``, or ``~/.cache/fpn_bench``; asked anew each time."""
    return Path(os.environ.get("FPN_BENCH_CACHE") or Path.home() / ".cache" / "fpn_bench")
