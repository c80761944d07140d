from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the real photos and weights (`data/`, `weights/`), from the environment variable FPN_BENCH_SHARED."""
    folder = os.environ.get("FPN_BENCH_SHARED")
    if not folder:
        pytest.skip("FPN_BENCH_SHARED is not set: it names the folder with the photos and weights this test reads")
    path = Path(folder)
    if not (path / "data").is_dir():
        pytest.fail(f"FPN_BENCH_SHARED is {folder}, which has no data/ folder")
    return path
