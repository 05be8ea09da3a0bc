"""Open a model by whatever a user has: a gallery name, a run, a model folder, a hub id."""

from __future__ import annotations

import os
from pathlib import Path

from atonce.core.errors import ModelFileError
from atonce.exchange.gallery import gallery_folder, gallery_names
from atonce.model import ConsistencyModel
from atonce.training.rundir import RunFolder


def open_model(name_or_path: str | os.PathLike[str]) -> ConsistencyModel:
    """Open a model.

    Args:
        name_or_path: A gallery name, a run folder, a model folder or a hub id. An existing path wins over a name.

    Returns:
        The model, on the CPU.

    Raises:
        ModelFileError: There is no such model, or its files are damaged.
    """
    text, path = str(name_or_path), Path(name_or_path)
    if path.is_dir():
        return ConsistencyModel.from_pretrained(_in_run(path))
    if path.exists():
        raise ModelFileError(f"{path} is a file of a kind that this version cannot open: give a model folder or a run folder")
    if text in gallery_names():
        return ConsistencyModel.from_pretrained(gallery_folder() / text)
    if text.count("/") == 1 and not text.startswith(("./", "../", "/")) and not (path.parent.is_dir() and str(path.parent) != "."):
        return ConsistencyModel.from_pretrained(text)
    raise ModelFileError(
        f"there is no model {text!r}: it is neither a folder nor in the gallery ({', '.join(gallery_names()) or 'empty'}); "
        "give a run folder, a model folder or a hub id (owner/name)"
    )


def _in_run(folder: Path) -> Path:
    """The model folder inside a run folder; any other folder as it is.

    Raises:
        ModelFileError: The run has no model yet.
    """
    run = RunFolder(folder)
    if (folder / "config.json").exists() or not run.recipe_file.exists():
        return folder
    for model in (run.model, run.best):
        if (model / "config.json").exists():
            return model
    raise ModelFileError(f"run {folder} has no model yet: it was stopped before its first evaluation; resume it")
