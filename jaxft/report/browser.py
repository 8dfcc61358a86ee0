"""Chromium, where there is one: it runs a page of ours and says what has become of it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from jaxft.errors import UserError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 120.0
# Our own page, which loads nothing: the sandbox would only keep Chromium from starting as root or
# in a container. Its time is its own, so that a slow machine draws as much as a quick one.
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--virtual-time-budget=60000",
)


def find_browser() -> str | None:
    """Return the path of Chromium, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def run_page(page: str) -> str:
    """The markup of a page after its scripts have run.

    Args:
        page: HTML that loads nothing.

    Raises:
        UserError: there is no Chromium, or it does not work.
    """
    browser = find_browser()
    if browser is None:
        raise UserError(
            "Chromium, which renders the figures, is not installed.",
            "Debian: apt-get install chromium.",
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(page, encoding="utf-8")
        profile = f"--user-data-dir={folder}/profile"
        command = [browser, *OPTIONS, profile, "--dump-dom", path.as_uri()]
        try:
            ran = subprocess.run(command, capture_output=True, timeout=SECONDS, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            raise UserError(f"{browser} did not render the figures: {error}.") from None
    return ran.stdout.decode("utf-8", errors="replace")
