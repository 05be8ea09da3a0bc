"""What the Edit tab does, without its components: where pictures come from, and edits that go on while the page is reloaded."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import io
import json
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from atonce.core.choices import Fit
from atonce.core.errors import InputError
from atonce.data.collection import open_collection
from atonce.data.fitting import fitted
from atonce.serving.answers import made_of
from atonce.serving.edits import EditResult, plan_edit, run_edit
from atonce.serving.encode import encode, quantised
from atonce.serving.engine import Engine
from atonce.serving.errors import ServiceError
from atonce.serving.generate import check_images
from atonce.serving.pictures import content_of, decode
from atonce.serving.schemas import EditRequest
from atonce.studio import generate_kept
from atonce.studio.context import Person, Studio, allow, charge, engine_of
from atonce.studio.edit_chain import Album, Chain, Step
from atonce.studio.edit_wish import Wish, possible, request_of, title_of
from atonce.studio.generate_work import Wish as Drawn
from atonce.studio.generate_work import make
from atonce.studio.generate_work import title_of as title_of_image
from atonce.studio.train_sources import sources
from atonce.studio.works import StoppedError, Work


class Desk:
    """The work of the tab.

    Args:
        studio: The studio.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._lock = threading.Lock()
        self._works: dict[str, Work] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def album(self, who: Person) -> Album:
        """Somebody's pictures."""
        return Album(who.folder, self._lock)

    # ---- where pictures come from

    async def from_seed(self, who: Person, model: str, seed: int, label: str | None, steps: int) -> Step:
        """Begin with a picture that a model makes.

        Args:
            who: The person.
            model: Its name.
            seed: Of the noise.
            label: A class, or ``None``.
            steps: Intervals.

        Returns:
            The new step.
        """
        allow(self.studio, who, "generate")
        (piece,) = await make(self.studio, who, Drawn(model, seed, label, steps))
        return self._begin(who, piece.png, piece.title, piece.record, piece.size)

    def samples(self) -> list[tuple[str, str]]:
        """Labels and keys of the data whose test pictures can be edited."""
        return [(source.label, source.key) for source in sources(Path("."), False) if not source.private]

    def from_sample(self, who: Person, data: str | None, number: int) -> Step:
        """Begin with a test picture of data known by name.

        Args:
            who: The person.
            data: A key of :meth:`samples`.
            number: Which picture, from 0.

        Returns:
            The new step.

        Raises:
            InputError: There is none of that number.
        """
        if data not in [key for _, key in self.samples()]:
            raise InputError(f"there are no data {str(data)[:60]!r} here: choose others")
        split = "all" if data == "emoji64" else "test"
        with open_collection(data, split) as collection:
            if not 0 <= number < len(collection.names):
                raise InputError(
                    f"the number is {number}, must be from 0 to {len(collection.names) - 1:,}: {data} has so many test pictures"
                )
            picture = collection.load(number).picture
            label = None if collection.labels is None else collection.class_names()[int(collection.labels[number])]
        title = f"{data} {split} picture {number}" + (f" ({label})" if label is not None else "")
        record = {"kind": "sample", "data": data, "split": split, "number": number, "class": label}
        return self._begin(who, _png(picture, record), title, record, picture.size)

    def from_upload(self, who: Person, path: str | None, model: str, fit: Fit) -> Step:
        """Begin with an uploaded picture, under the checks of the API; larger ones are brought to the model's size.

        Args:
            who: The person.
            path: A temporary file, which is removed.
            model: Name of the model.
            fit: What to do with a larger picture.

        Returns:
            The new step.

        Raises:
            InputError: Nothing was uploaded, or the size does not fit.
            ServiceError: It is no sound picture, or too large.
        """
        if not path:
            raise InputError("nothing was uploaded: choose a PNG, JPEG or WebP picture")
        file = Path(path)
        settings = self.studio.service.settings
        try:
            if file.stat().st_size > settings.max_body:
                raise InputError(
                    f"{file.name} has {file.stat().st_size:,} bytes, at most {settings.max_body:,} may be: make it smaller"
                )
            content = file.read_bytes()
        finally:
            file.unlink(missing_ok=True)
        picture = decode(content, settings.max_pixels, file.name[:80])
        channels, side, _ = engine_of(self.studio, who, model).model.shape
        was = picture.size
        if max(picture.size) > side:
            array = fitted(
                picture, channels if channels in (1, 3) else 3, side, fit, file.name[:80], option='"{}" under "Other sizes"'
            )
            picture = Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))
        record = {
            "kind": "upload",
            "file": file.name[:80],
            "sha256": hashlib.sha256(content).hexdigest(),
            "width": was[0],
            "height": was[1],
            "fit": fit if was != picture.size else None,
        }
        return self._begin(who, _png(picture, record), f"upload {file.name[:60]}", record, picture.size)

    def kept(self, who: Person) -> list[tuple[str, str]]:
        """Labels and ids of the images that somebody keeps in the Generate tab."""
        return [(f"{title_of_image(each.record)} ({each.id[-6:]})", each.id) for each in generate_kept.listed(who.folder)]

    def from_kept(self, who: Person, key: str | None) -> Step:
        """Begin with an image that is kept.

        Args:
            who: The person.
            key: Its id.

        Returns:
            The new step.

        Raises:
            InputError: It is not there.
        """
        found = next((each for each in generate_kept.listed(who.folder) if each.id == key), None)
        if found is None:
            raise InputError("this image is not kept any more: choose another one")
        with Image.open(io.BytesIO(found.png)) as picture:
            size = picture.size
        return self._begin(who, found.png, title_of_image(found.record), found.record, size)

    def _begin(self, who: Person, png: bytes, title: str, record: dict[str, Any], size: tuple[int, int]) -> Step:
        return self.album(who).add([png], title, record, size, None)[0]

    # ---- edits

    def work(self, who: Person) -> Work | None:
        """The edit that somebody has under way or had last."""
        return self._works.get(who.id)

    def stop(self, who: Person) -> bool:
        """End the edit that somebody has under way; whether there was one."""
        work = self._works.get(who.id)
        if work is None or not work.running:
            return False
        work.stopping.set()
        return True

    async def begin(self, who: Person, wish: Wish, mask: str | None, drawing: str | None, other: str | None) -> Work:
        """Begin an edit of the picture that is shown; it goes on when the page is closed.

        Args:
            who: The person.
            wish: What is wanted.
            mask: A ``data:`` address of what is marked.
            drawing: A ``data:`` address of strokes.
            other: Id of the step that is the other end, to go between two pictures.

        Returns:
            The work; its result is the new step and whether it is shown.

        Raises:
            InputError: Something is missing, or another edit is under way.
            ServiceError: Something does not fit, or a limit is reached.
        """
        allow(self.studio, who, "edit")
        if (own := self._works.get(who.id)) is not None and own.running:
            raise InputError(f"{own.title} is still under way ({own.line()}): wait for it, or stop it")
        engine = engine_of(self.studio, who, wish.model)
        if why := possible(engine.model, wish.task):
            raise InputError(why)
        if wish.size is not None:
            _, height, width = engine.model.shape
            wish = dataclasses.replace(wish, size=(wish.size[0] or height, wish.size[1] or width))
        album = self.album(who)
        shown = album.chain().shown
        pictures, parent = self._inputs(album, wish, shown, drawing, other)
        request = request_of(wish, pictures, mask)
        service = self.studio.service
        plan = await service.decoders.run(plan_edit, engine.model, wish.task, request, service.settings, of=who.id)
        check_images(plan.cost, service.settings, "size" if plan.cost > plan.total else "n")
        work = Work(f'The edit "{title_of(wish, None, {})}"')
        if (own := self._works.get(who.id)) is not None and own.running:  # another page was quicker
            raise InputError(f"{own.title} is still under way: wait for it, or stop it")
        self._works[who.id] = work
        try:
            await charge(self.studio, who, plan.cost)
        except BaseException as refusal:
            work.end(error=refusal)
            raise
        # The one of several pictures that was chosen then: another may be chosen later.
        number = None if shown is None else shown.chosen
        origin = {"step": parent, "picture": number, "sha256": [hashlib.sha256(content).hexdigest() for content in pictures]}

        def run() -> tuple[Step, bool]:
            deadline = time.monotonic() + service.settings.request_seconds

            def told(done: float) -> None:
                work.tell("making", done, plan.total)

            result = run_edit(engine, wish.task, request, deadline=deadline, plan=plan, stop=work.stopping, progress=told)
            return self._keep(album, engine, wish, request, result, origin)

        async def do() -> None:
            try:
                work.end(await service.editors.run(run))
            except (CancelledError, asyncio.CancelledError):
                work.end(error=StoppedError())
            except BaseException as problem:
                work.end(error=problem)

        task = asyncio.create_task(do())
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)
        return work

    def _inputs(
        self, album: Album, wish: Wish, shown: Step | None, drawing: str | None, other: str | None
    ) -> tuple[list[bytes], str | None]:
        if wish.task == "stroke":
            if not drawing:
                raise InputError("nothing is painted: paint strokes first")
            return [content_of(drawing, "the strokes")], None if shown is None else shown.id
        if wish.task == "interpolate" and wish.seeds is not None:
            return [], None if shown is None else shown.id
        if shown is None:
            raise InputError("there is no picture yet: choose one above first")
        pictures = [album.picture(shown)]
        if wish.task == "interpolate":
            end = album.chain().get(other)
            if end is None:
                raise InputError("the other picture is missing: choose one of the history, or go between two seeds")
            if end.id == shown.id:
                raise InputError("both ends are the same picture: choose another one of the history")
            pictures.append(album.picture(end))
        return pictures, shown.id

    def _keep(
        self, album: Album, engine: Engine, wish: Wish, request: EditRequest, result: EditResult, origin: dict[str, Any]
    ) -> tuple[Step, bool]:
        images = quantised(result.images)
        made = made_of(wish.task, engine, result, images)
        said = request.model_dump(exclude_none=True, exclude={"image", "images", "mask", "format", "model", "response"})
        common = {"calls": result.calls, "origin": origin, "request": said, "facts": result.facts}
        records = [made.about(i) | common for i in range(len(images))]
        files = [encode(images[i], "png", records[i]) for i in range(len(images))]
        size = (int(images.shape[-1]), int(images.shape[-2]))
        chosen = len(images) // 2 if wish.task == "interpolate" else 0
        return album.add(files, title_of(wish, engine.model.labels, records[0]), records[0], size, origin["step"], chosen)


def record_of(chain: Chain) -> str:
    """How the picture that is shown came to be, from its beginning.

    Args:
        chain: All steps.

    Returns:
        JSON.
    """
    steps = [
        {"title": step.title, "made": step.made, "pictures": step.count, "chosen": step.chosen, "record": step.record}
        for step in chain.path()
    ]
    return json.dumps({"made_with": "atonce", "steps": steps}, indent=2) + "\n"


def explain(error: BaseException) -> Exception:
    """What ended an edit, as something that can be told."""
    if isinstance(error, ServiceError) and error.code == "timeout":
        return InputError("the edit took too long: ask for fewer results, steps or search steps")
    return error if isinstance(error, Exception) else RuntimeError(repr(error))


def _png(picture: Image.Image, record: dict[str, Any]) -> bytes:
    values = torch.from_numpy(np.array(picture, dtype=np.uint8))
    return encode(values[None] if values.dim() == 2 else values.movedim(2, 0), "png", record)
