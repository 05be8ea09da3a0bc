"""Pictures that come with a request: base64 to pixels of a model, under limits that are checked before anything is decoded.

Decided: PNG, JPEG and WebP, whatever they call themselves; one frame; EXIF's orientation is applied; transparency is laid on
white and says what is to be made; 16 bits become 8; palettes and CMYK become RGB; grey values are of ITU-R 601.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atonce.core.choices import Fit
from atonce.core.errors import InputError
from atonce.data.fitting import fitted, fitted_mask, see_through
from atonce.data.pictures import read_picture
from atonce.serving.errors import bad_request, too_large
from atonce.serving.picture_files import MOST_PARTS, parts_of

_FORMATS = ("PNG", "JPEG", "WEBP")
_SIGNS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")
_ADDRESS = re.compile(r"data:(?P<type>[^,;]*)(?P<options>(?:;[^,;]*)*),", re.IGNORECASE)
_SPACES = str.maketrans("", "", " \t\r\n")
_TOGETHER = 4  # times the limit of one picture: pixels of all pictures of a request
MAX_SIDE = 8192
_SCANS = 20  # of a progressive JPEG, each of which goes over the whole picture; encoders write about ten
_WORK = 10 * _TOGETHER  # times the limit of one picture: pixels times scans of all pictures of a request


@dataclass(frozen=True)
class Sizes:
    """What pictures of one request may be.

    Attributes:
        pixels: Of one picture.
        channels: Of the model, 1 or 3.
        side: Height and width that are wanted; ``None`` where any will do.
        fit: What to do with another size.
        factor: Pictures that are smaller than ``side`` by just this factor become patches of equal pixels.
        remedy: Added to a message about a wrong size.
        longest: Height or width of a picture as it comes.
    """

    pixels: int
    channels: int
    side: int | None
    fit: Fit = "none"
    factor: int = 1
    remedy: str = ""
    longest: int = MAX_SIDE


@dataclass(frozen=True, eq=False)
class Read:
    """Pictures that have been read.

    Attributes:
        images: uint8 [N, C, H, W].
        clear: bool [N, 1, H, W], true where a picture is not opaque; ``None`` where all are.
        border: bool [N, 1, H, W], true where a border was laid around a picture; ``None`` where there is none.
        sizes: Height and width that each had.
        fit: How they were brought to size.
    """

    images: Tensor
    clear: Tensor | None
    border: Tensor | None
    sizes: tuple[tuple[int, int], ...]
    fit: Fit


def content_of(text: str, param: str) -> bytes:
    """The file behind base64 or a ``data:`` address.

    Args:
        text: What the request holds.
        param: The field, for messages.

    Returns:
        The bytes.

    Raises:
        bad_request: It is neither.
    """
    if text[:5].lower() == "data:":
        match = _ADDRESS.match(text[:300])
        if match is None or not match["options"].lower().endswith(";base64"):
            raise bad_request(f"{param} is a data: address without base64: give data:image/png;base64,...", param)
        text = text[match.end() :]
    elif re.match(r"[a-z][a-z0-9+.-]{1,20}://", text[:24], re.IGNORECASE):
        raise bad_request(f"{param} is an address, and nothing is fetched from elsewhere: send the picture as base64", param)
    try:
        return base64.b64decode(text if text.isalnum() else text.translate(_SPACES), validate=True)
    except (binascii.Error, ValueError):
        shown = text[:16] + "..." * (len(text) > 16)
        raise bad_request(f"{param} is {shown!r}, which is not base64 of a PNG, JPEG or WebP picture", param) from None


@dataclass
class Budget:
    """What reading the pictures of one request may still cost.

    Attributes:
        limit: Pixels of one picture.
        pixels: Pixels that are left for all together.
        work: Pixels times scans that are left.
    """

    limit: int
    pixels: int
    work: int

    @classmethod
    def of(cls, limit: int) -> Budget:
        """The budget of a request, by the limit of one picture."""
        return cls(limit, _TOGETHER * limit, _WORK * limit)

    def take(self, pixels: int, scans: int, param: str) -> None:
        """Spend some of it.

        Args:
            pixels: Of a picture.
            scans: How often its file goes over them.
            param: The field, for messages.

        Raises:
            too_large: There is not so much left.
        """
        if pixels > self.pixels:
            together = f"{_TOGETHER * self.limit:,}"
            raise too_large(f"{param} is one too many: the pictures of a request may have {together} pixels together", param)
        if pixels * scans > self.work:
            text = f"{param} is a JPEG of {scans} scans, more work than one request may bring: save it without progression"
            raise too_large(text, param)
        self.pixels -= pixels
        self.work -= pixels * scans


def decode(content: bytes, limit: int, param: str, budget: Budget | None = None, longest: int = MAX_SIDE) -> Image.Image:
    """Decode one picture after its header has been looked at.

    Args:
        content: The file.
        limit: Pixels that it may have.
        param: The field, for messages.
        budget: What the pictures before it have left of that of the whole request.
        longest: Height or width that it may have.

    Returns:
        A picture of mode ``L`` or ``RGB``, upright, on white.

    Raises:
        bad_request: It is no such picture, has several frames, or is damaged.
        too_large: It has too many pixels.
    """
    if not content.startswith(_SIGNS):
        raise bad_request(f"{param} is no picture in PNG, JPEG or WebP ({len(content)} bytes): convert it first", param)
    parts = parts_of(content)
    if parts.count > MOST_PARTS:
        raise bad_request(f"{param} has more than {MOST_PARTS:,} parts: save it with an ordinary program", param)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about what is refused below or does not matter
        try:
            with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
                width, height = picture.size
                frames = bool(getattr(picture, "is_animated", False))
        except Image.DecompressionBombError:
            raise too_large(f"{param} has far more pixels than the limit of {limit:,}: make it smaller", param) from None
        except Exception as problem:  # decoders fail in many ways on damaged files
            raise bad_request(f"{param} is no sound PNG, JPEG or WebP picture: its beginning is damaged", param) from problem
        if width * height > limit:
            raise too_large(f"{param} is {width}x{height} pixels, the limit is {limit:,} in all: make it smaller", param)
        if max(width, height) > longest:
            raise too_large(f"{param} is {width}x{height} pixels, the limit of a side is {longest:,}: make it smaller", param)
        if frames:
            raise bad_request(f"{param} is animated: send one frame of it", param)
        if parts.scans > _SCANS:
            raise bad_request(f"{param} is a JPEG of more than {_SCANS} scans: save it with an ordinary program", param)
        if not parts.whole:
            raise bad_request(f"{param} is a PNG without its end: it was cut off, send the whole file", param)
        (budget or Budget.of(limit)).take(width * height, parts.scans, param)
        try:
            return read_picture(content, param)
        except InputError as problem:
            raise bad_request(_plain(str(problem)), param) from problem


def read_pictures(texts: Sequence[str], sizes: Sizes, param: str) -> Read:
    """Pictures of one size from a request.

    Args:
        texts: base64 or ``data:`` addresses.
        sizes: What they may be.
        param: The field, for messages; several are numbered.

    Returns:
        The pictures.

    Raises:
        bad_request: One cannot be read, or does not fit.
    """
    parts, masks, borders = [], [], []
    budget = Budget.of(sizes.pixels)
    found: list[tuple[int, int]] = []
    fit = sizes.fit
    for number, text in enumerate(texts):
        name = param if len(texts) == 1 else f"{param}[{number}]"
        content = content_of(text, name)
        picture = decode(content, sizes.pixels, name, budget, sizes.longest)
        size = (picture.height, picture.width)
        if found and found[0] != size:
            raise bad_request(f"{param} has pictures of several sizes: send those of one size together", param)
        if sizes.side is not None and sizes.factor > 1 and size == (sizes.side // sizes.factor,) * 2:
            picture = picture.resize((sizes.side, sizes.side), Image.Resampling.NEAREST)
            fit = "crop"  # of a square nothing is cut off
        try:
            parts.append(fitted(picture, sizes.channels, sizes.side, fit, name, sizes.remedy, 'fit "{}"'))
        except InputError as problem:
            raise bad_request(str(problem), name) from problem
        opaque = torch.zeros(size, dtype=torch.bool)
        clear = see_through(content)
        masks.append(fitted_mask(opaque if clear is None else clear, sizes.side, fit))
        borders.append(fitted_mask(opaque, sizes.side, fit, border=True) if fit == "pad" else masks[-1] & False)
        found.append(size)
    return Read(torch.from_numpy(np.stack(parts)), _some(masks), _some(borders), tuple(found), fit)


def read_mask(text: str, read: Read, sizes: Sizes, param: str = "mask") -> Tensor:
    """A mask for all pictures of a request.

    Args:
        text: base64 or a ``data:`` address of a picture, white where pixels are to be made; in one with an alpha channel that
            is not opaque everywhere, transparency says it instead.
        read: The pictures.
        sizes: What they may be.
        param: The field, for messages.

    Returns:
        bool [1, 1, H, W].

    Raises:
        bad_request: It cannot be read, has another size than a picture, or marks nothing.
    """
    content = content_of(text, param)
    picture = decode(content, sizes.pixels, param, longest=sizes.longest)
    height, width = read.sizes[0]
    if (picture.height, picture.width) != (height, width):
        raise bad_request(
            f"{param} is {picture.width}x{picture.height}, the image {width}x{height}: they must have one size", param
        )
    clear = see_through(content)
    mask = torch.from_numpy(np.asarray(picture.convert("L"), dtype=np.uint8) > 127) if clear is None else clear
    if not bool(mask.any()):
        raise bad_request(f"{param} has no white pixel, so nothing is to be made: paint white what is to be made", param)
    return fitted_mask(mask, sizes.side, read.fit)[None, None]


def _some(masks: Sequence[Tensor]) -> Tensor | None:
    """Masks bool [H, W] as [N, 1, H, W], or ``None`` where all are empty."""
    found = torch.stack(list(masks))[:, None]
    return found if bool(found.any()) else None


def _plain(message: str) -> str:
    """A message of a decoder without addresses of objects."""
    return re.sub(r"<[^>]*>", "", message)
