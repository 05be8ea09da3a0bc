"""The gallery: models that come with the package."""

from __future__ import annotations

from pathlib import Path


def gallery_folder() -> Path:
    """Where the package keeps its models."""
    return Path(__file__).resolve().parent.parent / "gallery"


def gallery_names() -> list[str]:
    """Names that :func:`atonce.load` knows without a path."""
    folder = gallery_folder()
    return sorted(path.parent.name for path in folder.glob("*/config.json")) if folder.is_dir() else []
