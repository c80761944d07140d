from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

# Models this small are quicker on one thread, ten times where others use the cores too. The same in child processes.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


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


@pytest.fixture(scope="session", autouse=True)
def _migrations_are_read_once() -> None:
    """Optuna reads the list of its migrations anew, from Python files, at every opening of a database."""
    from optuna.storages._rdb import storage

    manager = storage._VersionManager
    read = manager._create_alembic_script
    once: list[Any] = []

    def script(self: Any) -> Any:
        if not once:
            once.append(read(self))
        return once[0]

    manager._create_alembic_script = script


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process, without torch's import: (exit code, what it printed, what it complained of)."""
    from fpn_bench.cli import main
    from fpn_bench.cli.lists import out as console

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fpn-bench", *args])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return left.value.code or 0, out, err

    monkeypatch.setattr(console, "width", 300)
    return run
