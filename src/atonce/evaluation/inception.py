"""The Inception network of FID, as torch-fidelity has it: its layers, its resizing, and the weights ported from TensorFlow.

Only with these weights is a Fréchet distance called FID, so their file is held to its published checksum. It is a pickle: it
is read by torch's restricted reader, once, and kept as safetensors in the cache folder.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import sys
import threading
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atonce.core.errors import InputError, MissingExtraError, ModelFileError, StorageError
from atonce.core.files import sha256_file, sha256_json
from atonce.evaluation.cache import cache_folder, read_checked, write_checked
from atonce.evaluation.extractors import INCEPTION, Extractor
from atonce.networks import efficientnet

FEATURES, CLASSES = 2048, 1008
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of the published weights: the file of torch-fidelity and that of pytorch-fid, which have the same content."""
FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
"""Their names in torch.hub's folder of checkpoints."""
VARIABLE = "ATONCE_INCEPTION"

_OFFLINE = f"download {FILES[0]} elsewhere and name it in {VARIABLE} or as inception:FILE; effnet-lite0 and pixels run without"
_importing = threading.Lock()


def inception(path: str | Path | None = None, *, batch: int = 64) -> Extractor:
    """The extractor of FID: 2,048 pooled features, and by its head the 1,008 scores without offsets of the Inception Score.

    uint8 images go in as they are, grey ones repeated to RGB; they are resized to 299 x 299 as TensorFlow 1 did (bilinear,
    corners at pixel (0, 0), no antialiasing) and scaled to (x - 128) / 128. Statistics of NVIDIA's port of the same weights
    (EDM's references) fit.

    Args:
        path: The file of weights, ``.pth`` as published or the ``.safetensors`` made of it. None: the one that the environment
            variable ``ATONCE_INCEPTION`` names, else one converted or downloaded before, else the usual download.
        batch: Images that go through together.

    Returns:
        The extractor, float32, on the device of the images.

    Raises:
        MissingExtraError: torch-fidelity is not installed.
        InputError: The file is missing, cannot be downloaded or is another one, or ``batch`` is below 1.
    """
    if batch < 1:
        raise InputError(f"the extractor's batch must be at least 1, got {batch}")
    module = library()
    network = build(module, weights(path or os.environ.get(VARIABLE) or None, module))
    scores = network.fc.weight.detach().to("cpu", torch.float64, copy=True)

    @torch.no_grad()
    def function(images: Tensor) -> Tensor:
        network.to(images.device)
        features: Tensor = network(efficientnet.as_rgb(images))[0]
        return features

    head = lambda features: features.to("cpu", torch.float64) @ scores.T
    return Extractor(INCEPTION, DIGEST, FEATURES, function, batch=batch, head=head)


DIGEST = sha256_json(
    {
        "network": "Inception-v3 of 2015-12-05, ported from TensorFlow",
        "features": "pooled, of images resized to 299 x 299 as TensorFlow 1 does, (x - 128) / 128",
        "weights": SHA256,
    }
)
"""Says which extractor this is, also where it is not installed."""


def library() -> Any:
    """The module of torch-fidelity with the network.

    The package imports all of torchvision for its other parts, which this one does not need and which fails where torchvision
    was built for another torch. So unless it is imported already, this module is imported without them.

    Returns:
        ``torch_fidelity.feature_extractor_inceptionv3``.

    Raises:
        MissingExtraError: The package is not installed or has changed.
    """
    package, name = "torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"
    with _importing:
        if package in sys.modules:
            return importlib.import_module(name)
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise MissingExtraError(
                "the Inception of FID needs torch-fidelity (pip install 'atonce[fid]'); effnet-lite0 and pixels run without"
            )
        before = set(sys.modules)
        # The package's folder without what its __init__ does, until the module is there.
        sys.modules[package] = importlib.util.module_from_spec(spec)
        try:
            return importlib.import_module(name)
        except ImportError as problem:
            raise MissingExtraError(
                f"this torch-fidelity cannot be used ({problem}): pip install torch-fidelity==0.4.0"
            ) from None
        finally:
            for added in [key for key in sys.modules if key.partition(".")[0] == package and key not in before]:
                del sys.modules[added]


def build(module: Any, state: Mapping[str, Tensor]) -> Any:
    """The network with weights, in evaluation mode, giving its pooled features.

    Args:
        module: As :func:`library` gives it.
        state: Weights by name.

    Returns:
        A network that takes uint8 images [B, 3, H, W] and gives a tuple with features [B, 2048].

    Raises:
        ModelFileError: The weights do not fit.
    """
    # The constructor loads a file, without restriction: it gets one that is made here, in memory.
    file = io.BytesIO()
    torch.save(dict(state), file)
    file.seek(0)
    try:
        return module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=file)
    except (RuntimeError, KeyError) as problem:
        text = " ".join(str(problem).split())
        raise ModelFileError(f"the weights do not fit the Inception network of FID: {text[:300]}") from problem


def weights(path: str | Path | None, module: Any) -> dict[str, Tensor]:
    """The published weights, from where they are found first.

    Args:
        path: A file, or None to look in the cache folder, in torch.hub's folder, and on the network.
        module: As :func:`library` gives it; it knows the address.

    Returns:
        Tensors by name.

    Raises:
        InputError: The file does not exist or cannot be downloaded.
        ModelFileError: It is not the published one.
    """
    kept = cache_folder() / "inception" / f"{SHA256}.safetensors"
    if path is not None:
        source = Path(path).expanduser()
        if not source.is_file():
            raise InputError(f"the Inception weights {source} do not exist: {_OFFLINE}")
        if source.suffix == ".safetensors":
            if (found := _converted(source)) is None:
                raise ModelFileError(f"{source} is not made of the published Inception weights, or is damaged: {_OFFLINE}")
            return found
    else:
        if (found := _converted(kept)) is not None:
            return found
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        source = next((folder / name for name in FILES if (folder / name).is_file()), folder / FILES[0])
        if not source.is_file():
            _download(module.URL_INCEPTION_V3, source)
    if (checksum := sha256_file(source)) != SHA256:
        raise ModelFileError(
            f"{source} has SHA-256 {checksum[:12]}..., the published Inception weights have {SHA256[:12]}...: with others it "
            f"is not FID; {_OFFLINE}"
        )
    state = torch.load(source, map_location="cpu", weights_only=True)
    state = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    try:
        write_checked(kept, state, {"converted from": SHA256})
    except StorageError:
        pass  # it is read as it is next time
    return state


def _converted(path: Path) -> dict[str, Tensor] | None:
    found = read_checked(path)
    return found[0] if found is not None and found[1].get("converted from") == SHA256 else None


def _download(url: str, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(target), hash_prefix=SHA256, progress=sys.stderr.isatty())
    except (urllib.error.URLError, OSError, RuntimeError) as problem:  # no network, no place, another content
        text = " ".join(str(problem).split())
        raise InputError(f"the Inception weights cannot be downloaded ({text}): {_OFFLINE}") from problem
