"""Requests of many kinds for the soak: edits with pictures made here, several steps, several formats."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image


def picture(seed: int, side: int, white: bool = False) -> str:
    """A grey PNG in base64: a soft blob at a place that the seed chooses, or a white square in black (a mask)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    cy, cx = rng.uniform(0.3, 0.7, 2)
    if white:
        values = 255.0 * ((abs(y - cy) < 0.25) & (abs(x - cx) < 0.25))
    else:
        values = 255.0 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 0.05)
    out = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def mixed(model: str, side: int = 28) -> list[tuple[str, dict[str, Any], int]]:
    """Requests as the load generator takes them: path, body, images of the answer."""
    found: list[tuple[str, dict[str, Any], int]] = []
    for seed in range(4):
        image, mask = picture(seed, side), picture(seed + 100, side, white=True)
        common: dict[str, Any] = {"model": model, "image": image, "seed": seed, "labels": seed, "response": "binary"}
        found += [
            ("/v1/generate", {"model": model, "n": 1, "seed": seed, "steps": 2, "format": "png", "response": "binary"}, 1),
            (
                "/v1/generate",
                {"model": model, "n": 3, "seed": seed, "labels": [1, 2, 3], "format": "webp", "response": "grid"},
                3,
            ),
            ("/v1/edits/inpaint", common | {"mask": mask, "steps": 4}, 1),
            ("/v1/edits/stroke", common | {"n": 2, "format": "npz"}, 2),
            ("/v1/edits/denoise", common | {"sigma": 0.3}, 1),
        ]
    return found
