"""What the Data tab does, without its components: which data somebody may choose, checks in the background, packing."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from atonce.core.errors import DataError, InputError
from atonce.core.files import write_json
from atonce.data.check import check_data
from atonce.data.checked import REASONS, Checked
from atonce.data.collection import Loaded, open_collection
from atonce.data.near import LIMIT
from atonce.data.pack import pack_data, report_path
from atonce.studio import data_packs, data_store
from atonce.studio.context import Person, Studio, allow, may
from atonce.studio.train_sources import DISK, source_of, sources
from atonce.studio.works import Work, Works

OWN_TEST = "own"
NO_TEST = "none"
PAIRS = 48  # pairs and groups of a kind that are shown
_UPLOAD = "upload:"
_PICTURES = "data/pictures.json"
_THUMB = 96  # pixels of the longer side


@dataclass(frozen=True)
class Asked:
    """What is to be checked.

    Attributes:
        data: Key of the source.
        place: A place on the disk, for :data:`~atonce.studio.train_sources.DISK`.
        against: Key of the test data, :data:`OWN_TEST` or :data:`NO_TEST`.
        against_place: As ``place``.
        split: train, test or all.
        size: Side of the pictures, or ``None``.
        channels: 1, 3 or ``None``.
        near: Limit of near-duplicates.
    """

    data: str
    place: str = ""
    against: str = OWN_TEST
    against_place: str = ""
    split: str = "train"
    size: int | None = None
    channels: int | None = None
    near: float = LIMIT


@dataclass(frozen=True)
class Shown:
    """A check that was made.

    Attributes:
        asked: What was checked.
        label: What people call the data.
        found: What was found.
        pictures: Small pictures as addresses, by name; those of the test data with a ``>`` before it.
    """

    asked: Asked
    label: str
    found: Checked
    pictures: dict[str, str]


class Desk:
    """The work of the tab.

    Args:
        studio: The studio.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.works = Works()
        self.limits = data_store.limits_of(studio.service.settings)

    # ---- what can be chosen

    def data(self, who: Person) -> list[tuple[str, str]]:
        """Labels and keys of the data that somebody may check."""
        given = [(f"{upload.name} (uploaded)", _UPLOAD + upload.id) for upload in data_store.uploads(who.folder)]
        return given + [(source.label, source.key) for source in sources(who.folder, may(self.studio, who, "admin"))]

    def place(self, who: Person, key: str | None, place: str) -> tuple[str, str | Path]:
        """The data behind a key.

        Args:
            who: The person.
            key: Of :meth:`data`.
            place: A place on the disk, where that is chosen.

        Returns:
            What people call it, and what ``open_data`` takes.

        Raises:
            InputError: It is not there, or not for this person.
        """
        if key is not None and key.startswith(_UPLOAD):
            found = data_store.upload_of(who.folder, key.removeprefix(_UPLOAD))
            return found.name, found.place
        if key == DISK:
            allow(self.studio, who, "admin")
        source = source_of(key, who.folder, key == DISK, place)
        return source.label, source.place

    def take(self, who: Person, paths: Sequence[str]) -> str:
        """Take an upload in.

        Args:
            who: The person.
            paths: Temporary files.

        Returns:
            Its key.

        Raises:
            InputError: It cannot be taken in.
        """
        return _UPLOAD + data_store.take(who.folder, paths, self.limits).id

    def remove(self, who: Person, key: str | None) -> str:
        """Remove an upload, and what a check of it has left.

        Args:
            who: The person.
            key: Its key.

        Returns:
            What it was called.

        Raises:
            InputError: It is no upload, or work with it is under way.
        """
        if key is None or not key.startswith(_UPLOAD):
            raise InputError("these data were not uploaded here: choose an upload to remove")
        if (work := self.works.get(who.id)) is not None and work.running:
            raise InputError(f"{work.title} is under way: stop it first")
        name = data_store.remove_upload(who.folder, key.removeprefix(_UPLOAD)).name
        shown = self.last(who)
        if shown is not None and key in (shown.asked.data, shown.asked.against):
            for each in (data_packs.CHECK, _PICTURES):
                (who.folder / each).unlink(missing_ok=True)
        return name

    # ---- checking

    def check(self, who: Person, asked: Asked) -> Work:
        """Begin a check.

        Args:
            who: The person.
            asked: What is to be checked.

        Returns:
            The work; what was found is kept in the person's folder.

        Raises:
            InputError: Something in ``asked`` cannot be used, or other work is under way.
        """
        label, spec = self.place(who, asked.data, asked.place)
        against: str | Path | None = None
        other = f"{label}, test"
        if asked.against not in (OWN_TEST, NO_TEST):
            other, against = self.place(who, asked.against, asked.against_place)
        if asked.near < 0 or asked.near > 1:
            raise InputError(f"the limit of near-duplicates is {asked.near:g}, must be from 0 (none are looked for) to 1")
        if asked.size is not None and not 1 <= asked.size <= 4096:
            raise InputError(f"the side is {asked.size}, must be from 1 to 4096 pixels, or empty")

        def work(told: Work) -> Shown:
            try:
                found = check_data(
                    spec,
                    split=asked.split,
                    against=against,
                    size=asked.size,
                    channels=asked.channels,
                    near=asked.near,
                    pixels=self.limits.pixels,
                    look_for_leaks=asked.against != NO_TEST,
                    tell=told.tell,
                )
            except DataError as problem:
                raise DataError(_plain(str(problem), label, spec)) from problem
            pictures = _pictures(spec, asked.split, _mine(found), "", told)
            if found.leak.source is not None:
                theirs, split = (spec, "test") if against is None else (against, "all")
                pictures |= _pictures(theirs, split, _theirs(found), ">", told)
            # Where they lie on this machine is nobody's business.
            leak = found.leak if found.leak.source is None else dataclasses.replace(found.leak, source=other)
            found = dataclasses.replace(found, name=label, source=label, leak=leak)
            write_json(who.folder / _PICTURES, pictures)
            write_json(who.folder / data_packs.CHECK, {"asked": asdict(asked), "label": label, "found": found.as_dict()})
            return Shown(asked, label, found, pictures)

        return self.works.start(who.id, f"The check of {label}", work)

    def last(self, who: Person) -> Shown | None:
        """The last check that somebody made; ``None`` where there is none."""
        try:
            kept = json.loads((who.folder / data_packs.CHECK).read_text())
            pictures = json.loads((who.folder / _PICTURES).read_text())
            return Shown(Asked(**kept["asked"]), kept["label"], Checked.from_dict(kept["found"]), pictures)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    # ---- packing

    def leave_out(self, who: Person, reasons: Iterable[str], keep: Iterable[str]) -> tuple[Shown, dict[str, str]]:
        """What would be left out of the data that were checked last.

        Args:
            who: The person.
            reasons: Why.
            keep: Names that stay all the same.

        Returns:
            The check, and the reason for each name.

        Raises:
            InputError: Nothing was checked, or a picture that cannot be read would stay.
        """
        shown = self.last(who)
        if shown is None:
            raise InputError("no data were checked yet: check some first, then pack them")
        kept = set(keep)
        if bad := kept & {name for name, _ in shown.found.bad}:
            raise InputError(f"{min(bad)} cannot be read, so it cannot be kept: leave it out")
        found = shown.found.leave_out([reason for reason in REASONS if reason in set(reasons)])
        return shown, {name: reason for name, reason in found.items() if name not in kept}

    def pack(
        self,
        who: Person,
        name: str | None,
        suffix: str,
        reasons: Iterable[str],
        keep: Iterable[str],
        size: int | None,
        channels: int | None,
    ) -> Work:
        """Begin to pack the data that were checked last, without what is to be left out.

        Args:
            who: The person.
            name: Of the new file.
            suffix: ``.zip`` or ``.npz``.
            reasons: Why pictures are left out.
            keep: Names that stay all the same.
            size: Side of the pictures, or ``None``.
            channels: 1, 3 or ``None``.

        Returns:
            The work; the pack is its result.

        Raises:
            InputError: Something cannot be used, or there is no room.
        """
        shown, out = self.leave_out(who, reasons, keep)
        label, spec = self.place(who, shown.asked.data, shown.asked.place)
        if size is not None and not 1 <= size <= 4096:
            raise InputError(f"the side is {size}, must be from 1 to 4096 pixels, or empty")
        if (kept := data_store.used(who.folder)) > self.limits.kept:
            raise InputError(
                f"you have {kept >> 20:,} MiB here, over the limit of {self.limits.kept >> 20:,}: remove some first"
            )
        if (running := self.works.get(who.id)) is not None and running.running:
            raise InputError(f"{running.title} is still under way ({running.line()}): wait for it, or stop it")
        made = data_packs.new_pack(who.folder, name, suffix)

        def work(told: Work) -> data_packs.Pack:
            try:
                packed = pack_data(
                    spec,
                    made,
                    split=shown.asked.split,
                    leave_out=out,
                    size=size,
                    channels=channels,
                    found=shown.found.as_dict(),
                    pixels=self.limits.pixels,
                    tell=told.tell,
                )
                report = report_path(made)
                write_json(report, packed.as_dict() | {"source": label, "found": shown.found.as_dict()})
                return data_packs.finish_pack(who.folder, made, report)
            except DataError as problem:
                raise DataError(_plain(str(problem), label, spec)) from problem
            finally:
                data_packs.abandon(made)

        return self.works.start(who.id, f"The packing of {made.name}", work)


