"""The small assets that the pages and the notebooks read, made once for both."""

from pathlib import Path

import jax
import pytest

from tests.support.small_assets import small_assets


@pytest.fixture(scope="session")
def assets(tmp_path_factory, minilm, reviews) -> Path:
    """What `assets/` holds, of the same form and much smaller."""
    return small_assets(tmp_path_factory.mktemp("assets"), minilm, reviews)


@pytest.fixture
def one_device(monkeypatch) -> None:
    """One CPU device, as the reader of a page has: eight fake ones take twice the time."""
    devices = jax.devices()[:1]
    for name in ("devices", "local_devices"):
        monkeypatch.setattr(jax, name, lambda *_, **__: list(devices))
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)
