from __future__ import annotations

import math
import multiprocessing
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from atonce.core.errors import InputError, StorageError
from atonce.core.records import Source
from atonce.data.dataset import ImageData
from atonce.evaluation import cache
from atonce.evaluation.cache import (
    cache_folder,
    cache_limit,
    checksum,
    read_checked,
    reference_features,
    reference_moments,
    write_checked,
)
from atonce.evaluation.extractors import INCEPTION, Extractor, pixels
from atonce.evaluation.frechet import Moments
from atonce.evaluation.reference import Reference, open_reference

IMAGES = torch.randint(0, 256, (300, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
REFERENCE = open_reference(ImageData(IMAGES))


class Counting:
    """Pixels in float32 that count how many images they saw."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.images += len(images)
        return images.flatten(1).to(torch.float32) / 255

    def extractor(self, digest: str = "d") -> Extractor:
        return Extractor("counting", digest, 4, self)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, in which everything is worth keeping."""
    monkeypatch.setenv("ATONCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ATONCE_CACHE_GIB", raising=False)
    monkeypatch.setattr(cache, "WORTH_SECONDS", 0.0)
    return tmp_path / "cache" / "references"


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("*")) if folder.is_dir() else []


def test_the_second_time_nothing_is_computed(folder: Path) -> None:
    counting = Counting()
    first = reference_features(REFERENCE, counting.extractor(), batch=77)
    assert torch.equal(first, counting(IMAGES))
    moments = reference_moments(REFERENCE, counting.extractor())
    torch.testing.assert_close(moments.mean, first.double().mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.covariance, torch.cov(first.double().T), rtol=1e-10, atol=1e-14)
    seen = counting.images
    told: list[int] = []
    again = reference_features(REFERENCE, counting.extractor(), callback=lambda done, total: told.append(done))
    once_more = reference_moments(REFERENCE, counting.extractor(), callback=lambda done, total: told.append(done))
    assert counting.images == seen
    assert told == []
    assert torch.equal(again, first)
    assert torch.equal(once_more.mean, moments.mean)
    assert torch.equal(once_more.covariance, moments.covariance)
    assert once_more.count == moments.count == 300
    assert [path.name.partition("-")[0] for path in kept(folder)] == ["features", "moments"]


def test_moments_come_from_features_that_are_at_hand(folder: Path) -> None:
    counting = Counting()
    features = reference_features(REFERENCE, counting.extractor())
    direct = reference_moments(REFERENCE, Counting().extractor("other"))
    assert counting.images == 300
    from_features = reference_moments(REFERENCE, counting.extractor(), features=features)
    assert counting.images == 300
    torch.testing.assert_close(from_features.covariance, direct.covariance, rtol=1e-12, atol=1e-15)


def test_other_images_and_other_extractors_have_files_of_their_own(folder: Path) -> None:
    other = open_reference(ImageData(IMAGES[:299]))
    for reference, digest in ((REFERENCE, "a"), (other, "a"), (REFERENCE, "b")):
        reference_moments(reference, Counting().extractor(digest))
    assert len(kept(folder)) == 3
    renamed = open_reference(ImageData(IMAGES.clone(), name="other name"))
    counting = Counting()
    reference_moments(renamed, counting.extractor("a"))
    assert counting.images == 0  # it is the content that counts


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="what is mapped can be seen on Linux only")
def test_kept_features_are_mapped_not_read(folder: Path) -> None:
    reference_features(REFERENCE, Counting().extractor())
    again = reference_features(REFERENCE, Counting().extractor())
    (path,) = kept(folder)
    assert str(path) in Path("/proc/self/maps").read_text()
    path.unlink()  # as the limit may demand while they are in use
    assert torch.equal(again, Counting()(IMAGES))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other", "text"])
