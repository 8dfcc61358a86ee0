"""docs/bounds.md lists every bound, with its value."""

import re
from pathlib import Path

from jaxft import bounds

LINE = re.compile(r"^\| .* \| ([\d,]+)[ a-z]* \| `(\w+)` \|$", re.MULTILINE)


def test_the_page_has_every_bound():
    page = (Path(__file__).parents[2] / "docs" / "bounds.md").read_text()
    listed = {name: int(value.replace(",", "")) for value, name in LINE.findall(page)}
    assert listed == {name: value for name, value in vars(bounds).items() if name.isupper()}
