"""Memory of the host: keep freed blocks for the next step instead of giving them back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Tell glibc to reuse large blocks.

    A training step on a CPU frees and takes the same activations again and again; by default each is mapped anew and its pages
    are zeroed by the kernel, which costs about a tenth of a small network's step. Harmless elsewhere.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
