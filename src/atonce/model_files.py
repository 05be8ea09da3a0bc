"""Model folders: config.json, model.safetensors, README.md and records.json, as people of this ecosystem expect them."""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from atonce.core.errors import InputError, MissingExtraError, ModelFileError
from atonce.core.files import sha256_file, storage_errors, sync_folder, write_atomic, write_json, write_text
from atonce.core.records import Record
from atonce.networks.build import config_from_dict as network_from_dict
from atonce.networks.build import config_to_dict as network_to_dict
from atonce.preconditioning import Preconditioning

if TYPE_CHECKING:
    from atonce.model import ConsistencyModel, ModelConfig

FORMAT = 1
LIBRARY = "atonce"


def save_model(model: ConsistencyModel, folder: Path | str) -> None:
    """Write a model folder. Existing model folders are replaced file by file, anything else is left alone.

    Args:
        model: The model.
        folder: Where it goes; made when absent.

    Raises:
        InputError: The folder holds something that is not a model of ours.
        StorageError: Writing failed.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: choose another name, nothing was changed")
    # Hidden files (.git, .gitattributes of a cloned repository) are nobody's model and stay.
    if folder.exists() and any(not p.name.startswith(".") for p in folder.iterdir()) and not _is_ours(folder):
        raise InputError(f"{folder} exists and is not a model folder: choose another name, nothing was changed")
    files = {"model.safetensors": model.network.state_dict()}
    files |= {f"ema-{name}.safetensors": state for name, state in model._ema.items()}
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Everything is written aside first: on a full disk a model that was there stays whole, and its checksums right.
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as name:
            aside = Path(name)
            for file, state in files.items():
                write_atomic(aside / file, functools.partial(_save_tensors, state))
            weights = {file: sha256_file(aside / file) for file in files}
            write_json(aside / "records.json", [record.as_dict() for record in model.records])
            write_text(aside / "README.md", model_card(model))
            write_json(aside / "config.json", {**config_to_dict(model.config), "card": model.card, "weights": weights})
            for file in (*files, "records.json", "README.md", "config.json"):
                (aside / file).replace(folder / file)
        for stale in folder.glob("ema-*.safetensors"):
            if stale.name not in files:
                stale.unlink()
        sync_folder(folder)


def _save_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, path, metadata={"format": "pt"})
    except SafetensorError as error:  # the library wraps the operating system's error
        raise OSError(errno.ENOSPC if "No space" in str(error) else errno.EIO, str(error)) from error


def weights_digest(model: ConsistencyModel) -> str:
    """Hex SHA-256 of a model's weights as a model folder keeps them, in the precision that they have."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.network.state_dict().items()}
    return hashlib.sha256(save(state, metadata={"format": "pt"})).hexdigest()


def model_identity(model: ConsistencyModel) -> str:
    """A name for a model that was given as an object: its card's, if it has one, and the start of its weights' digest."""
    return f"{model.card.get('name', 'model')}, sha256 {weights_digest(model)[:16]}"


