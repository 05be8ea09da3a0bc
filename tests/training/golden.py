"""Golden curves: the losses of 30 steps of every preset, in fp32 on one thread with a fixed instruction set.

    python tests/training/golden.py            print the curves as JSON
    python tests/training/golden.py --write    make them the golden ones (tests/training/golden/*.json)

A change that should not alter numerics must leave them as they are. One that should alters them on purpose: write them anew in
the same commit, and say why.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

STEPS, BATCH = 30, 16
FOLDER = Path(__file__).with_name("golden")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "ATEN_CPU_CAPABILITY": "default",  # the same code on every x86 machine
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
}


def tiny_network(labels: int = 0) -> Any:
    """The network of all curves."""
    from atonce.networks.unet import UNetConfig

    return UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,), labels=labels)


def teacher() -> Any:
    """A denoiser whose last layer is not as good as zero, so that its ODE is more than the preconditioning's."""
    import torch

    from atonce.model import ConsistencyModel, ModelConfig
    from atonce.networks.build import build
    from atonce.preconditioning import Preconditioning

    network = build(tiny_network(), seed=5)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.startswith("dec.8x8_aux_conv"):
                value.mul_(1e5)
    config = ModelConfig(tiny_network(), Preconditioning("edm", 0.75, 0.0), kind="denoiser")
    return ConsistencyModel(config, network)


def curve(preset: str) -> list[float]:
    """The loss of each step."""
    import torch

    import atonce
    from atonce.training.presets import PRESETS

    torch.set_num_threads(1)
    changes = {
        "ict": {"s1": 20},
        "ct": {"s1": 10},
        "ect": {"ect_stages": 3},
        "diffusion": {"conditional": True, "label_dropout": 0.1, "flip": True},
        "digits": {"s1": 20},
        "cd": {"s1": 17, "teacher": teacher()},
        "progressive": {"teacher": teacher(), "teacher_steps": 8, "lr": 1e-3},
    }[preset]
    network = tiny_network(10 if preset == "diffusion" else 0)
    recipe = PRESETS[preset](images=STEPS * BATCH, batch=BATCH, seed=3, network=network, **changes)
    losses: list[float] = []

    def callback(line: dict[str, object]) -> None:
        if "loss" in line:
            losses.append(line["loss"])  # type: ignore[arg-type]

    with tempfile.TemporaryDirectory() as folder:
        atonce.train(
            recipe,
            "digits",
            Path(folder) / preset,
            device="cpu",
            precision="fp32",
            quiet=True,
            log_every=BATCH,
            evaluate_every=STEPS * BATCH,
            evaluate_images=2,
            callback=callback,
        )
    return losses


def main() -> None:
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    from atonce.training.presets import PRESETS

    curves = {preset: curve(preset) for preset in PRESETS}
    if "--write" in sys.argv:
        FOLDER.mkdir(exist_ok=True)
        for preset, losses in curves.items():
            (FOLDER / f"{preset}.json").write_text(json.dumps({"loss": losses}, indent=1) + "\n")
    else:
        print(json.dumps(curves))


if __name__ == "__main__":
    main()
