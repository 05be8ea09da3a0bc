"""Classifier-free guidance as a function of any conditional denoiser."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atonce.noise.worlds import Gaussian, Mixture
from atonce.sampling.guidance import guided

MEANS = torch.tensor([-0.8, 0.1, 0.6], dtype=torch.float64)
S = 0.3
WHOLE = Mixture(MEANS[:, None, None, None], torch.full((3,), S).double(), torch.ones(3).double())
X = torch.randn(5, 1, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
SIGMA = torch.tensor([0.1, 0.5, 1.0, 3.0, 20.0], dtype=torch.float64)
LABEL = torch.tensor([0, 1, 2, 2, 0])


def denoiser(x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
    """The exact denoiser of three classes, N(m_k, s^2) each; without a class that of their mixture."""
    column = sigma[:, None, None, None]
    mean = MEANS[label.clamp(min=0)][:, None, None, None]
    known = mean + S**2 / (S**2 + column**2) * (x - mean)
    return torch.where((label < 0)[:, None, None, None], WHOLE.denoiser(x, sigma), known)


def test_no_scale_one_and_two() -> None:
    with_class = denoiser(X, SIGMA, LABEL)
    without = WHOLE.denoiser(X, SIGMA)
    assert float((with_class - without).abs().min()) > 1e-3
    close = {"rtol": 1e-13, "atol": 1e-13}
    torch.testing.assert_close(guided(denoiser, X, SIGMA, LABEL, 0.0), without, **close)
    torch.testing.assert_close(guided(denoiser, X, SIGMA, LABEL, 1.0), with_class, **close)
    torch.testing.assert_close(guided(denoiser, X, SIGMA, LABEL, 2.0), 2 * with_class - without, **close)


def test_one_scale_for_each_image() -> None:
    scales = torch.tensor([0.0, 1.0, 2.0, 3.5, 7.0])
    together = guided(denoiser, X, SIGMA, LABEL, scales)
    for i, w in enumerate(scales.tolist()):
        part = slice(i, i + 1)
        alone = guided(denoiser, X[part], SIGMA[part], LABEL[part], w)
        torch.testing.assert_close(together[part], alone, rtol=1e-13, atol=1e-13)


def test_an_image_without_a_class_is_not_guided() -> None:
    label = torch.tensor([0, -1, 2, -1, 0])
    out = guided(denoiser, X, SIGMA, label, 4.0)
    torch.testing.assert_close(out[1::2], WHOLE.denoiser(X[1::2], SIGMA[1::2]), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(out[::2], guided(denoiser, X, SIGMA, LABEL, 4.0)[::2], rtol=1e-13, atol=1e-13)


def test_it_is_the_score_of_the_sharpened_density() -> None:
    """(D_w - x) / sigma^2 is the score of p(x) (p(x | c) / p(x))^w: what Ho and Salimans derive it from."""
    w, x = 2.5, X.clone().requires_grad_()
    column = SIGMA[:, None, None, None]
    classes = [Gaussian(float(m), S) for m in MEANS]
    whole = WHOLE.log_density(x, SIGMA)
    known = torch.stack([classes[int(k)].log_density(x[i : i + 1], SIGMA[i : i + 1])[0] for i, k in enumerate(LABEL)])
    (score,) = torch.autograd.grad((whole + w * (known - whole)).sum(), x)
    torch.testing.assert_close((guided(denoiser, X, SIGMA, LABEL, w) - X) / column**2, score, rtol=1e-9, atol=1e-10)


def test_one_call_on_twice_the_batch() -> None:
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def spy(x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        calls.append((x, sigma, label))
        return denoiser(x, sigma, label)

    guided(spy, X, SIGMA, LABEL, 2.0)
    ((x, sigma, label),) = calls
    assert torch.equal(x, torch.cat([X, X]))
    assert torch.equal(sigma, torch.cat([SIGMA, SIGMA]))
    assert label.tolist() == [*LABEL.tolist(), -1, -1, -1, -1, -1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [2.0, torch.full((5,), 2.0, dtype=torch.float64)])
def test_the_scale_does_not_change_the_type(dtype: torch.dtype, scale: float | Tensor) -> None:
    out = guided(lambda x, s, label: denoiser(x, s, label).to(dtype), X.to(dtype), SIGMA.to(dtype), LABEL, scale)
    assert out.dtype == dtype


@given(st.floats(0, 20), st.floats(0, 20))
def test_it_is_affine_in_the_scale(v: float, w: float) -> None:
    mean = guided(denoiser, X, SIGMA, LABEL, (v + w) / 2)
    ends = (guided(denoiser, X, SIGMA, LABEL, v) + guided(denoiser, X, SIGMA, LABEL, w)) / 2
    torch.testing.assert_close(mean, ends, rtol=1e-10, atol=1e-10)
