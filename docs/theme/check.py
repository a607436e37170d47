"""Check every page of the built site in Chromium, as `make docs` does: `python docs/theme/check.py site [SCREENSHOTS]`.

On a desk of 1,400 pixels no code is cut, on a phone of 390 no page scrolls sideways; nothing is fetched from elsewhere,
no script fails, and each diagram is drawn.
"""

from __future__ import annotations

import shutil
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from playwright.sync_api import Browser, sync_playwright

WIDTHS = {"desk": 1400, "phone": 390}
CUT = "[...document.querySelectorAll('pre > code')].filter(code => code.scrollWidth > code.clientWidth + 1).length"
DRAWN = "document.querySelector('pre.mermaid') === null"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


def check(browser: Browser, address: str, page: str, screenshots: Path | None) -> list[str]:
    """Return what is wrong with a page."""
    found: list[str] = []
    for device, width in WIDTHS.items():
        view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="light")
        view.on("pageerror", lambda error: found.append(f"a script fails: {error}"))
        own = (address, "data:")
        view.on("request", lambda asked: asked.url.startswith(own) or found.append(f"fetches {asked.url}"))  # noqa: B023
        view.goto(f"{address}/{page}", wait_until="networkidle")
        view.wait_for_function(DRAWN)
        if view.evaluate("document.documentElement.scrollWidth") > width:
            found.append(f"scrolls sideways on a {device}")
        if device == "desk" and (cut := view.evaluate(CUT)):
            found.append(f"{cut} blocks of code are cut")
        for scheme in ("light", "dark") if screenshots else ():
            view.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            view.screenshot(path=f"{screenshots}/{page.replace('/', '_')}{device}-{scheme}.png")
        view.close()
    return [f"{page or 'home'}: {one}" for one in found]


def main(site: Path, screenshots: Path | None = None) -> int:
    """Check the site's pages; return the exit code."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("no Chromium was found: the pages were not looked at")
        return 0
    handler = partial(_Quiet, directory=str(site))
    pages = sorted(path.parent.relative_to(site).as_posix() for path in site.rglob("index.html"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_playwright() as playwright:
        Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        address = f"http://127.0.0.1:{server.server_port}"
        names = ["" if page == "." else f"{page}/" for page in pages]
        wrong = [one for page in names for one in check(browser, address, page, screenshots)]
        browser.close()
        server.shutdown()
    print(*wrong, f"{len(pages)} pages looked at, {len(wrong)} faults", sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
