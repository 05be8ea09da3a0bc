"""A real probe, at tiny size: a process of its own that trains, and what it says when it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import atonce
from atonce.core.errors import TrainingError
from atonce.planning.machine import available_memory, device_peak, machine, peak_memory, reset_peak
from atonce.planning.material import copy_for_probes, random_images, stand_in
from atonce.planning.measure import Measurement, measure

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("probe") / "data.npz"
    copy_for_probes(random_images((1, 8, 8), classes=3), file, random=True)
    return file


def test_a_probe_trains_and_measures(data: Path, tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    teacher = stand_in(atonce.recipes.diffusion(network="tiny", conditional=True), random_images((1, 8, 8), 3))
    teacher.save_pretrained(tmp_path / "teacher")
    recipe = atonce.recipes.cd(images=64_000, batch=24, network="tiny", teacher="teacher", conditional=True)
    found = measure(
        recipe,
        data,
        batch=24,
        labels=("0", "1", "2"),
        teacher=tmp_path / "teacher",
        seconds=0.5,
        told=lambda share, text: told.append((share, text)),
    )
    assert found.batches[0] == 16
    assert found.batches[-1] in (16, 24)
    assert all(seconds > 0 for seconds in (*found.steps, found.startup, found.evaluation, found.sample, found.checkpoint))
    assert found.quartiles[0] <= found.quartiles[1]
    assert found.floor > 100 << 20  # the libraries alone
    assert min(found.memory) > 100 << 20
    assert found.device_memory[-1] == 0
    # Weights, the average and the optimiser's two moments, in float32, and little else.
    assert 4 * 4 * found.parameters < found.checkpoint_bytes < 5 * 4 * found.parameters
    assert found.model_bytes > 4 * found.parameters
    assert found.calls == 1
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert Measurement.from_json(found.to_json()) == found


def test_a_probe_that_fails_says_why(data: Path) -> None:
    recipe = atonce.recipes.cd(images=64_000, batch=16, network="tiny", teacher="teacher")
    with pytest.raises(TrainingError) as caught:
        measure(recipe, data, batch=16, seconds=0.5)
    assert "the probe of cd with batches of up to 16 did not get through" in str(caught.value)
    assert "needs a teacher" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_copy_is_at_most_64_mib_and_the_rest_is_counted(tmp_path: Path) -> None:
    from atonce.data.dataset import ImageData
    from atonce.data.sources import open_data

    many = ImageData(torch.zeros(1, 3, 128, 128, dtype=torch.uint8).expand(2000, 3, 128, 128), torch.arange(2000) % 5)
    facts = copy_for_probes(many, tmp_path / "many.npz")
    there = open_data(tmp_path / "many.npz")
    assert facts.count == 2000
    assert there.images.numel() <= 64 << 20
    assert facts.more_bytes == many.images.numel() - there.images.numel() > 0
    assert facts.labels == ("0", "1", "2", "3", "4")


def test_random_images_repeat_and_differ() -> None:
    one, two = random_images((1, 8, 8), 4), random_images((1, 8, 8), 4)
    assert torch.equal(one.images, two.images)
    assert not torch.equal(one.images, random_images((1, 8, 8), 4, seed=1).images)
    assert one.images.float().mean() == pytest.approx(127.5, abs=1)
    assert one.num_classes == 4


def test_a_peak_is_that_of_this_process_alone() -> None:
    """Not of the one that started it, which `getrusage` would tell; and it stays when the memory is given back."""
    held = torch.ones(600 << 20, dtype=torch.uint8)
    words = "from atonce.planning.machine import peak_memory as p; a = p(); b = b'x' * (90 << 20); del b; print(a, p())"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True, timeout=200)
    before, after = map(int, done.stdout.split())
    assert before < len(held)
    assert after - before > 60 << 20
    assert peak_memory() > len(held)


def test_what_the_machine_says_of_itself() -> None:
    reset_peak(CPU)
    assert device_peak(CPU) == 0
    free = available_memory(CPU)
    assert free is not None
    assert free > 100 << 20
    assert machine(CPU).startswith("cpu (")


def test_students_of_progressive_distillation_are_sampled_in_their_own_steps(data: Path, tmp_path: Path) -> None:
    stand_in(atonce.recipes.diffusion(network="tiny"), random_images((1, 8, 8))).save_pretrained(tmp_path / "teacher")
    recipe = atonce.recipes.progressive(images=64_000, batch=16, network="tiny", teacher="teacher", teacher_steps=8)
    found = measure(recipe, data, batch=16, teacher=tmp_path / "teacher", seconds=0.3)
    assert found.calls == 4  # the first student's
    assert found.sample > 0
