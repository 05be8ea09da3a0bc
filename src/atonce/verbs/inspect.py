"""The verb ``inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

import atonce
from atonce.verbs.output import show


def inspect(
    model: Positional[str],
    data: str | None = None,
    out: Path = Path("inspect.html"),
    teacher: str | None = None,
    seed: int = 0,
    samples: int = 64,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    device: str = "auto",
    open: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> int:
    """Make a page that shows what a model does: trajectories, consistency, nearest training images, classes, interpolations.

    Example: atonce inspect digits --out inspect.html

    Args:
        model: Gallery name, run folder, model folder or hub id.
        data: The training data, a name, folder, zip or file; default: what the model's card names, where that can be opened.
        out: The page, one .html file that needs nothing else.
        teacher: Diffusion model that the model was distilled from: the model is compared with its trajectories.
        seed: Seed of all noise.
        samples: Images in the grid of samples.
        size: Crop and resize the data to this height and width.
        channels: 1 for grey, 3 for RGB.
        device: auto, cpu, cuda or cuda:N.
        open: Show the page in the browser.
        quiet: Show no progress.
        json: Print the measured numbers as JSON.

    Returns:
        The exit status.

    Raises:
        InputError: A value is out of range, or model, data, teacher and page do not fit; nothing was done then.
    """
    from atonce.core.errors import InputError
    from atonce.core.records import command_line
    from atonce.reports.inspection_material import material_of, open_material
    from atonce.reports.inspection_page import inspection_page
    from atonce.reports.inspection_work import check_inspection, inspect_model
    from atonce.reports.page import check_page, write_page
    from atonce.training.options import pick_device

    if data is None and (size is not None or channels is not None):
        raise InputError("size and channels are for the images of --data: name them, or leave both out")
    check_page(out)
    opened = atonce.load(model).to(pick_device(device))
    guide = None if teacher is None else atonce.load(teacher)
    check_inspection(opened, guide, seed, samples)
    material, missing = material_of(opened) if data is None else (open_material(data, opened, size, channels), "")
    made = inspect_model(opened, material, missing=missing, teacher=guide, seed=seed, samples=samples, quiet=quiet)
    write_page(out, inspection_page(made, Path(model).name, command_line()))
    note = f"; without real images: {missing}" if material is None else ""
    show({"out": str(out), **made.numbers()}, f"{out}{note}", json)
    if open:
        import webbrowser

        webbrowser.open(out.resolve().as_uri())
    return 0
