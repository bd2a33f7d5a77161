"""The picture of the browser page in docs/browser.md."""

from __future__ import annotations

import functools
import http.server
import shutil
import tempfile
import threading
from pathlib import Path

import click
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

import fastdiff
from fastdiff.export import export_page
from fastdiff.files import write_atomically
from fastdiff.terminal import say

OUTPUT = Path(__file__).resolve().parent.parent / "bench" / "pictures" / "page.png"
LINK = "#n=16&seed=6&context=0,0,1,0,0&guidance=2"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMEDRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --hide-scrollbars --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync --disable-default-apps "
    "--window-size=1200,800"
).split()


def chromium(profile: Path, *flags: str) -> webdriver.Chrome:
    """Headless, with its files in a folder of its own; the tests of the page drive it too."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={profile}", *flags):
        options.add_argument(flag)
    driver = webdriver.Chrome(service=webdriver.ChromeService(CHROMEDRIVER), options=options)
    driver.set_script_timeout(60)
    return driver


def photograph(page: Path, profile: Path, seconds: float = 120) -> bytes:
    """The page after a run, 1200 x 800, as PNG."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(page))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    driver = chromium(profile)
    try:
        screen = {"width": 1200, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        driver.get(f"http://127.0.0.1:{server.server_port}/{LINK}")
        button = driver.find_element("id", "sample")
        WebDriverWait(driver, seconds).until(lambda _: button.is_enabled())
        button.click()
        WebDriverWait(driver, seconds).until(lambda _: driver.find_element("id", "status").text.startswith("Done"))
        return driver.get_screenshot_as_png()
    finally:
        driver.quit()
        server.shutdown()


@click.command()
@click.option("-o", "--output", type=Path, default=OUTPUT, metavar="FILE", help="The picture, a PNG.")
def command(output: Path) -> None:
    """Take the picture of the browser page in docs/browser.md; needs Chromium and its driver.

    Exports the sprites' page, serves it from a plain static server, samples in headless Chromium, and photographs it.
    """
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page"
        export_page(fastdiff.load("sprites"), page, "sprites")
        picture = photograph(page, Path(folder) / "profile")
    write_atomically(output, lambda path: path.write_bytes(picture))
    say(f"wrote {output}")
