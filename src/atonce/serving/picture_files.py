"""What can be seen of a picture file without decoding it: its parts, the scans of a JPEG, and whether a PNG has its end.

Decoders go through the parts of a file one by one and over the whole picture once for each scan, so a small file can make them
work for long. Both are counted here first, and counting ends where there are too many.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MOST_PARTS = 16_384
"""Chunks of a PNG or segments of a JPEG; a camera's file has dozens, one with a chunk for each row thousands."""
_PNG = b"\x89PNG\r\n\x1a\n"
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # of a JPEG; the others stand within the data of a scan
_BARE = (b"\x01", b"\xd8")  # markers that have no content


@dataclass(frozen=True)
class Parts:
    """What a file consists of.

    Attributes:
        count: Its parts, as far as they were counted; 0 for a format whose parts cost nothing.
        scans: How often it goes over its picture.
        whole: Whether it has its end.
    """

    count: int = 0
    scans: int = 1
    whole: bool = True


def parts_of(content: bytes) -> Parts:
    """Look through a PNG or a JPEG.

    Args:
        content: The file.

    Returns:
        Its parts; for any other file nothing that could be refused.
    """
    if content.startswith(_PNG):
        return _png(content)
    return _jpeg(content) if content.startswith(b"\xff\xd8") else Parts()


def _png(content: bytes) -> Parts:
    place, count = len(_PNG), 1
    while content[place + 4 : place + 8] != b"IEND":
        place += 12 + int.from_bytes(content[place : place + 4], "big")
        count += 1
        if place >= len(content) or count > MOST_PARTS:
            return Parts(count, whole=False)
    return Parts(count, whole=place + 12 <= len(content))  # Pillow would not miss it


def _jpeg(content: bytes) -> Parts:
    count = scans = 0
    place = 2
    while count <= MOST_PARTS and (marker := _MARKER.search(content, place)) is not None and marker[1] != b"\xd9":
        count, scans = count + 1, scans + (marker[1] == b"\xda")
        length = 0 if marker[1] in _BARE else int.from_bytes(content[marker.end() : marker.end() + 2], "big")
        place = marker.end() + length
    return Parts(count, max(1, scans))
