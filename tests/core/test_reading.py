"""The restricted unpickler: arrays of plain numbers come through, everything else is refused and never run."""

from __future__ import annotations

import collections
import os
import pickle
import struct

import numpy as np
import pytest

from atonce.core.errors import DataError, ModelFileError
from atonce.core.reading import ARRAYS, PickledArray, load_restricted_pickle


class Hostile:
    """Unpickling this calls a function that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_command_in_a_pickle_is_refused_and_not_run(tmp_path):
    content = pickle.dumps(Hostile(tmp_path / "ran"))
    pickle.loads(content)
    assert (tmp_path / "ran").is_dir()  # the pickle is dangerous
    (tmp_path / "ran").rmdir()
    with pytest.raises(ModelFileError, match=r"asks for the global \w+\.mkdir.*nothing was executed"):
        load_restricted_pickle(content, ARRAYS)
    assert not (tmp_path / "ran").exists()


def test_os_system_is_refused_and_named():
    content = b"cos\nsystem\n(S'true'\ntR."
    with pytest.raises(DataError, match=r"os\.system"):
        load_restricted_pickle(content, ARRAYS, error=DataError)


@pytest.mark.parametrize(
    "name", [("builtins", "eval"), ("__builtin__", "eval"), ("numpy", "load"), ("numpy", "ndarray.tofile")]
)
def test_other_globals_are_refused(name):
    module, function = name
    content = (
        b"\x80\x04"
        + b"\x8c"
        + bytes([len(module)])
        + module.encode()
        + b"\x8c"
        + bytes([len(function)])
        + function.encode()
        + b"\x93."
    )
    with pytest.raises(ModelFileError, match=f"{module}.{function}"):
        load_restricted_pickle(content, ARRAYS)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.uint8).reshape(3, 4),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([[1, -2]], ">i4"),
        np.zeros((0, 3), np.float32),
        np.array(True),
    ],
    ids=["bytes", "fortran", "big-endian", "empty", "scalar"],
)
def test_arrays_come_through(array, protocol):
    if protocol < 3 and array.size == 0:
        pytest.skip("an empty byte string of old protocols needs the global bytes, which stays refused")
    found = load_restricted_pickle(pickle.dumps({"data": array, "labels": [1, 2]}, protocol), ARRAYS | {})
    assert found["labels"] == [1, 2]
    assert isinstance(found["data"], PickledArray)
    np.testing.assert_array_equal(found["data"].array, array)


def test_python_2_pickle_of_numpy_1():
    raw = bytes(range(6))
    content = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87R"
    )
    content += b"(K\x01K\x02K\x03\x86cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87R"
    content += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    content += b"\x89T" + struct.pack("<I", len(raw)) + raw + b"tbu."
    for encoding in ("latin1", "bytes"):
        (array,) = load_restricted_pickle(content, ARRAYS, encoding=encoding).values()
        np.testing.assert_array_equal(array.array, np.arange(6).reshape(2, 3))


def test_arrays_of_objects_and_wrong_lengths_are_refused():
    for array in (np.array([{}, []], dtype=object), np.array([("a", 1)], dtype=[("x", "U1"), ("y", "i4")]), np.array(["word"])):
        with pytest.raises(ModelFileError, match=r"plain numbers|bytes"):
            load_restricted_pickle(pickle.dumps(array), ARRAYS)
    content = pickle.dumps(np.arange(4, dtype=np.uint8), 3)
    with pytest.raises(ModelFileError, match="does not have 4 bytes"):
        load_restricted_pickle(content.replace(b"K\x04\x85", b"K\x7f\x85"), ARRAYS)


def test_state_cannot_be_written_onto_a_function():
    content = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}U\x01xK\x01sb."
    with pytest.raises(ModelFileError, match="state onto a function"):
        load_restricted_pickle(content, ARRAYS)


@pytest.mark.parametrize("content", [b"\x80\x02Nr\xff\xff\xff\x7f.", b"Np2147483647\n."], ids=["binary", "text"])
def test_absurd_memo_indices_are_refused_before_memory_is_reserved(content):
    with pytest.raises(ModelFileError, match="memo index 2147483647 is absurd"):
        load_restricted_pickle(content, ARRAYS)


def test_persistent_references_are_refused():
    with pytest.raises(ModelFileError, match="outside it"):
        load_restricted_pickle(b"\x80\x02U\x01aQ.", ARRAYS)


def test_every_truncation_is_named(tmp_path):
    content = pickle.dumps({"data": np.arange(40, dtype=np.uint8), "labels": list(range(9))})
    path = tmp_path / "batch"
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        with pytest.raises(ModelFileError, match="batch is truncated, damaged"):
            load_restricted_pickle(path, ARRAYS)


def test_absent_file_is_named(tmp_path):
    with pytest.raises(ModelFileError, match="cannot read .*nowhere.pkl: No such file"):
        load_restricted_pickle(tmp_path / "nowhere.pkl", ARRAYS)


def test_a_table_of_ones_own():
    content = pickle.dumps(collections.OrderedDict(a=1))
    assert load_restricted_pickle(content, {("collections", "OrderedDict"): dict}) == {"a": 1}
    with pytest.raises(ModelFileError, match="collections.OrderedDict"):
        load_restricted_pickle(content, {})
