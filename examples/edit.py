"""Edit held-out digits with the model that comes with the package: fill a hole, enlarge, denoise, and say what was kept.

    python examples/edit.py [OUT.png]

Some seconds on one CPU core. The picture has a row for each digit: the original, what was known of it, what each edit made.
"""

from __future__ import annotations

import sys

import torch

import atonce
from atonce.core.images import from_uint8
from atonce.data.sources import open_data
from atonce.reports.edit_pictures import before_after, known_picture
from atonce.reports.pictures import write_png


def main(out: str = "edited-digits.png") -> None:
    model = atonce.load("digits")
    images = open_data("digits", split="test").images[:4]  # uint8 [4, 1, 8, 8], never seen in training
    x = from_uint8(images)  # float in [-1, 1]

    hole = torch.zeros(8, 8, dtype=torch.bool)
    hole[:, 4:] = True  # the right half is to be made
    filled = atonce.edit.inpaint(model, x, hole)
    other = atonce.edit.inpaint(model, x, hole, seed=1)  # another seed, another way to fill it
    kept = torch.equal(atonce.to_uint8(filled)[:, :, ~hole], images[:, :, ~hole])
    print(f"inpaint: the known half came back byte for byte: {kept}")

    small = atonce.edit.to_averages(x, 2)  # 4 x 4
    large = atonce.edit.upscale(model, small, 2)
    error = (atonce.edit.to_averages(large, 2) - small).abs().max()
    print(f"upscale: its means differ from the small picture by at most {error:.2g}")

    noisy = x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    print("denoise: sigma is estimated as", ", ".join(f"{s:.2f}" for s in atonce.edit.estimate_sigma(noisy).tolist()))
    clean = atonce.edit.denoise(model, noisy, 0.5)

    columns = [
        ("original", images),
        ("known", known_picture(images, hole)),
        ("filled", atonce.to_uint8(filled)),
        ("again", atonce.to_uint8(other)),
        ("small", atonce.to_uint8(small)),
        ("enlarged", atonce.to_uint8(large)),
        ("noisy", atonce.to_uint8(noisy)),
        ("denoised", atonce.to_uint8(clean)),
    ]
    write_png(out, before_after(columns))
    print(out)


if __name__ == "__main__":
    main(*sys.argv[1:2])
