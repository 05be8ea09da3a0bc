"""Pickles of EDM and ECT: the network is rebuilt from its own arguments by our classes; their source code is never looked at.

Karras et al. 2022 (EDMPrecond), Geng et al. 2024 (ECMPrecond). Such a pickle holds the source of its classes beside the
weights; of all that only the names of classes, their arguments and the tensors are kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from atonce.core.errors import InputError, ModelFileError
from atonce.core.reading_tensors import PickledDict, read_tensor_pickle
from atonce.exchange.assemble import chosen_kind, foreign_model, network_with, number
from atonce.model import ConsistencyModel
from atonce.model_config import Kind
from atonce.networks.adm import ADMConfig
from atonce.networks.build import NetworkConfig
from atonce.networks.unet import UNetConfig
from atonce.preconditioning import Preconditioning

_MODULES = 20_000  # of one network
_TORCH_CONTAINERS = ("ModuleDict", "ModuleList", "Sequential")
_REFUSED = {
    "VPPrecond": "the variance-preserving preconditioning of score SDEs, a baseline",
    "VEPrecond": "the variance-exploding preconditioning of score SDEs, a baseline",
    "iDDPMPrecond": "the preconditioning of improved DDPM, a baseline with discrete noise levels",
    "Precond": "EDM2's preconditioning, whose magnitude-preserving network this version does not have",
}


class Stored:
    """An object of a foreign class: the name of the class and the attributes, nothing else."""

    class_name: str
    state: dict[str, Any]

    def __new__(cls, class_name: Any = "", state: Any = None) -> Stored:
        """A pickle makes objects without calling their __init__."""
        made = super().__new__(cls)
        made.class_name = class_name if isinstance(class_name, str) else ""
        made.state = dict(state) if isinstance(state, dict) else {}
        return made

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.state.update({k: v for k, v in state.items() if isinstance(k, str)})


def _persistent(meta: Any) -> Stored:
    """What stands for EDM's ``_reconstruct_persistent_obj``; the source in ``meta`` is dropped unread."""
    if not isinstance(meta, dict) or not isinstance(meta.get("class_name"), str) or not isinstance(meta.get("state"), dict):
        raise ValueError("an object is described in a way that EDM's code does not use")
    return Stored(meta["class_name"][:80], {k: v for k, v in meta["state"].items() if isinstance(k, str)})


def _method(*_: Any) -> str:
    return "a method"  # of a loss; ECT stores some, and nobody asks for them


class _Container(Stored):
    """A container of torch's modules."""


def _globals() -> dict[tuple[str, str], Any]:
    table: dict[tuple[str, str], Any] = {
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
        ("dnnlib.util", "EasyDict"): PickledDict,
        ("builtins", "getattr"): _method,
    }
    return table | {("torch.nn.modules.container", name): _Container for name in _TORCH_CONTAINERS}


def open_edm(path: Path, kind: str | None = None) -> ConsistencyModel:
    """A model from a pickle of EDM or ECT.

    Args:
        path: The file.
        kind: ``"denoiser"`` or ``"consistency"``; default: what the class of the preconditioning says.

    Returns:
        The model.

    Raises:
        ModelFileError: It is another kind of pickle, damaged, or holds a network or preconditioning that is not known.
    """
    values = read_tensor_pickle(path, _globals())
    net = values.get("ema") if isinstance(values, dict) else values
    if not isinstance(net, Stored):
        what = (
            f"a dictionary with {', '.join(map(str, list(values)[:5]))[:120]}" if isinstance(values, dict) else "something else"
        )
        raise ModelFileError(f"{path} is a pickle, but none of EDM or ECT: it has no network under 'ema', but is {what}")
    name, state = net.class_name, net.state
    if name not in ("EDMPrecond", "ECMPrecond"):
        why = _REFUSED.get(name, "a class that this version does not know")
        raise ModelFileError(f"{path} holds {name!r}, {why}: EDMPrecond and ECMPrecond are read")
    modules = state.get("_modules")
    inner = modules.get("model") if isinstance(modules, dict) else None
    if not isinstance(inner, Stored):
        raise ModelFileError(f"{path}: {name} has no network inside, the file is damaged")
    try:
        config = edm_config(inner)
        sigma_data = number(state.get("sigma_data", 0.5), "sigma_data", 0, 1e6)
        lowest, highest = state.get("sigma_min", 0), state.get("sigma_max", float("inf"))
        # ECT trains with the end at 0, and generates with the shifted form that ends at sigma_min.
        end = number(lowest, "sigma_min", -1e-30, 1.0) if name == "ECMPrecond" else 0.0
        sigma_max = 80.0 if highest == float("inf") else number(highest, "sigma_max", 0.1, 1e6)
        sigma_min = max(number(lowest, "sigma_min", -1e-30, 1.0), 0.002)
    except InputError as problem:
        raise ModelFileError(f"{path}: {problem}") from problem
    weights = {k: v for k, v in tensors_of(inner, path).items() if not k.endswith(".resample_filter")}
    network = network_with(config, weights, path)
    says: Kind = "consistency" if name == "ECMPrecond" else "denoiser"
    chosen = chosen_kind(kind, says, path)
    if chosen == "denoiser":
        end = 0.0
    family = "ECT" if name == "ECMPrecond" else "EDM"
    half = ", computed in float32 (the original in float16)" if state.get("use_fp16") is True else ""
    card = {
        "name": path.stem,
        "found": f"pickle of {family}: {name} with {inner.class_name}, {config.size}x{config.size}"
        f"; {chosen} {'by its class' if chosen == says else 'as asked for'}{half}; its source code was not executed",
    }
    preconditioning = Preconditioning("boundary" if end else "edm", sigma_data, end)
    return foreign_model(network, chosen, preconditioning, card, sigma_min=sigma_min, sigma_max=sigma_max, where=path)


