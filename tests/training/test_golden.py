"""A change that should not alter numerics must not: see golden.py for how the curves are made, and made anew."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from atonce.training.presets import PRESETS

SCRIPT = Path(__file__).with_name("golden.py")
FOLDER = Path(__file__).with_name("golden")
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))  # presets, and branches that they do not reach by themselves
TOLERANCE = 1e-5  # relative; one machine repeats every digit, other instruction sets (AVX2, AVX-512) change 1e-7

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def curves() -> dict[str, list[float]]:
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"the curves are those of x86, this is {platform.machine()}")
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=880)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_preset_has_a_curve():
    assert set(NAMES) >= set(PRESETS)


def test_every_curve_is_made(curves):
    assert sorted(curves) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_curve_is_the_golden_one(curves, name):
    golden = json.loads((FOLDER / f"{name}.json").read_text())["loss"]
    assert len(golden) == 30
    assert curves[name] == pytest.approx(golden, rel=TOLERANCE, abs=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_tolerance_would_notice(name):
    """Losses change from step to step by far more than the tolerance, so another seed or order could not pass."""
    golden = json.loads((FOLDER / f"{name}.json").read_text())["loss"]
    changes = [abs(b / a - 1) for a, b in zip(golden, golden[1:], strict=False)]
    assert sorted(changes)[len(changes) // 2] > 500 * TOLERANCE
