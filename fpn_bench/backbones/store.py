"""Results of probes on disk: one small file a name and size, for the installed timm and torch only."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fpn_bench.json_text import parse_json
from fpn_bench.paths import cache_home, write_text_atomic
from fpn_bench.pyramid import ImageSize


@lru_cache(maxsize=1)
def _versions() -> str:
    """What a result depends on besides its arguments: timm, torch and this code."""
    code = b"".join((Path(__file__).parent / f"{name}.py").read_bytes() for name in ("models", "probe"))
    return f"timm{version('timm')}-torch{version('torch')}-{hashlib.sha256(code).hexdigest()[:8]}"


def _path(name: str, image_size: ImageSize | None, refuted: int) -> Path:
    home = cache_home()
    size = "any" if image_size is None else f"{image_size[0]}x{image_size[1]}"
    return home / "probes" / _versions() / size / f"{name}{f'-{refuted}' if refuted else ''}.json"


def load(name: str, image_size: ImageSize | None, refuted: int) -> dict[str, Any] | None:
    """The stored result; None if there is none, or its checksum is wrong."""
    try:
        kept = parse_json(_path(name, image_size, refuted).read_text(encoding="utf-8"))
        answer = kept["answer"]
        return answer if kept["sha256"] == digest(answer) and isinstance(answer, dict) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def digest(answer: Any) -> str:
    """sha256 of the answer as JSON text."""
    return hashlib.sha256(json.dumps(answer, sort_keys=True).encode()).hexdigest()


def save(name: str, image_size: ImageSize | None, refuted: int, data: dict[str, Any]) -> None:
    """Store an answer; where the folder cannot be written, it is probed again next time."""
    path = _path(name, image_size, refuted)
    with suppress(OSError):
        answer = json.loads(json.dumps(data))
        write_text_atomic(path, json.dumps({"answer": answer, "sha256": digest(answer)}))
