"""Where Chromium or Chrome lies on this machine: the browser tests drive it."""

from __future__ import annotations

import os
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
APPS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)


def find_chromium() -> str | None:
    """Its path, from ``PATH`` or a Mac's applications; None if there is none."""
    on_path = (shutil.which(name) for name in NAMES)
    apps = (path for path in APPS if os.access(path, os.X_OK))
    return next((path for path in (*on_path, *apps) if path), None)
