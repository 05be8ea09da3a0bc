"""OpenAI's checkpoints of consistency models: a flat state dict of an ADM U-Net, and nothing else.

Song et al. 2023; the network is F of the preconditioning and is told 1000 ln(sigma) / 4. What the weights cannot tell is
taken from how all published ones were made, and can be said otherwise: whether they are a consistency model or its EDM teacher
(``kind``), and the size of the images (``size``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from atonce.core.errors import InputError, ModelFileError
from atonce.exchange.assemble import check_limits, chosen_kind, foreign_model, network_with
from atonce.model import ConsistencyModel
from atonce.networks.adm import ADMConfig
from atonce.networks.adm_names import from_openai
from atonce.networks.unet2d import UNet2DConfig
from atonce.preconditioning import Preconditioning

_FIRST_ATTENTION = 32  # the highest resolution with attention in all published checkpoints
_NOISE_SCALE = 1000.0

# Two-step time points of the published launch scripts, by how the file is called.
_TIME_POINTS = {
    "cd_imagenet64": (80.0, 1.382368),
    "ct_imagenet64": (80.0, 1.912844),
    "cd_bedroom256_lpips": (80.0, 4.365562),
    "cd_bedroom256_l2": (80.0, 3.519699),
    "ct_bedroom256": (80.0, 3.991219),
    "ct_cat256": (80.0, 5.248503),
}
_KNOWN = re.compile(r"(cd|ct|edm)_(imagenet64|bedroom256|cat256)")


def is_openai(names: Mapping[str, Any]) -> bool:
    """Whether the names of tensors are those of OpenAI's U-Net."""
    return "input_blocks.0.0.weight" in names and "time_embed.0.weight" in names


def open_openai(
    state: Mapping[str, Tensor], path: Path, found: str, kind: str | None = None, size: int | None = None
) -> ConsistencyModel:
    """A model from the weights of one of OpenAI's checkpoints.

    Args:
        state: The flat state dict.
        path: The file; a published name also tells the kind and the time points.
        found: What kind of file it is, for the card.
        kind: ``"consistency"`` or ``"denoiser"``; default: what the name of a published file says, else ``"consistency"``.
        size: Height and width of the images; default: attention begins at 32x32, as in all published checkpoints.

    Returns:
        The model.

    Raises:
        ModelFileError: The weights are not such a network, or one of another method.
    """
    config = openai_config(state, path, size)
    network: Any
    if config.channels >= 128 and config.channels % 32 == 0:
        try:
            network = network_with(config, from_openai(state, config), path)
        except ModelFileError:
            raise
        except InputError as problem:
            raise ModelFileError(f"{path}: {problem}") from problem
    else:  # 32 groups with few channels: the same network in its other form
        narrow = _narrow(config)
        network = network_with(narrow, _renamed(state, narrow, path), path)
    known = _KNOWN.match(path.name)
    says = "denoiser" if known and known[1] == "edm" else "consistency"
    chosen = chosen_kind(kind, says, path)  # type: ignore[arg-type]
    why = "as asked for" if kind else f"by its name {path.name!r}" if known else "assumed: give kind='denoiser' for a teacher"
    end = 0.002 if chosen == "consistency" else 0.0
    card: dict[str, Any] = {
        "name": path.stem,
        "found": f"{found} with the weights of OpenAI's ADM U-Net, {config.size}x{config.size}; {chosen} ({why})",
    }
    if known:
        card["licence"] = "mit"
    points = next((v for k, v in _TIME_POINTS.items() if known and path.name.startswith(k)), None)
    return foreign_model(
        network,
        chosen,
        Preconditioning("boundary" if end else "edm", 0.5, end),
        card,
        time_points={2: points} if points and chosen == "consistency" else None,
        where=path,
    )


