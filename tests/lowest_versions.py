"""Write the lowest versions that pyproject.toml names as pinned requirements: ``python lowest_versions.py FILE``."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

EXTRAS = ("dashboard", "onnx")


def lowest() -> list[str]:
    """``name==version`` of every dependency, those of `EXTRAS` included, that has a lowest version."""
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *(d for e in EXTRAS for d in project["optional-dependencies"][e])]
    return [re.sub(r">=", "==", text) for text in listed]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text("\n".join(lowest()) + "\n")
