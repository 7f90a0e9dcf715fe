"""A headless Chromium for tests of pages: the system's own, driven by playwright.

    from tests.browser import new_page

    def test_the_page_answers(chromium, tmp_path):
        with new_page(chromium, phone=True) as page:
            page.goto(address)
            page.get_by_role("button", name="Classify").click()
            page.screenshot(path=tmp_path / "page.png", full_page=True)

One idea: a page may ask loopback and the hosts that `answer` serves; every other request fails, and so does a page with
an error that nobody caught.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

NAMES = ("chromium", "chromium-browser", "google-chrome")
DESKTOP, PHONE = (1280, 900), (390, 844)  # width and height, in CSS pixels
PATIENCE = 200_000  # milliseconds until a wait fails: a busy machine is no fault of a page
LOOPBACK = ("127.0.0.1", "localhost")
# As root there is no sandbox; everything else keeps the browser from calling home.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]


@pytest.fixture(scope="module")  # not longer: while it runs, this thread has an event loop, and asyncio.run fails
def chromium() -> Iterator[Browser]:
    """A running browser; skips the test where playwright or Chromium is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed (requirements-dev.txt)")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("Chromium isn't installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def new_page(
    browser: Browser,
    *,
    phone: bool = False,
    dark: bool = False,
    answer: dict[str, Callable[[Route], None]] | None = None,
) -> Iterator[Page]:
    """A page with a cache of its own; `answer` maps hosts other than loopback to what answers their requests."""
    width, height = PHONE if phone else DESKTOP
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        device_scale_factor=2 if phone else 1,
        has_touch=phone,
        is_mobile=phone,
    )

    def route(one: Route) -> None:
        host = urlsplit(one.request.url).hostname or ""
        (answer or {}).get(host, lambda one: one.abort("internetdisconnected"))(one)

    context.route(lambda url: urlsplit(url).hostname not in LOOPBACK and not url.startswith(("blob:", "data:")), route)
    context.set_default_timeout(PATIENCE)
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    try:
        yield page
        assert not errors
    finally:
        context.close()


def draw(page: Page, selector: str, *points: tuple[float, float]) -> None:
    """A stroke with the mouse on an element; x and y are shares of its sides."""
    element = page.locator(selector)
    element.scroll_into_view_if_needed()
    box = element.bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=8)
    page.mouse.up()
