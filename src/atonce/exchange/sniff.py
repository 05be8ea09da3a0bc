"""What a file or folder is, told by its content and not by its name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from atonce.core.errors import ModelFileError

Format = Literal["torch-zip", "torch-legacy", "pickle", "safetensors", "pipeline", "network"]
JSON_BYTES = 64 << 20  # of a configuration; the index of the largest sharded checkpoints has a few megabytes

# How files begin that people try, and what to do with them.
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself: run git lfs pull, or fetch the file"),
    (b"<!DOCTYPE", "a web page: fetch the file itself, not the page that shows it"),
    (b"<!doctype", "a web page: fetch the file itself, not the page that shows it"),
    (b"<html", "a web page: fetch the file itself, not the page that shows it"),
    (b"\x89HDF", "an HDF5 file (Keras): convert it to safetensors first"),
    (b"\x89PNG", "a picture, not a model"),
    (b"\xff\xd8\xff", "a picture, not a model"),
    (b"GGUF", "a GGUF file (language models): it holds no image model that this version knows"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (b"\x93NUMPY", "an array of numpy, not a model"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
)
_LEGACY = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # torch's magic number as a pickle writes it


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        format: Which reader it needs.
        text: The same for people.
    """

    format: Format
    text: str


def sniff_file(path: Path) -> Found:
    """What a file is.

    Args:
        path: The file.

    Returns:
        Its format.

    Raises:
        ModelFileError: It cannot be read, or is of no kind that can be opened.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as problem:
        raise ModelFileError(f"cannot open {path}: {problem.strerror or problem}") from problem
    if not size:
        raise ModelFileError(f"cannot open {path}: it is empty, fetch it again")
    if head.startswith(b"PK\x03\x04"):
        return Found("torch-zip", "zip file of torch.save")
    for begin, text in _OTHERS:
        if head.startswith(begin):
            raise ModelFileError(f"cannot open {path}: it is {text}")
    # The length of a header may begin as a pickle does; no pickle begins with a length that fits its file, and a brace.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return Found("safetensors", "safetensors file")
    if head[:1] == b"\x80" and head[1:2] and head[1] <= 5:
        return Found("torch-legacy", "file of torch.save before 1.6") if _LEGACY in head[:24] else Found("pickle", "pickle")
    if len(head) > 8 and head[8:9] == b"{":
        return Found("safetensors", "safetensors file")
    kinds = "a model folder, a run folder, safetensors, an OpenAI .pt, an EDM or ECT pickle, or a folder of diffusers"
    raise ModelFileError(f"cannot open {path}: it begins like no kind of file that this version knows; give {kinds}")


def sniff_folder(folder: Path) -> Found | None:
    """What a folder of diffusers is.

    Args:
        folder: Any folder.

    Returns:
        Its format, or ``None`` where it is no folder of diffusers.

    Raises:
        ModelFileError: Its description is damaged.
    """
    if (folder / "model_index.json").is_file():
        name = str(read_json(folder / "model_index.json").get("_class_name"))[:80]
        return Found("pipeline", f"pipeline folder of diffusers ({name})")
    if (folder / "config.json").is_file():
        try:
            values = read_json(folder / "config.json")
        except ModelFileError:
            return None  # whoever opens it as a folder of ours says what is wrong
        if "_class_name" in values and "library_name" not in values:
            return Found("network", f"network folder of diffusers ({str(values['_class_name'])[:80]})")
    return None


def read_json(path: Path) -> dict[str, Any]:
    """The values of a JSON file that must hold a mapping.

    Args:
        path: The file.

    Returns:
        Its values.

    Raises:
        ModelFileError: It is absent, too large, damaged or something else.
    """
    try:
        if path.stat().st_size > JSON_BYTES:
            raise ModelFileError(f"{path} has {path.stat().st_size:,} bytes, a configuration has at most {JSON_BYTES:,}")
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFileError(f"{path} is missing") from None
    except ModelFileError:
        raise
    except (OSError, ValueError, RecursionError, MemoryError) as problem:
        text = " ".join(str(problem).split())[:200] or type(problem).__name__
        raise ModelFileError(f"{path} is truncated or damaged: {text}") from problem
    if not isinstance(values, dict):
        raise ModelFileError(f"{path} does not hold a configuration, but {type(values).__name__}")
    return values
