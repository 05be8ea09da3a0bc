"""One picture: from a file to 8-bit grey or RGB, cropped and resized."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from atonce.core.errors import DataError
from atonce.data.dataset import ImageData
from atonce.data.limits import check_memory, one_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Only these decoders are tried, whatever a file calls itself: Pillow knows formats that start other programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_GREY_MODES = ("1", "L", "LA", "La")
_MAX_SIZE = 4096


@dataclass(frozen=True)
class Shaping:
    """What pictures become.

    Attributes:
        size: Side of the square result in pixels (1 to 4096), or None to keep the size.
        channels: 1 (grey), 3 (RGB) or None to keep them.
        crop: ``"center"`` takes the largest square in the middle before resizing; ``"none"`` demands square pictures.
    """

    size: int | None = None
    channels: int | None = None
    crop: str = "center"

    def __post_init__(self) -> None:
        if self.size is not None and not 1 <= self.size <= _MAX_SIZE:
            raise DataError(f"size must be between 1 and {_MAX_SIZE} pixels, not {self.size}")
        if self.channels not in (None, 1, 3):
            raise DataError(f"channels must be 1 (grey) or 3 (RGB), not {self.channels}")
        if self.crop not in ("center", "none"):
            raise DataError(f"crop must be 'center' or 'none', not {self.crop!r}")


def read_picture(content: bytes, name: str) -> Image.Image:
    """Decode a picture file; the suffix is not asked, animations give their first frame.

    The orientation of EXIF is applied, transparency is laid on white, palettes are resolved and 16 bits become 8 by rounding.

    Args:
        content: The file.
        name: What to call it in messages.

    Returns:
        A picture of mode ``L`` or ``RGB``.

    Raises:
        DataError: It is no picture, truncated, damaged, absurdly large or of floating-point values.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and picture.width * picture.height > limit:  # Pillow itself only warns up to twice the limit
                raise DataError(f"{name} is absurdly large: {picture.width}x{picture.height} pixels, the limit is {limit}")
            picture.load()
            return _eight_bits(ImageOps.exif_transpose(picture), name)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as problem:
        raise DataError(f"{name} is absurdly large: {one_line(problem)}") from problem
    except UnidentifiedImageError as problem:
        raise DataError(f"{name} is not a picture (or its beginning is damaged)") from problem
    except Exception as problem:  # decoders fail in many ways on damaged files: OSError, SyntaxError, struct.error, ...
        raise DataError(f"{name} is truncated or damaged: {one_line(problem)}") from problem


def header(content: bytes) -> tuple[str, str, tuple[int, int]] | None:
    """What the beginning of a picture file says; nothing is decoded.

    Args:
        content: The file.

    Returns:
        Format and mode in Pillow's words, width and height as stored; ``None`` where it is no picture.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of absurd sizes, which are refused when they are decoded
            with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
                return str(picture.format), picture.mode, picture.size
    except Exception:  # decoders fail in many ways on damaged files
        return None


def _eight_bits(picture: Image.Image, name: str) -> Image.Image:
    mode = picture.mode
    if mode in ("L", "RGB") and "transparency" not in picture.info:
        return picture.copy()
    if mode.startswith("I"):
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{name} has values from {values.min()} to {values.max()}: pictures of 8 or 16 bits are read")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if mode == "F":
        raise DataError(f"{name} has floating-point values, which have no agreed range: save it with 8 or 16 bits")
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return picture.convert("L" if mode in _GREY_MODES else "RGB")


def shape_picture(picture: Image.Image, shaping: Shaping, name: str) -> Image.Image:
    """Crop, resize and convert one picture of mode ``L`` or ``RGB``.

    Reduction by a whole number averages blocks (box), other reduction is Lanczos, enlargement bicubic.

    Args:
        picture: The picture.
        shaping: What it becomes.
        name: What to call it in messages.

    Returns:
        A picture of mode ``L`` or ``RGB``.

    Raises:
        DataError: The picture is not square and ``crop`` is ``"none"``.
    """
    if shaping.channels == 1:
        picture = picture.convert("L")
    if shaping.size is not None:
        width, height = picture.size
        side = min(width, height)
        if width != height:
            if shaping.crop == "none":
                raise DataError(f"{name} is {width}x{height}, not square: crop it, or ask for the crop 'center'")
            left, top = (width - side) // 2, (height - side) // 2
            picture = picture.crop((left, top, left + side, top + side))
        if side != shaping.size:
            if side % shaping.size == 0:
                picture = picture.reduce(side // shaping.size)  # rounds once; resize() would round after each direction
            else:
                how = Image.Resampling.LANCZOS if side > shaping.size else Image.Resampling.BICUBIC
                picture = picture.resize((shaping.size, shaping.size), how)
    return picture.convert("RGB") if shaping.channels == 3 else picture


def pixels(picture: Image.Image) -> NDArray[np.uint8]:
    """A picture of mode ``L`` or ``RGB`` as uint8 [C, H, W]."""
    array: NDArray[Any] = np.asarray(picture, dtype=np.uint8)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def convert(data: ImageData, shaping: Shaping) -> ImageData:
    """Bring images in memory to a size and number of channels; the same object where nothing changes.

    Args:
        data: The images.
        shaping: What they become.

    Returns:
        The images, with a note in ``source`` if they changed.

    Raises:
        DataError: The images have neither 1 nor 3 channels, or are not square where that is asked.
    """
    channels, height, width = data.shape
    target = shaping.channels or channels
    side = shaping.size
    if target == channels and (side is None or (height, width) == (side, side)):
        return data
    if channels not in (1, 3):
        raise DataError(f"{data.name}: images of {channels} channels cannot be converted, only grey and RGB ones")
    shape = (len(data), target, side or height, side or width)
    check_memory(int(np.prod(shape)), f"{data.name} as {shape[2]}x{shape[3]}")
    result = torch.empty(shape, dtype=torch.uint8)
    out = result.numpy()
    for number, image in enumerate(data.images.numpy()):
        picture = Image.fromarray(image[0] if channels == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
        out[number] = pixels(shape_picture(picture, shaping, f"image {number} of {data.name}"))
    return replace(data, images=result, source=f"{data.source}; as {target}x{shape[2]}x{shape[3]}")
