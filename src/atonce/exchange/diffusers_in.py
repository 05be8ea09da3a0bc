"""Folders of diffusers: a UNet2DModel and the scheduler that says what it predicts. diffusers itself is not needed.

A scheduler tells the terms of the network: consistency (Song et al. 2023), EDM (Karras et al. 2022), or the steps of a
variance-preserving process (Ho et al. 2020), of which every step is a noise level. In the last case the denoiser is that of the
``edm`` preconditioning with sigma_data = 1, whose c_in x is the variance-preserving state; see
:class:`~atonce.networks.unet2d.UNet2D`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atonce.core.errors import InputError, ModelFileError
from atonce.exchange.assemble import chosen_kind, foreign_model, network_with, number
from atonce.exchange.sniff import Found, read_json
from atonce.exchange.weights import folder_weights
from atonce.model import ConsistencyModel
from atonce.model_config import Kind
from atonce.networks.schedules import SCHEDULES, log_sigmas
from atonce.networks.unet2d import UNet2DConfig
from atonce.preconditioning import Preconditioning

CONSISTENCY = ("CMStochasticIterativeScheduler",)
EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
STEPS = (
    "DDPMScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDIMParallelScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
)
_WEIGHTS = "diffusion_pytorch_model"
# Names that the attention layers had before 0.15.
_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
_PREDICTS = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v"}


def open_diffusers(folder: Path, found: Found, kind: str | None = None) -> ConsistencyModel:
    """A model from a pipeline folder, or from the folder of a network.

    Args:
        folder: The folder.
        found: What it is.
        kind: ``"consistency"`` or ``"denoiser"``, for a network folder without a scheduler.

    Returns:
        The model.

    Raises:
        ModelFileError: A part is missing, damaged, or of a class that is not known.
    """
    if found.format == "pipeline":
        parts = read_json(folder / "model_index.json")
        _check_part(folder, parts, "unet", ("UNet2DModel",))
        _check_part(folder, parts, "scheduler", (*CONSISTENCY, *EDM, *STEPS))
        others = sorted(
            k for k, v in parts.items() if isinstance(v, list) and v[:1] != [None] and k not in ("unet", "scheduler")
        )
        if others:
            raise ModelFileError(
                f"{folder} is a pipeline with {', '.join(others)[:120]} beside its network: pipelines of a UNet2DModel and a "
                "scheduler are read"
            )
        network_folder, scheduler_folder = folder / "unet", folder / "scheduler"
    else:
        network_folder, scheduler_folder = folder, folder.parent / "scheduler"
    values = read_json(network_folder / "config.json")
    if values.get("_class_name") != "UNet2DModel":
        raise ModelFileError(f"{network_folder} holds a {str(values.get('_class_name'))[:60]!r}: UNet2DModel is read")
    scheduler = _scheduler(folder, scheduler_folder / "scheduler_config.json", found, kind)
    try:
        terms, preconditioning, says, low, high = _terms(scheduler)
        chosen = chosen_kind(kind, says, folder)
        if chosen != says and says == "denoiser":
            raise ModelFileError(f"its scheduler {_name(scheduler)} is that of a denoiser, kind={kind!r} does not fit")
        if chosen != says:
            preconditioning = Preconditioning("edm", preconditioning.sigma_data, 0.0)
        config = unet2d_config(values, terms)
    except InputError as problem:
        raise ModelFileError(f"{folder}: {problem}") from problem
    state = {_today(name): value for name, value in folder_weights(network_folder, _WEIGHTS).items()}
    network = network_with(config, state, network_folder)
    name = folder.resolve().name
    card = {
        "name": name,
        "found": f"{found.text}: UNet2DModel {config.size}x{config.size} with {_name(scheduler)}; {chosen}",
    }
    return foreign_model(network, chosen, preconditioning, card, sigma_min=low, sigma_max=high, where=folder)


def _check_part(folder: Path, parts: Mapping[str, Any], name: str, known: tuple[str, ...]) -> None:
    part = parts.get(name)
    if not isinstance(part, list) or len(part) != 2 or not all(isinstance(v, str) for v in part):
        raise ModelFileError(f"{folder} is a pipeline without {name}: pipelines of a UNet2DModel and a scheduler are read")
    if part[0] != "diffusers":
        raise ModelFileError(f"{folder} brings its own code for {name} ({part[0][:60]}): foreign code is never executed")
    if part[1] not in known:
        raise ModelFileError(f"{folder} has the {name} {part[1][:60]!r}, which this version does not know: {', '.join(known)}")


def _scheduler(folder: Path, file: Path, found: Found, kind: str | None) -> dict[str, Any]:
    if found.format == "pipeline" or file.is_file():
        return read_json(file)
    if kind == "consistency":
        return {"_class_name": CONSISTENCY[0]}
    if kind == "denoiser":
        return {"_class_name": EDM[0]}
    raise ModelFileError(
        f"{folder} is a network without a scheduler, which would say what it predicts: give the pipeline's folder, or "
        "kind='consistency', or kind='denoiser' for an EDM teacher"
    )


def _name(scheduler: Mapping[str, Any]) -> str:
    return str(scheduler.get("_class_name"))[:60]


def _terms(values: Mapping[str, Any]) -> tuple[dict[str, Any], Preconditioning, Kind, float, float]:
    """Fields of the network, preconditioning, kind, and the range of noise levels."""
    name = _name(values)
    if name in CONSISTENCY or name in EDM:
        low = number(values.get("sigma_min", 0.002), "sigma_min", 0, 1)
        high = number(values.get("sigma_max", 80.0), "sigma_max", low, 1e6)
        data = number(values.get("sigma_data", 0.5), "sigma_data", 0, 1e6)
        if name in CONSISTENCY:
            return {"time_scale": 1000.0}, Preconditioning("boundary", data, low), "consistency", low, high
        predicts = {"epsilon": "F", "v_prediction": "v"}.get(str(values.get("prediction_type", "epsilon")))
        if predicts is None:
            raise InputError(f"{name} with prediction_type {str(values.get('prediction_type'))[:40]!r} is not known")
        return {"time_scale": 1.0, "predicts": predicts}, Preconditioning("edm", data, 0.0), "denoiser", low, high
    if name not in STEPS:
        raise InputError(f"its scheduler {name!r} is not known; known: {', '.join((*CONSISTENCY, *EDM, *STEPS))}")
    schedule, predicted = str(values.get("beta_schedule", "linear")), str(values.get("prediction_type", "epsilon"))
    for option in ("trained_betas", "rescale_betas_zero_snr", "use_flow_sigmas"):
        if values.get(option) not in (None, False):
            raise InputError(f"its scheduler has {option}, which this version does not know")
    if schedule not in SCHEDULES or predicted not in _PREDICTS:
        raise InputError(f"its schedule {schedule[:40]!r} or prediction {predicted[:40]!r} is not known")
    # The classes differ in what they take for granted.
    first, last = (0.0001, 0.02) if "Discrete" not in name or name == "LMSDiscreteScheduler" else (0.00085, 0.012)
    if name in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"):
        first, last = 0.0001, 0.02
    steps = values.get("num_train_timesteps", 1000)
    if type(steps) is not int or not 2 <= steps <= 100_000:
        raise InputError(f"its scheduler has {str(steps)[:40]} steps, must be a whole number from 2 to 100,000")
    begin = number(values.get("beta_start", first), "beta_start", 0, 0.999)
    end = number(values.get("beta_end", last), "beta_end", 0, 0.999)
    table = log_sigmas(schedule, begin, end, steps)
    if not bool(table.isfinite().all()) or not bool((table[1:] > table[:-1]).all()):
        raise InputError("the noise levels of its schedule do not rise")
    terms = {
        "clock": "steps",
        "schedule": schedule,
        "beta_start": begin,
        "beta_end": end,
        "train_steps": steps,
        "predicts": _PREDICTS[predicted],
    }
    return terms, Preconditioning("edm", 1.0, 0.0), "denoiser", math.exp(float(table[0])), math.exp(float(table[-1]))


def _today(name: str) -> str:
    if ".attentions." in name:
        for old, new in _OLD_NAMES.items():
            name = name.replace(old, new)
    return name


_DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}


def unet2d_config(values: Mapping[str, Any], terms: Mapping[str, Any]) -> UNet2DConfig:
    """Our configuration of a UNet2DModel.

    Args:
        values: Its ``config.json``.
        terms: Further fields: what it is told and what it predicts.

    Returns:
        The configuration.

    Raises:
        InputError: An option is not known here, or out of range.
    """
    if unknown := sorted(k for k in values if not k.startswith("_") and k not in _DEFAULTS and k != "decay"):
        raise InputError(f"its network has the option {unknown[0][:60]!r}, which this version does not know")
    given = {**_DEFAULTS, **values}
    only = {
        "time_embedding_type": ("positional",),
        "act_fn": ("silu", "swish"),
        "class_embed_type": (None,),
        "mid_block_type": ("UNetMidBlock2D", None),
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "out_channels": (given["in_channels"],),
    }
    for option, known in only.items():
        if given[option] not in known:
            raise InputError(
                f"its network has {option} {str(given[option])[:40]!r}, which this version does not know: it reads "
                f"{', '.join(map(str, known))}"
            )
    size = given["sample_size"]
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    if type(size) is not int:
        raise InputError(f"its sample_size is {str(size)[:40]}: one whole number is read (square images)")
    groups, eps = given["norm_num_groups"], number(given["norm_eps"], "norm_eps", 0, 1)
    shifted = given["resnet_time_scale_shift"] == "scale_shift"
    middle_groups = given["attn_norm_num_groups"] or (0 if shifted else groups)
    fields: dict[str, Any] = {
        "size": size,
        "image_channels": given["in_channels"],
        "channels": _tuple(given["block_out_channels"], "block_out_channels"),
        "blocks": given["layers_per_block"],
        "down": tuple(_plain(v) for v in _tuple(given["down_block_types"], "down_block_types")),
        "up": tuple(_plain(v) for v in _tuple(given["up_block_types"], "up_block_types")),
        "middle": given["mid_block_type"] is not None,
        "middle_attention": given["add_attention"],
        "middle_groups": middle_groups,
        "middle_scale": number(given["mid_block_scale_factor"], "mid_block_scale_factor"),
        "head_channels": given["attention_head_dim"] or 0,
        "groups": groups,
        "eps": eps,
        "scale_shift": shifted,
        "resample_down": given["downsample_type"] or "conv",
        "resample_up": given["upsample_type"] or "conv",
        "down_padding": given["downsample_padding"],
        "embedding": given["time_embedding_dim"] or 0,
        "cosine_first": given["flip_sin_to_cos"],
        "frequency_shift": float(number(given["freq_shift"], "freq_shift", -1e-9, 1e4)),
        "centred": given["center_input_sample"],
        "labels": given["num_class_embeds"] or 0,
    }
    return UNet2DConfig(**fields, **terms)


def _plain(kind: Any) -> str:
    return str(kind)[:60].removeprefix("UNetRes")


def _tuple(values: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(values, list) or not 1 <= len(values) <= 12:
        raise InputError(f"its {name} is {str(values)[:60]}, must be a list of 1 to 12 entries")
    return tuple(values)
