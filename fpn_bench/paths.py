"""Where everything that can be made again is kept, and how files are written."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fpn_bench.errors import InputError


def cache_home() -> Path:
    """``$FPN_BENCH_CACHE``, or ``~/.cache/fpn_bench``; asked anew each time."""
    return Path(os.environ.get("FPN_BENCH_CACHE") or Path.home() / ".cache" / "fpn_bench")


@contextlib.contextmanager
def open_atomic(path: str | os.PathLike[str], temporary: Path | None = None) -> Iterator[BinaryIO]:
    """A stream to write a file with, which takes its place by one rename when the block ends without an error.

    A reader, a crash or a full disk sees the old file or the new one, never half of one.

    Args:
        path: the file; its folder is made.
        temporary: the file that is written meanwhile, in the same folder; by default one of a name not used before.

    Raises:
        InputError: there is a folder at ``path``.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"expected the path of a file, got the folder {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary or target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):  # the error above is the one to see
            temporary.unlink()
        raise


def write_text_atomic(path: str | os.PathLike[str], text: str) -> Path:
    """`write_bytes_atomic` of ``text`` in UTF-8, newlines as they are."""
    return write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write a whole file through `open_atomic`; returns its path."""
    with open_atomic(path) as stream:
        stream.write(content)
    return Path(path)
