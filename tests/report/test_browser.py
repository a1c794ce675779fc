"""The page in a headless Chromium: no errors, no requests, a slider and charts that work."""

import io
import os
import shutil

import numpy as np
import pytest
from made_up import full, opened
from PIL import Image
from synthetic import stored_run

from iddpm_jax import report

pytestmark = pytest.mark.slow

NAMES = ("chromium", "google-chrome", "google-chrome-stable", "chrome", "chromium-browser")
SCHEMES = ("light", "dark")


@pytest.fixture(name="browser", scope="module")
def start_browser():
    """A Chromium that is installed: $CHROMIUM, one on the path, or playwright's own."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    with playwright.sync_playwright() as started:
        if path is None and not os.path.exists(started.chromium.executable_path):
            pytest.skip("no Chromium here; apt-get install chromium, or set CHROMIUM to its path")
        # The sandbox does not start for root, and the page is our own.
        browser = started.chromium.launch(executable_path=path, chromium_sandbox=False)
        yield browser
        browser.close()


@pytest.fixture(name="address", scope="module")
def write_page(tmp_path_factory):
    """Address of a page on which nothing is missing."""
    folder = tmp_path_factory.mktemp("page") / "run"
    list(report.write(folder, full(folder), False))
    return (folder / "report.html").as_uri()


@pytest.fixture(name="visit")
def make_visit(browser, address):
    """Function (options of the visit) -> page; at the end it had no errors and asked nobody."""
    contexts, told, asked = [], [], []

    def visit(to=address, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: told.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: told.append(f"error: {error}"))
        page.on("requestfailed", lambda request: told.append(f"failed: {request.url}"))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(to)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert told == []
    pages = [url for url in asked if not url.startswith("data:")]
    assert all(url.startswith("file:") and url.endswith("report.html") for url in pages)
    assert len(pages) == len(contexts)


def pixels(page, selector):
    """What is seen of an element."""
    with Image.open(io.BytesIO(page.locator(selector).first.screenshot())) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_slider_changes_the_pictures_by_key_and_by_value(visit):
    page = visit()
    slider = page.get_by_label("Denoising step")
    assert (slider.get_attribute("aria-valuetext"), slider.input_value()) == ("t = 0", "5")
    finished = pixels(page, ".window")
    seen = [finished]
    slider.focus()
    for key, words in (("ArrowLeft", "t = 1"), ("Home", "t = 20"), ("ArrowRight", "t = 15")):
        page.keyboard.press(key)
        assert slider.get_attribute("aria-valuetext") == words
        assert page.locator("output#time").text_content() == words
        seen.append(pixels(page, ".window"))
    slider.fill("3")
    assert slider.get_attribute("aria-valuetext") == "t = 6"
    seen.append(pixels(page, ".window"))
    for i, one in enumerate(seen):
        for other in seen[:i]:
            assert (np.abs(one - other).max(axis=-1) > 20).mean() > 0.3
    page.keyboard.press("End")
    np.testing.assert_array_equal(pixels(page, ".window"), finished)


def test_window_shows_one_frame_at_its_place(visit):
    page = visit(viewport={"width": 1280, "height": 900})
    for window in page.locator(".window").all():
        image = window.locator("img")
        box, inner = window.bounding_box(), image.bounding_box()
        assert inner["height"] == pytest.approx(6 * box["height"], rel=0.01)
        assert inner["y"] + inner["height"] == pytest.approx(box["y"] + box["height"], abs=1)


def test_play_goes_on_frame_by_frame_and_stops_at_the_end(visit):
    page = visit()
    button, slider = page.locator("#play"), page.locator("#moment")
    # Time passes when the test says so.
    page.evaluate("() => { window.setInterval = (f) => { window.tick = f; return 1; }; }")
    button.click()
    assert (button.text_content(), slider.input_value()) == ("Pause", "0")
    page.evaluate("tick()")
    assert slider.input_value() == "1"
    button.click()
    assert (button.text_content(), slider.input_value()) == ("Play", "1")
    button.click()
    for _ in range(4):
        page.evaluate("tick()")
    assert (button.text_content(), slider.input_value()) == ("Play", "5")
    assert page.locator("#time").text_content() == "t = 0"


def test_charts_say_their_values_by_pointer_and_by_key(visit):
    page = visit()
    chart = page.locator('[data-chart="l_vlb"]')
    svg, values = chart.locator("svg[role=slider]"), chart.locator(".legend b")
    assert values.first.text_content() == "2.5"
    assert chart.locator(".at").text_content() == "at training step 4"
    assert svg.locator("path").count() == 5 and svg.locator("path").first.get_attribute("d")
    svg.hover(position={"x": 60, "y": 100})
    assert values.first.text_content() == "5"
    page.mouse.move(0, 0)
    assert values.first.text_content() == "2.5"
    svg.focus()
    page.keyboard.press("ArrowLeft")
    assert values.first.text_content() == "5"
    assert svg.get_attribute("aria-valuetext").startswith("training step 2: all t 5; ")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [1280, 390])
def test_page_fits_its_window_in_either_scheme(visit, width, scheme):
    page = visit(viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    drawn = page.locator("[data-chart] > svg")
    assert drawn.count() == page.locator("[data-chart]").count() == 8


def test_print_is_dark_on_white_without_controls(visit):
    page = visit(color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#play").is_visible() and page.locator(".window").first.is_visible()


def test_links_unfold_what_decided_a_result(visit):
    page = visit()
    details = page.locator("#nll-1")
    assert details.get_attribute("open") is None
    page.locator('a[href="#nll-1"]').click()
    page.wait_for_function("document.getElementById('nll-1').open")
    assert "nll.seed" in details.text_content()


def test_page_with_nothing_to_show_has_no_errors(visit, tmp_path, monkeypatch):
    empty = report.pictures.Shown("samples", [], [], None, "", {"film": "no film"})
    monkeypatch.setattr(report, "draw", lambda *_: empty)
    run = opened(stored_run(tmp_path / "run").config)
    list(report.write(tmp_path / "run", run, False))
    page = visit((tmp_path / "run" / "report.html").as_uri())
    assert page.locator(".missing").count() == 5
