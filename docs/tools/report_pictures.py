"""Draws docs/images/report.png and docs/images/dashboard.png, and prints the answer that README.md quotes.

    python docs/tools/report_pictures.py

A search on the table ``curves``, which trains nothing, gives the study. Needs Chromium and
``pip install "fpn-bench[dashboard]"``.
"""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

import fpn_bench as fb
from fpn_bench.search import run_study

IMAGES = Path(__file__).parents[1] / "images"
SIZE = (1180, 860)


def screenshot(address: str, target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "page.png"
        browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options = [f"--window-size={SIZE[0]},{SIZE[1]}", "--virtual-time-budget=8000", f"--screenshot={picture}"]
        subprocess.run([*browser, *options, address], check=True, capture_output=True, timeout=120)
        content = io.BytesIO()
        Image.open(picture).convert("RGB").quantize(64).save(content, "PNG", optimize=True)
    target.write_bytes(content.getvalue())


def main() -> None:
    table = fb.tabular.load("curves")
    space = table.space.replace(budget={"trials": 48, "confirm": 0.3, "seeds": 2}, rungs={"epochs": [2, 4]})
    with tempfile.TemporaryDirectory() as folder:
        study, _ = run_study(space, table.evaluator(space), table.metadata.protocol, f"{folder}/curves")
        page = Path(folder) / "report.html"
        fb.write_report(study.table(), study.metadata(), page, formats=["html"])
        screenshot(page.as_uri(), IMAGES / "report.png")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "fpn_bench"]
        server = subprocess.Popen([*command, "dashboard", f"{folder}/curves", "--port", str(port)])
        try:
            for _ in range(60):
                time.sleep(1)
                with socket.socket() as attempt:
                    if attempt.connect_ex(("127.0.0.1", port)) == 0:
                        break
            screenshot(f"http://127.0.0.1:{port}", IMAGES / "dashboard.png")
        finally:
            server.terminate()
        subprocess.run([*command, "choose", f"{folder}/curves", "--latency-max", "11"], check=True)


if __name__ == "__main__":
    main()
