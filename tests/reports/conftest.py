"""What the tests of reports share: models and data that are made in a moment."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def inspected() -> ModuleType:
    """The module ``inspected.py`` beside this file."""
    spec = importlib.util.spec_from_file_location("inspected", Path(__file__).with_name("inspected.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
