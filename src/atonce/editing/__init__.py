"""Zero-shot editing: linear operators for what is known of an image, and the one algorithm that uses them."""

from __future__ import annotations

from atonce.editing.algorithm import EditInfo
from atonce.editing.latent import Inversion, interpolate, invert, slerp
from atonce.editing.noise import denoise, estimate_sigma
from atonce.editing.operators import Known, averages, from_averages, from_grey, grey, nothing, pixels, to_averages, to_grey
from atonce.editing.outpaint import outpaint
from atonce.editing.renoise import local, stroke, variations
from atonce.editing.tasks import colorize, inpaint, restore, upscale

__all__ = [
    "EditInfo",
    "Inversion",
    "Known",
    "averages",
    "colorize",
    "denoise",
    "estimate_sigma",
    "from_averages",
    "from_grey",
    "grey",
    "inpaint",
    "interpolate",
    "invert",
    "local",
    "nothing",
    "outpaint",
    "pixels",
    "restore",
    "slerp",
    "stroke",
    "to_averages",
    "to_grey",
    "upscale",
    "variations",
]
