"""Reading pickles of others without executing anything: only named globals resolve, everything else is refused.

A pickle is a small program; what makes it dangerous is that it may name any callable of any module. Here a table says which
names exist. :data:`ARRAYS` is the table for numpy arrays of plain numbers, in the spellings of numpy 1 and 2 and of Python 2;
even there nothing of numpy itself is called: the names lead to small checked stand-ins of this file. Tensors of torch are
added by :mod:`atonce.core.reading_tensors`.
"""

from __future__ import annotations

import functools
import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atonce.core.errors import InputError, ModelFileError

Globals = Mapping[tuple[str, str], Any]


class PickledType:
    """A numpy dtype of plain numbers (bool, int, unsigned, float of 1 to 8 bytes) as a pickle describes it."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(text, str) or not re.fullmatch(r"[biuf][1248]", text):
            raise pickle.UnpicklingError(f"an array of type {code!r} is not plain numbers")
        self.code, self.order = text, "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("|", "<", ">", "=") or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("an array with fields or a foreign byte order is not plain numbers")
        self.order = order

    def dtype(self) -> np.dtype[Any]:
        """The numpy type."""
        return np.dtype(self.order + self.code)


class PickledArray:
    """An array found in a pickle; ``array`` holds it once its state is read."""

    array: NDArray[Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, raw = state
        self.array = _array(raw, kind, shape, bool(fortran))


def _array(raw: Any, kind: Any, shape: Any, fortran: bool) -> NDArray[Any]:
    content = raw.encode("latin1") if isinstance(raw, str) else raw
    if not isinstance(kind, PickledType) or not isinstance(content, bytes | bytearray):
        raise pickle.UnpicklingError("an array of objects is not plain numbers")
    dtype = kind.dtype()
    if not all(isinstance(side, int) and side >= 0 for side in shape) or math.prod(shape) * dtype.itemsize != len(content):
        raise pickle.UnpicklingError(f"an array of shape {shape} and type {dtype} does not have {len(content)} bytes")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: object) -> PickledArray:
    return PickledArray()


def _from_buffer(raw: Any, kind: Any, shape: Any, order: Any = "C") -> PickledArray:
    result = PickledArray()
    result.array = _array(raw, kind, shape, order in ("F", b"F"))
    return result


def _type(*arguments: Any) -> PickledType:
    return PickledType(*arguments)


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"the text encoding {encoding!r} is not needed for arrays")
    return text.encode("latin1")


ARRAYS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("numpy", "ndarray"): "numpy.ndarray",  # only ever an argument, so a word is enough
    ("numpy", "dtype"): _type,
    ("_codecs", "encode"): _encode,
}


class _Call:
    """A function as a pickle sees it: it can be called, and no state can be written onto it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._function(*arguments, **named)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the file writes state onto a function")


class _Refused(Exception):
    pass


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, allowed: Globals, encoding: str, persistent: Callable[[Any], Any] | None = None) -> None:
        super().__init__(file, encoding=encoding)
        self._allowed, self._persistent = allowed, persistent

    def find_class(self, module: str, name: str) -> Any:
        try:
            found = self._allowed[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}"[:200]) from None
        return _Call(found) if isinstance(found, FunctionType | MethodType | functools.partial) else found

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise pickle.UnpicklingError("the file refers to objects outside it")
        return self._persistent(pid)


def _check_memo(stream: io.BytesIO) -> None:
    """Refuse a memo index that no genuine file has: a few bytes could make the reader reserve many gigabytes."""
    most = stream.getbuffer().nbytes
    for code, argument, _ in pickletools.genops(stream):
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= (argument or 0) <= most:
            raise pickle.UnpicklingError(f"its memo index {argument} is absurd")


def read_one(
    stream: io.BytesIO, allowed: Globals, *, encoding: str = "latin1", persistent: Callable[[Any], Any] | None = None
) -> Any:
    """Read the pickle that begins where a stream stands; whatever is wrong with it is raised as it comes.

    For files that hold several, and for pickles within pickles: inside :func:`load_restricted_pickle` every error becomes its
    one line.

    Args:
        stream: The content; it is left behind the pickle.
        allowed: What each (module, name) stands for.
        encoding: How text of Python 2 is decoded.
        persistent: What stands for references to objects outside the pickle; ``None`` refuses them.

    Returns:
        The object.
    """
    begin = stream.tell()
    _check_memo(stream)
    stream.seek(begin)
    return _Unpickler(stream, allowed, encoding, persistent).load()


def load_restricted_pickle(
    source: Path | str | bytes,
    allowed: Globals,
    *,
    name: str | None = None,
    encoding: str = "latin1",
    error: type[InputError] = ModelFileError,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Read a pickle in which only the given globals exist.

    Args:
        source: A file, or the content itself.
        allowed: What each (module, name) stands for, usually a function of ours. Functions are handed out wrapped, so that
            a file cannot change them. A class in the table must define ``__setstate__``, for the same reason.
        name: What to call the source in messages; the path where it is a path.
        encoding: How text of Python 2 is decoded; ``latin1`` keeps every byte.
        error: The error to raise, :class:`ModelFileError` or :class:`~atonce.core.errors.DataError`.
        persistent: What stands for references to objects outside the pickle; ``None`` refuses them.

    Returns:
        The object: built-in containers and values, and what the table's callables returned. Arrays read by means of
        :data:`ARRAYS` are :class:`PickledArray`.

    Raises:
        InputError: (of the class ``error``) The file cannot be read, is damaged, or names a global that is not in the table.
    """
    if isinstance(source, bytes):
        content, name = source, name or "the pickle"
    else:
        name = name or str(source)
        try:
            content = Path(source).read_bytes()
        except OSError as problem:
            raise error(f"cannot read {name}: {problem.strerror or problem}") from problem
    return guarded(lambda: read_one(io.BytesIO(content), allowed, encoding=encoding, persistent=persistent), str(name), error)


def guarded(read: Callable[[], Any], name: str, error: type[InputError] = ModelFileError) -> Any:
    """Do some reading with :func:`read_one`, and turn whatever goes wrong into one line.

    Args:
        read: Does it.
        name: What to call the source in messages.
        error: The error to raise.

    Returns:
        What ``read`` returns.

    Raises:
        InputError: (of the class ``error``) Something went wrong.
    """
    try:
        return read()
    except _Refused as refused:
        text = f"{name} asks for the global {refused}, which this kind of file does not need: refused, nothing was executed"
        raise error(text) from None
    except Exception as problem:  # a damaged pickle can fail in any way: EOFError, KeyError, struct.error, MemoryError, ...
        text = " ".join(str(problem).split()) or type(problem).__name__
        raise error(f"{name} is truncated, damaged or not a pickle of the expected kind: {text[:300]}") from problem
