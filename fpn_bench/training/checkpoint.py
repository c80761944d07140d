"""Where a training that is not whole is kept, so that it can go on in another process, later."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import json
import logging
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import psutil
import torch

from fpn_bench.json_text import parse_json
from fpn_bench.paths import open_atomic

CHECKPOINT_FORMAT: Final = 1
_log = logging.getLogger(__name__)


class _UnusableError(Exception):
    """Why a file cannot be gone on from."""


class Checkpoint:
    """One training's file: a line of JSON (format, identity, sha256 of the rest), then what `torch.save` wrote.

    It saves work and nothing else, so no fault of it ends a training: a file that does not fit is as good as none, a
    disk that is full leaves the training without one, and either is logged.

    Args:
        path: the file; its folder is made when it is first written.
        identity: what the training is a function of, in one line. A file of another identity is not read.
        every_s: seconds of training between two writes while it runs.
    """

    def __init__(self, path: Path, identity: str, *, every_s: float = 20.0) -> None:
        self.path = path
        self.identity = identity
        self.every_s = every_s
        # A name of its own: studies that share a folder may write the same training at the same time.
        self._unfinished = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.writing")
        self._written_at = time.monotonic()
        self._failed = False

    @property
    def due(self) -> bool:
        """Whether what would be lost by now is worth a write."""
        return time.monotonic() - self._written_at > self.every_s

    def read(self) -> dict[str, Any] | None:
        """What was written last, tensors on the CPU; None where there is nothing that fits."""
        self._written_at = time.monotonic()
        try:
            return self._read()
        except FileNotFoundError:
            return None
        except OSError as error:
            self.refuse(f"cannot be read ({error.strerror})")
        except _UnusableError as error:
            self.refuse(str(error))
        return None

    def _read(self) -> dict[str, Any]:
        header, _, payload = self.path.read_bytes().partition(b"\n")
        try:
            about = parse_json(header)
            written, identity, digest = about["format"], about["identity"], about["sha256"]
        except (ValueError, TypeError, KeyError) as error:
            raise _UnusableError("is no checkpoint") from error
        if written != CHECKPOINT_FORMAT:
            raise _UnusableError(f"has format {written}, and this fpn_bench reads {CHECKPOINT_FORMAT}")
        if identity != self.identity:
            raise _UnusableError(f"is of another training ({identity})")
        if hashlib.sha256(payload).hexdigest() != digest:
            raise _UnusableError("is torn")
        state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        return state

    def refuse(self, reason: str) -> None:
        """Log that the training begins anew, and why."""
        _log.warning("training begins anew: its checkpoint %s %s", self.path, reason)

    def write(self, state: Mapping[str, Any]) -> None:
        """Keep plain values and tensors in the place of what was kept before; whole or not at all."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        payload = buffer.getbuffer()
        about = {
            "format": CHECKPOINT_FORMAT,
            "identity": self.identity,
            "sha256": hashlib.sha256(payload).hexdigest(),
        }
        self._written_at = time.monotonic()
        try:
            with open_atomic(self.path, self._unfinished) as stream:
                stream.write(json.dumps(about).encode() + b"\n")
                stream.write(payload)
        except OSError as error:
            if not self._failed:
                _log.warning("training goes on without a checkpoint: %s: %s", self.path, error.strerror)
            self._failed = True

    def delete(self) -> None:
        """Leave nothing behind; a file that cannot be removed stays, and would lead to the same weights."""
        for path in (self._unfinished, self.path, *_orphans(self.path.parent, self.path.name)):
            with contextlib.suppress(OSError):
                path.unlink()


class CheckpointFolder:
    """Trainings that are not whole, of any number of studies.

    Args:
        path: the folder; made when something is first written.
    """

    def __init__(self, path: Path) -> None:
        """See the class."""
        self.path = path

    def checkpoint(self, name: str, identity: str) -> Checkpoint:
        """One training's, see `Checkpoint`."""
        return Checkpoint(self.path / name, identity)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(size for _, size, _ in self._files())

    def trim(self, max_bytes: int) -> None:
        """Delete what was written least recently until the rest fits; what killed processes left goes first.

        A training under way that loses its checkpoint goes on and writes the next.
        """
        for path in _orphans(self.path):
            with contextlib.suppress(OSError):
                path.unlink()
        files = self._files()
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= max_bytes:
                return
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size

    def _files(self) -> list[tuple[float, int, Path]]:
        """(time of writing, bytes, path), the oldest first; other processes may delete them meanwhile."""
        found = []
        for path in self.path.glob("*.pt"):
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return sorted(found)


def _orphans(folder: Path, name: str = "") -> list[Path]:
    """Files that were being written by processes of this machine that are gone, or an hour ago."""
    orphans = []
    for path in folder.glob(f"{glob.escape(name)}*.writing"):
        writer = path.name.removesuffix(".writing").rpartition(".")[2].partition("-")[0]
        with contextlib.suppress(OSError):
            is_old = time.time() - path.stat().st_mtime > 3600
            if is_old or not (writer.isdecimal() and psutil.pid_exists(int(writer))):
                orphans.append(path)
    return orphans
