"""What others have published of many steps against one or two, to begin a calculation with; marked as published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pair:
    """Two ways to make the same images, as a paper has them.

    Attributes:
        title: What is compared.
        before: Name, calls and FID of the many steps.
        after: The same of what replaces them.
        source: Where it can be read.
    """

    title: str
    before: tuple[str, int, float]
    after: tuple[str, int, float]
    source: str


_SONG = "published: Song et al. 2023, arXiv 2303.01469"
PAIRS: tuple[Pair, ...] = (
    Pair("CIFAR-10: distilled, one call", ("EDM, Heun", 35, 2.04), ("CD", 1, 3.55), _SONG),
    Pair("CIFAR-10: distilled, two calls", ("EDM, Heun", 35, 2.04), ("CD", 2, 2.93), _SONG),
    Pair(
        "CIFAR-10: from data alone, one call",
        ("EDM, Heun", 35, 2.04),
        ("iCT", 1, 2.83),
        "published: arXiv 2310.14189, as later papers quote it; EDM as in arXiv 2303.01469",
    ),
    Pair(
        "CIFAR-10: easy tuning, two calls",
        ("EDM, Heun", 35, 2.01),
        ("ECT", 2, 2.11),
        "published: the code of arXiv 2406.14548",
    ),
    Pair("ImageNet 64x64: distilled, one call", ("EDM, Heun", 79, 2.44), ("CD", 1, 6.20), _SONG),
    Pair("ImageNet 64x64: distilled, two calls", ("EDM, Heun", 79, 2.44), ("CD", 2, 4.70), _SONG),
)
"""Fréchet Inception distances with 50,000 samples; the papers' networks and hardware differ from yours."""

DEVICES: Mapping[str, tuple[float, str]] = {
    "NVIDIA H200 SXM": (700.0, "published: NVIDIA's data sheet, at most 700 W"),
    "NVIDIA A100 SXM": (400.0, "published: NVIDIA's data sheet, at most 400 W"),
}
"""Most that a device draws, and who says so."""


def choices() -> dict[str, dict[str, Any]]:
    """What the page offers, by title.

    Returns:
        For each what it sets: ``values`` by key with number, source and note, ``names`` and ``quality`` by role, and
        ``proportional``, where the time before is taken as so many calls of the same network as after.
    """
    found: dict[str, dict[str, Any]] = {}
    for pair in PAIRS:
        sides = {"before": pair.before, "after": pair.after}
        found[pair.title] = {
            "values": {
                f"calls@{role}": {"number": calls, "source": "published", "note": pair.source}
                for role, (_, calls, _) in sides.items()
            },
            "names": {role: f"{name}, {calls} call{'s' if calls > 1 else ''}" for role, (name, calls, _) in sides.items()},
            "quality": {role: fid for role, (_, _, fid) in sides.items()},
            "proportional": True,
        }
    for name, (watts, note) in DEVICES.items():
        found[f"Device: {name}"] = {"values": {"watts": {"number": watts, "source": "published", "note": note}}}
    return found


def begin_with(state: Mapping[str, Any], title: str) -> dict[str, Any]:
    """A form's values with a published choice put in.

    Args:
        state: The form as the page has it.
        title: Of :func:`choices`.

    Returns:
        The new values. A pair of ways also sets the times: those of one call as they are known after the change, times the
        calls of each way, marked as assumed.

    Raises:
        KeyError: There is no such choice.
    """
    choice = choices()[title]
    values = {**dict(state.get("values", {}))}
    if choice.get("proportional"):
        for what in ("seconds", "latency"):
            one = _one_call(values, what)
            for role in ("before", "after"):
                calls = float(choice["values"][f"calls@{role}"]["number"])
                note = f"assumed: {calls:g} call{'s' if calls > 1 else ''} of the same network as now"
                number = None if one is None else float(f"{one * calls:.6g}")
                values[f"{what}@{role}"] = {"number": number, "source": "default", "note": note}
    values.update(choice["values"])
    kept = {"names": choice.get("names", state.get("names")), "quality": choice.get("quality", state.get("quality"))}
    return {**dict(state), **kept, "values": values}


def _one_call(values: Mapping[str, Any], what: str) -> float | None:
    """Seconds of one call, from the way that replaces the other; ``None`` where it is not known."""
    try:
        time, calls = (float(values[f"{name}@after"]["number"]) for name in (what, "calls"))
    except (KeyError, TypeError, ValueError):
        return None
    return time / calls if calls > 0 and time > 0 else None
