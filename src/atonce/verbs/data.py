"""The verbs about data."""

from __future__ import annotations

from typing import Literal

from tyro.conf import Positional

from atonce.verbs.output import show


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
