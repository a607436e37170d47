"""A Chromium that is installed, and pages in it that hear everything a page could do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from checkpoint_store.cli import main

NAMES = ("chromium", "chromium-browser", "google-chrome")

# It fetches nothing by itself, and runs without a graphics card and as root.
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
]

OPTIONS: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


def wait_until_drawn(page: Page) -> None:
    """Wait until a page has drawn its tree; Playwright's own way of waiting needs eval(), which the policy forbids."""
    for _ in range(3000):
        if page.evaluate("performance.getEntriesByName('ready').length > 0"):
            return
        page.wait_for_timeout(20)
    raise TimeoutError("the page was not drawn within a minute")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for the tests of a module: while it runs, no test here can have an event loop of its own."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        if "CI" in os.environ:
            pytest.fail(f"none of {', '.join(NAMES)} is installed, as in CI it must be")
        pytest.skip(f"none of {', '.join(NAMES)} is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=QUIET, timeout=120_000)
        yield browser
        browser.close()


class Heard(list[str]):
    """What a page did beside showing itself: messages, errors, dialogs, requests, windows, downloads."""


Open = Callable[..., tuple[Page, Heard]]


@pytest.fixture
def show(browser: Browser) -> Iterator[Open]:
    """Opens a file in a window of its own, and returns the page and what is heard of it."""
    contexts = []

    def show(file: Path, **options: Any) -> tuple[Page, Heard]:
        context = browser.new_context(**{**OPTIONS, **options})
        contexts.append(context)
        context.set_default_timeout(60_000)
        page, heard = context.new_page(), Heard()
        page.on("console", lambda message: heard.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: heard.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (heard.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("download", lambda download: heard.append(f"download: {download.url}"))
        page.on("request", lambda request: request.url == file.as_uri() or heard.append(f"request: {request.url}"))
        context.on("page", lambda other: other is page or heard.append(f"window: {other.url}"))
        page.goto(file.as_uri())
        wait_until_drawn(page)
        return page, heard

    yield show
    for context in contexts:
        context.close()


@pytest.fixture
def write(url: str, tmp_path: Path) -> Callable[..., Path]:
    """Writes the page of a thread, by the command, and returns its file."""

    def write(thread_id: str, *options: str) -> Path:
        file = tmp_path / "thread.html"
        arguments = ["history", "--html", str(file), "--url", url, *options, "--", thread_id]
        # Playwright's own loop runs in this thread.
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(main, arguments).result() == 0
        return file

    return write
