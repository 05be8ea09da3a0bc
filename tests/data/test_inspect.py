"""What inspection reports, against numbers worked out by other means."""

from __future__ import annotations

import json

import pytest
import torch

from atonce.data import inspect
from atonce.data.dataset import ImageData
from atonce.data.inspect import advise, count_duplicates, inspect_data, largest_distance
from atonce.data.sources import open_data


def images(n=30, c=3, side=6, seed=0):
    return torch.randint(0, 256, (n, c, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_largest_distance_is_the_largest(monkeypatch):
    x = images()
    expected = torch.pdist(x.flatten(1).double() / 127.5).max().item()
    assert largest_distance(x) == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr(inspect, "_COLUMNS", 10)
    assert largest_distance(x) == pytest.approx(expected, rel=1e-12)
    assert largest_distance(x[:1]) == 0
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 32, 32)
    assert largest_distance(black_and_white) == pytest.approx(2 * 3072**0.5)


def test_duplicates():
    x = images(5)
    assert count_duplicates(ImageData(torch.cat([x, x[:2], x[:1]]))) == 3
    assert count_duplicates(ImageData(x)) == 0


def test_report_on_digits():
    data = open_data("digits", split="all")
    report = inspect_data(data)
    assert (report.count, report.shape, report.bytes) == (1797, (1, 8, 8), 1797 * 64)
    assert (report.mean, report.sigma_data) == pytest.approx((-0.389, 0.752), abs=1e-3)
    assert report.class_counts == (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
    assert report.value_range == (0, 255)
    assert report.duplicates == 0
    assert report.distance_sample == 1797
    assert report.largest_distance == pytest.approx(torch.pdist(data.images.flatten(1).double() / 127.5).max().item())
    assert report.digest == data.digest()
    assert json.loads(json.dumps(report.as_dict()))["classes"] == [str(k) for k in range(10)]
    text = "\n".join(report.describe())
    for part in ("1,797 of 8x8, grey", "0.75", "-0.389", "10: 0 178", "sigma_max", "80"):
        assert part in text


def test_report_without_labels_and_with_colour():
    report = inspect_data(ImageData(images(4)), sample=3)
    assert (report.classes, report.class_counts, report.distance_sample) == ((), (), 3)
    assert len(report.channel_mean) == len(report.channel_std) == 3
    assert any("no labels" in line for line in report.describe())
    assert any("RGB" in line for line in report.describe())


def test_a_class_without_images_is_counted():
    report = inspect_data(ImageData(images(2), torch.tensor([2, 0]), ("a", "b", "c")))
    assert report.class_counts == (1, 0, 1)


def test_a_single_image_and_many_classes():
    assert inspect_data(ImageData(images(1))).largest_distance == 0
    report = inspect_data(ImageData(images(30), torch.arange(30)))
    assert any("and 18 more" in line for line in report.describe())


@pytest.mark.parametrize(
    ("distance", "text"), [(10, "80 is safe"), (98, "80 is in order"), (167, "consider a larger sigma_max")]
)
def test_advice_follows_the_distance(distance, text):
    assert text in advise(distance)
    assert f"suggests {distance}" in advise(distance)
