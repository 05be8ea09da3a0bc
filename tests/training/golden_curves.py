"""The golden curves: one tiny run of each preset, 30 steps, float32, one thread, on a fixed instruction set.

    python tests/training/golden_curves.py            # compute all curves and print them as JSON
    python tests/training/golden_curves.py --write    # and replace the committed ones

Replace them only with a change that should alter numerics. The instruction set is fixed (AVX2, through the variables below, set
before torch starts), since its width decides the order of sums.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["ATEN_CPU_CAPABILITY"] = "avx2"
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
os.environ["MKL_CBWR"] = "AVX2"
os.environ["OMP_NUM_THREADS"] = "1"

import torch

import atonce
from atonce.networks.unet import UNetConfig
from atonce.training.presets import PRESETS

FOLDER = Path(__file__).resolve().parent / "golden"
STEPS, BATCH = 30, 16


def curve(preset: str) -> list[float]:
    """The loss of each of the 30 steps."""
    torch.set_num_threads(1)
    conditional = preset == "diffusion"  # so that labels are on a curve too
    network = UNetConfig(8, 1, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,), labels=10 if conditional else 0)
    recipe = PRESETS[preset](
        images=STEPS * BATCH, batch=BATCH, network=network, lr=1e-3, conditional=conditional, flip=preset == "ect"
    )
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        atonce.train(
            recipe,
            "digits",
            Path(folder) / "run",
            precision="fp32",
            device="cpu",
            quiet=True,
            log_every=BATCH,
            evaluate_every=10 * STEPS * BATCH,
            evaluate_images=16,
            callback=lambda line: losses.append(line["loss"]) if "loss" in line else None,
        )
    return losses


def main() -> None:
    """Compute all curves; write or print them."""
    curves = {preset: curve(preset) for preset in PRESETS}
    if "--write" in sys.argv:
        for preset, values in curves.items():
            (FOLDER / f"{preset}.json").write_text(json.dumps(values, indent=1) + "\n")
    else:
        json.dump(curves, sys.stdout)


if __name__ == "__main__":
    main()
