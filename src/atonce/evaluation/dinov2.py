"""DINOv2 as an extractor: features learned without labels, whose Fréchet distance agrees with people better than FID does.

Stein et al. 2023 ("Exposing flaws of generative model evaluation metrics"): FD-DINOv2, ViT-L/14, the class token. The network
is that of the library transformers; what is loaded are numbers (safetensors), no code.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atonce.core.errors import InputError, MissingExtraError, ModelFileError
from atonce.core.files import sha256_file, sha256_json
from atonce.evaluation.extractors import Extractor
from atonce.networks import efficientnet

MODEL = "facebook/dinov2-large"
VARIABLE = "ATONCE_DINOV2"
SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_OFFLINE = (
    f"download {MODEL} elsewhere (config.json, model.safetensors) and name its folder in {VARIABLE} or as dinov2:FOLDER; "
    "effnet-lite0 and pixels run without"
)


def dinov2(folder: str | Path | None = None, *, batch: int = 32) -> Extractor:
    """The class token of DINOv2 after the last normalisation, for a Fréchet distance called FD-DINOv2.

    uint8 images, grey ones repeated to RGB, are resized to 224 x 224 (bicubic, antialiased) and normalised by ImageNet's mean
    and standard deviation.

    Args:
        folder: A folder with ``config.json`` and ``model.safetensors`` of a DINOv2 of any size. None: the one that the
            environment variable ``ATONCE_DINOV2`` names, else ViT-L/14 as transformers has downloaded it or downloads it now.
        batch: Images that go through together.

    Returns:
        The extractor, float32, on the device of the images; 1,024 features for ViT-L/14.

    Raises:
        MissingExtraError: transformers is not installed or cannot be imported.
        InputError: The folder or file is missing, holds another network, or cannot be downloaded, or ``batch`` is below 1.
    """
    if batch < 1:
        raise InputError(f"the extractor's batch must be at least 1, got {batch}")
    library = _library()
    chosen = folder or os.environ.get(VARIABLE) or None
    weights = _weights(None if chosen is None else Path(chosen).expanduser())
    network = _network(library, weights.parent)
    width = int(network.config.hidden_size)
    digest = sha256_json(
        {
            "network": "DINOv2 as in transformers, the class token",
            "resize": f"bicubic, antialiased, to {SIDE} x {SIDE}; ImageNet's mean and deviation",
            "config": {name: value for name, value in sorted(network.config.to_diff_dict().items()) if not name.startswith("_")}
            | {"transformers_version": None, "dtype": None, "torch_dtype": None},
            "weights": sha256_file(weights),
        }
    )
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))

    @torch.no_grad()
    def function(images: Tensor) -> Tensor:
        network.to(images.device)
        x = efficientnet.as_rgb(images).to(torch.float32) / 255
        x = F.interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
        tokens: Tensor = network(pixel_values=(x - mean.to(x.device)) / std.to(x.device)).last_hidden_state
        return tokens[:, 0]

    name = f"DINOv2 ViT-{ {384: 'S', 768: 'B', 1024: 'L', 1536: 'g'}.get(width, str(width)) }/{network.config.patch_size}"
    return Extractor(name, digest, width, function, batch=batch)


def _library() -> Any:
    """The library transformers, with its DINOv2 imported."""
    try:
        library = importlib.import_module("transformers")
        library.Dinov2Model  # noqa: B018 (resolved lazily: here it is imported)
    except ModuleNotFoundError as problem:
        if problem.name == "transformers":
            text = "DINOv2 needs transformers (pip install transformers); effnet-lite0 and pixels run without"
            raise MissingExtraError(text) from None
        raise MissingExtraError(_broken(problem)) from problem
    except (ImportError, RuntimeError, AttributeError) as problem:
        raise MissingExtraError(_broken(problem)) from problem
    return library


def _broken(problem: BaseException) -> str:
    cause = problem
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = " ".join(str(cause).split())[:200]
    return (
        f"transformers is installed but its DINOv2 cannot be imported ({text}): where it names torchvision, install the "
        "torchvision of this torch, or none; effnet-lite0 and pixels run without"
    )


def _weights(folder: Path | None) -> Path:
    """The file of weights, beside its config.json."""
    if folder is not None:
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise InputError(f"the DINOv2 folder {folder} has no {name}: {_OFFLINE}")
        return folder / "model.safetensors"
    hub = importlib.import_module("huggingface_hub")  # transformers brings it
    found = None
    for local in (True, False):  # what was downloaded before needs no network
        try:
            for name in ("config.json", "model.safetensors"):
                found = hub.hf_hub_download(MODEL, name, local_files_only=local)
            return Path(str(found))
        except Exception as problem:  # its errors are of many kinds: no network, not found, no space
            if not local:
                text = " ".join(str(problem).split())[:200]
                raise InputError(f"{MODEL} cannot be downloaded ({text}): {_OFFLINE}") from problem
    raise AssertionError("the second round returns or raises")


def _network(library: Any, folder: Path) -> Any:
    try:
        with _quiet(library):
            config = library.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            if config.model_type != "dinov2":
                raise ModelFileError(f"{folder} holds a network of kind {config.model_type!r}, not dinov2: {_OFFLINE}")
            network, report = library.Dinov2Model.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except ModelFileError:
        raise
    except Exception as problem:  # a damaged config or file fails in many ways
        text = " ".join(str(problem).split())[:200]
        raise ModelFileError(f"the DINOv2 in {folder} cannot be read ({text}): {_OFFLINE}") from problem
    if missing := sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"]):
        # transformers would go on with random values.
        raise ModelFileError(f"the DINOv2 in {folder} lacks {len(missing)} tensors ({missing[0]}, ...): {_OFFLINE}")
    return network.eval().requires_grad_(False)


@contextlib.contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """No progress bar of the library for a file that is read in a second."""
    logging = library.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
