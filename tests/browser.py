"""A real browser for tests: Debian's Chromium, headless, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Page


@contextmanager
def watched_page(*, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[tuple[Page, list[str]]]:
    """A page, and what it complained of: console errors, exceptions, requests to anywhere but this machine."""
    from playwright.sync_api import sync_playwright

    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser_path, "the tests of pages want Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        scheme = "dark" if dark else "light"
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        complaints: list[str] = []
        page.on("console", lambda m: complaints.append(f"console: {m.text}") if m.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(f"exception: {error}"))
        page.on("request", lambda r: complaints.append(f"request: {r.url}") if _leaves(r.url) else None)
        page.on("requestfailed", lambda r: complaints.append(f"failed: {r.url}") if not _leaves(r.url) else None)
        try:
            yield page, complaints
        finally:
            browser.close()


def _leaves(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme not in ("file", "data", "blob", "about") and parts.hostname not in ("127.0.0.1", "localhost")
