"""The small assets that the pages and the notebooks read, made once for both."""

from pathlib import Path

import pytest

from tests.support.small_assets import small_assets


@pytest.fixture(scope="session")
def assets(tmp_path_factory, minilm, reviews) -> Path:
    """What `assets/` holds, of the same form and much smaller."""
    return small_assets(tmp_path_factory.mktemp("assets"), minilm, reviews)
