"""How quick the studio is in a real browser: the first view, and the image after a move of the slider.

    python benchmarks/studio.py --json benchmarks/records/studio/page.json

A studio with the digits and Fashion-MNIST models runs in a process of its own; Chromium opens its page with empty caches, until
the first image has loaded; then the seed's slider is moved by the keyboard, and each time is from the browser's input event to
the load event of the new image. Needs playwright and /usr/bin/chromium.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = "/usr/bin/chromium"
IMAGE = "#generate-picture img[src^=data]"
WATCH = """() => {
  const image = document.querySelector('#generate-picture img');
  window.moves = []; window.moved = null;
  document.querySelector('#generate-seed input[type=range]').addEventListener('input', () => {
    if (window.moved === null) window.moved = performance.now(); }, true);
  image.addEventListener('load', () => {
    if (window.moved !== null) { window.moves.push(performance.now() - window.moved); window.moved = null; } });
}"""


@contextlib.contextmanager
def studio(folder: str) -> Iterator[str]:
    command = [sys.executable, "-m", "atonce", "studio", "--port", "0", "--json", "--no-browser", "--state", folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield next(json.loads(line)["studio"] for line in process.stdout if line.startswith("{"))
        finally:
            process.terminate()


def first_views(browser: Any, url: str, rounds: int) -> list[float]:
    found = []
    for _ in range(rounds):
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        page = context.new_page()
        page.goto(url, wait_until="commit")
        page.wait_for_selector(IMAGE)
        page.wait_for_function("q => document.querySelector(q).complete", arg=IMAGE)
        found.append(page.evaluate("performance.now()"))
        context.close()
    return found


def moves(browser: Any, url: str, rounds: int) -> list[float]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector(IMAGE)
    page.wait_for_timeout(1000)
    page.evaluate(WATCH)
    page.locator("#generate-seed input[type=range]").focus()
    for i in range(rounds):
        page.keyboard.press("ArrowRight")
        page.wait_for_function("n => window.moves.length > n", arg=i)
    found: list[float] = page.evaluate("window.moves")
    context.close()
    return found


def summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "median_ms": round(statistics.median(ordered), 1),
        "p95_ms": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 1),
        "most_ms": round(ordered[-1], 1),
        "count": len(ordered),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--views", type=int, default=5)
    parser.add_argument("--moves", type=int, default=40)
    parser.add_argument("--url", help="page of a studio that runs already, instead of one of its own")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        url = chosen.url or stack.enter_context(studio(folder))
        run = stack.enter_context(sync_playwright())
        browser = run.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        facts = {
            "first_view": summary(first_views(browser, url, chosen.views)),
            "image_after_slider": summary(moves(browser, url, chosen.moves)),
            "browser": browser.version,
            "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
            "load_before": os.getloadavg()[0],
        }
        browser.close()
    text = json.dumps(facts, indent=2)
    print(text)
    if chosen.json is not None:
        chosen.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
