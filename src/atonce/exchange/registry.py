"""A registry of models: names with numbered versions, one of which is in use; promoted by record, and rolled back."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atonce.core.errors import InputError, ModelFileError
from atonce.core.files import lock, storage_errors, sync_folder
from atonce.exchange.registry_files import (
    MARKS,
    POINTER,
    VERSIONS,
    Pointer,
    check_digests,
    check_name,
    file_digests,
    next_version,
    read_pointer,
    version_folder,
    write_pointer,
)
from atonce.exchange.registry_files import is_registry_entry as is_registry_entry

if TYPE_CHECKING:
    from atonce.exchange.promotion import Verdict

_NEW = ".new-"  # how a version is called while it is written


@dataclasses.dataclass(frozen=True)
class Change:
    """What a promotion or a roll-back did.

    Attributes:
        name: Name of the entry.
        version: The version that is in use now.
        before: The one that was in use until now; None for the first.
        reason: Why, with the numbers.
        folder: The model folder of the version.
    """

    name: str
    version: str
    before: str | None
    reason: str
    folder: Path


def current(path: Path | str) -> tuple[str, Path]:
    """The version of an entry that is in use.

    Cheap enough to be asked every few seconds: of the version only the configuration is read and checked; it holds the
    checksums that opening the model compares the weights with.

    Args:
        path: REGISTRY/NAME.

    Returns:
        The version, for example ``"0003"``, and its model folder.

    Raises:
        ModelFileError: That is no entry, or it is damaged.
    """
    entry = Path(path).expanduser()
    pointer = read_pointer(entry)
    return pointer.version, check_digests(entry, pointer, pointer.version, whole=False)


def versions(path: Path | str) -> list[dict[str, Any]]:
    """All versions of an entry. Their weights are read, and compared with what was promoted.

    Args:
        path: REGISTRY/NAME.

    Returns:
        For each version, oldest first: ``version``, ``in_use``, ``promoted`` (when), ``state`` (``whole``, ``gone``,
        ``changed``), ``model`` (start of its weights' digest) and ``folder``.

    Raises:
        ModelFileError: That is no entry, or its pointer is damaged.
    """
    entry = Path(path).expanduser()
    pointer = read_pointer(entry)
    found = []
    for version, digests in sorted(pointer.digests.items(), key=lambda pair: int(pair[0])):
        when = next((each["at"] for each in pointer.history if each["version"] == version), None)
        try:
            check_digests(entry, pointer, version, whole=True)
            state = "whole"
        except ModelFileError:
            state = "changed" if version_folder(entry, version).is_dir() else "gone"
        found.append(
            {
                "version": version,
                "in_use": version == pointer.version,
                "promoted": when,
                "state": state,
                "model": digests.get("model.safetensors", "")[:16],
                "folder": str(version_folder(entry, version)),
            }
        )
    return found


def history(path: Path | str) -> list[dict[str, Any]]:
    """Everything that ever happened to an entry, oldest first: ``at``, ``action``, ``version``, ``before``, ``reason``, ...

    Args:
        path: REGISTRY/NAME.

    Returns:
        Promotions (with the record and the numbers they rest on), forced ones, roll-backs, and what servers found.

    Raises:
        ModelFileError: That is no entry, or its pointer is damaged.
    """
    return list(read_pointer(Path(path).expanduser()).history)


def marks(path: Path | str) -> dict[str, str]:
    """What servers have found of the versions of an entry.

    Args:
        path: REGISTRY/NAME.

    Returns:
        For each version of which there is a word, the last one, those with the latest word last: ``proved`` (it served all
        callers), ``refused`` (it was taken back) or ``tried`` (it is to be tried again). A roll-back refuses the version that
        it leaves, and speaks for the one that it goes back to, unless that was taken back itself.

    Raises:
        ModelFileError: That is no entry, or its pointer is damaged.
    """
    found: dict[str, str] = {}

    def say(version: str, word: str) -> None:
        found.pop(version, None)
        found[version] = word

    for each in read_pointer(Path(path).expanduser()).history:
        if each["action"] in MARKS:
            say(each["version"], each["action"])
        elif each["action"] == "roll-back":
            if each.get("before") is not None:
                say(each["before"], "refused")
            if found.get(each["version"]) != "refused":
                say(each["version"], "proved")
    return found


def mark(path: Path | str, version: str, action: str, reason: str) -> bool:
    """Write down what a server has found of a version. The version in use stays the same.

    Args:
        path: REGISTRY/NAME.
        version: The version.
        action: One of :data:`~atonce.exchange.registry_files.MARKS`.
        reason: Why.

    Returns:
        Whether it was news; a word that is the version's last one already is not written again.

    Raises:
        InputError: There is no such version, or no such word.
        ModelFileError: That is no entry, or its pointer is damaged.
        StorageError: The registry cannot be written.
    """
    entry = Path(path).expanduser()
    if action not in MARKS:
        raise InputError(f"{action!r} is nothing that a server finds of a version: one of {', '.join(MARKS)}")
    if marks(entry).get(version) == action:
        return False
    with _held(entry):
        pointer = read_pointer(entry)
        if version not in pointer.digests:
            raise InputError(f"{pointer.name} has no version {version}: it has {', '.join(sorted(pointer.digests))}")
        if marks(entry).get(version) == action:
            return False
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        event = {"at": now, "action": action, "version": version, "before": pointer.version, "reason": reason}
        write_pointer(entry, dataclasses.replace(pointer, history=(*pointer.history, event)))
    return True


def folder_of(path: Path | str, version: str) -> Path:
    """The model folder of any version of an entry, as it was promoted.

    Args:
        path: REGISTRY/NAME.
        version: The version.

    Returns:
        Its folder; the configuration, which holds the checksums of the weights, was compared with what was promoted.

    Raises:
        ModelFileError: That is no entry, or the version is gone or was changed.
    """
    entry = Path(path).expanduser()
    pointer = read_pointer(entry)
    if version not in pointer.digests:
        raise ModelFileError(f"{pointer.name} has no version {version[:80]!r}: it has {', '.join(sorted(pointer.digests))}")
    return check_digests(entry, pointer, version, whole=False)


def promote(
    source: str | os.PathLike[str],
    registry: Path | str,
    name: str,
    *,
    force: str | None = None,
    tolerance: float | None = None,
) -> Change:
    """Make a model the version of an entry that is in use, if records show that it is not worse than the present one.

    See :func:`atonce.exchange.promotion.judge` for what is asked of the records. The files are copied, checked and made durable
    before the pointer moves, so readers see the old version or the whole new one, and a kill at any moment leaves one of them.
    No version is ever deleted or overwritten.

    Args:
        source: What :func:`atonce.load` takes.
        registry: Folder of the registry; made when absent.
        name: Name of the entry; made when absent.
        force: Promote whatever the records say; the reason, which goes into the history.
        tolerance: Share of the present value by which the candidate may be worse, at the unlucky end of the interval.

    Returns:
        What was done.

    Raises:
        InputError: The records do not show it, the model is in use already, or a name or value cannot be used; nothing changed.
        ModelFileError: The model, or the entry's present version, cannot be opened.
    """
    from atonce.exchange.open import open_model
    from atonce.exchange.promotion import TOLERANCE, first_version, judge
    from atonce.model_files import load_model, model_identity, save_model

    check_name(name)
    if force is not None and not force.strip():
        raise InputError("force needs a reason, which goes into the history: --force 'REASON'")
    tolerance = TOLERANCE if tolerance is None else tolerance
    if not 0 <= tolerance <= 1:
        raise InputError(f"tolerance is {tolerance:g}, must be from 0 to 1 (a share of the present value)")
    model = open_model(source)
    identity = model_identity(model)
    entry = Path(registry).expanduser() / name
    with _held(entry, make=True):
        pointer = read_pointer(entry) if (entry / POINTER).exists() else None
        if pointer is None:
            verdict = first_version(model.records, identity)
        else:
            try:
                present = load_model(check_digests(entry, pointer, pointer.version, whole=True))
            except ModelFileError as problem:
                if force is None:
                    raise ModelFileError(f"{problem} (or promote with --force and a reason)") from problem
                verdict = _no_present(str(problem))
            else:
                verdict = judge(model.records, present.records, identity, model_identity(present), tolerance=tolerance)
        if not verdict.good and force is None:
            raise InputError(f"{name} stays as it is: {verdict.reason}; --force REASON promotes all the same")
        with storage_errors(entry), tempfile.TemporaryDirectory(prefix=_NEW, dir=entry / VERSIONS) as place:
            new = Path(place) / "model"
            save_model(model, new)
            digests = file_digests(new)
            if pointer is not None and digests == pointer.digests[pointer.version]:
                raise InputError(f"{name} {pointer.version} is this very model already: nothing to promote")
            version = next_version(entry, pointer)
            folder = version_folder(entry, version)
            new.rename(folder)
            sync_folder(folder.parent)
        action = "promote" if verdict.good else "force"
        reason = verdict.reason if force is None else f"{force.strip()} (the records said: {verdict.reason})"
        before = None if pointer is None else pointer.version
        _move(entry, pointer, name, version, digests, {"action": action, "reason": reason, **verdict.numbers()})
    return Change(name, version, before, reason, folder)


def roll_back(path: Path | str, reason: str = "", *, only_from: str | None = None) -> Change:
    """Go back to the version that was in use before the present one.

    After a roll-back from the third version to the second, another one leads to what was in use before the second.

    Args:
        path: REGISTRY/NAME.
        reason: Goes into the history.
        only_from: Do it only if this version is in use, so that several who found the same fault go back once.

    Returns:
        What was done.

    Raises:
        InputError: There is nothing to go back to, or another version is in use; nothing changed.
        ModelFileError: That is no entry, or the version to go back to is gone or was changed.
    """
    entry = Path(path).expanduser()
    read_pointer(entry)
    with _held(entry):
        pointer = read_pointer(entry)
        if only_from is not None and pointer.version != only_from:
            raise InputError(f"{pointer.name} is at version {pointer.version}, not {only_from}: nothing changed")
        came: dict[str, Any] = next(
            (
                each
                for each in reversed(pointer.history)
                if each["version"] == pointer.version and each["action"] in ("promote", "force")
            ),
            {},
        )
        before = came.get("before")
        if before is None:
            raise InputError(f"{pointer.name} {pointer.version} is the first version: there is nothing to go back to")
        folder = check_digests(entry, pointer, before, whole=True)
        reason = reason.strip() or "asked for"
        _move(entry, pointer, pointer.name, before, None, {"action": "roll-back", "reason": reason})
    return Change(pointer.name, before, pointer.version, reason, folder)


def _move(
    entry: Path, pointer: Pointer | None, name: str, version: str, digests: dict[str, str] | None, event: dict[str, Any]
) -> None:
    """Write the pointer to another version, with what happened."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    event = {"at": now, "version": version, "before": None if pointer is None else pointer.version, **event}
    known = {} if pointer is None else dict(pointer.digests)
    history = () if pointer is None else pointer.history
    write_pointer(
        entry, Pointer(name, version, now, (*history, event), known | ({} if digests is None else {version: digests}))
    )


def _no_present(problem: str) -> Verdict:
    from atonce.exchange.promotion import Verdict

    return Verdict(False, f"the version in use cannot be opened: {problem}")


@contextlib.contextmanager
def _held(entry: Path, *, make: bool = False) -> Iterator[None]:
    """Keep other writers away, and remove what a killed one left half written."""
    with storage_errors(entry):
        if make:
            # A first promotion that was killed leaves versions without a pointer.
            if entry.exists() and any(p.name not in (POINTER, VERSIONS) and p.name[0] != "." for p in entry.iterdir()):
                raise InputError(f"{entry} exists and is no registry entry: choose another name, nothing was changed")
            (entry / VERSIONS).mkdir(parents=True, exist_ok=True)
        with lock(entry, wait=True):
            for left in (entry / VERSIONS).glob(f"{_NEW}*"):
                shutil.rmtree(left, ignore_errors=True)
            yield
