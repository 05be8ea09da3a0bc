"""The verbs about data."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from atonce.core.errors import InputError
from atonce.core.progress import Progress
from atonce.verbs.output import show

if TYPE_CHECKING:
    from atonce.data.check import Tell
    from atonce.data.checked import Checked

Reasons = tuple[Literal["corrupt", "exact", "near", "conflicts", "leak"], ...]


def data_inspect(
    data: Positional[str],
    split: str = "train",
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    skip_bad: bool = False,
    json: bool = False,
) -> int:
    """Say what is in a data set: counts, shape, classes, mean, sigma_data, duplicates, and the sigma_max it suggests.

    Example: atonce data inspect digits

    Args:
        data: Name, or a folder, zip or file of images.
        split: train, test or all, where the data have splits.
        size: Crop and resize images to this height and width.
        channels: 1 for grey, 3 for RGB.
        skip_bad: Skip unreadable images instead of stopping.
        json: Print the result as JSON.

    Returns:
        The exit status.
    """
    from atonce.data.inspect import inspect_data
    from atonce.data.sources import open_data

    report = inspect_data(open_data(data, split=split, size=size, channels=channels, skip_bad=skip_bad))
    text = report.describe()
    show(report.as_dict(), text if isinstance(text, str) else "\n".join(text), json)
    return 0


def data_check(
    data: Positional[str],
    split: str = "train",
    against: str | None = None,
    against_split: str | None = None,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    near: float = 0.1,
    strict: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> int:
    """Find what is wrong with a data set: damage, duplicates, look-alikes, leaks into test data, uneven classes, sizes.

    Example: atonce data check digits

    Args:
        data: Name, or a folder, zip or file of images. Nothing in it is changed.
        split: train, test or all, where the data have splits.
        against: Test data that must not be among these; default: the data's own test split, if there is one.
        against_split: The split of these; default test for the same data, all for others.
        size: Measure the pictures as squares of this height and width.
        channels: Measure them as grey (1) or RGB (3).
        near: Limit of near-duplicates, the root mean square difference of small grey versions of contrast 1; 0 looks for none.
        strict: Exit with status 1 where something should be fixed.
        quiet: Show no progress.
        json: Print the result as JSON.

    Returns:
        The exit status.
    """
    from atonce.data.check import check_data

    with _Told(quiet or json) as tell:
        found = check_data(
            data,
            split=split,
            against=against,
            against_split=against_split,
            size=size,
            channels=channels,
            near=near,
            tell=tell,
        )
    show(found.as_dict(), "\n".join(found.describe()), json)
    return 1 if strict and _faults(found) else 0


def data_pack(
    data: Positional[str],
    out: Positional[Path],
    drop: Reasons = ("corrupt", "exact"),
    split: str = "train",
    against: str | None = None,
    against_split: str | None = None,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    crop: Literal["center", "none"] = "center",
    near: float = 0.1,
    quiet: bool = False,
    json: bool = False,
) -> int:
    """Check a data set, leave out what should not be there, and pack the rest into one file for training.

    Example: atonce data pack digits digits.zip --drop exact near leak

    Args:
        data: Name, or a folder, zip or file of images. Nothing in it is changed.
        out: A new .zip (PNGs with dataset.json, as EDM's tools read it) or .npz (arr_0, arr_1), with OUT.report.json beside it.
        drop: What to leave out: corrupt (cannot be read), exact (repeats an earlier picture), near (looks like an earlier one),
            conflicts (equal pictures with different labels), leak (is among the test data). Give --drop alone to keep all.
        split: train, test or all, where the data have splits.
        against: Test data, for leak; default: the data's own test split, if there is one.
        against_split: The split of these; default test for the same data, all for others.
        size: Crop and resize pictures to this height and width.
        channels: 1 for grey, 3 for RGB; default grey where all are.
        crop: center, or none to refuse pictures that are not square.
        near: Limit of near-duplicates, as for atonce data check.
        quiet: Show no progress.
        json: Print the report as JSON.

    Returns:
        The exit status.

    Raises:
        InputError: Leaks are to be left out, but there are no test data to compare with.
    """
    from atonce.data.check import check_data
    from atonce.data.pack import check_out, pack_data

    check_out(out)
    with _Told(quiet or json) as tell:
        found = check_data(
            data,
            split=split,
            against=against,
            against_split=against_split,
            size=size,
            channels=channels,
            near=near if {"near", "leak"} & set(drop) else 0.0,
            tell=tell,
        )
        if "leak" in drop and found.leak.source is None:
            raise InputError(f"--drop leak needs test data to compare with ({found.leak.why}): give --against")
        packed = pack_data(
            data,
            out,
            split=split,
            leave_out=found.leave_out(drop),
            size=size,
            channels=channels,
            crop=crop,
            found=found.as_dict(),
            tell=tell,
        )
    channels_, height, width = packed.shape
    left = f"{len(packed.left_out):,} left out" if packed.left_out else "none left out"
    text = [
        f"{out}: {packed.count:,} pictures of {width} x {height}, {'grey' if channels_ == 1 else 'RGB'}; {left}",
        f"sigma_data {packed.sigma_data:.4f}, {len(packed.classes) or 'no'} classes; what was found and done: {packed.report}",
        f"train with it: atonce train ict --data {out}",
    ]
    show(packed.as_dict(), "\n".join(text), json)
    return 0


def _faults(found: Checked) -> bool:
    return any(finding.level == "fix" for finding in found.findings())


class _Told:
    """Shows the stages of a check, each with a progress of its own."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._stage, self._bar = "", contextlib.ExitStack()
        self._progress: Progress | None = None

    def __enter__(self) -> Tell:
        return self._tell

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self._quiet:
            return
        if stage != self._stage or self._progress is None:
            self._bar.close()
            self._stage, self._progress = stage, Progress(stage, total, "img")
            self._bar.enter_context(self._progress)
        self._progress.update(done)
