"""The gallery's Fashion-MNIST model: ``python benchmarks/gallery_fashion.py teacher``, then ``student``; each resumes itself.

Class-conditional, 28x28, 1.26 M parameters, one CPU core. The student is told its class; the teacher's guidance of scale 1.5 is
distilled into it. ``python benchmarks/publish.py fashion-mnist runs/fashion-cd`` judges and publishes what came out.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from cells import RUNS, data_named


def main() -> None:
    """Train the part that is named, or continue it."""
    import atonce
    from atonce.networks.presets import named

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["teacher", "student"])
    part = parser.parse_args().part
    data = data_named("fashion-28")
    options = {"evaluate_images": 256, "checkpoint_seconds": 60.0, "keep": 2}
    if part == "teacher":
        network = dataclasses.replace(named("tiny", 28, 1), channel_mult=(1, 2, 2), labels=10)
        recipe = atonce.recipes.diffusion(
            300_032,
            64,
            network=network,
            conditional=True,
            label_dropout=0.1,
            dropout=0.0,
            lr=1.5e-3,
            lr_rampup=6_400,
            lr_cooldown=0.5,
            ema=(0.9995, 0.998),
        )
        atonce.train(recipe, data, RUNS / "fashion-teacher", evaluate_every=50_048, **options)
        return
    recipe = atonce.recipes.cd(
        80_000,
        64,
        teacher=atonce.load(RUNS / "fashion-teacher"),
        conditional=True,
        guidance=1.5,
        path="euler",
        distance="pseudo-huber",
        weight="inverse-delta",
        pairs="lognormal-intervals",
        curriculum="ict",
        s0=20,
        s1=160,
        lr=1.5e-3,
        lr_cooldown=0.6,
        ema=(0.999, 0.9995),
        ema_rampup=0.05,
    )
    atonce.train(recipe, data, RUNS / "fashion-cd", evaluate_every=10_048, **options)


if __name__ == "__main__":
    main()