def test_a_damaged_file_is_noticed_and_replaced(folder: Path, damage: str) -> None:
    first = reference_features(REFERENCE, Counting().extractor()).clone()
    (path,) = kept(folder)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:-100]
    elif damage == "flipped":
        content[-7] ^= 1
    elif damage == "empty":
        content = bytearray()
    elif damage == "text":
        content = bytearray(b"not a file of tensors")
    path.write_bytes(content)
    if damage == "other":
        write_checked(path, {"others": torch.zeros(3)}, {})
    counting = Counting()
    with pytest.warns(UserWarning, match="cannot be used .*: it is made again"):
        again = reference_features(REFERENCE, counting.extractor())
    assert counting.images == 300
    assert torch.equal(again, first)
    counting = Counting()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reference_features(REFERENCE, counting.extractor())
    assert counting.images == 0


def test_facts_are_under_the_checksum(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.arange(3.0), "b": torch.zeros(0, 2), "c": torch.tensor(True)}
    write_checked(path, tensors, {"count": "3"})
    found = read_checked(path)
    assert found is not None
    assert found[1] == {"count": "3"}
    assert all(torch.equal(found[0][name], value) for name, value in tensors.items())
    assert len({checksum(tensors, {"count": str(n)}) for n in range(3)}) == 3
    path.write_bytes(path.read_bytes().replace(b'"count":"3"', b'"count":"4"'))
    with pytest.warns(UserWarning, match="does not fit its checksum"):
        assert read_checked(path) is None
    assert read_checked(tmp_path / "none") is None


def test_what_is_quick_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "WORTH_SECONDS", 60.0)
    reference_features(REFERENCE, Counting().extractor())
    reference_moments(REFERENCE, Counting().extractor())
    assert kept(folder) == []


def test_without_a_place_to_write_it_works_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATONCE_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="the reference's features are not kept: cannot write"):
        features = reference_features(REFERENCE, Counting().extractor())
    assert torch.equal(features, Counting()(IMAGES))
    monkeypatch.setenv("ATONCE_CACHE", str(tmp_path / "full"))

    def full(*_: object) -> None:
        raise StorageError("no space left on the disk while writing it")

    monkeypatch.setattr(cache, "write_checked", full)
    with pytest.warns(UserWarning, match="the reference's moments are not kept: no space left"):
        reference_moments(REFERENCE, Counting().extractor())


def test_the_folder_stays_below_its_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for digest in "abc":
        reference_features(REFERENCE, Counting().extractor(digest))
        for age, path in enumerate(sorted(kept(folder), key=lambda path: path.stat().st_mtime, reverse=True)):
            os.utime(path, (time.time() - 100 * (age + 1),) * 2)
    oldest_first = sorted(kept(folder), key=lambda path: path.stat().st_mtime)
    old = folder / ".features-x.safetensors.1.tmp"
    old.write_bytes(b"left by a killed process")
    os.utime(old, (time.time() - 2 * 86_400,) * 2)
    young = folder / ".features-y.safetensors.2.tmp"
    young.write_bytes(b"of a process that writes now")
    counting = Counting()
    reference_features(REFERENCE, counting.extractor("a"))  # used now, so it is not the one that goes
    assert counting.images == 0
    size = oldest_first[0].stat().st_size
    monkeypatch.setenv("ATONCE_CACHE_GIB", str(3.5 * size / 2**30))
    reference_features(REFERENCE, Counting().extractor("d"))
    left = [path for path in kept(folder) if path.suffix == ".safetensors"]
    assert len(left) == 3
    assert oldest_first[0] in left
    assert oldest_first[1] not in left
    assert not old.exists()
    assert young.exists()
    monkeypatch.setenv("ATONCE_CACHE_GIB", str(0.5 * size / 2**30))
    with pytest.warns(UserWarning, match="above the limit of .* GiB"):
        reference_features(REFERENCE, Counting().extractor("e"))
    assert [path for path in kept(folder) if path.suffix == ".safetensors"] == left


