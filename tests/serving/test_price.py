"""What an edit costs its caller: network calls that guess a class count, and none are made where the class is given."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="no FastAPI: pip install 'atonce[serve]'")

from PIL import Image

import atonce
from atonce.serving.edit_plans import plan_edit
from atonce.serving.job_kinds import check
from atonce.serving.schemas import EDITS
from atonce.serving.settings import ServeSettings


def picture(side: int) -> str:
    content = io.BytesIO()
    Image.fromarray(np.full((side, side), 90, np.uint8)).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


@pytest.mark.parametrize(
    ("name", "kind", "fields", "cost", "price"),
    [
        ("fashion-mnist", "denoise", {}, 1, 31),
        ("fashion-mnist", "denoise", {"labels": 3}, 1, 1),
        ("fashion-mnist", "variations", {"n": 4}, 4, 4 + 4 * 30),
        ("fashion-mnist", "variations", {"n": 4, "labels": [3]}, 4, 4),
        ("digits", "denoise", {}, 1, 1),
    ],
)
def test_guesses_are_counted(name: str, kind: str, fields: dict[str, Any], cost: int, price: int) -> None:
    model, settings = atonce.load(name), ServeSettings()
    request = EDITS[kind](image=picture(model.shape[1]), **fields)
    plan = plan_edit(model, kind, request, settings)
    assert (plan.cost, plan.price) == (cost, price)
    assert check(model, kind, request, settings).price == price


def test_interpolation_guesses_for_both_ends() -> None:
    model, settings = atonce.load("fashion-mnist"), ServeSettings()
    both = [picture(28), picture(28)]
    for fields, price in (({}, 5 + 2 * 30), ({"labels": [1, 2]}, 5)):
        assert plan_edit(model, "interpolate", EDITS["interpolate"](images=both, n=5, **fields), settings).price == price
