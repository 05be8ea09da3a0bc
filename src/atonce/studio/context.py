"""What every tab gets: the service it stands in, who is asking, what they may do, and how errors are told."""

from __future__ import annotations

import contextlib
import logging
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr

from atonce.core.errors import InputError
from atonce.serving.access import Principal
from atonce.serving.errors import ServiceError
from atonce.serving.limits import Wanted
from atonce.serving.service import Service
from atonce.studio.origin import is_own_machine

if TYPE_CHECKING:
    from atonce.serving.engine import Engine

_log = logging.getLogger("atonce.studio")
_PATH = re.compile(r"(?<![\w/.])(?:~|/)[\w.@+-]*(?:/[\w.@+ -]+)+")


@dataclass(frozen=True)
class Studio:
    """What the tabs are made of.

    Attributes:
        service: The service whose models, limits and keys it uses.
        runs: Folder where trainings are written and listed.
        records: Folders and files with records to draw.
        private: Folder of the folders of people.
    """

    service: Service
    runs: Path
    records: tuple[Path, ...]
    private: Path


@dataclass(frozen=True)
class Person:
    """Somebody at a browser.

    Attributes:
        id: The same as long as the browser keeps its cookie; with keys, one for each key.
        principal: The caller by which limits count.
        folder: The person's own folder, which nobody else is shown.
    """

    id: str
    principal: Principal
    folder: Path


def person(request: gr.Request) -> Person:
    """Who caused an event.

    Args:
        request: Of the event.

    Returns:
        The person, as the door of the studio has found it.

    Raises:
        Error: Gradio's: the request did not come through the door.
    """
    found = getattr(getattr(request.request, "state", None), "person", None)
    if not isinstance(found, Person):
        raise gr.Error("this page has lost its session: load it again", print_exception=False)
    with contextlib.suppress(OSError):  # whoever writes there says what is wrong
        found.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return found


def may(studio: Studio, who: Person, scope: str) -> bool:
    """Whether somebody may do something.

    Args:
        studio: The studio.
        who: The person.
        scope: One of :data:`~atonce.serving.keys.SCOPES`; ``"admin"`` for training and for data on this machine's disk.

    Returns:
        True where the key has the scope. Without keys, ``"admin"`` is for a studio that only this machine can reach.
    """
    if scope in who.principal.scopes:
        return True
    return studio.service.keys is None and is_own_machine(studio.service.settings)


def allow(studio: Studio, who: Person, scope: str) -> None:
    """Refuse what somebody may not do.

    Args:
        studio: The studio.
        who: The person.
        scope: As for :func:`may`.

    Raises:
        Error: Gradio's: they may not; one line says what is missing.
    """
    if may(studio, who, scope):
        return
    if studio.service.keys is None:
        line = f"this needs the scope {scope}, which nobody has here: the owner must start the studio with keys"
    else:
        line = f"your API key does not have the scope {scope}: sign in with one that has"
    raise gr.Error(line, print_exception=False)


async def charge(studio: Studio, who: Person, images: int) -> None:
    """Count images against somebody's limits, before they are made: the same limits as those of the API.

    Args:
        studio: The studio.
        who: The person.
        images: How many.

    Raises:
        problem: A limit is reached; the message says when to come back.
    """
    principal = who.principal
    wanted = [Wanted("images", principal.image_rate, images), Wanted("images", principal.quota, images, "quota")]
    try:
        await studio.service.limits.take(principal.id, wanted)
    except ServiceError as reached:
        raise problem(reached) from reached


def engine_of(studio: Studio, who: Person, model: str | None) -> Engine:
    """The engine that answers somebody.

    Args:
        studio: The studio.
        who: The person, who stays with one version while there are two.
        model: Name of a served model; ``None`` for the first.

    Returns:
        The engine.

    Raises:
        ServiceError: 404, there is no such model.
    """
    hosts = studio.service.hosts
    return hosts.host(model or hosts.default).engine(who.id)


def problem(error: Exception) -> gr.Error:
    """An error as people are told it: one line that names no path and no internals.

    Args:
        error: What happened. A gr.Error is given back as it is.

    Returns:
        What to raise. Errors that are not the caller's go to the log under an id, which the line tells.
    """
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, InputError | ServiceError):
        line = " ".join(str(error).split())
        return gr.Error(_PATH.sub("(a file)", line), print_exception=False)
    sign = uuid.uuid4().hex[:12]
    _log.error("studio error %s", sign, exc_info=error)
    return gr.Error(f"something went wrong here; the owner finds it in the log as {sign}", print_exception=False)
