"""Pages of reports in a real browser, headless and without a network."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

# As Debian's package is called, then as others are.
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium; skips the test where there is none."""
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if program is None:
        pytest.skip(f"there is no browser here: none of {', '.join(_PROGRAMS)} is on the PATH ('apt install chromium')")
    with sync_playwright() as playwright:
        # The sandbox needs rights that a container does not give; the page is our own.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, file: Path, *, width: int = 1400) -> Iterator[Page]:
    """A file as a reader opens it from disk. Fails on a console message of any kind, an error, or a request for
    anything but the file itself.
    """
    troubles: list[str] = []
    requests: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    try:
        page.goto(file.as_uri())
        yield page
        assert troubles == [], troubles
        fetched = [url for url in requests if not url.startswith("data:")]
        assert fetched == [file.as_uri()], fetched
    finally:
        context.close()
