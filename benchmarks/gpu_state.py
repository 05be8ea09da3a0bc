"""A training job between two legs: its working folder, and the few files in which it travels.

The working folder:

    job.json            which stage, what the legs did, how the run is carried out
    run/                the run folder of the stage at hand
    models/STAGE/       models of finished stages, rounded to what half precision holds, so that they travel in 2 bytes
    logs/STAGE.jsonl    their logs
    latest/             the model as it stands
    cache/              the classifier that judges samples
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_parts import HEAD, pack, parts_needed, read_parts, unpack, write_parts
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from atonce.core.errors import InputError, ModelFileError
from atonce.core.files import write_bytes, write_json, write_text
from atonce.training.checkpoint import newest_checkpoint, save_checkpoint
from atonce.training.rundir import RunFolder

LEVELS = ("exact", "half", "average")
WORDS = {
    "exact": "weights, optimiser and averages to the last bit: the run continues exactly",
    "half": "weights and averages in half precision; the optimiser starts again",
    "average": "the first average alone, in half precision: weights and optimiser start again from it",
}
WEIGHTS = "weights.safetensors"
_RUN = ("run/recipe.json", "run/run.json", "run/log.jsonl")


@dataclass(frozen=True)
class Limits:
    """What may be brought back.

    Attributes:
        files: How many files in all.
        file_bytes: Size of one.
        total_bytes: Size of all together.
        others: Files beside the state: record, curves, samples.
        others_bytes: Room kept for them.
    """

    files: int = 8
    file_bytes: int = 16 << 20
    total_bytes: int = 128 << 20
    others: int = 3
    others_bytes: int = 3 << 20

    @property
    def parts(self) -> int:
        """Parts that a state may have."""
        return max(0, min(self.files - self.others, (self.total_bytes - self.others_bytes) // self.file_bytes + 1))

    @property
    def state_bytes(self) -> int:
        """Bytes that a state may have."""
        return max(0, min(self.parts * (self.file_bytes - HEAD), self.total_bytes - self.others_bytes))

    def fits(self, size: int) -> bool:
        """Whether a state of ``size`` bytes may be brought back."""
        return size <= self.state_bytes and parts_needed(size, self.file_bytes) <= self.parts


def read_job(work: Path) -> dict[str, Any]:
    """The content of job.json, empty where there is none."""
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads((work / "job.json").read_text(encoding="utf-8")))
    return {}


def check_size(parameters: int, limits: Limits, models: int = 1) -> None:
    """Refuse a network that could never be brought back.

    Args:
        parameters: Of the network.
        limits: What may be brought back.
        models: How many of its size travel: the one in training, and that of the stage before.

    Raises:
        InputError: Its weights do not fit even in half precision.
    """
    if (needed := 2 * parameters * models) > limits.state_bytes:
        raise InputError(
            f"the network has {parameters:,} parameters: {'with its teacher ' if models > 1 else ''}in half precision it takes "
            f"{_mib(needed)}, and {_mib(limits.state_bytes)} of state may be brought back; take a smaller network"
        )


def pack_job(work: Path, limits: Limits, say: Callable[[str], None] = lambda text: None) -> tuple[bytes, str]:
    """The state of a job as one block, in the best precision that fits.

    Args:
        work: The working folder.
        limits: What may be brought back.
        say: Where a line for people goes.

    Returns:
        The block and one of :data:`LEVELS`.

    Raises:
        InputError: It does not fit at all.
        ModelFileError: The working folder is damaged.
    """
    facts: dict[str, Any] = {"job": read_job(work)}
    files = {name: (work / name).read_bytes() for name in _RUN if (work / name).exists()}
    for pattern in ("logs/*.jsonl", "models/*/config.json", "models/*/records.json", "latest/*.json", "cache/**/*.safetensors"):
        files |= {path.relative_to(work).as_posix(): path.read_bytes() for path in sorted(work.glob(pattern))}
    models: dict[str, Tensor] = {}
    for path in sorted(work.glob("models/*/model.safetensors")):
        models |= {f"{path.parent.relative_to(work).as_posix()}:{k}": _narrow(v) for k, v in load_file(path).items()}
    checkpoint = newest_checkpoint(work / "run" / "checkpoints")
    if checkpoint is not None:
        names = list(checkpoint.tensors)
        facts["checkpoint"] = {"images_seen": checkpoint.images_seen, "facts": checkpoint.facts, "names": names}
    size = 0
    for level in LEVELS if checkpoint is not None else LEVELS[:1]:
        tensors = {} if checkpoint is None else _at_level(checkpoint.tensors, level)
        if 0.6 * sum(v.nbytes for v in tensors.values()) > limits.state_bytes:
            continue  # packing saves a fifth, sometimes a quarter
        near = {}
        for name in tensors:
            source = "network/" + name.split("/", 2)[-1] if name.startswith("ema/") else name.replace("target/", "network/", 1)
            if source != name and source in tensors and tensors[name].dtype == torch.float32:
                near[name] = source
        block = pack({**models, **tensors}, near, files, {**facts, "level": level})
        size = len(block)
        if limits.fits(size):
            return block, level
        say(f"the state at level {level!r} takes {_mib(size)}, {_mib(limits.state_bytes)} may be brought back")
    raise InputError(
        f"the state does not fit into {limits.parts} files of {_mib(limits.file_bytes)}, even with one average alone"
        f"{f' ({_mib(size)})' if size else ''}: take a smaller network"
    )


def unpack_job(folder: Path, work: Path) -> tuple[dict[str, Any], str]:
    """Build the working folder from the files that were brought back.

    Args:
        folder: Where the parts of the state lie.
        work: A new working folder.

    Returns:
        The content of job.json and the level at which the state was packed.

    Raises:
        ModelFileError: The parts are incomplete or damaged.
        InputError: The working folder holds a job already.
        StorageError: Writing failed.
    """
    tensors, files, facts = unpack(read_parts(folder))
    if (work / "job.json").exists():
        raise InputError(f"{work} holds a job already: choose another folder")
    level = str(facts["level"])
    for name, content in files.items():
        path = work / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise ModelFileError(f"the state in {folder} names a file outside of its folder: {name!r}")
        write_bytes(path, content)
    models = {name: value for name, value in tensors.items() if ":" in name}
    for place in sorted({name.split(":", 1)[0] for name in models}):
        _write_model(work / place, _widened({k.split(":", 1)[1]: v for k, v in models.items() if k.startswith(f"{place}:")}))
    rest = {name: value for name, value in tensors.items() if ":" not in name}
    if about := facts.get("checkpoint"):
        whole = _restored(rest, about["names"])
        save_checkpoint(RunFolder(work / "run").checkpoints, about["images_seen"], whole, about["facts"], keep=2)
        if (work / "latest" / "config.json").exists():
            _write_model(work / "latest", _sampled(work / "latest", whole))
    write_json(work / "job.json", facts["job"])
    return facts["job"], level


def bring_back(work: Path, out: Path, limits: Limits, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Put the state, and where it fits the model's weights, where they are brought back from.

    Args:
        work: The working folder.
        out: What is brought back.
        limits: What may be.
        say: Where a line for people goes.

    Returns:
        Level, files and bytes, for the record.

    Raises:
        InputError: It does not fit.
        ModelFileError: The working folder is damaged.
        StorageError: Writing failed.
    """
    block, level = pack_job(work, limits, say)
    paths = write_parts(block, out, limits.file_bytes)
    report: dict[str, Any] = {"level": level, "means": WORDS[level], "bytes": len(block), "files": [p.name for p in paths]}
    weights = _weights(work / "latest")
    room = limits.total_bytes - limits.others_bytes - len(block)
    (out / WEIGHTS).unlink(missing_ok=True)
    if weights is None:
        report["weights"] = "no model yet"
    elif len(paths) + limits.others < limits.files and len(weights) <= min(room, limits.file_bytes):
        write_bytes(out / WEIGHTS, weights)
        report["weights"] = f"{WEIGHTS}: half precision, {len(weights):,} bytes"
    else:
        report["weights"] = "no room for a file of their own: they are in the state (--unpack)"
    return report