def test_a_limit_of_zero_keeps_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference_features(REFERENCE, Counting().extractor())
    monkeypatch.setenv("ATONCE_CACHE_GIB", "0")
    counting = Counting()
    reference_features(REFERENCE, counting.extractor())
    assert counting.images == 300
    assert len(kept(folder)) == 1


@pytest.mark.parametrize("text", ["-1", "many", "nan", "inf"])
def test_a_limit_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("ATONCE_CACHE_GIB", text)
    with pytest.raises(InputError, match=f"ATONCE_CACHE_GIB is '{text}', must be a number of GiB from 0"):
        cache_limit()


def test_the_folder_and_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_limit() == 10 * 2**30
    monkeypatch.setenv("ATONCE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("ATONCE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/atonce")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache" / "atonce"


def test_given_moments_are_taken_where_they_are_the_extractors() -> None:
    given = Moments(torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64))
    only = Reference(Source("edm.npz", "e"), moments=given)
    assert reference_moments(only, Counting().extractor()) is given
    with pytest.raises(InputError, match=r"edm.npz has 4 features, extractor pixels gives 12: use the extractor it was made"):
        reference_moments(only, pixels((3, 2, 2)))
    with pytest.raises(InputError, match="edm.npz holds statistics only, features need its images"):
        reference_features(only, Counting().extractor())
    both = Reference(Source("adm.npz", "a"), IMAGES, given)
    assert reference_moments(both, Extractor(INCEPTION, "i", 4, Counting())) is given
    computed = reference_moments(both, Counting().extractor())
    assert computed is not given
    assert computed.count == 300
    wider = Extractor(INCEPTION, "j", 4, Counting())
    assert reference_moments(Reference(Source("x", "x"), IMAGES), wider).count == 300


MEMORY = """
import re, torch
from pathlib import Path
from atonce.data.dataset import ImageData
from atonce.evaluation import cache
from atonce.evaluation.extractors import Extractor
from atonce.evaluation.reference import open_reference
cache.WORTH_SECONDS = 0.0
weight = torch.ones(4, 512, dtype=torch.float64)
extractor = Extractor("wide", "wide", 512, lambda x: x.flatten(1).double() @ weight)
small, large = (open_reference(ImageData(torch.zeros(n, 1, 2, 2, dtype=torch.uint8))) for n in (100, 40_000))
cache.reference_moments(small, extractor, features=cache.reference_features(small, extractor))
status = lambda name: int(re.search(name + r":\\s*(\\d+) kB", Path("/proc/self/status").read_text()).group(1))
before = status("VmRSS")
cache.reference_moments(large, extractor, features=cache.reference_features(large, extractor))
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is counted so on Linux only")
def test_features_are_in_memory_once(tmp_path: Path) -> None:
    """40,000 x 512 in float64 are 160,000 KiB; made, written with a checksum and summed up they need little more."""
    environment = {**os.environ, "ATONCE_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", MEMORY], env=environment, capture_output=True, text=True, check=True)
    assert 160_000 <= int(done.stdout) < 1.4 * 160_000
    assert len(kept(tmp_path / "references")) == 4


def _write(path: str, value: float, times: int) -> None:
    for _ in range(times):
        write_checked(Path(path), {"x": torch.full((20_000,), value)}, {"value": str(value)})


def test_processes_that_write_the_same_file_never_leave_a_part(tmp_path: Path) -> None:
    path = tmp_path / "shared.safetensors"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(str(path), float(k), 40)) for k in range(2)]
    for writer in writers:
        writer.start()
    reads = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while any(writer.is_alive() for writer in writers):
            found = read_checked(path)
            if found is not None:
                reads += 1
                assert float(found[0]["x"].sum()) == 20_000 * float(found[1]["value"])
    assert reads > 0
    assert all(writer.exitcode == 0 for writer in writers)
    assert list(tmp_path.iterdir()) == [path]
    assert math.isfinite(float(found[0]["x"].sum())) if found else False
