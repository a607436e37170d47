"""Measurement of a thread's page, and the documentation's pictures of one.

python -m tests.browser              # a page of 10,000 checkpoints: its size, and the times of writing and use
python -m tests.browser pictures     # docs/images/history-*.png

It needs Chromium.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from checkpoint_store import PostgresSaver
from checkpoint_store.cli import main
from checkpoint_store.embedded import EmbeddedPostgres
from tests.browser.conftest import NAMES, OPTIONS, PHONE, QUIET, wait_until_drawn
from tests.browser.threads import marathon, travel

IMAGES = Path(__file__).parents[2] / "docs" / "images"
DESK = {"width": 1160, "height": 680}
ROUNDS = 5

SCROLL = """async () => {
    const times = [], tree = document.querySelector('#tree');
    tree.scrollTop = 0;
    let last = await new Promise(requestAnimationFrame);
    for (let frame = 0; frame < 200; frame += 1) {
        tree.scrollTop += STEP;
        const now = await new Promise(requestAnimationFrame);
        times.push(now - last);
        last = now;
    }
    times.sort((a, b) => a - b);
    return { median: times[100], worst: times[197] };
}"""

SEARCH = """text => {
    performance.clearMeasures('search');
    find(text);
    return performance.getEntriesByName('search')[0].duration;
}"""

SELECT = """row => {
    const started = performance.now();
    select(row);
    showDetail(rows[selected].checkpoint);
    return performance.now() - started;
}"""


def page_of(thread_id: str, url: str, folder: str) -> Path:
    """Write the page of a thread, and return its file."""
    file = Path(folder) / f"{thread_id}.html"
    # Playwright's own loop runs in this thread.
    with ThreadPoolExecutor(1) as thread:
        code = thread.submit(main, ["history", thread_id, "--url", url, "--html", str(file)]).result()
    if code:
        raise SystemExit(code)
    return file


def opened(browser: Browser, file: Path, **options: Any) -> Page:
    """Return a page, once it has drawn its tree."""
    page = browser.new_context(**{**OPTIONS, **options}).new_page()
    page.goto(file.as_uri())
    wait_until_drawn(page)
    return page


def times(work: Callable[[], float]) -> str:
    """Return the median and the worst of several runs, in milliseconds."""
    found = [work() for _ in range(ROUNDS)]
    return f"{median(found):,.0f} ms (worst of {ROUNDS}: {max(found):,.0f})"


def measure(browser: Browser, url: str, folder: str) -> None:
    """Print the figures of a thread of 10,000 checkpoints."""
    count = marathon(url, turns=1090)
    started = time.perf_counter()
    file = page_of("marathon", url, folder)
    print(f"checkpoints      {count:,}")
    print(f"written in       {time.perf_counter() - started:.1f} s")
    print(f"size             {file.stat().st_size / 1e6:.1f} MB")

    def load() -> float:
        page = opened(browser, file)
        ready: float = page.evaluate("performance.getEntriesByName('ready')[0].startTime")
        page.context.close()
        return ready

    print(f"opened in        {times(load)}")
    page = opened(browser, file)
    print(f"first search     {page.evaluate(SEARCH, 'answer 500:'):,.0f} ms")
    print(f"search, a value  {times(lambda: page.evaluate(SEARCH, 'answer 700:'))}")
    print(f"search, all have {times(lambda: page.evaluate(SEARCH, 'all is well'))}")
    page.evaluate("find('')")
    print(f"select, show     {times(lambda: page.evaluate(SELECT, 9000))}")
    for name, pixels in (("by rows", 96), ("by pages", 900)):
        frames = page.evaluate(SCROLL.replace("STEP", str(pixels)))
        print(f"frames, {name:<9}{frames['median']:.1f} ms (the slowest 1 %: {frames['worst']:.1f})")
    print(f"elements of rows {page.locator('#rows > *').count()}")


def picture(browser: Browser, url: str, folder: str) -> None:
    """Take the documentation's pictures."""
    with PostgresSaver.from_conn_string(url) as saver:
        travel(saver, pause=0.4)
    trip = page_of("trip-to-lisbon", url, folder)
    IMAGES.mkdir(exist_ok=True)
    looks: dict[str, dict[str, Any]] = {
        "light": {"viewport": DESK},
        "dark": {"viewport": DESK, "color_scheme": "dark"},
        "phone": {**PHONE, "device_scale_factor": 2},
    }
    for name, options in looks.items():
        page = opened(browser, trip, **options)
        page.evaluate("select(rows.findLastIndex(one => thread.checkpoints[one.checkpoint]?.step === 5))")
        page.evaluate("document.querySelector('#tree').scrollTop = 0")
        page.wait_for_timeout(300)
        file = IMAGES / f"history-{name}.png"
        page.screenshot(path=file)
        Image.open(file).convert("RGB").save(file, optimize=True)


def run(work: Callable[[Browser, str, str], None]) -> None:
    """Run a function with a browser, a database and a folder."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    with EmbeddedPostgres() as server, tempfile.TemporaryDirectory() as folder:
        with PostgresSaver.from_conn_string(server.url) as saver:
            saver.setup()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=path, args=QUIET)
            work(browser, server.url, folder)
            browser.close()


if __name__ == "__main__":
    run(picture if "pictures" in sys.argv else measure)
