"""Other machines: what only Linux has is asked for first, and what is one machine's own is not another's."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

import pytest
import torch

import fpn_bench
from fpn_bench import host
from fpn_bench.latency import yardstick
from fpn_bench.profiling import device_lock
from fpn_bench.profiling.execution import Execution

PACKAGE = Path(fpn_bench.__file__).parent
CALLABLE = {"host_id", "running_system"}


@pytest.fixture(autouse=True)
def _asked_anew():
    for name in CALLABLE:
        getattr(host, name).cache_clear()
    yield
    for name in CALLABLE:
        getattr(host, name).cache_clear()


def test_cores_are_counted_where_there_is_no_affinity(monkeypatch) -> None:
    assert host.usable_cores() >= 1
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert host.usable_cores() == os.cpu_count()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert host.usable_cores() == 1


UNIX_MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "pty"}
UNIX_ONLY = {"sched_getaffinity", "fork", "getuid", "geteuid", "posix_fallocate", "getpgid", "killpg"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_unix_alone_has_is_never_taken_for_granted(path) -> None:
    """`os.X` of Unix behind `hasattr(os, "X")` or `getattr`; such modules inside a function, behind a way without."""
    text = path.read_text()
    tree = ast.parse(text)
    for item in ast.walk(tree):
        if isinstance(item, ast.Attribute) and isinstance(item.value, ast.Name) and item.value.id == "os":
            assert item.attr not in UNIX_ONLY or f'hasattr(os, "{item.attr}")' in text, item.attr
        if isinstance(item, ast.Import):
            assert "fcntl" not in {alias.name for alias in item.names}
    for item in tree.body:
        if isinstance(item, ast.Import):
            assert not UNIX_MODULES & {alias.name for alias in item.names}


def on_host(monkeypatch, name: str) -> None:
    """As on a machine of the same hardware with another name and another boot."""
    digest = f"{name:0<8}"
    for module in (host, device_lock, yardstick):
        for asked in CALLABLE & set(vars(module)):
            monkeypatch.setattr(module, asked, lambda digest=digest: digest)


def test_machines_that_share_a_home_have_locks_of_their_own(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("FPN_BENCH_CACHE", str(tmp_path))
    paths = []
    for name in ("aa", "bb", "aa"):
        on_host(monkeypatch, name)
        paths.append(device_lock.lock_path(torch.device("cpu")))
    assert paths[0] == paths[2] != paths[1]
    with device_lock.exclusive_device(torch.device("cpu")):
        on_host(monkeypatch, "bb")
        with device_lock.exclusive_device(
            torch.device("cpu")
        ):  # would wait for ever for one that the same machine holds
            pass


def test_machines_that_share_a_home_have_yardsticks_of_their_own(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("FPN_BENCH_CACHE", str(tmp_path))
    found = []
    for name, ms in (("aa", 1.0), ("bb", 2.0), ("aa", 3.0), ("bb", 4.0)):
        on_host(monkeypatch, name)
        found.append(yardstick.add_measurement(Execution(), ms, 10 * ms).yardstick_ms)
    assert found == [1.0, 2.0, 1.0, 2.0]


def test_a_yardstick_from_before_there_were_hosts_is_gone_on_with(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("FPN_BENCH_CACHE", str(tmp_path))
    yardstick.add_measurement(Execution(), 1.0, 10.0)
    path = tmp_path / "latency" / "yardstick.json"
    path.write_text(path.read_text().replace(f'"host": "{host.host_id()}"', '"hots": ""'))
    assert yardstick.add_measurement(Execution(), 5.0, 50.0).yardstick_ms == 1.0


def test_ids_stay_while_the_machine_does() -> None:
    code = "from fpn_bench import host; print(host.host_id(), host.running_system())"
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [host.host_id(), host.running_system()]
