"""The page in a real browser: it draws, follows the axis, the runs and the pointer, and asks the network for nothing.

`DEEPSEARCH_PICTURES=DIR python -m pytest -n 0 tests/reporting/test_browser.py` keeps the picture of the last test.
"""

import os
import pathlib

import pytest

from experiments.report import write_report
from tests.browser import browser

CURVES = "[...document.querySelectorAll('.chart')].map(c => c.querySelectorAll('.curve').length)"
TICKS = "[...document.querySelector('.chart .plot').querySelectorAll('text')].map(t => t.textContent)"

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(tmp_path_factory, recorded):
    with browser("1500,1180") as session:
        written, _ = write_report(recorded, tmp_path_factory.mktemp("report"))
        session.open(written)
        yield session


def click(page, selector):
    box = page.run(f"document.querySelector({selector!r}).getBoundingClientRect().toJSON()")
    page.pointer(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, click=True)


def test_every_chart_is_drawn_and_nothing_is_asked_for(page):
    counts = page.run(CURVES)
    titles = page.run("[...document.querySelectorAll('.chart figcaption b')].map(b => b.textContent)")
    assert len(counts) == len(titles) > 15
    assert min(counts) >= 1
    assert counts[titles.index("Held-out pass@1")] == 2
    assert counts[titles.index("Expansions per tree")] == 1  # GRPO searches nothing
    # Every number that is written in a curve is a place within its drawing.
    assert page.run("[...document.querySelectorAll('.curve')].every(c => !/NaN|Infinity/.test(c.getAttribute('d')))")
    assert page.run("[...document.querySelectorAll('.curve')].every(c => c.getBBox().width > 50)")
    asked = [url.partition(":")[0] for url in page.requests()]
    assert [scheme for scheme in asked if scheme != "chrome"] == ["file"]  # the browser's own pages come from itself
    assert page.console() == []


def test_the_axis_can_be_chosen(page):
    assert page.run(TICKS)[-1] == "generated tokens"
    click(page, '[data-axis="gradient_steps"]')
    assert page.run(TICKS)[-1] == "gradient steps"
    click(page, '[data-axis="seconds"]')
    ticks = page.run(TICKS)
    assert ticks[-1] == "wall time"
    assert any(tick.endswith((" s", " min")) for tick in ticks)
    click(page, '[data-axis="generated_tokens"]')


def test_the_pointer_and_the_arrows_tell_values(page, recorded):
    plot = page.run("document.querySelector('.chart .plot').getBoundingClientRect().toJSON()")
    page.pointer(plot["x"] + plot["width"] - 14, plot["y"] + 60)
    tip = page.run("(t => t.hidden ? '' : t.innerText)(document.querySelector('.chart .tip'))")
    assert "deepsearch" in tip
    assert "[" in tip  # the interval
    box = page.run("document.querySelector('.chart .tip').getBoundingClientRect().toJSON()")
    assert plot["y"] <= box["y"] < box["bottom"] <= plot["bottom"]
    assert plot["x"] <= box["x"] < box["right"] <= plot["right"]
    page.run("document.querySelector('.chart .plot').focus()")
    page.keys("left")
    first = page.run("document.querySelector('.chart .tip').innerText")
    page.keys("left")
    assert page.run("document.querySelector('.chart .tip').innerText") != first
    page.run("document.activeElement.blur()")
    assert page.run("document.querySelector('.chart .tip').hidden")


def test_long_names_push_no_tip_out_of_its_chart(page):
    box = "document.querySelector({!r}).getBoundingClientRect().toJSON()"
    plot = page.run(box.format(".chart .plot"))
    page.run("document.querySelector('.chart .tip').style.minWidth = '330px'")
    for share in (0.15, 0.45, 0.6, 0.9):
        page.pointer(plot["x"] + plot["width"] * share, plot["y"] + 60)
        tip = page.run(box.format(".chart .tip"))
        assert tip["width"] >= 330
        assert plot["x"] - 1 <= tip["x"] < tip["right"] <= plot["right"] + 1
    page.run("document.querySelector('.chart .tip').style.minWidth = ''")
    page.pointer(2, 2)


def test_a_run_can_be_hidden(page):
    click(page, '[data-run="1"]')
    assert page.run(CURVES)[0] == 1
    click(page, '[data-run="1"]')
    assert page.run(CURVES)[0] == 2


def test_smoothing_keeps_the_raw_curve_in_sight(page):
    page.run("(s => { s.value = 6; s.dispatchEvent(new Event('input')); })(document.getElementById('smooth'))")
    assert page.run("document.querySelectorAll('.raw').length") > 10
    page.run("(s => { s.value = 0; s.dispatchEvent(new Event('input')); })(document.getElementById('smooth'))")
    assert page.run("document.querySelectorAll('.raw').length") == 0


def test_light_and_dark(page):
    color = "getComputedStyle(document.body).backgroundColor"
    light = page.run(color)
    click(page, "#theme")
    assert page.run(color) != light
    click(page, "#theme")
    assert page.run(color) == light


def test_nothing_is_wider_than_a_narrow_window(page):
    for width in (1500, 700, 400):
        page._ask("POST", "/window/rect", {"width": width, "height": 1180})
        page.wait("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
    page._ask("POST", "/window/rect", {"width": 1500, "height": 1180})


def test_a_picture_can_be_taken(page, tmp_path):
    page.run("window.scrollTo(0, 0)")
    plot = page.run("document.querySelector('.chart .plot').getBoundingClientRect().toJSON()")
    page.pointer(plot["x"] + plot["width"] * 0.6, plot["y"] + 60)
    page.wait("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")
    picture = pathlib.Path(os.environ.get("DEEPSEARCH_PICTURES", tmp_path)) / "report.png"
    page.screenshot(picture)
    assert picture.stat().st_size > 50_000
