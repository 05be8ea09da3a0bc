"""The Learn tab in Chromium: dragged by mouse, finger and keys, at both widths, and kept over a reload."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from atonce.noise.karras import karras_grid
from atonce.objectives.discrete import same_noise, teacher_step
from atonce.studio.learn_net import answer, trained
from atonce.studio.learn_quiz import QUESTIONS
from atonce.studio.learn_steps import STEPS
from atonce.studio.learn_world import SIGMA_MIN, world

STEP = {step.key: number for number, step in enumerate(STEPS)}


def opened(page: Any) -> Any:
    """The tab, once it stands."""
    page.wait_for_function("() => document.querySelector('#learn-summary')?.textContent.includes('origin')")
    return page.locator("#learn-root")


def go(page: Any, key: str, phase: int = 0) -> None:
    """Go to a step by the mouse, and on to one of its phases."""
    page.locator(f"#learn-root [data-step='{STEP[key]}']").click()
    for _ in range(phase):
        page.locator(f"#learn-root [data-section='{STEP[key]}'] [data-move='1']").click()


def numbers(page: Any) -> dict[str, str]:
    """The table of numbers."""
    rows = page.locator("#learn-numbers tr").all()
    return {row.locator("th").inner_text().replace("\n", ""): row.locator("td").inner_text() for row in rows}


def vector(text: str) -> torch.Tensor:
    """A point as it is written."""
    return torch.tensor([float(each.replace("\u2212", "-")) for each in re.findall(r"[\u2212\d.]+", text)], dtype=torch.float64)


def state(page: Any) -> dict[str, Any]:
    """What the tab keeps."""
    found: dict[str, Any] = page.evaluate("() => JSON.parse(localStorage.getItem('atonce-learn'))")
    return found


def test_a_dragged_point_tells_its_exact_origin(browser: Any, studio_url: str, page_for: Any) -> None:
    with page_for(browser, studio_url, tab="Learn") as page:
        opened(page)
        go(page, "consistency")
        box = page.locator("#learn-svg").bounding_box()
        handle = page.locator("#learn-handle .learn-point").bounding_box()
        page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.25 * box["height"], steps=4)
        page.mouse.up()
        kept = state(page)
        x, sigma = torch.tensor([kept["x"]], dtype=torch.float64), kept["sigma"]
        assert float(x[0, 0]) > 0
        assert float(x[0, 1]) > 0
        told = numbers(page)
        exact = world().consistency(x, sigma, SIGMA_MIN)[0]
        assert torch.allclose(vector(told["origin xε"]), exact, atol=0.006)
        given = answer(trained(), x, torch.tensor([sigma], dtype=torch.float64))[0]
        assert torch.allclose(vector(told["trained model"]), given, atol=0.006)
        assert torch.allclose(vector(told["D(x, σ)"]), world().denoiser(x, sigma)[0], atol=0.006)
        # along the trajectory x changes and the origin stays
        page.locator("#learn-sigma-slide").focus()
        for _ in range(10):
            page.keyboard.press("PageDown")
        later = numbers(page)
        assert later["origin xε"] == told["origin xε"]
        assert later["x"] != told["x"]
        assert page.locator("#learn-marks .learn-origin").count() == 1


def test_by_keyboard_alone(browser: Any, studio_url: str, page_for: Any) -> None:
    with page_for(browser, studio_url, tab="Learn") as page:
        opened(page)
        page.locator(f"#learn-root [data-step='{STEP['ode']}']").focus()
        page.keyboard.press("Enter")
        handle = page.locator("#learn-handle")
        for _ in range(20):
            page.keyboard.press("Tab")
            if handle.evaluate("each => document.activeElement === each"):
                break
        before, told = state(page)["x"], handle.get_attribute("aria-valuetext")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Shift+ArrowUp")
        after = state(page)["x"]
        assert after[0] > before[0]
        assert after[1] > before[1]
        assert handle.get_attribute("aria-valuetext") != told
        page.wait_for_function("() => document.querySelector('#at-says')?.textContent.includes('Its origin is')")
        # the reader wants less motion: following the trajectory goes to its end at once
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        assert page.locator("#learn-play").evaluate("each => document.activeElement === each")
        page.keyboard.press("Enter")
        assert state(page)["sigma"] == SIGMA_MIN
        assert numbers(page)["x"] == numbers(page)["origin xε"]


def test_the_teachers_error_and_calls(browser: Any, studio_url: str, page_for: Any) -> None:
    with page_for(browser, studio_url, tab="Learn") as page:
        opened(page)
        go(page, "teacher")
        page.locator("#learn-heun").check()
        page.locator("#learn-n-slide").fill("8")
        told = numbers(page)
        assert told["calls"] == "16"
        x, times = torch.tensor([state(page)["x"]], dtype=torch.float64), karras_grid(9).flip(0)
        step, end = teacher_step(world().denoiser, 2), x
        for t, r in zip(times, times[1:], strict=False):
            end = step(end, x, x, t.reshape(1), r.reshape(1))
        assert torch.allclose(vector(told["end of the solver"]), end[0], atol=0.006)
        rows = [row.inner_text().split() for row in page.locator("#learn-errors tr").all()]
        assert [row[0] for row in rows] == ["1", "2", "4", "8", "16", "32", "64"]
        assert rows[3][3] == told["distance to the origin"]
        assert [int(row[4]) for row in rows] == [2 * int(row[0]) for row in rows]
        assert page.locator("#learn-lines .learn-walk").count() == 8


def test_pairs_are_drawn_step_by_step(browser: Any, studio_url: str, page_for: Any) -> None:
    with page_for(browser, studio_url, tab="Learn") as page:
        opened(page)
        go(page, "cd")
        assert page.locator("#learn-marks .learn-other").count() == 0
        section = page.locator(f"#learn-root [data-section='{STEP['cd']}']")
        assert section.locator("[data-phase]:visible").count() == 1
        section.get_by_role("button", name="Next").click()
        kept, told = state(page), numbers(page)
        grid = karras_grid(kept["N"])
        t, r = grid[kept["i"]].reshape(1), grid[kept["i"] - 1].reshape(1)
        x = torch.tensor([kept["x"]], dtype=torch.float64)
        assert kept["sigma"] == pytest.approx(float(t))
        second = teacher_step(world().denoiser, 1)(x, x, x, t, r)
        assert torch.allclose(vector(told["second point"]), second[0], atol=0.006)
        section.get_by_role("button", name="Next").click()
        section.get_by_role("button", name="Next").click()
        assert section.locator("[data-phase]:visible").count() == 4
        assert page.locator("#learn-marks .learn-model").count() == 2
        section.get_by_role("button", name="Next").click()  # past the last phase: the next step
        assert page.locator(f"#learn-root [data-section='{STEP['ct']}']").is_visible()
        go(page, "ct", 1)
        kept, told = state(page), numbers(page)
        circle = page.locator("#learn-lines .learn-data")
        place = [float(circle.get_attribute(name)) for name in ("cx", "cy")]
        scale = 0.5 / (SIGMA_MIN**2 + 0.25) ** 0.5
        y = torch.tensor([[place[0] / scale, -place[1] / scale]], dtype=torch.float64)
        x, sigma = torch.tensor([kept["x"]], dtype=torch.float64), torch.tensor([kept["sigma"]], dtype=torch.float64)
        r = karras_grid(kept["N"])[kept["i"] - 1].reshape(1)
        same = same_noise(x, y, (x - y) / sigma, sigma, r)[0]
        assert torch.allclose(vector(told["second point"]), same, atol=0.006)
        page.locator("#learn-other").click()
        assert numbers(page)["second point"] != told["second point"]


def test_the_curriculum_of_ict(browser: Any, studio_url: str, page_for: Any) -> None:
    with page_for(browser, studio_url, tab="Learn") as page:
        opened(page)
        go(page, "ict", 1)
        assert "N = 11" in page.locator("#learn-k-value").inner_text()
        page.locator("#learn-k-slide").fill("1000")
        assert "N = 1281" in page.locator("#learn-k-value").inner_text()
        text = page.locator("#learn-ruler-text").inner_text()
        assert "4 % of pairs begin above σ = 10" in text
        assert "it would be 33 %" in text
        assert page.locator("#learn-ruler .learn-bin").count() > 20
        before = state(page)["i"]
        page.locator("#learn-draw").click()
        assert state(page)["i"] != before
        page.locator(f"#learn-root [data-section='{STEP['ict']}'] [data-move='1']").click()
        assert page.locator("#learn-ruler .learn-weight").count() > 20


def test_the_quiz_is_marked_and_kept(browser: Any, studio_url: str, page_for: Any) -> None:
    with page_for(browser, studio_url, tab="Learn") as page:
        opened(page)
        sent: list[str] = []
        page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
        first = QUESTIONS[0]
        wrong = next(i for i in range(len(first.answers)) if i != first.right)
        page.locator(f"#learn-q0-{wrong}").check()
        assert page.locator("#learn-q0-why").inner_text() == f"Not quite: {first.answers[first.right]}. {first.why}"
        page.locator(f"#learn-q0-{wrong}").focus()
        while not page.locator(f"#learn-q0-{first.right}").is_checked():  # radio buttons by the arrow keys
            page.keyboard.press("ArrowDown")
        assert page.locator("#learn-q0-why").inner_text() == f"Right. {first.why}"
        for number, question in enumerate(QUESTIONS[1:], 1):
            page.locator(f"#learn-q{number}-{question.right}").check()
        all_right = f"{len(QUESTIONS)} of {len(QUESTIONS)} right, all answered."
        assert page.locator("#learn-score").inner_text() == all_right
        assert sent == [], "answers are sent nowhere"
        go(page, "teacher")
        page.locator("#learn-n-slide").fill("13")
        page.reload()
        page.get_by_role("tab", name="Learn", exact=True).first.click()
        opened(page)
        assert page.locator("#learn-score").inner_text() == all_right
        assert page.locator(f"#learn-root [data-section='{STEP['teacher']}']").is_visible()
        assert page.locator("#learn-n-value").inner_text() == "13"
        page.locator("#learn-again").click()
        assert page.locator("#learn-quiz input:checked").count() == 0


def test_a_damaged_store_begins_anew(browser: Any, studio_url: str, page_for: Any) -> None:
    with page_for(browser, studio_url, tab="Learn") as page:
        opened(page)
        page.evaluate('() => { localStorage.setItem(\'atonce-learn\', \'{"x": [null, 2], "sigma": "a"}\'); }')
        page.evaluate("() => { localStorage.setItem('atonce-learn-quiz', 'nonsense'); }")
        page.reload()
        page.get_by_role("tab", name="Learn", exact=True).first.click()
        opened(page)
        assert "NaN" not in page.locator("#learn-root").inner_text()


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_nothing_serious_for_axe(
    browser: Any, studio_url: str, page_for: Any, axe: Any, shot: Any, width: int, dark: bool
) -> None:
    with page_for(browser, studio_url, width=width, dark=dark, tab="Learn") as page:
        opened(page)
        name = f"learn-{width}{'-dark' if dark else ''}"
        shot(page, name)
        found = axe(page)
        go(page, "ct", 3)
        shot(page, f"{name}-ct")
        assert found + axe(page) == []
        wide = page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, "the page does not scroll sideways"


def test_a_finger_moves_the_point_on_a_phone(browser: Any, studio_url: str, page_for: Any) -> None:
    with page_for(browser, studio_url, width=390, tab="Learn") as page:
        opened(page)
        go(page, "ode")
        page.locator("#learn-svg").scroll_into_view_if_needed()
        before = state(page)["x"]
        box = page.locator("#learn-svg").bounding_box()
        page.touchscreen.tap(box["x"] + 0.7 * box["width"], box["y"] + 0.3 * box["height"])
        after = state(page)["x"]
        assert after != before
        assert after[0] > 0
        assert after[1] > 0