def weights_folder(file: Path, folder: Path) -> None:
    """Make a model folder of the file of weights alone.

    Args:
        file: ``weights.safetensors`` as it was brought back.
        folder: The model folder.

    Raises:
        ModelFileError: The file cannot be read.
        StorageError: Writing failed.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            config = opened.metadata()["config"]
        state = _widened(load_file(file))
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise ModelFileError(f"{file} cannot be read as a model's weights: {error}") from error
    write_text(folder / "config.json", config)
    _write_model(folder, state)


def rounded_to_half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Float32 weights with the values that half precision holds: they then travel in two bytes without a further loss."""
    half = {name: value.half().float() if value.dtype == torch.float32 else value for name, value in state.items()}
    return {name: torch.where(half[name].isfinite(), half[name], value) for name, value in state.items()}


def _narrow(value: Tensor) -> Tensor:
    """Float32 in half precision where that loses nothing."""
    half = value.half() if value.dtype == torch.float32 else value
    return half if torch.equal(half.to(value.dtype), value) else value


def _widened(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() if value.dtype == torch.float16 else value for name, value in state.items()}


def _at_level(tensors: dict[str, Tensor], level: str) -> dict[str, Tensor]:
    if level == "exact":
        return tensors
    kept = {k: v for k, v in tensors.items() if not k.startswith("optimizer/")}
    first = next((k.split("/")[1] for k in kept if k.startswith("ema/")), None)
    if level == "average" and first is not None:
        averaged = {k.split("/", 2)[2] for k in kept if k.startswith(f"ema/{first}/")}
        # Buffers are in no average; they are the network's own.
        own = {k for k in kept if k.startswith("network/") and k.split("/", 1)[1] not in averaged}
        kept = {k: v for k, v in kept.items() if k.startswith(f"ema/{first}/") or k in own or k == "meters"}
    return {k: v.half() if v.dtype == torch.float32 else v for k, v in kept.items()}


