"""Tensors in foreign files, read without executing anything: torch's zip and legacy files, and pickles with tensors inside.

Everything goes through the restricted reader of :mod:`atonce.core.reading`: the names that torch writes into a pickle lead to
the small checked functions of :class:`TensorReader`, which only ever look at bytes of the file. No tensor may reach beyond its
storage, a file may not make more tensors than it has bytes for, and zip members must be stored as they are, so that memory is
bounded by the size of the file.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atonce.core.errors import ModelFileError
from atonce.core.reading import ARRAYS, Globals, PickledType, guarded, read_one

MAGIC = 0x1950A86A20F9469CFC6C  # the first object of torch's legacy files
PROTOCOL = 1001
_NESTED = 20_000  # storages of one pickle; the largest known checkpoint has 567
_PICKLE_BYTES = 256 << 20  # of the description inside a zip file
_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class PickledDict(dict[Any, Any]):
    """A dictionary with attributes (an ``OrderedDict`` with metadata, an ``EasyDict``); the attributes are dropped."""

    def __setstate__(self, state: Any) -> None:
        """Nothing of the state is kept."""


class Storage:
    """The flat values of a storage, as a one-dimensional tensor."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the file writes state onto a storage")


class TensorReader:
    """What the names of torch stand for while one file is read.

    Args:
        size: Bytes of the file, by which all that is made of it is bounded.
    """

    def __init__(self, size: int) -> None:
        self._left, self._calls = 4 * size + (1 << 20), _NESTED
        self._table: dict[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("torch.storage", "_load_from_bytes"): self._nested,
            ("torch", "Size"): _size,
            ("collections", "OrderedDict"): PickledDict,
            ("builtins", "set"): _items,
            ("__builtin__", "set"): _items,
            ("numpy.core.multiarray", "scalar"): _scalar,
            ("numpy._core.multiarray", "scalar"): _scalar,
            **ARRAYS,
        }
        self._table |= {("torch", name): _StorageType(dtype) for name, dtype in _STORAGES.items()}

    def globals(self, more: Globals | None = None) -> Globals:
        """The table for :func:`~atonce.core.reading.read_one`."""
        return {**self._table, **(more or {})}

    def storage(self, raw: bytearray, dtype: torch.dtype, count: int) -> Storage:
        """A storage from its bytes."""
        width = torch.empty((), dtype=dtype, device="cpu").element_size()
        if count * width != len(raw):
            raise pickle.UnpicklingError(f"a storage of {count} values of {width} bytes does not have {len(raw)} bytes")
        if dtype is torch.bool and raw and max(raw) > 1:
            raise pickle.UnpicklingError("a storage of true and false holds other values")
        return Storage(torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype, device="cpu"))

    def legacy(self, stream: io.BytesIO, more: Globals | None = None) -> Any:
        """Read torch's legacy format: magic number, version, facts of the machine, the object, keys, storages."""
        table = self.globals(more)
        if read_one(stream, {}) != MAGIC or read_one(stream, {}) != PROTOCOL:
            raise pickle.UnpicklingError("it is no file of torch's legacy format")
        machine = read_one(stream, {})
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise pickle.UnpicklingError("it was not written by a little-endian machine")
        found: dict[str, tuple[Storage, torch.dtype, int]] = {}

        def persistent(pid: Any) -> Storage:
            kind, dtype, key, count = _reference(pid)
            if kind != "storage" or (len(pid) > 5 and pid[5] is not None):
                raise pickle.UnpicklingError("it refers to something that is no storage")
            if key not in found:
                self._take(count * torch.empty((), dtype=dtype, device="cpu").element_size(), stream)
                found[key] = (Storage(torch.empty(count, dtype=dtype, device="cpu")), dtype, count)
            if found[key][1:] != (dtype, count):
                raise pickle.UnpicklingError("two references to one storage differ")
            return found[key][0]

        result = read_one(stream, table, persistent=persistent)
        keys = read_one(stream, {})
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(found):
            raise pickle.UnpicklingError("its list of storages does not fit its references")
        for key in keys:
            place, dtype, count = found[str(key)]
            (told,) = struct.unpack("<q", stream.read(8))
            raw = bytearray(stream.read(count * place.values.element_size()))
            if told != count:
                raise pickle.UnpicklingError(f"a storage has {told} values where {count} are meant")
            place.values.copy_(self.storage(raw, dtype, count).values)
        return result

    def _take(self, size: int, stream: io.BytesIO | None = None) -> None:
        """Count what is made against what the file can hold."""
        self._left -= size
        if self._left < 0 or (stream is not None and size > stream.getbuffer().nbytes):
            raise pickle.UnpicklingError("it makes more of its bytes than any genuine file does")

    def _nested(self, raw: Any) -> Any:
        """A storage that was pickled as the bytes of a legacy file."""
        self._calls -= 1
        if self._calls < 0:
            raise pickle.UnpicklingError(f"it has more than {_NESTED:,} storages")
        if not isinstance(raw, bytes | bytearray):
            raise pickle.UnpicklingError("the bytes of a storage are no bytes")
        found = self.legacy(io.BytesIO(raw))
        if not isinstance(found, Storage):
            raise pickle.UnpicklingError("the bytes of a storage hold something else")
        return found

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
            raise pickle.UnpicklingError("a tensor is described in a way that torch does not use")
        if len(size) != len(stride) or len(size) > 8 or not all(type(v) is int and v >= 0 for v in (offset, *size, *stride)):
            raise pickle.UnpicklingError("the shape of a tensor is damaged")
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else 0
        if last >= max(storage.values.numel(), 1) or count > storage.values.numel():
            raise pickle.UnpicklingError(f"a tensor of shape {size} does not lie within its storage")
        # Parameters of one storage share it, as they did; nothing is copied here.
        return torch.as_strided(storage.values, size, stride, offset if count else 0)