def _plain(text: str, label: str, spec: str | Path) -> str:
    """A line about data without the place where they lie on this machine."""
    return text.replace(str(spec), label) if isinstance(spec, Path) else text


def _mine(found: Checked) -> list[str]:
    """Names of the pictures that are shown."""
    pairs = [name for pair in found.near[:PAIRS] for name in pair[:2]]
    groups = [name for group in (*found.exact[:PAIRS], *found.conflicts[:PAIRS]) for name in group[:6]]
    leaks = [pair[0] for pair in found.leak.exact[:PAIRS]] + [pair[0] for pair in found.leak.near[:PAIRS]]
    return list(dict.fromkeys(pairs + groups + leaks))


def _theirs(found: Checked) -> list[str]:
    near = [pair[1] for pair in found.leak.near[:PAIRS]]
    return list(dict.fromkeys([pair[1] for pair in found.leak.exact[:PAIRS]] + near))


def _pictures(spec: str | Path, split: str, names: list[str], mark: str, told: Work) -> dict[str, str]:
    """Small pictures as addresses that a page can show."""
    if not names:
        return {}
    found = {}
    with open_collection(spec, split) as collection:
        place = {name: number for number, name in enumerate(collection.names)}
        classes = collection.class_names()
        for number, (at, loaded) in enumerate(collection.stream([place[name] for name in names if name in place])):
            if isinstance(loaded, Loaded):
                name = mark + collection.names[at]
                found[name] = _address(loaded.picture)
                if collection.labels is not None:
                    found[f"{name}\n"] = classes[int(collection.labels[at])]  # no name has a line's end at its end
            told.tell("pictures to show", number + 1, len(names))
    return found


def _address(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((_THUMB, _THUMB))
    content = io.BytesIO()
    small.save(content, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
