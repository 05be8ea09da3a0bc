"""Open a model by whatever a user has: a gallery name, a run, a folder, a registry entry, a checkpoint of others, a hub id."""

from __future__ import annotations

import os
from pathlib import Path

from atonce.core.errors import MissingExtraError, ModelFileError
from atonce.exchange.foreign import open_file, open_folder
from atonce.exchange.gallery import gallery_folder, gallery_names
from atonce.exchange.hub import fetch, looks_like_hub_id, weights_file
from atonce.exchange.registry import current, is_registry_entry
from atonce.model import ConsistencyModel
from atonce.model_files import is_model_folder
from atonce.training.rundir import RunFolder


def open_model(name_or_path: str | os.PathLike[str], *, kind: str | None = None, size: int | None = None) -> ConsistencyModel:
    """Open a model.

    Args:
        name_or_path: A gallery name, a run folder, a model folder, a registry entry (its version in use), a foreign checkpoint
            or a hub id. A run, model folder or entry of that name wins over the gallery, and the gallery over any other folder.
            What a file or folder of others is, is told by its content; the model's ``card["found"]`` says what that was.
        kind: ``"consistency"`` or ``"denoiser"``, for foreign weights that cannot tell (see docs/exchange.md).
        size: Height and width of the images, for foreign weights that cannot tell.

    Returns:
        The model, on the CPU.

    Raises:
        ModelFileError: There is no such model, or its files are damaged.
    """
    text, path = os.fspath(name_or_path), Path(name_or_path).expanduser()
    try:
        is_folder, is_there, in_folder = path.is_dir(), path.exists(), path.parent.is_dir()
    except OSError:  # a name that is too long, a folder that may not be entered
        is_folder, is_there, in_folder = False, False, True
    known = text in gallery_names()
    if is_folder and is_registry_entry(path):
        return ConsistencyModel.from_pretrained(current(path)[1])
    if is_folder and (not known or RunFolder(path).recipe_file.exists() or is_model_folder(path)):
        return _in_folder(path, kind)
    if known:
        return ConsistencyModel.from_pretrained(gallery_folder() / text)
    if is_there:
        return open_file(path, kind, size)
    problem = (
        f"there is no model {text[:200]!r}: it is neither a folder nor in the gallery ({', '.join(gallery_names()) or 'empty'})"
    )
    if looks_like_hub_id(text) and not in_folder:
        try:
            folder = fetch(text)
        except MissingExtraError as error:
            raise ModelFileError(f"{problem}; as a hub id it needs more: {error}") from error
        single = weights_file(folder)
        return _in_folder(folder, kind) if single is None else open_file(single, kind, size)
    raise ModelFileError(f"{problem}; give a run folder, a model folder or a hub id (owner/name)")


def model_folder(name_or_path: str | os.PathLike[str]) -> Path | None:
    """The folder on this machine whose model a name opens, and into which more about it may be written.

    Args:
        name_or_path: What :func:`open_model` takes.

    Returns:
        A model folder of ours; ``None`` for the gallery and the hub.
    """
    path = Path(name_or_path).expanduser()
    if is_registry_entry(path):
        return current(path)[1]
    if path.resolve().is_relative_to(gallery_folder()):
        return None
    if is_model_folder(path):
        return path
    run = RunFolder(path)
    return next((folder for folder in (run.model, run.best) if run.recipe_file.exists() and folder.is_dir()), None)


def _in_folder(folder: Path, kind: str | None) -> ConsistencyModel:
    """The model of a folder that is ours or of diffusers."""
    ours = is_model_folder(folder) or RunFolder(folder).recipe_file.exists()
    foreign = None if ours else open_folder(folder, kind)
    return foreign or ConsistencyModel.from_pretrained(_in_run(folder))


def _in_run(folder: Path) -> Path:
    """The model folder inside a run folder; any other folder as it is.

    Raises:
        ModelFileError: The run has no model yet.
    """
    run = RunFolder(folder)
    if is_model_folder(folder) or not run.recipe_file.exists():
        return folder
    for model in (run.model, run.best):
        if model.is_dir():
            return model
    raise ModelFileError(f"run {folder} has no model yet: it was stopped before its first evaluation; resume it")