class _StorageType:
    """A type of storage: a name with a dtype, and nothing that could be called."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the file writes state onto a type")


def _parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError("a parameter is no tensor")
    return data


def _size(values: Any = ()) -> tuple[Any, ...]:
    return tuple(values)


def _items(values: Any = ()) -> list[Any]:
    return list(values)


def _scalar(kind: Any, raw: Any = b"") -> Any:
    """A numpy scalar as a number of Python."""
    content = raw.encode("latin1") if isinstance(raw, str) else raw
    if not isinstance(kind, PickledType) or not isinstance(content, bytes) or len(content) != kind.dtype().itemsize:
        raise pickle.UnpicklingError("a scalar of numpy is no plain number")
    return np.frombuffer(content, kind.dtype())[0].item()


def _reference(pid: Any) -> tuple[Any, torch.dtype, str, int]:
    if not isinstance(pid, tuple) or len(pid) < 5 or not isinstance(pid[1], _StorageType):
        raise pickle.UnpicklingError("it refers to something that is no storage")
    if type(pid[4]) is not int or pid[4] < 0 or not isinstance(pid[2], str):
        raise pickle.UnpicklingError("a reference to a storage is damaged")
    return pid[0], pid[1].dtype, pid[2], pid[4]


def read_tensor_pickle(path: Path, more: Globals) -> Any:
    """Read a plain pickle that holds tensors.

    Args:
        path: The file.
        more: What further names stand for.

    Returns:
        The object.

    Raises:
        ModelFileError: It is damaged, or needs something else.
    """
    content = _content(path)
    reader = TensorReader(len(content))
    return guarded(lambda: read_one(io.BytesIO(content), reader.globals(more)), str(path))


def read_torch_legacy(path: Path) -> Any:
    """Read a file in the format that ``torch.save`` wrote before 1.6.

    Args:
        path: The file.

    Returns:
        The object: containers, values, tensors.

    Raises:
        ModelFileError: It is damaged, or needs more than tensors and plain containers.
    """
    content = _content(path)
    reader = TensorReader(len(content))
    return guarded(lambda: reader.legacy(io.BytesIO(content)), str(path))


def read_torch_zip(path: Path) -> Any:
    """Read a file in the zip format of ``torch.save``.

    Args:
        path: The file.

    Returns:
        The object: containers, values, tensors.

    Raises:
        ModelFileError: It is damaged, compressed, or needs more than tensors and plain containers.
    """
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            begin = _check_members(archive.infolist(), size)

            def member(name: str, most: int) -> bytearray:
                info = members.get(begin + name)
                if info is None or info.file_size > most:
                    raise pickle.UnpicklingError(f"its member {name[:80]!r} is missing or too large")
                with archive.open(info) as file:
                    return bytearray(file.read())

            if begin + "byteorder" in members and bytes(member("byteorder", 16)) != b"little":
                raise ModelFileError(f"{path} was written by a big-endian machine: save it again on a little-endian one")
            return guarded(lambda: _zip_object(member, size), str(path))
    except ModelFileError:
        raise
    except Exception as problem:  # zipfile fails in many ways on damaged archives
        text = " ".join(str(problem).split()) or type(problem).__name__
        raise ModelFileError(f"{path} is truncated or damaged: {text[:300]}") from problem


def _zip_object(member: Callable[[str, int], bytearray], size: int) -> Any:
    reader = TensorReader(size)
    storages: dict[str, Storage] = {}

    def persistent(pid: Any) -> Storage:
        kind, dtype, key, count = _reference(pid)
        if kind != "storage" or not key.isdigit():
            raise pickle.UnpicklingError("it refers to something that is no storage")
        if key not in storages:
            storages[key] = reader.storage(member(f"data/{key}", size), dtype, count)
        if (storages[key].values.dtype, storages[key].values.numel()) != (dtype, count):
            raise pickle.UnpicklingError("two references to one storage differ")
        return storages[key]

    return read_one(io.BytesIO(member("data.pkl", _PICKLE_BYTES)), reader.globals(), persistent=persistent)


def _check_members(infos: list[zipfile.ZipInfo], size: int) -> str:
    """Names, storage and sizes of an archive's members; returns the folder that they lie in."""
    described = [info.filename for info in infos if info.filename.endswith("/data.pkl") and info.filename.count("/") == 1]
    if len(described) != 1:
        raise pickle.UnpicklingError("it is a zip archive without the description (data.pkl) of torch's format")
    begin = described[0].removesuffix("data.pkl")
    for info in infos:
        name = info.filename
        if not name.startswith(begin) or ".." in name.split("/") or "\\" in name or "\0" in name:
            raise pickle.UnpicklingError(f"its member {name[:80]!r} lies outside {begin[:80]!r}")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise pickle.UnpicklingError(f"its member {name[:80]!r} is compressed, which torch never does")
    if sum(info.file_size for info in infos) > size or len({info.filename for info in infos}) != len(infos):
        raise pickle.UnpicklingError("its members overlap or are larger than the file")
    return begin


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, MemoryError) as problem:
        raise ModelFileError(
            f"cannot read {path}: {getattr(problem, 'strerror', None) or 'it does not fit in memory'}"
        ) from problem
