"""Tensors and small files as a few parts of limited size, without loss, and back.

Float32 numbers travel as four planes of bytes, each compressed by itself: signs and exponents repeat, mantissas do not. A
moving average of weights travels as its difference from the weights, counted in representable numbers, which is small.
Weights, two moments of the optimiser and one average then take about 12.6 bytes a parameter instead of 16. No pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atonce.core.errors import InputError, ModelFileError
from atonce.core.files import write_bytes

FORMAT = 1
HEAD = 512  # bytes of a part that describe it
_PART = re.compile(r"state-(\d+)-of-(\d+)\.bin")
_TYPES = {str(t).removeprefix("torch."): t for t in (torch.float32, torch.float16, torch.float64, torch.int64, torch.uint8)}
Words = NDArray[np.uint32]


def pack(tensors: Mapping[str, Tensor], near: Mapping[str, str], files: Mapping[str, bytes], facts: Mapping[str, Any]) -> bytes:
    """One block of bytes.

    Args:
        tensors: By name; float32, float16, float64, int64 or uint8.
        near: Name of a float32 tensor to the name of one of the same shape that it is near to: the difference travels. The
            other one travels as it is.
        files: Contents by name.
        facts: JSON values.

    Returns:
        What :func:`unpack` reads.
    """
    described: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    # What others are told by their difference from comes first.
    for name, value in sorted(tensors.items(), key=lambda entry: entry[0] in near):
        planes = _planes(value, tensors[near[name]] if name in near else None)
        kind = str(value.dtype).removeprefix("torch.")
        described.append({"name": name, "type": kind, "shape": list(value.shape), "near": near.get(name)})
        described[-1]["planes"] = [len(plane) for plane in planes]
        blobs += planes
    packed = {name: zlib.compress(content, 6) for name, content in files.items()}
    header = {"format": FORMAT, "facts": dict(facts), "tensors": described, "files": {k: len(v) for k, v in packed.items()}}
    head = zlib.compress(json.dumps(header).encode(), 6)
    return b"".join([len(head).to_bytes(8, "little"), head, *blobs, *packed.values()])


def unpack(content: bytes) -> tuple[dict[str, Tensor], dict[str, bytes], dict[str, Any]]:
    """Tensors, files and facts of :func:`pack`.

    Args:
        content: The block.

    Returns:
        Equal to what was packed, to the last bit.

    Raises:
        ModelFileError: It was written by a newer version, or is no such block.
    """
    try:
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(zlib.decompress(content[8:end]))
        if header["format"] > FORMAT:
            raise ModelFileError(f"the state has format {header['format']}, this version reads {FORMAT}: update atonce")
        tensors: dict[str, Tensor] = {}
        for entry in header["tensors"]:
            planes = []
            for length in entry["planes"]:
                planes.append(content[end : end + length])
                end += length
            reference = tensors[entry["near"]] if entry["near"] else None
            tensors[entry["name"]] = _joined(planes, _TYPES[entry["type"]], entry["shape"], reference)
        files: dict[str, bytes] = {}
        for name, length in header["files"].items():
            files[name] = zlib.decompress(content[end : end + length])
            end += length
    except ModelFileError:
        raise
    except (KeyError, ValueError, TypeError, zlib.error) as error:
        raise ModelFileError(f"the state cannot be read: {error!r}") from error
    return tensors, files, header["facts"]


def parts_needed(size: int, part_bytes: int) -> int:
    """Number of parts that ``size`` bytes take."""
    return -(-size // (part_bytes - HEAD))


def write_parts(content: bytes, folder: Path, part_bytes: int) -> list[Path]:
    """Write a block as ``state-1-of-N.bin`` ...; parts of an earlier block go.

    Args:
        content: The block.
        folder: Where the parts go; made when absent.
        part_bytes: The largest a part may be.

    Returns:
        The parts, in order.

    Raises:
        InputError: ``part_bytes`` leaves no room.
        StorageError: Writing failed.
    """
    if part_bytes <= HEAD:
        raise InputError(f"a part must have more than {HEAD} bytes, got {part_bytes}")
    room = part_bytes - HEAD
    count, digest = parts_needed(len(content), part_bytes), hashlib.sha256(content).hexdigest()
    paths = []
    for i in range(count):
        piece = content[i * room : (i + 1) * room]
        about = {"atonce-state": FORMAT, "of": digest, "part": i + 1, "parts": count, "bytes": len(piece)}
        about["sha256"] = hashlib.sha256(piece).hexdigest()
        paths.append(folder / f"state-{i + 1}-of-{count}.bin")
        write_bytes(paths[-1], json.dumps(about).encode().ljust(HEAD - 1) + b"\n" + piece)
    for old in set(_parts(folder)) - set(paths):
        old.unlink(missing_ok=True)
    return paths


def read_parts(folder: Path) -> bytes:
    """The block whose parts lie in a folder.

    Args:
        folder: Of :func:`write_parts`.

    Returns:
        The block.

    Raises:
        ModelFileError: There are no parts, or one is missing, truncated, damaged or of another block; the message names it.
    """
    found = _parts(folder)
    if not found:
        raise ModelFileError(f"{folder} holds no state (state-1-of-N.bin ...): give the folder with the files brought back")
    counts = {int(_PART.fullmatch(path.name)[2]) for path in found}  # type: ignore[index]  # that is how they were found
    if len(counts) > 1:
        raise ModelFileError(f"{folder} holds parts of several states ({_few(found)}): leave only those of one there")
    wanted = [folder / f"state-{i + 1}-of-{max(counts)}.bin" for i in range(max(counts))]
    if missing := [path for path in wanted if path not in found]:
        raise ModelFileError(f"{folder} lacks {_few(missing)}: bring back all {len(wanted)} parts of the state")
    pieces, blocks = [], set()
    for path in wanted:
        about, piece = _read_part(path)
        pieces.append(piece)
        blocks.add(about["of"])
    content = b"".join(pieces)
    if len(blocks) > 1 or hashlib.sha256(content).hexdigest() not in blocks:
        raise ModelFileError(f"the parts in {folder} do not belong to one state: bring back all of one leg")
    return content


def _read_part(path: Path) -> tuple[dict[str, Any], bytes]:
    try:
        content = path.read_bytes()
        about = json.loads(content[:HEAD]) if len(content) >= HEAD else {}
        known = isinstance(about, dict) and {"of", "bytes", "sha256"} <= set(about)
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} cannot be read as a part of a state: {error}") from error
    piece = content[HEAD:]
    if not known or len(piece) < about["bytes"]:
        whole = HEAD + (about["bytes"] if known else 1)
        raise ModelFileError(f"{path} is truncated: {len(content):,} bytes of at least {whole:,}; copy it again")
    if hashlib.sha256(piece).hexdigest() != about["sha256"]:
        raise ModelFileError(f"{path} is damaged: its content does not match its checksum; copy it again")
    return about, piece


def _parts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _PART.fullmatch(path.name)) if folder.is_dir() else []


def _few(paths: list[Path]) -> str:
    names = [path.name for path in paths]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _planes(value: Tensor, reference: Tensor | None) -> list[bytes]:
    """The bytes of a tensor, one plane for each place in its numbers, compressed where that helps."""
    raw = _bytes(value)
    if reference is not None:
        raw = _zigzag(raw.view(np.uint32) - _bytes(reference).view(np.uint32)).view(np.uint8)
    planes = []
    for plane in raw.reshape(-1, value.element_size()).T:
        plain = np.ascontiguousarray(plane).tobytes()
        # Single bytes have a skewed distribution but no repeated strings: Huffman coding alone, at the speed of the disk.
        coder = zlib.compressobj(6, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
        small = coder.compress(plain) + coder.flush()
        planes.append(small if len(small) < len(plain) else plain)
    return planes


def _joined(planes: list[bytes], kind: torch.dtype, shape: list[int], reference: Tensor | None) -> Tensor:
    count = int(np.prod(shape, dtype=np.int64))
    raw = np.empty((count, len(planes)), np.uint8)
    for place, plane in enumerate(planes):
        plain = plane if len(plane) == count else zlib.decompress(plane, -15)
        raw[:, place] = np.frombuffer(plain, np.uint8)
    flat = raw.reshape(-1)
    if reference is not None:
        flat = (_unzigzag(flat.view(np.uint32)) + _bytes(reference).view(np.uint32)).view(np.uint8)
    return torch.from_numpy(flat).view(kind).reshape(shape)


def _bytes(value: Tensor) -> NDArray[np.uint8]:
    out: NDArray[np.uint8] = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return out


def _zigzag(difference: Words) -> Words:
    """0, -1, 1, -2, 2, ... modulo 2^32 become 0, 1, 2, 3, 4, ..., so that small differences of both signs have zero bytes."""
    signed = difference.view(np.int32)
    return ((signed << 1) ^ (signed >> 31)).view(np.uint32)


def _unzigzag(code: Words) -> Words:
    return (code >> np.uint32(1)) ^ (np.uint32(0) - (code & np.uint32(1)))
