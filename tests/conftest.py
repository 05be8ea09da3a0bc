"""What all tests share: where the real data are, one thread, marks that need hardware, hypothesis profiles.

There is no fixture for random numbers on purpose: library code draws from atonce.core.streams, and a test that needs other
numbers makes its own ``torch.Generator().manual_seed(...)``, so that each test can be understood and repeated by itself.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before torch is imported: one thread each, since xdist's workers share the machine, and since sums must repeat.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("MPLBACKEND", "Agg")
# Nothing is kept in the home folder of whoever runs the tests, and nothing that is there changes a result.
os.environ.setdefault("ATONCE_CACHE", tempfile.mkdtemp(prefix="atonce-tests-"))

import pytest
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", max_examples=25, **_COMMON)
settings.register_profile("ci", max_examples=25, derandomize=True, database=None, print_blob=True, **_COMMON)
settings.register_profile("thorough", max_examples=500, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True, warn_only=True)
torch.backends.cudnn.benchmark = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests marked cuda where there is no device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device on this machine")
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, without a window; one for all tests, since two Playwrights cannot live in one process."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on this machine: apt install chromium")
    with playwright.sync_playwright() as run:
        found = run.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(autouse=True)
def _as_it_was():
    """Every test leaves the thread count, the default type and the gradient mode as it found them."""
    yield
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets: ATONCE_DATA, or ../shared/data beside the checkout; the test is skipped without it."""
    named = os.environ.get("ATONCE_DATA")
    folder = Path(named).expanduser() if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist (set ATONCE_DATA to a folder that holds the data sets)")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def measurement() -> Callable[..., Any]:
    """Makes measurements of a training in round numbers: steps of 0.1 + 0.01 s an image, 300 MiB + 1 MiB an image."""
    from atonce.planning.measure import Measurement

    mib = 2**20
    base = Measurement(
        batches=(10, 90),
        steps=(0.2, 1.0),
        quartiles=(0.98, 1.02),
        memory=(310 * mib, 390 * mib),
        device_memory=(0, 0),
        floor=250 * mib,
        startup=3.0,
        evaluation=2.0,
        sample=0.001,
        calls=1,
        checkpoint=0.5,
        save=0.25,
        log=0.01,
        checkpoint_bytes=10 * mib,
        model_bytes=mib,
        picture_bytes=1000,
        line_bytes=500.0,
        parameters=1000,
        precision="float32",
        tensorboard=True,
    )
    return lambda **changes: dataclasses.replace(base, **changes)
