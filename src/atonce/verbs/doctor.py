"""The verb ``doctor``."""

from __future__ import annotations

from atonce.verbs.output import show


def doctor(json: bool = False) -> int:
    """Check this machine: versions, device, speed of arithmetic, extras, data and disk.

    Example: atonce doctor

    Args:
        json: Print the findings as JSON.

    Returns:
        The exit status.
    """
    from atonce.reports.doctor import examine

    findings = examine()
    show({f.name: f.value for f in findings}, "\n".join(f"{f.mark} {f.name:18} {f.value}" for f in findings), json)
    return 0