def load_model(folder_or_hub_id: Path | str) -> ConsistencyModel:
    """Read a model folder, or fetch one from the hub by its id.

    Args:
        folder_or_hub_id: A folder, or ``owner/name``.

    Returns:
        The model, on the CPU, in float32.

    Raises:
        ModelFileError: The folder is not there, not a model of ours, damaged, or its weights do not fit its configuration.
        MissingExtraError: A hub id is given but huggingface_hub is not installed.
    """
    from atonce.model import ConsistencyModel

    folder = Path(folder_or_hub_id)
    if not folder.exists() and _looks_like_hub_id(str(folder_or_hub_id)):
        folder = _fetch(str(folder_or_hub_id))
    values = _read_config(folder)
    config = config_from_dict(values, folder / "config.json")
    weights = values.get("weights", {})
    if not isinstance(weights, Mapping) or not all(isinstance(n, str) and Path(n).name == n for n in weights):
        raise ModelFileError(f"{folder / 'config.json'} is damaged: its list of weight files cannot be used")
    card = values.get("card") or {}
    if not isinstance(card, Mapping):
        raise ModelFileError(f"{folder / 'config.json'} is damaged: its card is {card!r}, must hold facts by name")
    states = {name: _read_weights(folder / name, digest) for name, digest in weights.items()}
    if "model.safetensors" not in states:
        states["model.safetensors"] = _read_weights(folder / "model.safetensors", None)
    ema = {n.removeprefix("ema-").removesuffix(".safetensors"): s for n, s in states.items() if n.startswith("ema-")}
    model = ConsistencyModel(config, ema=ema, card=card, records=_read_records(folder))
    try:
        model.network.load_state_dict(states["model.safetensors"])
    except RuntimeError as error:
        raise ModelFileError(f"{folder}: the weights do not fit the network of config.json: {_short(error)}") from error
    shapes = {name: value.shape for name, value in model.network.state_dict().items()}
    for name, state in ema.items():
        if {key: value.shape for key, value in state.items()} != shapes:
            raise ModelFileError(f"{folder / f'ema-{name}.safetensors'}: the weights do not fit the network of config.json")
    return model


def push_model(model: ConsistencyModel, repo_id: str, *, private: bool, token: str | None) -> str:
    """Upload a model folder to the hub.

    Args:
        model: The model.
        repo_id: ``owner/name``.
        private: Whether a new repository is private.
        token: Access token; default: the one huggingface_hub knows.

    Returns:
        The address of the repository.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
    """
    hub = _hub()
    with tempfile.TemporaryDirectory() as name:
        save_model(model, name)
        api = hub.HfApi(token=token)
        address = str(api.create_repo(repo_id, private=private, exist_ok=True))
        api.upload_folder(repo_id=repo_id, folder_path=name)
    return address


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """JSON values of a model's configuration."""
    values = dataclasses.asdict(config)
    values["network"] = network_to_dict(config.network)
    values["time_points"] = {str(k): list(v) for k, v in config.time_points.items()}
    return {"library_name": LIBRARY, "format": FORMAT, **values}


def config_from_dict(values: Mapping[str, Any], where: Path) -> ModelConfig:
    """A model's configuration from its JSON values.

    Args:
        values: Of :func:`config_to_dict`; further entries are ignored.
        where: File that they came from, for messages.

    Returns:
        The configuration.

    Raises:
        ModelFileError: Something is missing or out of range.
    """
    from atonce.model import Guidance, ModelConfig

    try:
        known = {f.name for f in dataclasses.fields(ModelConfig)} & set(values)
        fields = {k: values[k] for k in known - {"network", "preconditioning", "time_points", "clip", "labels", "guidance"}}
        guided = values.get("guidance")
        return ModelConfig(
            network=network_from_dict(values["network"]),
            guidance=None if guided is None else Guidance(guided["form"], tuple(map(float, guided["scales"]))),
            preconditioning=Preconditioning(**values["preconditioning"]),
            time_points={int(k): tuple(v) for k, v in values.get("time_points", {}).items()},
            clip=None if values.get("clip") is None else (float(values["clip"][0]), float(values["clip"][1])),
            labels=None if values.get("labels") is None else tuple(values["labels"]),
            **fields,
        )
    except ModelFileError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ModelFileError(f"{where} is not a usable model configuration: {_short(error)}") from error


