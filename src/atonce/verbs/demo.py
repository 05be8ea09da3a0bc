"""The verb ``demo``."""

from __future__ import annotations

from pathlib import Path


def demo(
    out: Path = Path("runs/demo"), images: int | None = None, seed: int = 0, resume: bool = True, quiet: bool = False
) -> int:
    """Train a one-step generator of handwritten digits on this machine, in three to four minutes, and explain what was seen.

    Example: atonce demo

    Args:
        out: Run folder: model, pictures, plots and report.html.
        images: Budget in images seen; default: that of the recipe.
        seed: Seed of the run.
        resume: Continue an interrupted demo.
        quiet: Show no progress.

    Returns:
        The exit status.
    """
    from atonce.reports.demo import run_demo

    made = run_demo(out, images=images, seed=seed, resume=resume, quiet=quiet)
    print(made.text)
    return 0 if made.verdict is not None else 130
