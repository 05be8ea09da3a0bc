"""The images that somebody keeps: PNG files with their records, in the person's own folder."""

from __future__ import annotations

import hashlib
import io
import json
import re
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atonce.core.errors import InputError
from atonce.core.files import write_bytes
from atonce.reports.pictures import facts_of
from atonce.serving.encode import as_base64
from atonce.studio.generate_work import Piece, title_of

MOST_KEPT = 200
"""Images that one person may keep."""

_ID = re.compile(r"[0-9]{13}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Kept:
    """One kept image.

    Attributes:
        id: Its name in the person's folder.
        png: The file.
        record: How it was made.
    """

    id: str
    png: bytes
    record: dict[str, Any]

    @property
    def file(self) -> str:
        """A name for a download."""
        return re.sub(r"[^A-Za-z0-9._-]", "_", f"{self.record['model']}-seed{self.record['seed']}-{self.id[-6:]}.png")


def keep(folder: Path, piece: Piece) -> bool:
    """Keep an image.

    Args:
        folder: Of the person.
        piece: The image.

    Returns:
        False where this very image is kept already.

    Raises:
        InputError: Too many are.
        StorageError: It cannot be written.
    """
    same = {key: value for key, value in piece.record.items() if key != "time"}
    digest = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:12]
    found = _ids(folder)
    if any(name.endswith(digest) for name in found):
        return False
    if len(found) >= MOST_KEPT:
        raise InputError(f"{len(found)} images are kept already, {MOST_KEPT} may be: download them and remove some")
    place = _place(folder)
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_bytes(place / f"{int(1000 * time.time()):013d}-{digest}.png", piece.png)
    return True


def listed(folder: Path) -> list[Kept]:
    """What somebody keeps, the oldest first; files that are no images of ours are left out.

    Args:
        folder: Of the person.

    Returns:
        The images.
    """
    found = []
    for name in _ids(folder):
        try:
            png = (path := _place(folder) / f"{name}.png").read_bytes()
        except OSError:
            continue
        record = facts_of(path)
        if record and "model" in record:
            found.append(Kept(name, png, record))
    return found


def drop(folder: Path, name: str) -> None:
    """Keep an image no longer.

    Args:
        folder: Of the person.
        name: Its id.

    Raises:
        InputError: There is none of that id.
    """
    path = _place(folder) / f"{name}.png"
    if not _ID.fullmatch(name) or not path.exists():
        raise InputError("this image is not kept any more: load the page again")
    path.unlink()


def archive(folder: Path) -> bytes:
    """All kept images and their records.

    Args:
        folder: Of the person.

    Returns:
        The content of a zip: each image, and records.json.

    Raises:
        InputError: Nothing is kept.
    """
    found = listed(folder)
    if not found:
        raise InputError("nothing is kept yet: keep an image first")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as pack:
        for each in found:
            pack.writestr(zipfile.ZipInfo(each.file), each.png)
        records = {each.file: each.record for each in found}
        pack.writestr(zipfile.ZipInfo("records.json"), json.dumps(records, indent=2) + "\n")
    return content.getvalue()


def strip(folder: Path) -> str:
    """What somebody keeps, as the page's script reads it.

    Args:
        folder: Of the person.

    Returns:
        JSON.
    """
    return json.dumps(
        [
            {
                "id": each.id,
                "src": f"data:image/png;base64,{as_base64(each.png)}",
                "title": title_of(each.record),
                "file": each.file,
            }
            for each in listed(folder)
        ]
    )


def _place(folder: Path) -> Path:
    return folder / "kept"


def _ids(folder: Path) -> list[str]:
    return sorted(path.stem for path in _place(folder).glob("*.png") if _ID.fullmatch(path.stem))
