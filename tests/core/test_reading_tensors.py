"""Tensors in foreign files: they come through bit for bit, and nothing else does."""

from __future__ import annotations

import collections
import io
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from atonce.core.errors import ModelFileError
from atonce.core.reading_tensors import read_tensor_pickle, read_torch_legacy, read_torch_zip


def values() -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=g)
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    state = collections.OrderedDict((str(kind), (base * 9).to(kind)) for kind in kinds)
    state |= {"base": base, "row": base[1], "turned": base.t(), "every second": base[:, ::2], "nothing": torch.zeros(0, 3)}
    state |= {"one": torch.tensor(2.5), "truth": torch.tensor([True, False]), "whole": torch.nn.Parameter(base.clone())}
    return state


def same(found: dict[str, Tensor]) -> bool:
    wanted = values()
    return list(found) == list(wanted) and all(
        torch.equal(found[k], wanted[k]) and found[k].dtype == wanted[k].dtype and found[k].shape == wanted[k].shape
        for k in wanted
    )


def test_state_dicts_come_through_in_every_format(tmp_path: Path) -> None:
    path = tmp_path / "file"
    torch.save(values(), path)
    assert same(read_torch_zip(path))
    torch.save(values(), path, _use_new_zipfile_serialization=False)
    assert same(read_torch_legacy(path))
    for protocol in (2, 3, 4, 5):
        path.write_bytes(pickle.dumps(values(), protocol))
        assert same(read_tensor_pickle(path, {}))


def test_a_modules_state_dict_with_its_metadata_comes_through(tmp_path: Path) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict()
    assert hasattr(state, "_metadata")
    torch.save(state, tmp_path / "file")
    found = read_torch_zip(tmp_path / "file")
    assert list(found) == list(state)
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_shared_storage_stays_shared_and_is_not_copied(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    torch.save({"a": base, "b": base[2:]}, tmp_path / "file")
    found = read_torch_zip(tmp_path / "file")
    assert found["b"].untyped_storage().data_ptr() == found["a"].untyped_storage().data_ptr()
    assert found["b"].tolist() == [2, 3, 4, 5]


def test_numbers_of_numpy_and_sets(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for protocol in (2, 4, 5):
        path.write_bytes(pickle.dumps({"a": np.sqrt(0.5), "b": np.int32(7), "c": {3}, "d": torch.Size([1, 2])}, protocol))
        found = read_tensor_pickle(path, {})
        assert found["a"] == np.sqrt(0.5)
        assert (found["b"], list(found["c"]), tuple(found["d"])) == (7, [3], (1, 2))


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.path,)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_a_command_is_refused_and_not_run(how: str, tmp_path: Path) -> None:
    path, deed = tmp_path / "file", tmp_path / "ran"
    content = {"a": torch.zeros(1), "b": Hostile(deed)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    read = {"zip": read_torch_zip, "legacy": read_torch_legacy, "pickle": lambda p: read_tensor_pickle(p, {})}[how]
    with pytest.raises(ModelFileError, match="asks for the global .*nothing was executed"):
        read(path)
    assert not deed.exists()


def rewritten(source: Path, **changes: Any) -> Path:
    """A zip file of torch with members changed, added or compressed."""
    target = source.with_name("changed")
    method = changes.pop("method", zipfile.ZIP_STORED)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for info in old.infolist():
            name = info.filename
            content = old.read(info)
            key = name.split("/", 1)[1].replace("/", "_").replace(".", "_")
            new.writestr(name, changes.pop(key, content))
        for name, content in changes.items():
            new.writestr(name.replace("__", "/"), content)
    return target


def test_archives_that_torch_never_writes(tmp_path: Path) -> None:
    source = tmp_path / "file"
    torch.save({"a": torch.arange(4.0)}, source)
    assert read_torch_zip(rewritten(source))["a"].tolist() == [0, 1, 2, 3]
    with pytest.raises(ModelFileError, match="is compressed, which torch never does"):
        read_torch_zip(rewritten(source, method=zipfile.ZIP_DEFLATED))
    with pytest.raises(ModelFileError, match="lies outside"):
        read_torch_zip(rewritten(source, **{"..__x": b"1"}))
    with pytest.raises(ModelFileError, match="does not have 8 bytes"):
        read_torch_zip(rewritten(source, data_0=b"\0" * 8))
    with pytest.raises(ModelFileError, match="big-endian"):
        read_torch_zip(rewritten(source, byteorder=b"big"))
    with zipfile.ZipFile(tmp_path / "other", "w") as archive:
        archive.writestr("readme", "x")
    with pytest.raises(ModelFileError, match="without the description"):
        read_torch_zip(tmp_path / "other")


def described(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """A pickle whose tensor has the given geometry over four values."""

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torch, about its own way of pickling
        storage = torch.arange(4.0).storage()

    class Sized:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (
                storage,
                offset,
                size,
                stride,
                False,
                collections.OrderedDict(),
            )

    return pickle.dumps(Sized())


@pytest.mark.parametrize(
    ("size", "stride", "offset", "text"),
    [
        ((5,), (1,), 0, "does not lie within its storage"),
        ((4,), (1,), 1, "does not lie within"),
        ((2, 2), (3, 1), 0, "does not lie within"),
        ((1 << 20, 1 << 20), (0, 0), 0, "does not lie within"),
        ((-4,), (1,), 0, "shape of a tensor is damaged"),
        ((4,), (1, 1), 0, "shape of a tensor is damaged"),
        ((True,), (1,), 0, "shape of a tensor is damaged"),
    ],
)
def test_tensors_that_reach_beyond_their_storage(
    size: tuple[int, ...], stride: tuple[int, ...], offset: int, text: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(described((2, 2), (2, 1)))
    assert read_tensor_pickle(path, {}).tolist() == [[0, 1], [2, 3]]
    path.write_bytes(described(size, stride, offset))
    with pytest.raises(ModelFileError, match=text):
        read_tensor_pickle(path, {})


def test_one_storage_read_again_and_again_is_refused(tmp_path: Path) -> None:
    """A few bytes for each repetition; a genuine file has each storage once."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        storage = torch.zeros(1000).storage()
    torch.save(storage, buffer, _use_new_zipfile_serialization=False)
    head = pickle.dumps(buffer.getvalue(), 3)[2:-1]  # leaves the bytes on the stack, and at memo 0
    body = b"\x80\x03](ctorch.storage\n_load_from_bytes\nq\x01" + head + b"q\x000" + b"h\x01h\x00\x85R" * 5000 + b"e."
    path = tmp_path / "file"
    path.write_bytes(body)
    with pytest.raises(ModelFileError, match="more of its bytes than any genuine file"):
        read_tensor_pickle(path, {})


def test_every_truncation_is_one_line(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    for read, how in ((read_torch_zip, True), (read_torch_legacy, False)):
        torch.save({"a": torch.arange(3.0)}, whole, _use_new_zipfile_serialization=how)
        content, path = whole.read_bytes(), tmp_path / "cut"
        for cut in range(0, len(content), 7):
            path.write_bytes(content[:cut])
            with pytest.raises(ModelFileError) as caught:
                read(path)
            assert "\n" not in str(caught.value)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    for read in (read_torch_zip, read_torch_legacy, lambda p: read_tensor_pickle(p, {})):
        with pytest.raises(ModelFileError, match="nowhere"):
            read(tmp_path / "nowhere")
