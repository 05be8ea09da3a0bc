"""What can be trained on: data known by name, what somebody has packed or uploaded, and, for owners, a place on the disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from atonce.core.errors import DataError, InputError
from atonce.data.bundled import LOCAL, NAMES, local_path

PACKS = "packs"  # in a person's folder: what the Data tab leaves there
DISK = "disk"
_PACK = "pack:"


@dataclass(frozen=True)
class Source:
    """Data that can be chosen.

    Attributes:
        key: What the form sends.
        label: What people see.
        place: What ``open_data`` takes.
        private: Whether only one person may see what comes of it.
    """

    key: str
    label: str
    place: str
    private: bool = False


def sources(folder: Path, disk: bool) -> list[Source]:
    """All data that somebody may choose.

    Args:
        folder: The person's own folder.
        disk: Whether they may name a place on the disk.

    Returns:
        Those known by name that are there, then the person's own, then the disk.
    """
    found = [Source(name, name, name) for name in NAMES if _there(name)]
    packs = folder / PACKS
    if packs.is_dir():
        own = [path for path in sorted(packs.iterdir()) if not path.name.startswith(".") and not path.is_symlink()]
        found += [Source(_PACK + path.name, f"{path.name} (yours)", str(path.resolve()), private=True) for path in own]
    if disk:
        found.append(Source(DISK, "a folder or file on this machine", ""))
    return found


def source_of(key: str | None, folder: Path, disk: bool, place: str = "") -> Source:
    """The data behind a choice.

    Args:
        key: Of :class:`Source`.
        folder: The person's own folder.
        disk: Whether they may name a place on the disk.
        place: That place.

    Returns:
        The source.

    Raises:
        InputError: Nothing is chosen, it is gone, or not for this person; or the place is empty or not there.
    """
    if not key:
        raise InputError("no data are chosen: choose some, or pack your own in the Data tab")
    found = next((source for source in sources(folder, disk) if source.key == key), None)
    if found is None:
        raise InputError(
            f"the data {key.removeprefix(_PACK)[:80]!r} are not there: choose others, or pack them again in the Data tab"
        )
    if key != DISK:
        return found
    text = place.strip()
    if not text:
        raise InputError("no place is given: name a folder, zip or file of images on the machine of this server")
    path = Path(text).expanduser()
    if not path.exists():
        raise InputError(f"the place {text[:200]!r} does not exist on the machine of this server")
    return Source(DISK, path.name, str(path.resolve()))


def _there(name: str) -> bool:
    """Whether data of a known name are on this machine."""
    if name not in LOCAL:
        return True
    try:
        local_path(name)
    except DataError:
        return False
    return True
