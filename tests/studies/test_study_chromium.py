"""A study's page in a real browser: Debian's `chromium`, as in test_page_chromium."""

import pytest

import jaxft
from tests.report.test_page_chromium import CHROMIUM, FIGURES
from tests.support.tiny import tiny_config

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Of 2 decays x 2 rates x 2 seeds; one rate diverges."""
    config = tiny_config(tmp_path_factory.mktemp("page"), train={"length": 8, "log_every": 2})
    vary = {"layer_decay.rate": [1.0, 0.5], "optimizer.lr": [1e-3, 1e38], "run.seed.init": [0, 1]}
    return jaxft.study(config, vary, quiet=True).folder / "index.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn_and_nothing_is_loaded(browser, page, scheme):
    browser.open(page, scheme)
    traces = "f.querySelectorAll('.scatterlayer .trace, .heatmaplayer .hm').length"
    drawn = browser.ask(f"{FIGURES}.map(f => {traces})")
    assert drawn == [2, 2, 1, 8]
    assert browser.requests == [page.as_uri()]


@pytest.mark.parametrize("width", [360, 1400])
def test_nothing_spills_over_the_sides(browser, page, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    browser.open(page)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    browser.call("Emulation.clearDeviceMetricsOverride")
