"""The verb ``average``."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from atonce.core.errors import InputError
from atonce.verbs.output import show


def average(run: Positional[Path], power: float, at: int | None = None, out: Path | None = None, json: bool = False) -> int:
    """Make another average of a run's weights after the training, from the snapshots that it kept.

    Example: atonce average runs/mine --power 0.07 --out runs/mine-wide

    A run keeps snapshots where its recipe has power averages (--set 'ema=["power-0.05", "power-0.1"]').

    Args:
        run: Run folder.
        power: Width of the average as a share of the run (sigma_rel), up to 0.2887.
        at: Its time in images seen; default: the end of the run.
        out: New model folder whose weights it becomes; default: it goes into the run's model, to be sampled by name.
        json: Print the result as JSON.

    Returns:
        The exit status.

    Raises:
        InputError: The run has no snapshots, a value is out of their range, or something is in the way.
    """
    from atonce.model import ConsistencyModel
    from atonce.training.posthoc import average as make
    from atonce.training.rundir import RunFolder

    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists: choose another name, nothing was changed")
    model, name, residual = make(run, power, at=at)
    if out is None:
        folder = RunFolder(run).model
        model.save_pretrained(folder)
        use = f"atonce sample {run} --ema {name}"
    else:
        folder = out
        card = {**model.card, "name": out.resolve().name, "ema": name}
        alone = ConsistencyModel(model.config, card=card)  # records are of other weights
        alone.network.load_state_dict(model._ema[name])
        alone.save_pretrained(out)
        use = f"atonce sample {out}"
    facts = {"model": str(folder), "ema": name, "residual": residual}
    show(facts, f"{folder}: {name}, residual {residual:.2g}; {use}", json)
    return 0
