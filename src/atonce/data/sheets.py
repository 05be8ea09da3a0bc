"""Pictures packed on sheets: one large lossless picture for each style, and a table that names every tile."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from atonce.core.errors import DataError
from atonce.data.dataset import ImageData
from atonce.data.limits import one_line
from atonce.data.pictures import pixels, read_picture

_SIDE = 64  # of a tile
_COLUMNS = ("style", "index", "category")


def find_table(folder: Path) -> Path | None:
    """The tab-separated table of a folder of sheets (its header has style, index and category), or None."""
    for path in sorted(folder.glob("*.tsv")):
        with open(path, encoding="utf-8", errors="replace") as file:
            if set(_COLUMNS) <= set(file.readline().rstrip("\n").split("\t")):
                return path
    return None


def open_sheets(table: Path) -> ImageData:
    """Read tiles of 64x64 RGB pixels from ``STYLE.webp`` sheets, in the order of the table; labels are the categories.

    Args:
        table: Tab-separated, with a header; ``index`` counts the tiles of a sheet row by row.

    Returns:
        RGB images [N, 3, 64, 64] with labels and the sorted categories as their names.

    Raises:
        DataError: The table or a sheet is damaged, or a tile lies outside of its sheet.
    """
    try:
        text = table.read_text(encoding="utf-8")
        rows = list(csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))
        tiles = [(row["style"], int(row["index"]), row["category"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as problem:
        raise DataError(f"{table} is not a table of tiles: {one_line(problem)}") from problem
    if not tiles or any(not style or not category for style, _, category in tiles):
        raise DataError(f"{table} names no tiles, or a line lacks its style or category")
    images = np.empty((len(tiles), 3, _SIDE, _SIDE), np.uint8)
    for style in dict.fromkeys(style for style, _, _ in tiles):
        sheet = _read_sheet(table.with_name(f"{Path(style).name}.webp"))
        places = [place for place, tile in enumerate(tiles) if tile[0] == style]
        index = np.array([tiles[place][1] for place in places])
        if index.min() < 0 or index.max() >= len(sheet):
            raise DataError(f"{table} names tile {index.max()} of {style}, whose sheet has {len(sheet)}")
        images[places] = sheet[index]
    categories = tuple(sorted({category for _, _, category in tiles}))
    number = {category: k for k, category in enumerate(categories)}
    labels = torch.tensor([number[category] for _, _, category in tiles])
    source = f"sheets of {table}: {len(tiles)} pictures"
    return ImageData(torch.from_numpy(images), labels, categories, table.stem, source)


def _read_sheet(path: Path) -> NDArray[np.uint8]:
    """All tiles of a sheet, [n, 3, 64, 64]."""
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise DataError(f"cannot read the sheet {path}: {problem.strerror or problem}") from problem
    sheet = pixels(read_picture(content, str(path)).convert("RGB"))
    _, height, width = sheet.shape
    if height % _SIDE or width % _SIDE:
        raise DataError(f"the sheet {path} is {width}x{height}, not whole tiles of {_SIDE}x{_SIDE}")
    tiles = sheet.reshape(3, height // _SIDE, _SIDE, width // _SIDE, _SIDE).transpose(1, 3, 0, 2, 4)
    return np.ascontiguousarray(tiles).reshape(-1, 3, _SIDE, _SIDE)
