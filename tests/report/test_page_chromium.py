"""The page in a real browser, driven over Chromium's debugging pipe: Debian's `chromium`."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from jaxft.report.page.page import write_page
from jaxft.report.page.png import write_pngs
from tests.support.synthetic_run import write_json, write_run

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
EVIL = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"


@pytest.fixture
def page(tmp_path) -> Path:
    return write_page([write_run(tmp_path)])


FIGURES = "Array.from(document.querySelectorAll('.figure'))"


def column(number):
    """The text of a column of the layer table, of the rows that are shown."""
    rows = "document.querySelectorAll('#layers-0 tbody tr:not([hidden])')"
    return f"Array.from({rows}, row => row.cells[{number}].textContent.trim())"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn_and_nothing_is_loaded(browser, page, scheme):
    browser.open(page, scheme)
    traces = "'.scatterlayer .trace, .heatmaplayer image'"
    drawn = browser.ask(f"{FIGURES}.map(f => f.querySelectorAll({traces}).length)")
    assert len(drawn) == 18
    assert min(drawn) >= 1
    assert browser.requests == [page.as_uri()]


def test_a_line_of_one_point_is_seen(browser, tmp_path):
    run = write_run(tmp_path)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    trained = [line for line in lines if json.loads(line)["kind"] == "train"]
    (run / "metrics.jsonl").write_text("".join(one for one in lines if one not in trained[1:]))
    browser.open(write_page([run]))
    points = "f => f.querySelectorAll('.scatterlayer .point').length"
    assert browser.ask(f"({points})(document.getElementById('figure-grad_norm'))") == 1


def test_the_theme_is_followed_while_the_page_is_open(browser, page):
    browser.open(page, "light")
    colour = f"{FIGURES}[0].querySelector('.js-line').style.stroke"
    light, ground = browser.ask(colour), browser.ask("getComputedStyle(document.body).background")
    browser.scheme("dark")
    browser.wait(f"{colour} !== '{light}'")
    assert browser.ask("getComputedStyle(document.body).background") != ground


def test_the_layer_table_sorts_by_number_and_filters(browser, page):
    browser.open(page)
    button = "document.querySelectorAll('#layers-0 thead button')[7].click()"
    browser.ask(button)
    assert browser.ask(column(7))[:2] == ["2", "384"]
    browser.ask(button)
    assert browser.ask(column(7))[0] == "11,720,448"
    browser.ask("document.querySelectorAll('#layers-0 thead button')[0].click()")
    names = browser.ask(column(0))
    assert names[0] == "embeddings/position/embedding"
    assert len(names) == 105
    filter_by = "f.value = 'blocks/3 KERNEL'; f.dispatchEvent(new Event('input'))"
    browser.ask(f"(f => {{ {filter_by} }})(document.querySelector('input[type=search]'))")
    found = browser.ask(column(0))
    assert len(found) == 6
    assert all(name.startswith("blocks/3/") and name.endswith("/kernel") for name in found)


def test_a_link_to_a_run_opens_it(browser, tmp_path):
    runs = [write_run(tmp_path, name) for name in ("one", "two")]
    browser.open(write_page(runs))
    closed = "!document.getElementById('run-1').open"
    assert browser.ask(closed)
    browser.ask("document.querySelector('nav a[href=\"#run-1\"]').click()")
    browser.wait(f"!({closed})")


def test_a_click_on_a_run_puts_it_before_the_others(browser, tmp_path):
    browser.open(write_page([write_run(tmp_path, name) for name in ("one", "two")]))
    lines = f"Array.from({FIGURES}[0].querySelectorAll('.scatterlayer .trace'))"
    opacity = f"{lines}.map(line => line.style.opacity)"
    both = browser.ask(opacity)
    pick = "document.querySelectorAll('.pick')[1]"
    browser.ask(f"{pick}.click()")
    browser.wait(f"JSON.stringify({opacity}) !== '{json.dumps(both, separators=(',', ':'))}'")
    assert browser.ask(opacity)[: len(both) // 2] == ["0.08"] * (len(both) // 2)
    assert browser.ask(opacity)[len(both) // 2 :] == both[len(both) // 2 :]
    assert browser.ask(f"{pick}.getAttribute('aria-pressed')") == "true"
    browser.ask(f"{pick}.click()")
    browser.wait(f"JSON.stringify({opacity}) === '{json.dumps(both, separators=(',', ':'))}'")


def test_many_runs_are_low_rows_on_a_narrow_page(browser, tmp_path):
    page = write_page([write_run(tmp_path, f"run-{number}") for number in range(9)])
    size = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    browser.open(page)
    rows = "Array.from(document.querySelectorAll('.compare tr'), row => row.offsetHeight)"
    assert max(browser.ask(rows)) < 100
    assert browser.ask("document.documentElement.scrollWidth") <= 400
    browser.call("Emulation.clearDeviceMetricsOverride")


@pytest.mark.parametrize("runs", [1, 9])
def test_each_figure_is_a_picture(tmp_path, runs):
    written = write_pngs([write_run(tmp_path, f"run-{n}") for n in range(runs)], tmp_path / "png")
    names = [path.stem for path in written]
    assert len(names) == (18 if runs == 1 else 9)
    assert {"score-loss", "rates", "roc"} <= set(names)
    assert sorted(path.name for path in (tmp_path / "png").iterdir()) == sorted(
        path.name for path in written
    )
    for path in written:
        with Image.open(path) as picture:
            assert picture.width == 1920
            assert picture.height >= 1080
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 20  # something is drawn


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_nothing_spills_over_the_sides(browser, page, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    browser.open(page)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    browser.call("Emulation.clearDeviceMetricsOverride")


def test_a_text_of_a_run_does_not_run(browser, tmp_path):
    # A run's name has no such signs in it, but whoever hands the folder on may have renamed it.
    run = write_run(tmp_path).rename(tmp_path / EVIL.replace("/", "\\"))
    mistake = {"id": 0, "text": EVIL, "label": EVIL, "predicted": "other", "loss": 9.0}
    text = json.dumps({**mistake, "probabilities": {EVIL: 0.1, "other": 0.9}})
    (run / "predictions-test.jsonl").write_text(text + "\n")
    about = json.loads((run / "run.json").read_text())
    write_json(run / "run.json", {**about, "state": f'">{EVIL}', "command": EVIL})
    page = write_page([run], tmp_path / "page.html")
    browser.open(page)
    assert browser.ask("document.querySelector('.mistakes p').textContent") == EVIL
    assert browser.ask("typeof window.hacked") == "undefined"
    assert browser.requests == [page.as_uri()]


def test_a_label_is_no_markup_in_a_figure(browser, tmp_path):
    run = write_run(tmp_path)
    link = "<a href='https://evil.example'>good</a>"
    for when in ("before", "after"):
        path = run / f"embeddings-{when}.json"
        points = json.loads(path.read_text())
        labels = [
            {"positive": link, "negative": "<b>bad</b> \u202eeno"}[one] for one in points["labels"]
        ]
        write_json(path, {**points, "labels": labels})
    browser.open(write_page([run], tmp_path / "page.html"))
    browser.wait("document.querySelectorAll('.legendtext').length > 0")
    assert browser.ask("document.querySelectorAll('.figure a[href], .figure svg a').length") == 0
    texts = browser.ask(f"{FIGURES}.map(f => f.querySelector('.legend')?.textContent ?? '').join()")
    assert link in texts
    assert "<b>bad</b> \\u202eeno" in texts
    assert browser.ask("document.body.textContent.includes('\u202e')") is False
