"""What each ingredient of iCT is worth: one switched at a time at one image budget; and quality against N.

    python benchmarks/ablation.py run --data digits      train what is missing (hours; resumable at any moment)
    python benchmarks/ablation.py judge --data digits    measure what is trained
    python benchmarks/ablation.py report                 docs/ablation.md and its pictures from what is measured

A cell that is not trained prints "not run". One thread is used; pin it and lower its priority to work beside it.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from cells import ONE_AND_TWO, Cell, command

TABLE = "ablation"
SEEDS = {"digits": (0, 1, 2), "fashion-14": (0,)}
SIZE = {"digits": (8, 1), "fashion-14": (14, 1), "fashion-28": (28, 1)}
BUDGET = {"digits": 80_000, "fashion-14": 64_000}
GRIDS = (10, 20, 40, 80, 160, 320)  # and 640, which is the cell "curriculum-fixed"


def base(data: str, seed: int, **changes: Any) -> Any:
    """The first line: iCT sized for minutes. All other lines change one thing."""
    import atonce

    images = changes.pop("images", BUDGET[data])
    values = {
        "s0": 10,
        "s1": 640,
        "lr": 2e-3,
        "lr_cooldown": 0.6,
        "dropout": 0.0,
        "ema": (0.999,),
        "ema_rampup": 0.05,
    } | changes
    return atonce.recipes.ict(images, 80, seed, **({"network": "tiny"} | values))


def cells(data: str) -> list[Cell]:
    """All lines for a data set."""
    from atonce.networks.presets import named

    def line(name: str, group: str, what: str, **changes: Any) -> Cell:
        return Cell(name, lambda seed: base(data, seed, **changes), what, ONE_AND_TWO, group=group)

    size, channels = SIZE[data]
    tiny = named("tiny", size, channels)
    fourier = {s: dataclasses.replace(tiny, embedding="fourier", fourier_scale=s) for s in (0.02, 16.0)}
    return [
        line("ict", "iCT", "all ingredients as in iCT, sized for minutes"),
        line(
            "teacher-ema",
            "teacher",
            "target is a moving average, mu(k) of CT with mu0 = 0.9",
            target="ema",
            mu="ct-code",
            mu0=0.9,
        ),
        line("teacher-ema-0.9", "teacher", "target is a moving average, mu = 0.9", target="ema", mu=0.9),
        line("teacher-ema-0.99", "teacher", "target is a moving average, mu = 0.99", target="ema", mu=0.99),
        line("distance-l2", "distance", "squared L2", distance="l2"),
        line("distance-l1", "distance", "L1", distance="l1"),
        line("weight-one", "weight", "weight 1", weight="one"),
        line("noise-uniform", "noise", "intervals drawn uniformly over the grid", pairs="karras"),
        line("curriculum-ct", "curriculum", "N grows as in CT, from 2 to 151 points", curriculum="ct", s0=2, s1=150),
        line("curriculum-fixed", "curriculum", "N = 641 from the start", curriculum="fixed"),
        line("embedding-fourier-0.02", "embedding", "Fourier features of scale 0.02 (iCT's)", network=fourier[0.02]),
        line("embedding-fourier-16", "embedding", "Fourier features of scale 16 (NCSN++'s)", network=fourier[16.0]),
        line("dropout-shared", "dropout", "dropout 0.1, the same units in both passes", dropout=0.1),
        line("dropout-unshared", "dropout", "dropout 0.1, other units in the target", dropout=0.1, shared_dropout=False),
        *(line(f"n-{n}", "N", f"N = {n + 1} throughout", curriculum="fixed", s1=n) for n in GRIDS),
    ]


def main() -> None:
    """Parse the command line and work."""
    from ablation_report import write

    command(__file__, __doc__ or "", TABLE, SEEDS, cells, write)


if __name__ == "__main__":
    main()
