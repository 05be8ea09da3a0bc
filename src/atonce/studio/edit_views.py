"""What the Edit tab's own components are told, as JSON that the page's script reads."""

from __future__ import annotations

import base64
import io
import json
import re
from typing import Any

from PIL import Image

from atonce.core.errors import InputError
from atonce.model import ConsistencyModel
from atonce.studio.edit_chain import Album, Chain, Step
from atonce.studio.edit_desk import record_of
from atonce.studio.edit_wish import MASKED

_THUMB = 96  # pixels of the longer side


def address(content: bytes) -> str:
    """A PNG file as an address that a page can show."""
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"


def canvas(album: Album, chain: Chain, task: str, model: ConsistencyModel) -> str:
    """What can be painted on.

    Args:
        album: The pictures.
        chain: All steps.
        task: The task.
        model: The model.

    Returns:
        JSON: ``mode`` is mask, paint, or none where the task needs no painting.
    """
    channels, height, width = model.shape
    shown = chain.shown
    picture = _picture(album, shown)
    if task == "stroke":
        return json.dumps({"mode": "paint", "picture": picture, "width": width, "height": height, "channels": channels})
    if task not in MASKED or shown is None or picture is None:
        return json.dumps({"mode": "none"})
    return json.dumps(
        {"mode": "mask", "picture": picture, "width": shown.size[0], "height": shown.size[1], "channels": channels}
    )


def result(album: Album, chain: Chain) -> str:
    """The picture that is shown, what it was before, and those that were made with it.

    Args:
        album: The pictures.
        chain: All steps.

    Returns:
        JSON; ``null`` where there is none.
    """
    shown = chain.shown
    after = _picture(album, shown)
    if shown is None or after is None:
        return "null"
    before = chain.before
    number = (shown.record.get("origin") or {}).get("picture")
    facts: dict[str, Any] = {
        "after": after,
        "title": shown.title,
        "size": shown.size,
        "facts": _facts(shown),
        "file": re.sub(r"[^A-Za-z0-9._-]+", "-", shown.title)[:60].strip("-"),
        "record": record_of(chain),
        "chosen": shown.chosen,
        "pictures": [_picture(album, shown, i) for i in range(shown.count)] if shown.count > 1 else [],
    }
    if before is not None:
        then = number if isinstance(number, int) and number < before.count else None
        facts |= {"before": _picture(album, before, then), "before_title": before.title}
    return json.dumps(facts)


def history(album: Album, chain: Chain) -> str:
    """All steps, in the order in which they were made.

    Args:
        album: The pictures.
        chain: The steps.

    Returns:
        JSON.
    """
    number = {step.id: place for place, step in enumerate(chain.steps, 1)}
    return json.dumps(
        [
            {
                "id": step.id,
                "number": number[step.id],
                "from": number.get(step.parent or ""),
                "title": step.title,
                "src": _thumb(album, step),
                "current": step.id == chain.current,
            }
            for step in chain.steps
        ]
    )


def others(chain: Chain) -> list[tuple[str, str]]:
    """Labels and ids of the steps that can be the other end of a way between two."""
    return [(f"{place}: {step.title}", step.id) for place, step in enumerate(chain.steps, 1) if step.id != chain.current]


def painted(value: str | None) -> tuple[str | None, str | None]:
    """What the page's script has put on the canvas.

    Args:
        value: JSON of :func:`canvas`, with ``mask`` or ``drawing`` added.

    Returns:
        The mask and the drawing as ``data:`` addresses; ``None`` where nothing is marked or painted.

    Raises:
        InputError: It cannot be read.
    """
    try:
        found = json.loads(value) if value else {}
        parts = found.get("mask"), found.get("drawing")
    except (TypeError, ValueError, AttributeError):
        raise InputError("what is painted cannot be read: paint it again") from None
    if not all(part is None or isinstance(part, str) for part in parts):
        raise InputError("what is painted cannot be read: paint it again")
    return parts[0] or None, parts[1] or None


def _facts(step: Step) -> list[tuple[str, str]]:
    """What there is to say about how a picture was made."""
    record = step.record
    found: list[tuple[str, str]] = [("Size", f"{step.size[0]} x {step.size[1]} pixels")]
    if "model" in record:
        found.append(("Model", f"{record['model']} (version {record.get('version', '?')})"))
    if record.get("seed") is not None:
        found.append(("Seed", str(record["seed"])))
    if record.get("sigmas"):
        found.append(("σ", ", ".join(f"{sigma:.4g}" for sigma in record["sigmas"])))
    if record.get("calls") is not None:
        found.append(("Network calls", str(record["calls"])))
    facts = record.get("facts") or {}
    if facts.get("guessed"):
        found.append(("Label", "guessed from the picture"))
    if facts.get("clamped"):
        found.append(("What was known changed by up to", f"{facts['clamped']:.2g} of a range of 2"))
    if facts.get("estimated"):
        found.append(("Noise found", f"σ {facts['estimated'][0]:.3f}"))
    if facts.get("error"):
        found.append(
            ("The ends miss the pictures by", ", ".join(f"{error:.3f}" for error in facts["error"]) + " of a range of 2")
        )
    return found


def _picture(album: Album, step: Step | None, number: int | None = None) -> str | None:
    if step is None:
        return None
    try:
        return address(album.picture(step, number))
    except InputError:
        return None


def _thumb(album: Album, step: Step) -> str | None:
    """A picture as small as the history shows it; one of few pixels as it is."""
    if max(step.size) <= _THUMB:
        return _picture(album, step)
    try:
        with Image.open(io.BytesIO(album.picture(step))) as picture:
            picture.thumbnail((_THUMB, _THUMB))
            content = io.BytesIO()
            picture.save(content, format="PNG")
    except InputError:
        return None
    return address(content.getvalue())
