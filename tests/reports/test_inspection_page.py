"""The page of an inspection: whole, by itself, with the numbers that were computed and a word on what each cannot say."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import re
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from atonce.core.images import to_uint8
from atonce.core.records import Metric, Record, Source
from atonce.model import Guidance
from atonce.reports import inspection_work as work
from atonce.reports.inspection import Inspection
from atonce.reports.inspection_facts import facts, records
from atonce.reports.inspection_page import inspection_page
from atonce.reports.inspection_strips import picture, strips
from atonce.reports.inspection_work import inspect_model

SECTIONS = ("facts", "samples", "steps", "trajectories", "gap", "denoising", "neighbours", "interpolation", "noise")
NEED_DATA = ("gap", "denoising", "neighbours")
_DATA = re.compile(r"data:image/(png|webp);base64,([A-Za-z0-9+/=]+)")


def sections(page: str) -> list[str]:
    return re.findall(r'<section id="([a-z]+)">', page)


@pytest.fixture(scope="module")
def made(inspected: ModuleType) -> Inspection:
    model = inspected.untrained(labels=3, guidance=Guidance("fixed", (1.5,)))
    model.card |= {"name": "three <kinds>", "method": "cd", "images_seen": 409_600, "licence": "apache-2.0"}
    teacher = inspected.untrained("denoiser", labels=3)
    return inspect_model(model, inspected.material(labels=3), teacher=teacher, samples=9, quiet=True)


@pytest.fixture(scope="module")
def page(made: Inspection) -> str:
    return inspection_page(made, "other", "atonce inspect three")


def test_the_page_needs_nothing_from_outside(page: str) -> None:
    bare = _DATA.sub("", page)
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#|\")", bare)
    assert "http" not in bare
    assert "url(" not in bare
    assert "<script" not in bare
    assert "@import" not in bare
    assert "prefers-color-scheme" in page
    assert 'name="viewport"' in page


def test_every_section_is_there_and_linked(page: str) -> None:
    found = sections(page)
    assert set(found) == {*SECTIONS, "classes", "teacher"}
    assert re.findall(r'<a href="#([a-z]+)">', page) == found


def test_every_section_but_the_facts_says_what_it_cannot_say(page: str) -> None:
    for body in page.split('<section id="')[2:]:
        assert body.count("What it cannot say.") >= 1, body[:40]


def test_every_image_has_words_and_opens(page: str) -> None:
    images = re.findall(r"<img[^>]*>", page)
    assert len(images) > 20
    assert all(re.search(r' alt="[^"]{10,}"', image) for image in images)
    for _, content in _DATA.findall(page):
        opened = Image.open(io.BytesIO(base64.b64decode(content)))
        opened.load()
        assert max(opened.size) > 50


def test_the_page_says_the_numbers(page: str, made: Inspection) -> None:
    assert made.neighbours is not None
    assert made.curves is not None
    assert made.teacher is not None
    text = html.unescape(page)
    assert f"a ratio of {made.neighbours.ratio:.2f}" in text
    assert f"{max(made.curves.gap.values):.3f} ±" in text
    assert f"{made.sensitivity.inside:.0%} of the squared change" in text
    assert f"{made.teacher.distances[0]:.3f} ± {made.teacher.errors[0]:.3f}" in text
    assert f"1 to 2 steps {made.ladder[1].change:.3f}" in text
    assert "Median distance to the nearest of 300 training images" in text
    assert "without the guidance of scale 1.5" in text
    assert "The model is told the class" in text


def test_names_of_the_card_are_escaped(page: str) -> None:
    assert "three <kinds>" not in page
    assert "<h1>Inside three &lt;kinds&gt;</h1>" in page


def test_without_data_the_page_says_so_and_leaves_out_what_needs_them(inspected: ModuleType) -> None:
    made = inspect_model(inspected.untrained(), missing="nobody <has> them", samples=4, quiet=True)
    page = inspection_page(made, "a/b")
    assert set(sections(page)) == set(SECTIONS) - set(NEED_DATA)
    assert "made without real images: nobody &lt;has&gt; them" in page
    assert "--data" in page
    assert "<h1>Inside a/b</h1>" in page
    assert "carries no records" in page


def test_images_that_were_not_held_out_are_said_to_be_so(inspected: ModuleType) -> None:
    data = dataclasses.replace(inspected.material(unseen=False), matches=False)
    page = html.unescape(inspection_page(inspect_model(inspected.untrained(), data, samples=4, quiet=True)))
    assert "no held-out images: those of training stand in" in page
    assert "other images than the card names" in page
    assert "The images searched are not those the card names" in page
    assert "Means over 64 training images" in page


@pytest.mark.parametrize("kind", ["guided", "plain"])
def test_the_page_of_a_denoiser_speaks_of_means(inspected: ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(work, "ODE_STEPS", 4)
    more = {"labels": 3, "guidance": Guidance("free")} if kind == "guided" else {}
    model = inspected.untrained("denoiser", channels=3, **more)
    data = inspected.material(channels=3, labels=3 if more else 0)
    page = html.unescape(inspection_page(inspect_model(model, data, samples=4, quiet=True)))
    assert "A denoiser is not meant to be consistent" in page
    assert "A denoiser aims at the mean" in page
    assert "the answer is the mean of all images" in page
    assert ("scale 4" in page) == bool(more)
    assert "a covariance that is diagonal in spatial frequencies" in page


def test_the_facts_of_the_model(made: Inspection) -> None:
    rows = dict(facts(made))
    assert rows["images"].startswith("1 x 8 x 8")
    assert rows["parameters"] == f"{sum(p.numel() for p in made.model.parameters()):,} in float32"
    assert rows["classes"] == "0, 1, 2"
    assert rows["guidance"] == "fixed: scale 1.5 was distilled into the weights"
    assert rows["images seen"] == "409,600: 0.1 % of the 409.6 million of the published recipe (cd on CIFAR-10)"
    assert rows["time points, 2 steps"] == "σ = 80, 0.821 (default)"
    assert rows["licence"] == "apache-2.0"
    assert rows["trained on"] == "not said by the card"


def test_records_show_their_intervals_and_mark_what_training_has_seen(made: Inspection, inspected: ModuleType) -> None:
    model = inspected.untrained()
    record = Record(
        metrics={"frechet": Metric(1.25, (1.0, 1.5), unit="squared distance"), "share": Metric(0.5, higher_is_better=None)},
        command="atonce eval",
        recipe=None,
        commit=None,
        device="cpu",
        extractor=Source("lpips", "a" * 64, seen_in_training=True),
        reference=Source("made", "b" * 64, 300),
        data=Source("made", "b" * 64, 300),
        samples=5000,
        seed=0,
        steps=2,
        calls=2,
    )
    model.records.append(record)
    first, second = records(model)
    assert first[:3] == ("frechet", "1.25", "1 to 1.5")
    assert first[4:7] == ("5,000", "2", "2")
    assert first[7] == "lpips (seen in training: shown, never ranked by)"
    assert second[2] == "not computed"
    assert "never ranked by" in inspection_page(dataclasses.replace(made, model=model))


def test_small_images_are_kept_to_the_bit() -> None:
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sheet = torch.from_numpy(np.array(Image.open(io.BytesIO(picture(x, 3))))).permute(2, 0, 1)
    scale = 7
    assert sheet.shape == (3, 2 * 8 * scale + 2, 3 * 8 * scale + 4)
    corner = sheet[:, 8 * scale + 2 :: scale, ::scale][:, :8, :8]
    assert torch.equal(corner, to_uint8(x[3]))


def test_large_images_are_made_smaller() -> None:
    x = torch.zeros(8, 3, 256, 256)
    content = picture(x, 8)
    assert Image.open(io.BytesIO(content)).size == (8 * 96 + 14, 96)
    noise = torch.rand(8, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert len(picture(noise, 8)) < 200_000


def test_strips_name_their_rows_and_columns() -> None:
    text = strips(["a<", "b"], [("one", torch.zeros(2, 1, 4, 4)), ("two", torch.zeros(2, 1, 4, 4))], "things")
    assert text.count("<img") == 2
    assert "a&lt;" in text
    assert 'alt="two: things"' in text
