"""The page in a real browser: nothing is fetched, everything is drawn, a phone scrolls no page sideways, dark is dark."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from atonce.reports.inspection_page import inspection_page
from atonce.reports.inspection_work import inspect_model
from atonce.reports.page import write_page


@pytest.fixture(scope="module")
def address(inspected: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    model = inspected.untrained(labels=3)
    model.card |= {"name": "three", "recipe_digest": "0123456789abcdef" * 4}
    teacher = inspected.untrained("denoiser", labels=3)
    made = inspect_model(model, inspected.material(labels=3), teacher=teacher, samples=9, quiet=True)
    path = tmp_path_factory.mktemp("page") / "inspect.html"
    write_page(path, inspection_page(made))
    return path.as_uri()


def show(browser: Any, address: str, width: int, scheme: str = "light") -> tuple[Any, list[str]]:
    """The page at a width, and every address it asked for beside itself and what it holds."""
    page = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address, wait_until="load")
    return page, [url for url in asked if url != address and not url.startswith("data:")]


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_fetched_and_every_image_is_drawn(browser: Any, address: str, width: int) -> None:
    page, asked = show(browser, address, width)
    assert asked == []
    images = page.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth, i.alt.length])")
    assert len(images) > 20
    assert all(complete and natural > 50 and shown > 100 and words > 10 for complete, natural, shown, words in images)
    assert page.title() == "Inside three"


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_does_not_scroll_sideways(browser: Any, address: str, width: int) -> None:
    page, _ = show(browser, address, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # What is too wide for a phone scrolls within itself, and its labels stay in sight.
    wide = page.evaluate("[...document.querySelectorAll('.wide')].filter(e => e.scrollWidth > e.clientWidth + 1).length")
    assert (wide > 0) == (width == 360)
    if wide:
        left = page.evaluate(
            """() => {
                const box = [...document.querySelectorAll('#trajectories .wide')].find(e => e.scrollWidth > e.clientWidth + 1);
                box.scrollLeft = 10000;
                const label = [...box.querySelectorAll('.label')].find(e => e.textContent == 'answer');
                return [box.scrollLeft, label.getBoundingClientRect().left - box.getBoundingClientRect().left];
            }"""
        )
        assert left[0] > 0
        assert left[1] == pytest.approx(0, abs=1)


def test_links_lead_to_their_sections(browser: Any, address: str) -> None:
    page, _ = show(browser, address, 1200)
    page.click("nav a[href='#neighbours']")
    assert page.evaluate("Math.abs(document.getElementById('neighbours').getBoundingClientRect().top)") < 40


def test_dark_is_dark(browser: Any, address: str) -> None:
    light, _ = show(browser, address, 1200)
    dark, _ = show(browser, address, 1200, "dark")
    tone = "(() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number))()"
    assert min(light.evaluate(tone)) > 200
    assert max(dark.evaluate(tone)) < 60


def test_heads_stand_over_their_images(browser: Any, address: str) -> None:
    page, _ = show(browser, address, 1200)
    offsets = page.evaluate(
        """() => {
            const strip = document.querySelector('#trajectories .strips');
            const n = Number(getComputedStyle(strip).getPropertyValue('--n'));
            const image = strip.querySelector('img').getBoundingClientRect();
            return [...strip.querySelectorAll('.head span')].map((e, i) => {
                const box = e.getBoundingClientRect();
                return (box.left + box.right) / 2 - (image.left + (i + 0.5) * image.width / n);
            });
        }"""
    )
    assert len(offsets) == 11
    assert max(map(abs, offsets)) < 4
