"""Rendering of a page in Chromium."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.system_packages import require_program

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=1400,2400",
    "--virtual-time-budget=3000",
]


def find_chromium() -> str:
    """Find Chromium, or install it if the tests run as root."""
    return require_program("chromium", "chromium", "chromium-browser", "google-chrome")


def render(page: Path, profile: Path, *arguments: str, fragment: str = "") -> str:
    """Render a page and return the output of Chromium, such as that of `--dump-dom`."""
    url = f"{page.resolve().as_uri()}{fragment}"
    command = [find_chromium(), *FLAGS, f"--user-data-dir={profile}", *arguments, url]
    return subprocess.run(command, capture_output=True, check=True, timeout=120, text=True).stdout
