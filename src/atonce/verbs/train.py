"""The verb ``train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction

import atonce
from atonce.verbs.output import show

Preset = Literal["ict", "ct", "ect", "cd", "progressive", "diffusion", "digits"]
Fields = Annotated[tuple[tuple[str, ...], ...], UseAppendAction]  # --set a=1 b=2 --set c=3


def train(
    preset: Positional[Preset],
    data: str = "digits",
    out: Path = Path("runs/run"),
    images: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    network: str | None = None,
    init: str | None = None,
    teacher: str | None = None,
    set: Fields = (),
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    skip_bad: bool = False,
    resume: bool = True,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    compile: bool = False,
    microbatch: int | None = None,
    checkpoint_seconds: float = 120.0,
    quiet: bool = False,
    json: bool = False,
) -> int:
    """Train a model, or continue an interrupted run: the same command again resumes it.

    Example: atonce train digits --images 100000 --batch 128 --out runs/digits

    Args:
        preset: Recipe to start from.
        data: Name (digits, fashion-mnist, cifar10, ...), or a folder, zip or file of images.
        out: Run folder.
        images: Budget in images seen; default 2,000,000 (digits: 320,000; the iCT paper on CIFAR-10: 409,600,000).
        batch: Images per optimiser step; default 256 (digits: 128).
        seed: Seed of weights, order and noise.
        network: auto, tiny, small, ddpmpp, ncsnpp, ncsnpp-deep, adm or adm-deep; default auto (digits: tiny), which
            takes over the network of a model that the run starts from.
        init: Model whose weights start the run; cd and progressive start from the teacher where it is not given, and from
            weights drawn from the seed with "random".
        teacher: Diffusion model to distil, for cd and progressive: gallery name, run folder, model folder or hub id.
        set: Further recipe fields as name=value, for example --set lr=3e-4 dropout=0.2 conditional=true.
        size: Crop and resize images to this height and width.
        channels: 1 for grey, 3 for RGB.
        skip_bad: Skip unreadable images instead of stopping.
        resume: Continue a run that is in the folder.
        device: auto, cpu, cuda or cuda:N.
        precision: auto uses bf16 where the machine has it and its rounding is small enough.
        compile: Use torch.compile.
        microbatch: Images per pass; more are accumulated.
        checkpoint_seconds: Time between two checkpoints.
        quiet: Show no progress.
        json: Print the result as JSON.

    Returns:
        The exit status: 130 where the run was stopped before its end.
    """
    from atonce.core.distribution import is_main
    from atonce.data.sources import open_data
    from atonce.training.words import recipe_from_words

    given = {"images": images, "batch": batch, "seed": seed, "network": network, "init": init, "teacher": teacher}
    recipe = recipe_from_words(
        preset, {k: v for k, v in given.items() if v is not None}, [pair for part in set for pair in part]
    )
    source = open_data(data, size=size, channels=channels, skip_bad=skip_bad)
    run = atonce.train(
        recipe,
        source,
        out,
        resume,
        device=device,
        precision=precision,
        compile=compile,
        microbatch=microbatch,
        checkpoint_seconds=checkpoint_seconds,
        quiet=quiet,
    )
    if is_main():
        facts = {"folder": str(run.folder), "images_seen": run.images_seen, "finished": run.finished}
        state = "finished" if run.finished else "stopped; the same command continues it"
        show(facts, f"{run.folder}: {run.images_seen:,} images seen, {state}", json)
    return 0 if run.finished else 130