def _restored(tensors: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """The tensors of a checkpoint: an average that came alone stands for weights, target and other averages."""
    whole = _widened(tensors)
    averaged = {k.split("/", 2)[2]: v for k, v in whole.items() if k.startswith("ema/")}
    own = {k.split("/", 1)[1]: v for k, v in whole.items() if k.startswith("network/")}
    for name in names:
        parameter = name.split("/", 2)[-1] if name.startswith("ema/") else name.split("/", 1)[-1]
        if name not in whole and name.startswith(("network/", "target/", "ema/")):
            whole[name] = {**own, **averaged}[parameter].clone()
    return whole


def _sampled(latest: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that the model samples with: the average that its card names."""
    card = json.loads((latest / "config.json").read_text(encoding="utf-8")).get("card") or {}
    own = {k.removeprefix("network/"): v for k, v in tensors.items() if k.startswith("network/")}
    prefix = f"ema/{card.get('ema')}/"
    return own | {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _write_model(folder: Path, state: dict[str, Tensor]) -> None:
    """Weights beside a config.json, which then has no checksum of other weights."""
    write_bytes(folder / "model.safetensors", save({k: v.contiguous() for k, v in state.items()}, {"format": "pt"}))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("weights", None)
    write_json(folder / "config.json", config)


def _weights(latest: Path) -> bytes | None:
    if not (latest / "model.safetensors").exists():
        return None
    state = {k: v.half() if v.dtype == torch.float32 else v for k, v in load_file(latest / "model.safetensors").items()}
    config = json.loads((latest / "config.json").read_text(encoding="utf-8"))
    config.pop("weights", None)
    return save(state, {"format": "pt", "config": json.dumps(config)})


def _mib(size: int) -> str:
    return f"{size / 2**20:.3g} MiB"
