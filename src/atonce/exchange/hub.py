"""Models of the Hugging Face hub: configurations and weights are fetched, never code; the cache serves offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from atonce.core.errors import MissingExtraError, ModelFileError

# Weights that cannot hold code come first; what torch.save wrote is fetched only where there is nothing else, and read as data.
_ALWAYS = ["config.json", "model_index.json", "*/config.json", "*/scheduler_config.json", "records.json", "README.md"]
_SAFE = ["*.safetensors", "*/*.safetensors", "*.safetensors.index.json", "*/*.safetensors.index.json"]
_OLDER = ["*.bin", "*/*.bin", "*.pt", "*.pkl"]
_IGNORED = ["*.py", "*/*.py", "*.fp16.*", "*/*.fp16.*", "*onnx*", "*/*onnx*"]


def looks_like_hub_id(text: str) -> bool:
    """Whether a text could be ``owner/name``."""
    parts = text.split("/")
    return len(parts) == 2 and all(p and not p.startswith((".", "~")) for p in parts) and "\\" not in text and len(text) <= 200


def fetch(repo_id: str) -> Path:
    """The folder of a hub repository, fetched or from the cache.

    Args:
        repo_id: ``owner/name``.

    Returns:
        A folder on this machine.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        ModelFileError: There is no such repository, or no network and nothing in the cache.
    """
    hub = _hub()
    folder = _snapshot(hub, repo_id, [*_ALWAYS, *_SAFE])
    if not any(folder.rglob("*.safetensors")):
        folder = _snapshot(hub, repo_id, [*_ALWAYS, *_OLDER])
    return folder


def weights_file(folder: Path) -> Path | None:
    """The only file of weights in a folder that has no configuration; ``None`` where there is none or a choice."""
    if (folder / "config.json").is_file() or (folder / "model_index.json").is_file():
        return None
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".pt", ".pkl", ".bin")]
    return files[0] if len(files) == 1 else None


def _snapshot(hub: Any, repo_id: str, patterns: list[str]) -> Path:
    try:
        return Path(hub.snapshot_download(repo_id, allow_patterns=patterns, ignore_patterns=_IGNORED))
    except Exception as first:
        try:
            cached = Path(hub.snapshot_download(repo_id, local_files_only=True))
        except Exception:
            raise ModelFileError(f"{repo_id} is not a folder here, and {_reason(first)}") from first
        if any(path.suffix in (".safetensors", ".bin", ".pt", ".pkl") for path in cached.rglob("*")):
            return cached
        raise ModelFileError(f"{repo_id} is in the cache without its weights, and {_reason(first)}") from first


def _reason(problem: BaseException) -> str:
    """What a failure of the hub's client means, in one line."""
    name, text = type(problem).__name__, " ".join(str(problem).split())[:200]
    if "Offline" in name or "LocalEntryNotFound" in name or "Connect" in name or "Timeout" in name:
        return "the hub cannot be reached and it is not in the cache: fetch it once with a network, or give a folder"
    if "RepositoryNotFound" in name:
        return "the hub has no such model, or it is private: check the name, or log in (hf auth login)"
    if "Gated" in name:
        return "it is gated: accept its terms on the hub and log in (hf auth login)"
    return f"fetching it from the hub failed: {text or name}"


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtraError("the hub needs the package huggingface_hub: pip install huggingface_hub") from error
    return huggingface_hub
