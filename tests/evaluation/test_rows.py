from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.data import limits
from atonce.evaluation.extractors import Extractor
from atonce.evaluation.gather import gather
from atonce.evaluation.rows import Watch, every_row


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_rows_do_not_depend_on_the_batch(batch: int) -> None:
    asked: list[tuple[int, int]] = []

    def compute(first: int, count: int) -> Tensor:
        asked.append((first, count))
        return torch.arange(first, first + count).unsqueeze(1).expand(count, 3) * 1.5

    rows = every_row(10, 3, compute, batch=batch)
    assert rows.dtype == torch.float64
    assert torch.equal(rows[:, 2], 1.5 * torch.arange(10, dtype=torch.float64))
    assert asked[0] == (0, min(batch, 10))
    assert sum(count for _, count in asked) == 10


def test_a_table_that_no_machine_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "memory_bytes", lambda: 1 << 30)
    with pytest.raises(InputError, match="a table of 1,000,000 rows of 1,000 numbers would need 7.5 GiB"):
        every_row(1_000_000, 1000, lambda first, count: torch.zeros(count, 1000), batch=8)


def test_a_watch_inside_an_extractor_sees_its_features_once() -> None:
    images = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1)
    seen: list[int] = []

    def function(part: Tensor) -> Tensor:
        seen.extend(part.flatten().tolist())
        return part.flatten(1).double()

    watch = Watch(10, lambda images, features: torch.cat([images.flatten(1), 3 * features], 1))
    inner = watch.inside(Extractor("plain", "d", 1, function, batch=4))
    found = gather(lambda first, count: images[first : first + count], 10, inner, batch=3, keep_features=True)
    assert seen == list(range(10))
    assert found.features is not None
    assert torch.equal(found.features.flatten(), torch.arange(10, dtype=torch.float64))
    assert torch.equal(watch.values()[:, 0], torch.arange(10, dtype=torch.float64))
    assert torch.equal(watch.values()[:, 1], 3.0 * torch.arange(10, dtype=torch.float64))