def openai_config(state: Mapping[str, Tensor], path: Path, size: int | None = None) -> ADMConfig:
    """The shape of OpenAI's network, read off its weights.

    Args:
        state: The flat state dict.
        path: The file, for messages.
        size: Height and width of the images, where they are known.

    Returns:
        The configuration.

    Raises:
        ModelFileError: The weights are of no such network, or of one that predicts something else.
    """
    try:
        width = int(state["time_embed.0.weight"].shape[1])
        embedding = int(state["time_embed.0.weight"].shape[0])
        image_channels = int(state["input_blocks.0.0.weight"].shape[1])
        out_channels = int(state["out.2.weight"].shape[0])
        outputs = 1 + max(int(m[1]) for name in state if (m := re.match(r"output_blocks\.(\d{1,4})\.", name)))
        ups = [i for i in range(outputs) if _steps_up(state, i)]
        blocks = (ups[0] if ups else outputs - 1) or 0
        levels = len(ups) + 1
        if out_channels == 2 * image_channels:
            raise ModelFileError(
                f"{path} predicts a variance too (guided diffusion): only OpenAI's consistency models and EDM teachers are read"
            )
        if blocks < 1 or outputs != levels * (blocks + 1) or ups != [(i + 1) * (blocks + 1) - 1 for i in range(levels - 1)]:
            raise ModelFileError(f"{path} has the names of OpenAI's U-Net in an order that it never has (resblock_updown=True)")
        firsts = [f"input_blocks.{1 + level * (blocks + 1)}" for level in range(levels)]
        widths = [int(state[f"{first}.0.out_layers.3.weight"].shape[0]) for first in firsts]
        attends = [level for level, first in enumerate(firsts) if f"{first}.1.qkv.weight" in state]
        scale_shift = state[f"{firsts[0]}.0.emb_layers.1.weight"].shape[0] == 2 * widths[0]
        labels = int(state["label_emb.weight"].shape[0]) if "label_emb.weight" in state else 0
        if not width or any(w % width for w in widths) or embedding % width:
            raise ModelFileError(f"{path}: widths {widths} are no multiples of the {width} time features")
        if size is None:
            size = _FIRST_ATTENTION << attends[0] if attends else {4: 64, 6: 256}.get(levels)
        if size is None:
            raise ModelFileError(
                f"{path} does not tell the size of its images: give size=, for example atonce.load(path, size=64)"
            )
        heads = next((h for h in (64, 32) if all(w % h == 0 for w in [widths[-1], *(widths[i] for i in attends)])), 0)
        config = ADMConfig(
            size,
            image_channels,
            channels=width,
            channel_mult=tuple(w // width for w in widths),
            blocks=blocks,
            attention=tuple(size >> level for level in attends),
            head_channels=heads,
            scale_shift=scale_shift,
            embedding_mult=embedding // width,
            noise_scale=_NOISE_SCALE,
            labels=labels,
        )
        check_limits(config)
    except ModelFileError:
        raise
    except KeyError as problem:
        raise ModelFileError(f"{path} lacks the tensor {problem} of OpenAI's U-Net (resblock_updown=True)") from problem
    except (IndexError, ValueError) as problem:
        raise ModelFileError(f"{path} has the names of OpenAI's U-Net, but not its shapes: {problem}") from problem
    return config


def _steps_up(state: Mapping[str, Tensor], block: int) -> bool:
    return any(f"output_blocks.{block}.{part}.in_layers.0.weight" in state for part in (1, 2))


def _narrow(config: ADMConfig) -> UNet2DConfig:
    """The same network as one of diffusers: there the number of groups is free."""
    levels = range(len(config.channel_mult))
    attend = [config.size >> level in config.attention for level in levels]
    return UNet2DConfig(
        config.size,
        config.image_channels,
        tuple(config.channels * m for m in config.channel_mult),
        config.blocks,
        tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attend),
        tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attend)),
        middle_groups=32,
        head_channels=config.head_channels,
        scale_shift=config.scale_shift,
        resample_down="resnet",
        resample_up="resnet",
        embedding=config.channels * config.embedding_mult,
        labels=config.labels,
        time_scale=_NOISE_SCALE,
        feature_precision="own",
    )


_PARTS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def _renamed(state: Mapping[str, Tensor], config: UNet2DConfig, path: Path) -> dict[str, Tensor]:
    """OpenAI's weights under the names of diffusers; q, k and v lie one after the other."""
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        where = _place(name, config)
        if where is None:
            raise ModelFileError(f"{path}: the tensor {name[:80]!r} is not of OpenAI's U-Net")
        begin, rest = where
        if rest.startswith("qkv."):
            if value.dim() not in (1, 3, 4) or value.shape[0] % 3:
                raise ModelFileError(f"{path}: {name} is {list(value.shape)}, which is no q, k and v")
            parts = value.reshape(value.shape[:2]) if value.dim() > 1 and value[0, 0].numel() == 1 else value
            for part, letter in zip(parts.chunk(3), "qkv", strict=True):
                out[f"{begin}.to_{letter}.{rest.removeprefix('qkv.')}"] = part
        elif rest.startswith("proj_out."):
            flat = value.reshape(value.shape[:2]) if value.dim() > 2 and value[0, 0].numel() == 1 else value
            out[f"{begin}.to_out.0.{rest.removeprefix('proj_out.')}"] = flat
        else:
            out[f"{begin}.{rest}" if begin else rest] = value
    return out


def _place(name: str, config: UNet2DConfig) -> tuple[str, str] | None:
    """Where a tensor of OpenAI's goes: the module of diffusers, and what is left of the name."""
    fixed = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb": "class_embedding",
        "input_blocks.0.0": "conv_in",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    head, _, last = name.rpartition(".")
    if head in fixed:
        return fixed[head], last
    found = re.fullmatch(r"(input_blocks|output_blocks)\.(\d{1,4})\.(\d)\.(.+)|middle_block\.(\d)\.(.+)", name)
    if not found:
        return None
    per = config.blocks + 1
    if found[5] is not None:
        begin, part, rest = "mid_block", int(found[5]), found[6]
        module = f"{begin}.attentions.0" if part == 1 else f"{begin}.resnets.{part // 2}"
    else:
        index, part, rest = int(found[2]), int(found[3]), found[4]
        if found[1] == "input_blocks":
            level, inside = divmod(index - 1, per)
            begin = f"down_blocks.{level}"
            module = f"{begin}.downsamplers.0" if inside == config.blocks else f"{begin}.resnets.{inside}"
        else:
            level, inside = divmod(index, per)
            begin = f"up_blocks.{level}"
            module = f"{begin}.resnets.{inside}"
        attends = rest.split(".")[0] in ("norm", "qkv", "proj_out")
        if attends:
            module = f"{begin}.attentions.{inside}"
        elif part:
            module = f"{begin}.upsamplers.0"
    if rest.startswith("norm."):
        return module, f"group_norm.{rest.removeprefix('norm.')}"
    if rest.startswith(("qkv.", "proj_out.")):
        return module, rest
    for theirs, ours in _PARTS.items():
        if rest.startswith(f"{theirs}."):
            return module, f"{ours}.{rest.removeprefix(f'{theirs}.')}"
    return None
