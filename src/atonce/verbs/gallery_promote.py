"""The verbs ``gallery promote``, ``gallery roll-back`` and ``gallery versions``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from atonce.core.errors import InputError
from atonce.verbs.output import show


def gallery_promote(
    source: Positional[str],
    name: str,
    registry: Path,
    force: str | None = None,
    tolerance: float = 0.1,
    json: bool = False,
) -> int:
    """Put a model into a registry as the version that is served, if its records show that it is not worse than the present one.

    Both models need a record of the same measurement (atonce eval MODEL --append-to-model): same data, extractor, samples, seed
    and steps. A version that is in use can be measured where it is: atonce eval REGISTRY/NAME --append-to-model. The first
    version needs a record at all. Versions are never deleted; ``atonce gallery roll-back`` goes back.

    Example: atonce gallery promote digits --name digits --registry models

    Args:
        source: Gallery name, run or model folder, or hub id.
        name: What it is called in the registry.
        registry: Folder of the registry; ``atonce serve REGISTRY/NAME`` serves what is promoted there.
        force: Promote whatever the records say; the reason, which is kept in the history.
        tolerance: Share of the present value by which it may be worse, at the unlucky end of the difference's interval.
        json: Print what was done as JSON.

    Returns:
        The exit status.
    """
    from atonce.exchange.registry import promote

    done = promote(source, registry, name, force=force, tolerance=tolerance)
    first = "" if done.before is None else f" (was {done.before})"
    show(_facts(done), f"{done.name} is at version {done.version}{first}: {done.reason}\n{done.folder}", json)
    return 0


def gallery_roll_back(entry: Positional[Path], reason: str = "", json: bool = False) -> int:
    """Go back to the version of a registry's model that was in use before.

    Example: atonce gallery roll-back models/digits --reason "blurred sevens"

    Args:
        entry: REGISTRY/NAME.
        reason: Kept in the history.
        json: Print what was done as JSON.

    Returns:
        The exit status.
    """
    from atonce.exchange.registry import roll_back

    done = roll_back(entry, reason)
    show(_facts(done), f"{done.name} is back at version {done.version} (was {done.before}): {done.reason}", json)
    return 0


def gallery_versions(entry: Positional[Path], json: bool = False) -> int:
    """Show the versions of a registry's model and everything that happened to them.

    Example: atonce gallery versions models/digits

    Args:
        entry: REGISTRY/NAME, or a registry, of which all models are shown.
        json: Print the list as JSON.

    Returns:
        The exit status.

    Raises:
        InputError: There is no registry.
    """
    from atonce.exchange.registry import history, is_registry_entry, versions

    entries = [entry] if is_registry_entry(entry) else sorted(path for path in entry.glob("*") if is_registry_entry(path))
    if not entries:
        raise InputError(
            f"{entry} is no registry and no entry of one: atonce gallery promote SOURCE --name NAME --registry DIR"
        )
    found = {path.resolve().name: {"versions": versions(path), "history": history(path)} for path in entries}
    show(found, "\n\n".join(_table(name, **facts) for name, facts in found.items()), json)
    return 0


def _facts(done: Any) -> dict[str, Any]:
    return {**dataclasses.asdict(done), "folder": str(done.folder)}


def _table(name: str, versions: list[dict[str, Any]], history: list[dict[str, Any]]) -> str:
    """The versions of one entry, and below them what happened, oldest first."""
    lines = [f"{name}: version {next((each['version'] for each in versions if each['in_use']), '?')} is in use"]
    for each in versions:
        mark = "*" if each["in_use"] else " "
        lines.append(f" {mark} {each['version']}  {each['state']:7}  weights {each['model']}  promoted {each['promoted']}")
    lines.append("what happened:")
    lines += [f"   {each['at']}  {each['action']:9}  {each['version']}  {each.get('reason', '')}" for each in history]
    return "\n".join(lines)
