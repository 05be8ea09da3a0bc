"""The verb ``search``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

import atonce
from atonce.core.errors import InputError
from atonce.verbs.output import show


def search(
    model: Positional[str],
    data: str = "digits",
    steps: int = 2,
    method: Literal["golden", "ternary", "coordinate", "scan"] = "golden",
    metric: Literal["frechet", "kid"] = "frechet",
    n: int = 2000,
    seed: int = 0,
    extractor: str = "auto",
    grid: int | None = None,
    sigmas: tuple[float, ...] = (),
    batch: int | None = None,
    device: str = "auto",
    store: bool = True,
    save: Path | None = None,
    force: bool = False,
    out: Path = Path("search.png"),
    quiet: bool = False,
    json: bool = False,
) -> int:
    """Find the time points at which a model's samples are best, and let the model use them from then on.

    An interrupted search goes on where it was when the same command is given again: its values lie beside the plot.

    Example: atonce search digits --steps 2 --n 1000 --save runs/digits-two-steps

    Args:
        model: Gallery name, run folder, model folder or hub id.
        data: What the samples are to be like: a name, or a folder, zip or file of images.
        steps: Intervals of the sampler; the first begins at the model's sigma_max.
        method: golden section with a coarse scan before it; ternary as published; coordinate descent from the present time
            points; or a scan of the whole grid.
        metric: Which distance is made small.
        n: Samples of each choice.
        seed: Of their noise, which all choices share.
        extractor: What turns images into features; auto is pixels for digits and the classifier of other labelled data.
        grid: How many noise levels there are to choose from.
        sigmas: The noise levels themselves, instead of a number of them.
        batch: Images computed at once.
        device: auto, cpu, cuda or cuda:N.
        store: Write the time points into the model's folder, where they are surely better than those it uses.
        save: Write a copy of the model with the time points here, where they are surely better, and leave the model as it is. A
            folder that holds the same model gets the time points alone.
        force: Store them without a sure gain too. The best of many choices looks better than it is with the noise by which it
            was chosen; so the gain is measured with other noise, and where 0 lies inside its interval it may be chance. What is
            no better even with the noise of the search is never stored.
        out: Plot of what was seen (.png); its values are kept beside it (.json).
        quiet: Show no progress.
        json: Print the result as JSON.

    Returns:
        The exit status.

    Raises:
        InputError: A value is out of range, there is no folder to store the time points in, or it holds another model.
        DataError: A file of an earlier search cannot be read.
    """
    from atonce.core.files import write_bytes
    from atonce.core.progress import Progress
    from atonce.evaluation.search import search_times, store_times, with_times
    from atonce.evaluation.time_points import check_store, holds_model
    from atonce.exchange.open import model_folder
    from atonce.model_files import weights_digest
    from atonce.reports.pictures import is_ours
    from atonce.reports.plots import png
    from atonce.reports.search_plot import search_figure
    from atonce.training.options import pick_device

    if out.suffix.lower() != ".png":
        raise InputError(f"the plot of the search cannot be {out}: give a name that ends in .png")
    if out.exists() and not is_ours(out):
        raise InputError(f"{out} exists and was not made by atonce: choose another name, nothing was changed")
    if grid is not None and sigmas:
        raise InputError("give either --grid, how many noise levels, or --sigmas, the noise levels themselves")
    opened = atonce.load(model).to(pick_device(device))
    folder = model_folder(model) if store and save is None else None
    if store and save is None and folder is None:
        raise InputError(f"{model} is no folder to store time points in: give --save FOLDER for a copy of it, or --no-store")
    weights = weights_digest(opened)
    if save is not None:
        holds_model(save, weights)
    elif folder is not None:
        check_store(folder, weights)
    with contextlib.ExitStack() as shown:
        bar: Progress | None = None  # made when something happens, so that a refusal is one line

        def step(info: dict[str, Any]) -> None:
            nonlocal bar
            bar = bar or shown.enter_context(Progress("searching", info["expected"], "choices", quiet=quiet))
            bar.total = info["expected"]
            levels = ", ".join(f"{sigma:.4g}" for sigma in info["sigmas"])
            bar.update(info["evaluation"], f"{levels}: {info['value']:.4g}")

        result = search_times(
            opened,
            data,
            steps,
            method=method,
            metric=metric,
            extractor=extractor,
            n=n,
            seed=seed,
            grid=sigmas or grid,
            batch=batch,
            ledger=out.with_suffix(".json"),
            callback=step,
        )
    write_bytes(out, png(search_figure(result)))
    where = "not stored"
    if (save or folder) and not result.improved:
        where = "not stored: no better than what the model uses"
    elif (save or folder) and not result.sure and not force:
        where = "not stored: no sure gain; --force stores them"
    elif save is not None:
        if not holds_model(save, weights):  # asked again: a search takes long
            with_times(opened.to("cpu"), result).save_pretrained(save)
        store_times(save, result)
        where = f"stored in {save}: its sample(steps={steps}) uses them"
    elif folder is not None:
        store_times(folder, result)
        where = f"stored in {folder}: sample(steps={steps}) uses them from now on"
    lines = [
        f"{name:8} {', '.join(f'{s:.6g}' for s in point.sigmas)}: {metric} {point.metric.value:.5g}{_interval(point.metric)}"
        for name, point in (("before", result.before), ("found", result.found))
    ]
    if result.gain is not None:
        lines.append(f"gain: {result.gain.value:.4g}{_interval(result.gain)}, with other noise: {result.verdict}")
    lines.append(f"{len(result.curve)} choices by {method} search, {result.calls} network calls for each image; curve: {out}")
    show({**result.as_dict(), "stored": where}, "\n".join([*lines, where]), json)
    return 0


def _interval(metric: Any) -> str:
    return f"  ({metric.interval[0]:.5g} to {metric.interval[1]:.5g})" if metric.interval else ""
