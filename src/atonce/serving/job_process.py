"""Who does the work: a name for this process that no later process has, and whether such a process still lives."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

from atonce.serving.job_rows import Owner


def this_process() -> Owner:
    """This process, with a name of its own for each call."""
    return Owner(uuid.uuid4().hex, host_name(), os.getpid(), started(os.getpid()) or "")


def host_name() -> str:
    """This machine since it was last started, and the space in which its process numbers count (containers have their own)."""
    return f"{socket.gethostname()} {_text('/proc/sys/kernel/random/boot_id')} {_link('/proc/self/ns/pid')}"


def started(pid: int) -> str | None:
    """When a process of this machine began, in the system's ticks.

    Args:
        pid: Its number.

    Returns:
        The ticks; empty where the system does not say; ``None`` where there is no such process, or it has ended already.
    """
    try:
        # The name in the second field may hold spaces and brackets; what follows the last one does not.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return ""


def may_live(owner: Owner) -> bool:
    """Whether a process may still be at work: false only for one of this machine that is surely gone."""
    if owner.host != host_name() or owner.pid <= 0:
        return True
    now = started(owner.pid)
    return now is not None and now == owner.started


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return "-"


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return "-"
