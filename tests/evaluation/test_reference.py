from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from atonce.core.errors import DataError
from atonce.core.files import sha256_file
from atonce.data.dataset import ImageData
from atonce.evaluation.reference import data_source, open_images, open_reference

BATCH = np.random.default_rng(0).integers(0, 256, (7, 5, 6, 3), dtype=np.uint8)
MU, SIGMA = np.arange(4.0), np.diag([1.0, 2.0, 3.0, 4.0])


def save(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_statistics_as_edm_has_them(tmp_path: Path) -> None:
    path = save(tmp_path / "edm.npz", mu=MU.astype(np.float32), sigma=SIGMA)
    found = open_reference(path)
    assert found.images is None
    assert found.moments is not None
    assert found.moments.mean.dtype == torch.float64
    assert found.moments.mean.tolist() == MU.tolist()
    assert found.moments.covariance.tolist() == SIGMA.tolist()
    assert (found.source.name, found.source.digest, found.source.count) == ("edm.npz", sha256_file(path), None)


def test_a_batch_of_adm_is_images(tmp_path: Path) -> None:
    path = save(tmp_path / "batch.npz", arr_0=BATCH, arr_1=np.arange(7))
    found = open_reference(str(path))
    assert found.moments is None
    assert found.images is not None
    assert found.images.dtype == torch.uint8
    assert found.images.shape == (7, 3, 5, 6)
    assert np.array_equal(found.images[2, 1].numpy(), BATCH[2, :, :, 1])
    assert found.source.count == 7


def test_a_reference_batch_of_adm_has_statistics_beside_its_images(tmp_path: Path) -> None:
    wide = {"mu": MU, "sigma": SIGMA, "mu_s": np.zeros(9), "sigma_s": np.eye(9)}
    found = open_reference(save(tmp_path / "VIRTUAL_imagenet64_labeled.npz", arr_0=BATCH, **wide))
    assert found.images is not None
    assert found.moments is not None
    assert found.moments.mean.tolist() == MU.tolist()


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros(3)}, "must hold mu and sigma, or images as arr_0; it holds x"),
        ({"mu": MU}, "must hold mu and sigma, or images as arr_0; it holds mu"),
        ({"mu": MU, "sigma": np.eye(3)}, "moments need a mean .D. and a covariance .D, D., got .4. and .3, 3."),
        ({"mu": MU * np.nan, "sigma": SIGMA}, "not finite"),
        ({"mu": MU, "sigma": np.full((4, 4), np.inf)}, "not finite"),
        ({"mu": MU, "sigma": -np.eye(4)}, "sigma has the eigenvalue -1, and a covariance has none below 0"),
        ({"mu": MU, "sigma": SIGMA - 1.1 * np.eye(4)}, "sigma has the eigenvalue -0.1"),
        ({"mu": MU, "sigma": np.triu(np.ones((4, 4)))}, r"sigma is not symmetric \(entries differ by up to 1\)"),
        ({"mu": MU, "sigma": SIGMA, "arr_0": BATCH, "x": MU} | {"sigma": -SIGMA}, "eigenvalue"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "empty"),
        ({"arr_0": BATCH.astype(np.float32)}, r"arr_0 must be uint8 \[N, H, W, C\]"),
        ({"arr_0": BATCH.transpose(0, 3, 1, 2)}, r"arr_0 must be uint8 \[N, H, W, C\] with 1 or 3 channels"),
        ({"mu": np.array([None, 1]), "sigma": SIGMA}, "cannot be used"),
    ],
)
def test_other_archives_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(DataError, match=said) as problem:
        open_reference(save(tmp_path / "x.npz", **arrays))
    assert "\n" not in str(problem.value)


def test_rounding_and_singular_covariances_are_no_fault(tmp_path: Path) -> None:
    """Covariances of few float32 features: eigenvalues of about -1e-8 of the largest, halves that differ in the last digit."""
    features = np.random.default_rng(1).normal(size=(20, 50)).astype(np.float32)
    sigma = np.cov(features.T).astype(np.float32)
    sigma[0, 1] = np.nextafter(sigma[0, 1], np.float32(9))
    assert np.linalg.eigvalsh(sigma.astype(np.float64))[0] < 0
    assert open_reference(save(tmp_path / "few.npz", mu=features.mean(0), sigma=sigma)).moments is not None
    assert open_reference(save(tmp_path / "one.npz", mu=MU, sigma=np.zeros((4, 4)))).moments is not None


def test_damaged_and_missing_archives(tmp_path: Path) -> None:
    path = save(tmp_path / "cut.npz", mu=MU, sigma=SIGMA)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DataError, match=r"cut.npz cannot be used"):
        open_reference(path)
    with pytest.raises(DataError, match=r"none.npz does not exist"):
        open_reference(tmp_path / "none.npz")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("exploded"),))  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["edm2-img512.pkl", "stats.pickle", "renamed.npz", "without-suffix"])
def test_pickles_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps({"fid": Bomb()}))
    with pytest.raises(DataError, match=r"is a pickle.*numpy.savez\('reference.npz', mu=..., sigma=...\)"):
        open_reference(tmp_path / name)
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(DataError, match="is a pickle"):
        open_reference("https://somewhere/edm2.pkl")


def test_data_sets() -> None:
    digits = open_reference("digits")
    assert digits.images is not None
    assert len(digits.images) == 1797
    assert digits.source == data_source(open_images("digits"))
    assert len(open_images("digits", "test")) == 360
    own = ImageData(torch.zeros(2, 1, 3, 3, dtype=torch.uint8), name="own")
    assert open_images(own) is own
    assert open_reference(own).images is own.images
    assert open_reference(own).source.name == "own"
