"""The picture of a report in README and on the site's first page.

`python -m docs.report_picture RUN` renders the report of a run in headless Chromium and writes
docs/img/report.webp.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from jaxft.errors import UserError
from jaxft.report.browser import OPTIONS, find_browser
from jaxft.report.page.page import write_page

PICTURE = Path(__file__).parent / "img" / "report.webp"
WIDTH, HEIGHT = 1400, 840  # of the window, in pixels; the picture is the top of the page


def main(words: list[str]) -> int:
    """Write the picture of the report of one run."""
    browser = find_browser()
    if len(words) != 1 or browser is None:
        raise UserError(
            "python -m docs.report_picture takes one run folder, and needs Chromium.",
            "Debian: apt-get install chromium.",
        )
    with tempfile.TemporaryDirectory() as folder:
        page = write_page([Path(words[0])], Path(folder) / "report.html")
        shot = Path(folder) / "shot.png"
        size = [f"--window-size={WIDTH},{HEIGHT}", "--hide-scrollbars", f"--screenshot={shot}"]
        profile = f"--user-data-dir={folder}/profile"
        command = [browser, *OPTIONS, *size, profile, page.as_uri()]
        subprocess.run(command, capture_output=True, check=True)
        with Image.open(shot) as image:
            image.convert("RGB").save(PICTURE, quality=80, method=6)
    print(PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
