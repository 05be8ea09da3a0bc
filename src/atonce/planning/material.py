"""What probes train on: a copy of the data, or random images of their shape, and a teacher where there is none yet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from atonce.core.errors import InputError
from atonce.core.streams import Stream, uniform
from atonce.data.dataset import ImageData, require_labels
from atonce.model import ConsistencyModel
from atonce.preconditioning import Preconditioning
from atonce.training.product import model_config
from atonce.training.recipe import Recipe
from atonce.training.start import resolve

_BYTES = 64 << 20  # of the copy; more would only take longer to read
RANDOM = 1000  # images where only their shape is known


@dataclass(frozen=True)
class Facts:
    """What a plan must know of the data.

    Attributes:
        name: What they are called; for the command too.
        shape: (C, H, W).
        count: How many images; ``None`` where only the shape is known.
        labels: Names of the classes; none without labels.
        random: Whether the probes had random images instead.
        more_bytes: What the data hold in memory beyond the probes' copy.
    """

    name: str
    shape: tuple[int, int, int]
    count: int | None
    labels: tuple[str, ...]
    random: bool
    more_bytes: int


def random_images(shape: tuple[int, int, int], classes: int = 0, seed: int = 0) -> ImageData:
    """Random images, for the cost of a shape.

    Args:
        shape: (C, H, W).
        classes: Classes, which are drawn in turn; 0 for none.
        seed: Of the pixels.

    Returns:
        The images, a thousand of them or 64 MiB.
    """
    size = int(np.prod(shape))
    count = max(8, min(RANDOM, _BYTES // size))
    index = torch.arange(count)
    pixels = torch.cat([(uniform(seed, part, size, Stream.NOISE) * 256).to(torch.uint8) for part in index.split(64)])
    labels = index % classes if classes else None
    return ImageData(pixels.reshape(count, *shape), labels, None, "random images", f"{count} random images")


def copy_for_probes(data: ImageData, file: Path, random: bool = False) -> Facts:
    """Write a copy of the data for the probes, or of as many as fit in 64 MiB, evenly spaced.

    Args:
        data: The images.
        file: The npz to write.
        random: Whether they are random images of a shape.

    Returns:
        What the plan must know of them.
    """
    total = data.images.numel()
    part = data
    if total > _BYTES:
        few = max(1, int(len(data) * _BYTES / total))
        part = data.subset(torch.linspace(0, len(data) - 1, few).long())
    arrays = {"arr_0": part.images.permute(0, 2, 3, 1).contiguous().numpy()}
    if part.labels is not None:
        arrays["arr_1"] = part.labels.numpy()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return Facts(
        name=data.name,
        shape=data.shape,
        count=None if random else len(data),
        labels=data.label_names or tuple(map(str, range(data.num_classes))),
        random=random,
        more_bytes=total - part.images.numel(),
    )


def stand_in(recipe: Recipe, data: ImageData) -> ConsistencyModel:
    """An untrained denoiser with the network of a diffusion recipe: to distil it costs as much as to distil a trained one.

    Args:
        recipe: The diffusion recipe that would make the teacher.
        data: What it would be trained on.

    Returns:
        The denoiser.
    """
    resolved = resolve(recipe, data)
    preconditioning = Preconditioning(resolved.preconditioning, float(resolved.sigma_data), 0.0)
    return ConsistencyModel(model_config(resolved, preconditioning, data.label_names), card={"recipe": resolved.as_dict()})


def check_images(data: ImageData, conditional: bool) -> None:
    """Refuse images that are no squares, and a class-conditional plan for data without classes.

    Args:
        data: The images.
        conditional: Whether classes are asked for.

    Raises:
        InputError: The images are not square.
    """
    if data.shape[1] != data.shape[2]:
        raise InputError(f"{data.name} has images of {data.shape[1]}x{data.shape[2]}: networks take squares; give --size")
    if conditional:
        require_labels(data)