def model_card(model: ConsistencyModel) -> str:
    """The model card: metadata for the hub, what the model is, how to use it, and its records."""
    card = model.card
    c, h, w = model.image_shape
    name = card.get("name", "model")
    lines = [
        "---",
        f"library_name: {LIBRARY}",
        f"license: {card.get('licence', 'apache-2.0')}",
        # The hub's only task for images that come from no text and no image; it lists class-conditional models there too.
        "pipeline_tag: unconditional-image-generation",
        f"tags: [{', '.join(_tags(model))}]",
        "---",
        "",
        f"# {name}",
        "",
        str(card.get("description", f"A {model.kind} model for {c}x{h}x{w} images, made with atonce.")),
        "",
        "```python",
        "import atonce",
        "",
        f'model = atonce.load("{name}")',
        "images = model.sample(16, steps=1)",
        "```",
        "",
        "| | |",
        "| --- | --- |",
        f"| kind | {model.kind} |",
        f"| images | {c} x {h} x {w} |",
        f"| classes | {', '.join(model.labels) if model.labels else 'unconditional'} |",
        f"| noise levels | {model.sigma_end:g} to {model.sigma_max:g}, sigma_data {model.sigma_data:g} |",
        f"| parameters | {sum(p.numel() for p in model.network.parameters()):,} |",
    ]
    lines += [
        f"| {key.replace('_', ' ')} | {value} |" for key, value in card.items() if key not in ("name", "description", "recipe")
    ]
    if model.records:
        lines += [
            "",
            "## Measured",
            "",
            "| metric | value | 95 % interval | steps | calls | extractor | reference | samples |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for record in model.records:
            for metric, result in record.metrics.items():
                interval = f"{result.interval[0]:.4g} to {result.interval[1]:.4g}" if result.interval else ""
                cells = (metric, f"{result.value:.4g}", interval, record.steps, record.calls, record.extractor.name)
                lines.append("| " + " | ".join(map(str, (*cells, record.reference.name, record.samples))) + " |")
    if recipe := card.get("recipe"):
        lines += ["", "## Recipe", "", "```json", json.dumps(recipe, indent=2), "```"]
    return "\n".join(lines) + "\n"


def _tags(model: ConsistencyModel) -> list[str]:
    """What the hub can search for: the kind of model, and what it takes."""
    kind = ["diffusion-model"] if model.kind == "denoiser" else ["consistency-model", "one-step-generation"]
    return [*kind, *(["class-conditional-image-generation"] if model.labels else [])]


def is_model_folder(folder: Path) -> bool:
    """Whether a folder has a configuration and weights of ours."""
    return _is_ours(folder)


def _is_ours(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "config.json").read_text()).get("library_name") == LIBRARY)
    except (OSError, ValueError, AttributeError):
        return False


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFileError(f"{folder} is not a model folder: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{file} cannot be read: {_short(error)}") from error
    if not isinstance(values, dict) or values.get("library_name") != LIBRARY:
        raise ModelFileError(f"{file} is not the configuration of an atonce model")
    version = values.get("format")
    if not isinstance(version, int):
        raise ModelFileError(f"{file} is damaged: its format is {version!r}, must be a whole number")
    if version > FORMAT:
        raise ModelFileError(f"{file} was written by a newer atonce (format {version}, this one reads {FORMAT}): update atonce")
    return values


def _read_weights(file: Path, digest: str | None) -> dict[str, Tensor]:
    try:
        if digest is not None and sha256_file(file) != digest:
            raise ModelFileError(
                f"{file} is damaged or was exchanged: its checksum is not that of config.json (remove that one to accept it)"
            )
        return load_file(file)
    except FileNotFoundError:
        raise ModelFileError(f"{file} is missing") from None
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"{file} cannot be read: {_short(error)}") from error


def _read_records(folder: Path) -> list[Record]:
    file = folder / "records.json"
    if not file.exists():
        return []
    try:
        return [Record.from_dict(values) for values in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{file} cannot be read: {_short(error)}") from error


def _looks_like_hub_id(text: str) -> bool:
    parts = text.split("/")
    return len(parts) == 2 and all(p and not p.startswith(".") for p in parts) and "\\" not in text


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtraError("the hub needs the package huggingface_hub: pip install huggingface_hub") from error
    return huggingface_hub


def _fetch(repo_id: str) -> Path:
    hub = _hub()
    try:
        return Path(
            hub.snapshot_download(repo_id, allow_patterns=["config.json", "*.safetensors", "records.json", "README.md"])
        )
    except Exception as error:
        raise ModelFileError(f"{repo_id} is not a folder here, and fetching it from the hub failed: {_short(error)}") from error


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."
