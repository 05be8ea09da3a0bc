"""The learnt weight: nothing at first, and at its best minus the logarithm of the mean loss at each noise level."""

from __future__ import annotations

import torch

from atonce.objectives.adaptive import AdaptiveWeight


def test_it_starts_at_zero_and_depends_on_its_seed_alone() -> None:
    state = torch.get_rng_state()
    one, two, other = AdaptiveWeight(4), AdaptiveWeight(4), AdaptiveWeight(5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.freqs, two.freqs)
    assert not torch.equal(one.freqs, other.freqs)
    assert torch.equal(one(torch.linspace(-1.5, 1.1, 9)), torch.zeros(9))


def test_it_learns_minus_the_logarithm_of_the_loss() -> None:
    c = torch.linspace(-1.5, 1.1, 200)
    loss = (2 * (3 * c).sin()).exp()
    head = AdaptiveWeight(0)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(800):
        optimizer.zero_grad()
        w = head(c)
        (w.exp() * loss - w).mean().backward()
        optimizer.step()
    w = head(c).detach()
    assert float((w + loss.log()).abs().max()) < 0.3  # of a range of 4
    assert float((w.exp() * loss).log().abs().mean()) < 0.1
