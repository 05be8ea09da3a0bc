"""Metrics of classes in an evaluation: the data's own classifier looks at the samples."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.images import from_uint8
from atonce.core.records import Record
from atonce.core.streams import Stream, uniform
from atonce.data.dataset import ImageData
from atonce.evaluation import classifier as module
from atonce.evaluation.evaluate import evaluate

NAMES = ("first", "second", "third")
METRICS = ("class_balance", "class_accuracy", "classifier_score", "frechet_per_class")


def spots(count: int = 150, seed: int = 0) -> ImageData:
    """Noise with a bright row that tells the class: learned in a moment."""
    labels = torch.arange(count) % 3
    images = torch.randint(0, 100, (count, 1, 6, 6), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    images[torch.arange(count), 0, labels] = 255
    return ImageData(images, labels, NAMES, name="spots")


DATA = spots()


@pytest.fixture(autouse=True, scope="module")
def _one_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATONCE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


class Conditional:
    """Gives images of the class it is asked for, or of the next one with a given probability."""

    device = torch.device("cpu")
    labels = list(NAMES)

    def __init__(self, wrong: float = 0.0, only: int | None = None) -> None:
        self.wrong, self.only = wrong, only
        self.pool = spots(900, 7)

    def sample(self, n: int, *, first: int = 0, labels: Tensor, seed: int = 0, **options: Any) -> Tensor:
        index = torch.arange(first, first + n)
        u = uniform(seed, index, 2, Stream.SAMPLE)
        made = labels if self.only is None else torch.full_like(labels, self.only)
        made = torch.where(u[:, 0] < self.wrong, (made + 1) % 3, made)
        assert self.pool.labels is not None
        rows = 3 * (u[:, 1] * 300).long() + made
        return from_uint8(self.pool.images[rows])


def test_a_good_conditional_model() -> None:
    record = evaluate(Conditional(), DATA, n=300, metrics=METRICS, labels="balanced")
    found = record.metrics
    assert found["class_accuracy"].value > 0.97
    assert found["class_total_variation"].value < 0.03
    assert found["classifier_score"].value > 2.1
    assert [found[f"class_share:{name}"].value for name in NAMES] == pytest.approx([1 / 3] * 3, abs=0.03)
    assert {f"frechet_class:{name}" for name in NAMES} < set(found)
    assert found["frechet_class:first"].count == 100
    assert found["frechet_class_mean"].settings == "3 classes, classes asked for"
    assert "is" not in found  # the score of another classifier has another name
    assert found["classifier_score"].settings.endswith(module.classifier(DATA).digest[:12])
    assert record.labels == "balanced"
    for name in (
        "class_accuracy",
        "class_total_variation",
        "class_largest_deviation",
        "classifier_score",
        "frechet_class_mean",
    ):
        assert found[name].interval is not None, name
    assert any("finds the class of" in note for note in record.notes)
    assert any("by chance" in note for note in record.notes)


def test_wrong_classes_are_found_out() -> None:
    good, bad = (evaluate(Conditional(wrong), DATA, n=300, metrics=METRICS).metrics for wrong in (0.0, 0.5))
    assert bad["class_accuracy"].value == pytest.approx(0.5, abs=0.1)
    assert bad["frechet_class_mean"].value > 2 * good["frechet_class_mean"].value
    assert bad["class_total_variation"].value < 0.12  # each class is still there as often


def test_a_missing_class_is_found_out() -> None:
    found = evaluate(Conditional(only=1), DATA, n=200, metrics=("class_balance", "classifier_score")).metrics
    assert found["class_share:second"].value > 0.97
    assert found["class_largest_deviation"].value == pytest.approx(2 / 3, abs=0.03)
    assert found["classifier_score"].value < 1.2


def test_images_without_labels_are_classified() -> None:
    record = evaluate(spots(200, 3).images, DATA, metrics=("frechet_per_class",))
    assert record.metrics["frechet_class_mean"].settings.startswith("3 classes, classes by classifier ")
    assert record.labels is None
    with pytest.raises(InputError, match="class_accuracy needs samples of known classes of spots"):
        evaluate(spots(200, 3).images, DATA, metrics="class_accuracy")


def test_a_folder_of_classes(tmp_path: Path) -> None:
    made = spots(60, 5)
    assert made.labels is not None
    for i, (image, label) in enumerate(zip(made.images, made.labels.tolist(), strict=True)):
        folder = tmp_path / NAMES[(label + (i < 30)) % 3]  # the first half lies in the wrong folder
        folder.mkdir(exist_ok=True)
        Image.fromarray(image[0].numpy()).save(folder / f"{i:02d}.png")
    record = evaluate(tmp_path, DATA, metrics=("class_accuracy", "frechet_per_class"))
    assert record.metrics["class_accuracy"].value == pytest.approx(0.5, abs=0.05)
    assert record.labels == "of the images"
    assert sum(record.metrics[f"frechet_class:{name}"].count or 0 for name in NAMES) == 60


def test_classes_of_other_names_are_not_taken_for_the_datas() -> None:
    other = ImageData(DATA.images, DATA.labels, ("one", "two", "three"), name="others")
    with pytest.raises(
        InputError, match=r"class_accuracy needs .* of others: the classes of the model \(3: first, second, third"
    ):
        evaluate(Conditional(), other, n=60, metrics="class_accuracy")
    record = evaluate(Conditional(), other, n=60, metrics="frechet_per_class")
    assert any("are not those of others" in note and "the classifier finds" in note for note in record.notes)
    assert record.metrics["frechet_class_mean"].settings.startswith("3 classes, classes by classifier ")


@pytest.mark.parametrize("batch", [7, 100])
def test_batches_change_nothing(batch: int) -> None:
    whole, parts = (evaluate(Conditional(0.2), DATA, n=120, metrics=METRICS, batch=size).metrics for size in (None, batch))
    assert {k: v.value for k, v in parts.items()} == pytest.approx({k: v.value for k, v in whole.items()}, rel=1e-9)


def test_data_without_labels_are_refused() -> None:
    for name in METRICS:
        with pytest.raises(InputError, match=f"metric {name} needs data with labels, spots has none"):
            evaluate(DATA.images, DATA.without_labels(), metrics=name)


def _process(rank: int, port: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        evaluate(Conditional(0.2), DATA, n=130, metrics=METRICS, sharded=True).save(Path(folder) / f"{rank}.json")
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_give_the_record_of_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    one = evaluate(Conditional(0.2), DATA, n=130, metrics=METRICS)
    processes = [mp.get_context("fork").Process(target=_process, args=(rank, port, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    expected = {name: metric.value for name, metric in one.metrics.items()}
    for rank in range(2):
        found = Record.load(tmp_path / f"{rank}.json").metrics
        assert {name: metric.value for name, metric in found.items()} == pytest.approx(expected, rel=1e-9)
