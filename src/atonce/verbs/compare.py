"""The verb ``bench compare``."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from atonce.core.errors import InputError
from atonce.verbs.output import show


def bench_compare(records: Positional[tuple[Path, ...]], out: Path | None = None, json: bool = False) -> int:
    """Put records of evaluations side by side and say which differences are larger than their intervals.

    Records that must not be compared (another extractor, reference, number of samples, rounding, classes) are refused with the
    reason. A metric that rests on other data, held-out images or settings is left out, with the reason too.

    Example: atonce bench compare one-step.json two-steps.json

    Args:
        records: Files that ``atonce eval --out`` wrote, two or more.
        out: File for the comparison (JSON).
        json: Print the comparison as JSON.

    Returns:
        The exit status.

    Raises:
        InputError: The records must not be compared, or the output file is not ours.
    """
    from atonce.core.files import write_json
    from atonce.core.records import Record
    from atonce.evaluation.compare import compare

    comparison = compare([Record.load(path) for path in records], [path.stem for path in records])
    if out is not None and out.exists() and not _is_comparison(out):
        raise InputError(f"{out} exists and is no comparison: choose another name, nothing was changed")
    if out is not None:
        write_json(out, comparison.as_dict())
    show(comparison.as_dict(), comparison.table(), json)
    return 0


def _is_comparison(path: Path) -> bool:
    """Whether a file holds what this verb wrote."""
    from json import loads

    try:
        found = loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"records", "best", "differences"} <= set(found)
