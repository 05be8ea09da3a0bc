"""Golden curves: the losses of 30 steps of every preset and of branches, in fp32 on one thread with a fixed instruction set.

    python tests/training/golden.py            print the curves as JSON
    python tests/training/golden.py --write    make them the golden ones (tests/training/golden/*.json); with names only those

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


def tiny_network(labels: int = 0, **told: Any) -> Any:
    """The network of all curves."""
    from atonce.networks.unet import UNetConfig

    return UNetConfig(8, 1, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,), labels=labels, **told)


def teacher(labels: int = 0, augment_labels: int = 0) -> Any:
    """A denoiser whose last layer is not as good as zero, so that its ODE is more than the preconditioning's."""
    import torch

    from atonce.model import ConsistencyModel, ModelConfig
    from atonce.networks.build import build
    from atonce.preconditioning import Preconditioning

    design = tiny_network(labels, augment_labels=augment_labels)
    network = build(design, seed=5)
    with torch.no_grad():
        for name, value in network.named_parameters():
            # Where there are labels, also those of the blocks: through them the classes have their effect.
            if name.startswith("dec.8x8_aux_conv") or (labels and "conv1.weight" in name):
                value.mul_(1e5)
    config = ModelConfig(design, Preconditioning("edm", 0.75, 0.0), kind="denoiser")
    return ConsistencyModel(config, network)


def changes_of() -> dict[str, tuple[str, Any, dict[str, Any]]]:
    """Each curve: its preset, its network, and what is changed."""
    plain, by_class = tiny_network(), tiny_network(10)
    guided = {"teacher": teacher(10), "conditional": True, "label_dropout": 0.1}
    free: dict[str, Any] = {"conditional": True, "label_dropout": 0.1, "flip": True}
    told = tiny_network(augment_labels=9)
    return {
        "ict": ("ict", plain, {"s1": 20}),
        "ct": ("ct", plain, {"s1": 10}),
        "ect": ("ect", plain, {"ect_stages": 3}),
        "diffusion": ("diffusion", by_class, free),
        "digits": ("digits", plain, {"s1": 20}),
        "cd": ("cd", plain, {"s1": 17, "teacher": teacher()}),
        "progressive": ("progressive", plain, {"teacher": teacher(), "teacher_steps": 8, "lr": 1e-3}),
        "cd-guided": ("cd", by_class, {**guided, "guidance": 2.5}),
        "cd-told-guidance": ("cd", tiny_network(10, guidance=True), {**guided, "guidance": (1.0, 4.0), "path": "euler"}),
        "cd-ema-target": ("cd", plain, {"teacher": teacher(), "target": "ema", "mu": 0.95, "distance": "l1"}),
        "cd-augment": ("cd", told, {"teacher": teacher(0, 9), "augment": 0.5}),
        "ict-augment": ("ict", told, {"s1": 20, "augment": 0.5, "ema": ("power-0.05",)}),
        "ect-hour": ("ect", plain, {"form": "hour"}),
        "ect-imagenet": ("ect", plain, {"form": "imagenet", "ect_stages": 3}),
        "sct": ("sct", tiny_network(double_norm=True), {"tangent_warmup": 160}),
        "sct-conditional": ("sct", by_class, {"conditional": True, "tangent_norm": "rms", "weight": "one", "lr": 1e-3}),
        "sct-difference": ("sct", plain, {"init": teacher(), "derivative": "difference", "tangent_norm": "clip"}),
        "scd": ("scd", plain, {"teacher": teacher(), "tangent_warmup": 0, "dropout": 0.1}),
        "scd-guided": ("scd", by_class, {**guided, "guidance": 2.5, "tangent_norm": "rcm"}),
        "meanflow": ("meanflow", tiny_network(second_time=True), {"lr": 1e-3}),
        "meanflow-init": ("meanflow", tiny_network(second_time=True), {"init": teacher(), "r_mean": -4.0, "lr": 1e-3}),
        "imf-guided": (
            "meanflow",
            tiny_network(10, second_time=True, guidance=True),
            {"form": "imf", "conditional": True, "label_dropout": 0.1, "guidance": (1.0, 4.0), "lr": 1e-3},
        ),
        "imm": ("imm", tiny_network(second_time=True), {"lr": 1e-3}),
        "progressive-guided": ("progressive", by_class, {**guided, "guidance": 2.5, "teacher_steps": 4, "lr": 1e-3}),
    }


def curve(name: str) -> list[float]:
    """The loss of each step."""
    import torch

    import atonce
    from atonce.training.presets import PRESETS

    torch.set_num_threads(1)
    preset, network, changes = changes_of()[name]
    recipe = PRESETS[preset](images=STEPS * BATCH, batch=BATCH, seed=3, network=network, **changes)
    losses: list[float] = []

    def callback(line: dict[str, object]) -> None:
        if "loss" in line:
            losses.append(line["loss"])  # type: ignore[arg-type]

    with tempfile.TemporaryDirectory() as folder:
        atonce.train(
            recipe,
            "digits",
            Path(folder) / name,
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
    chosen = [word for word in sys.argv[1:] if word != "--write"]
    curves = {name: curve(name) for name in chosen or changes_of()}
    if "--write" in sys.argv:
        FOLDER.mkdir(exist_ok=True)
        for name, losses in curves.items():
            (FOLDER / f"{name}.json").write_text(json.dumps({"loss": losses}, indent=1) + "\n")
    else:
        print(json.dumps(curves))


if __name__ == "__main__":
    main()
