"""Files of others: what they are is told by their content, and the card of the model says what was found."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from atonce.core.errors import ModelFileError
from atonce.exchange.assemble import network_with
from atonce.exchange.diffusers_in import open_diffusers
from atonce.exchange.edm_pickle import open_edm
from atonce.exchange.openai_pt import is_openai, open_openai
from atonce.exchange.sniff import Found, read_json, sniff_file, sniff_folder
from atonce.exchange.weights import read_state
from atonce.model import ConsistencyModel
from atonce.model_files import LIBRARY, config_from_dict


def open_file(path: Path, kind: str | None = None, size: int | None = None) -> ConsistencyModel:
    """A model from a single file.

    Args:
        path: The file.
        kind: ``"consistency"`` or ``"denoiser"``, where the file cannot tell.
        size: Height and width of the images, where the file cannot tell.

    Returns:
        The model, on the CPU, in float32; ``card["found"]`` says what the file was.

    Raises:
        ModelFileError: It is of no known kind, damaged, or holds a network that is not known.
    """
    found = sniff_file(path)
    if found.format == "pickle":
        return open_edm(path, kind)
    state, text = read_state(path)
    if is_openai(state):
        return open_openai(state, path, text, kind, size)
    config = path.parent / "config.json"
    if config.is_file():
        return _beside(path, config, state, text, kind)
    raise ModelFileError(_unknown(path, state, text))


def open_folder(folder: Path, kind: str | None = None) -> ConsistencyModel | None:
    """A model from a folder of diffusers.

    Args:
        folder: Any folder.
        kind: ``"consistency"`` or ``"denoiser"``, where the folder cannot tell.

    Returns:
        The model; ``None`` where it is no folder of diffusers.

    Raises:
        ModelFileError: A part is missing, damaged or not known.
    """
    found = sniff_folder(folder)
    return None if found is None else open_diffusers(folder, found, kind)


def _beside(path: Path, config: Path, state: dict[str, Tensor], text: str, kind: str | None) -> ConsistencyModel:
    """Weights with the configuration that lies beside them."""
    values = read_json(config)
    if values.get("_class_name") == "UNet2DModel":
        return open_diffusers(path.parent, Found("network", "network folder of diffusers"), kind)
    if values.get("library_name") != LIBRARY:
        raise ModelFileError(_unknown(path, state, f"{text}, and the config.json beside it is not one of ours or of diffusers"))
    settings = config_from_dict(values, config)
    network = network_with(settings.network, state, path)
    card = values.get("card")
    facts = {**(card if isinstance(card, dict) else {}), "found": f"{text} with the atonce configuration beside it"}
    return ConsistencyModel(settings, network, card=facts)


def _unknown(path: Path, state: dict[str, Tensor], text: str) -> str:
    some = ", ".join(name[:60] for name in list(state)[:2])
    if any(name.startswith(("map_layer0.", "model.map_layer0.")) for name in state):
        return f"{path} ({text}) has EDM's weights without the arguments of their network: give the original .pkl"
    if "conv_in.weight" in state:
        return (
            f"{path} ({text}) has weights of diffusers without their config.json: give the folder, with it beside the weights"
        )
    return f"{path} ({text}) holds a network that this version does not know (tensors {some}, ...): see docs/exchange.md"
