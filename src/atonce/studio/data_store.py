"""What people upload: taken in under limits, kept in the person's folder, removed on request."""

from __future__ import annotations

import json
import secrets
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from atonce.core.errors import DataError, InputError
from atonce.core.files import storage_errors, write_json
from atonce.data.folder import is_picture
from atonce.data.limits import MAX_FILE_BYTES, one_line
from atonce.data.pictures import SUFFIXES, header
from atonce.serving.settings import ServeSettings
from atonce.studio.train_sources import PACKS

UPLOADS = "uploads"
MAKING = "making"
"""In a person's folder: packed files that are not whole yet."""
_HEAD = 1 << 16  # bytes of a picture file in which its size is looked for

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Limits:
    """How much one person may bring.

    Attributes:
        bytes: Of one upload.
        unpacked: Bytes of what a zip unpacks to.
        files: In one upload.
        pixels: Of one picture.
        all_pixels: Of all pictures of one upload.
        kept: Bytes of all uploads and packs of one person.
    """

    bytes: int
    unpacked: int
    files: int = 200_000
    pixels: int = 4096 * 4096
    all_pixels: int = 4_000_000_000
    kept: int = 4 << 30


def limits_of(settings: ServeSettings) -> Limits:
    """The limits that an owner's settings mean."""
    return Limits(
        settings.studio_upload, 8 * settings.studio_upload, pixels=settings.max_pixels, kept=16 * settings.studio_upload
    )


@dataclass(frozen=True)
class Upload:
    """What somebody has brought.

    Attributes:
        id: For programs.
        name: For people.
        place: What ``open_data`` takes.
        files: How many.
        bytes: How large.
    """

    id: str
    name: str
    place: Path
    files: int
    bytes: int