_SONG = {
    "img_resolution": None,
    "in_channels": None,
    "out_channels": None,
    "label_dim": 0,
    "augment_dim": 0,
    "model_channels": 128,
    "channel_mult": [1, 2, 2, 2],
    "channel_mult_emb": 4,
    "num_blocks": 4,
    "attn_resolutions": [16],
    "dropout": 0.1,
    "label_dropout": 0,
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": [1, 1],
}
_DHARIWAL = {
    "img_resolution": None,
    "in_channels": None,
    "out_channels": None,
    "label_dim": 0,
    "augment_dim": 0,
    "model_channels": 192,
    "channel_mult": [1, 2, 3, 4],
    "channel_mult_emb": 4,
    "num_blocks": 3,
    "attn_resolutions": [32, 16, 8],
    "dropout": 0.1,
    "label_dropout": 0,
}


def edm_config(net: Stored) -> NetworkConfig:
    """Our configuration of one of EDM's networks, from the arguments that it was made with.

    Args:
        net: SongUNet or DhariwalUNet.

    Returns:
        The configuration.

    Raises:
        InputError: It is another class, or an argument is missing, unknown or out of range.
    """
    arguments: dict[str, dict[str, Any]] = {"SongUNet": _SONG, "DhariwalUNet": _DHARIWAL}
    known = arguments.get(net.class_name)
    if known is None:
        raise InputError(
            f"its network is {net.class_name!r}, of a class that this version does not know (SongUNet, DhariwalUNet)"
        )
    args, named = net.state.get("_init_args", ()), net.state.get("_init_kwargs", {})
    if not isinstance(args, (tuple, list)) or not isinstance(named, dict) or len(args) > len(known):
        raise InputError("the arguments of its network are damaged")
    values = {**known, **dict(zip(known, args, strict=False)), **named}
    if unknown := sorted(str(k)[:40] for k in set(values) - set(known)):
        raise InputError(f"its network has the argument {unknown[0]!r}, which {net.class_name} does not have")
    if values["in_channels"] != values["out_channels"]:
        raise InputError("its network does not give back as many channels as it takes")
    common: dict[str, Any] = {
        "size": values["img_resolution"],
        "image_channels": values["in_channels"],
        "channels": values["model_channels"],
        "channel_mult": _whole(values["channel_mult"], "channel_mult"),
        "blocks": values["num_blocks"],
        "attention": _whole(values["attn_resolutions"], "attn_resolutions"),
        "embedding_mult": values["channel_mult_emb"],
        "labels": values["label_dim"],
        "augment_labels": values["augment_dim"],
    }
    if net.class_name == "DhariwalUNet":
        return ADMConfig(**common)
    if values["decoder_type"] != "standard" or values["encoder_type"] not in ("standard", "residual"):
        raise InputError(
            f"its network has encoder {str(values['encoder_type'])[:40]!r} and decoder {str(values['decoder_type'])[:40]!r}: "
            "encoders 'standard' and 'residual' with decoder 'standard' are read"
        )
    return UNetConfig(
        **common,
        embedding=values["embedding_type"],
        encoder=values["encoder_type"],
        noise_mult=values["channel_mult_noise"],
        taps=_whole(values["resample_filter"], "resample_filter"),
    )


def _whole(values: Any, name: str) -> tuple[int, ...]:
    if not isinstance(values, (list, tuple)) or len(values) > 64 or not all(type(v) is int for v in values):
        raise InputError(f"the argument {name} of its network is no list of whole numbers")
    return tuple(values)


def tensors_of(net: Stored, path: Path) -> dict[str, Tensor]:
    """All parameters and buffers of a stored module, by their full names.

    Args:
        net: The module.
        path: The file, for messages.

    Returns:
        Tensors by name.

    Raises:
        ModelFileError: The modules are damaged, too many, or contain themselves.
    """
    out: dict[str, Tensor] = {}
    waiting: list[tuple[str, Stored]] = [("", net)]
    for _ in range(_MODULES):
        if not waiting:
            return out
        begin, module = waiting.pop()
        for group in ("_parameters", "_buffers", "_modules"):
            members = module.state.get(group, {})
            if not isinstance(members, dict) or not all(isinstance(key, str) and len(key) < 200 for key in members):
                raise ModelFileError(f"{path} is damaged: the {group[1:]} of {begin[:80] or 'the network'} are no names")
            for key, value in members.items():
                if group == "_modules" and isinstance(value, Stored) and len(begin) < 400:
                    waiting.append((f"{begin}{key}.", value))
                elif isinstance(value, Tensor) and group != "_modules":
                    out[f"{begin}{key}"] = value
                elif value is not None:
                    raise ModelFileError(f"{path} is damaged: {begin[:80]}{key} is no tensor and no module")
    raise ModelFileError(f"{path} is damaged: its network has more than {_MODULES:,} modules, or contains itself")
