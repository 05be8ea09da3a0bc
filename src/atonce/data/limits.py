"""What is absurd: sizes that would fill the memory before they are noticed."""

from __future__ import annotations

import os

from atonce.core.errors import DataError

MAX_FILE_BYTES = 256 << 20  # of one picture or one member of an archive, unpacked


def memory_bytes() -> int | None:
    """Physical memory of the machine, or None where it cannot be asked."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def check_memory(needed: int, what: str, remedy: str = "give a smaller --size or fewer images") -> None:
    """Refuse what cannot be held in four fifths of the memory.

    Args:
        needed: Bytes.
        what: What needs them, for the message.
        remedy: What the user can do.

    Raises:
        DataError: ``needed`` is above the limit.
    """
    memory = memory_bytes()
    if memory is not None and needed > memory * 4 // 5:
        text = f"{what} would need {needed / 2**30:.1f} GiB, and this machine has {memory / 2**30:.1f} GiB of memory"
        raise DataError(f"{text}: {remedy}")


def one_line(problem: BaseException) -> str:
    """The message of a foreign error in one line, or its class where it has none."""
    return " ".join(str(problem).split()) or type(problem).__name__