def uploads(folder: Path) -> list[Upload]:
    """A person's uploads, the latest first."""
    found = []
    for place in sorted((folder / UPLOADS).glob("*/about.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            about = json.loads(place.read_text())
            found.append(
                Upload(place.parent.name, about["name"], place.parent / about["content"], about["files"], about["bytes"])
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue  # half removed
    return found


def upload_of(folder: Path, key: str) -> Upload:
    """One upload.

    Args:
        folder: The person's own.
        key: Its id.

    Returns:
        The upload.

    Raises:
        InputError: It is not there.
    """
    for found in uploads(folder):
        if found.id == key:
            return found
    raise InputError("this upload is not there any more: choose other data, or upload it again")


def remove_upload(folder: Path, key: str) -> Upload:
    """Remove an upload and everything in it.

    Args:
        folder: The person's own.
        key: Its id.

    Returns:
        What was removed.

    Raises:
        InputError: It is not there.
    """
    found = upload_of(folder, key)
    shutil.rmtree(folder / UPLOADS / found.id, ignore_errors=True)
    return found


def take(folder: Path, paths: Sequence[str | Path], limits: Limits, tell: Tell | None = None) -> Upload:
    """Take uploaded files in: one zip or npz, or any number of pictures. What was uploaded is moved.

    Args:
        folder: The person's own.
        paths: Temporary files; their names are those of the person's files.
        limits: How much it may be.
        tell: Told how far it is; what it raises ends it, and nothing is kept.

    Returns:
        The upload.

    Raises:
        InputError: It is of another kind, too large, unsafe, or there is too much already.
    """
    files = [Path(path) for path in paths]
    if not files:
        raise InputError("nothing was uploaded: choose a zip, or pictures")
    size = sum(file.stat().st_size for file in files)
    _check_room(folder, files, size, limits)
    archives = [file for file in files if file.suffix.lower() in (".zip", ".npz")]
    if archives and len(files) > 1:
        raise InputError(f"{archives[0].name} comes with {len(files) - 1} other files: upload one archive alone, or pictures")
    if not archives and (other := next((file for file in files if not is_picture(file.name)), None)) is not None:
        kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
        raise InputError(f"{other.name[:80]} is neither a zip, an npz nor a picture ({kinds}): leave it out")
    key = secrets.token_hex(8)
    place = folder / UPLOADS / key
    try:
        with storage_errors(UPLOADS):
            place.mkdir(parents=True, mode=0o700)
            if archives:
                count, content = _take_archive(files[0], place, limits, tell)
            else:
                count, content = _take_pictures(files, place, limits, tell)
            name = files[0].name if len(files) == 1 else f"{len(files)} pictures ({files[0].name} ...)"
            write_json(place / "about.json", {"name": name, "content": content, "files": count, "bytes": size})
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    finally:
        for file in files:
            file.unlink(missing_ok=True)
    return upload_of(folder, key)


def check_zip(path: Path, limits: Limits, tell: Tell | None = None) -> int:
    """Refuse an archive that would do harm; nothing is unpacked to the disk.

    Args:
        path: The archive.
        limits: How much it may hold.
        tell: Told how far it is.

    Returns:
        How many files it holds.

    Raises:
        InputError: It has names that lead out of it, or unpacks to too much.
        DataError: It is damaged or has a password.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
            _check_members(path.name, members, limits)
            pixels = 0
            for number, info in enumerate(members):
                if is_picture(info.filename):
                    with archive.open(info) as file:
                        pixels = _add_pixels(pixels, file.read(_HEAD), info.filename, limits)
                if tell is not None and number % 256 == 0:
                    tell("looking at sizes", number, len(members))
    except InputError:
        raise
    except (OSError, RuntimeError, zipfile.BadZipFile, EOFError, ValueError) as problem:
        raise DataError(f"{path.name} is a truncated or damaged archive, or has a password: {one_line(problem)}") from problem
    except Exception as problem:
        if type(problem).__module__ in ("zlib", "lzma", "_lzma", "bz2", "struct"):
            raise DataError(f"{path.name} is a damaged archive: {one_line(problem)}") from problem
        raise
    return len(members)


def used(folder: Path) -> int:
    """Bytes of a person's uploads and packs."""
    return sum(path.stat().st_size for path in _all_files(folder))


def _all_files(folder: Path) -> Iterator[Path]:
    for name in (UPLOADS, PACKS, MAKING):
        yield from (path for path in (folder / name).rglob("*") if path.is_file() and not path.is_symlink())


def _check_room(folder: Path, files: Sequence[Path], size: int, limits: Limits) -> None:
    if len(files) > limits.files:
        raise InputError(f"{len(files):,} files were uploaded, at most {limits.files:,} may be: bring fewer")
    if size > limits.bytes:
        raise InputError(f"the upload has {_mib(size)}, at most {_mib(limits.bytes)} may be: bring less at once")
    if (kept := used(folder)) + size > limits.kept:
        raise InputError(
            f"you have {_mib(kept)} here, and {_mib(size)} more would be over the limit of {_mib(limits.kept)}: remove uploads "
            "or packed files first"
        )


def _check_members(name: str, members: Sequence[zipfile.ZipInfo], limits: Limits) -> None:
    if len(members) > limits.files:
        raise InputError(f"{name} holds {len(members):,} files, at most {limits.files:,} may be")
    for info in members:
        inner = info.filename
        if leads_out(inner):
            raise InputError(f"{name} holds {inner[:80]!r}, a name that leads out of the archive: pack it again without it")
        if info.file_size > MAX_FILE_BYTES:
            raise InputError(f"{name}: {inner[:80]} unpacks to {_mib(info.file_size)}, at most {_mib(MAX_FILE_BYTES)} may be")
    whole = sum(info.file_size for info in members)
    if whole > limits.unpacked:
        raise InputError(f"{name} unpacks to {_mib(whole)}, at most {_mib(limits.unpacked)} may be (a zip bomb?)")


def leads_out(name: str) -> bool:
    """Whether the name of an archive's member is no plain relative path."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return name.startswith(("/", "\\")) or bool(PureWindowsPath(name).drive) or ".." in parts or "\0" in name


def _add_pixels(pixels: int, head: bytes, name: str, limits: Limits) -> int:
    found = header(head)
    if found is None:
        return pixels  # damaged ones are found by the check
    pixels += found[2][0] * found[2][1]
    if pixels > limits.all_pixels:
        raise InputError(
            f"with {name[:80]} the pictures have over {limits.all_pixels:,} pixels together: bring fewer or smaller ones"
        )
    return pixels


def _take_archive(file: Path, place: Path, limits: Limits, tell: Tell | None) -> tuple[int, str]:
    count = check_zip(file, limits, tell)
    content = f"content{file.suffix.lower()}"
    shutil.move(file, place / content)
    return count, content


def _take_pictures(files: Sequence[Path], place: Path, limits: Limits, tell: Tell | None) -> tuple[int, str]:
    inside = place / "pictures"
    inside.mkdir(mode=0o700)
    pixels = 0
    for number, file in enumerate(files):
        with file.open("rb") as opened:
            pixels = _add_pixels(pixels, opened.read(_HEAD), file.name, limits)
        shutil.move(file, _free(inside, file.name))
        if tell is not None:
            tell("taking in", number + 1, len(files))
    return len(files), inside.name


def _free(folder: Path, name: str) -> Path:
    """A name that is not taken: files of one name can come from several folders."""
    path, number = folder / name, 1
    while path.exists():
        number += 1
        path = folder / f"{Path(name).stem}-{number}{Path(name).suffix}"
    return path


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count < 1 << 30 else f"{count / 2**30:,.1f} GiB"
