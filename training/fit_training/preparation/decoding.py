"""Bytes to an RGB image, and when an image is broken.

Knows Pillow and what it raises. Knows nothing of containers, classes or crops.
"""

import errno
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO
from zipfile import BadZipFile

from PIL import Image

SMALLEST_SIDE = 16  # pixels: one token
_ORIENTATION = 0x0112  # EXIF tag; what makes an image of each of its values upright:
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPING = frozenset((5, 6, 7, 8))  # the values that exchange the sides
_OF_THE_MACHINE = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))
# What Pillow's decoders, zip and the file system raise for damaged bytes.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
    BadZipFile,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class BrokenPhotographError(ValueError):
    """A photograph that cannot be used; the message is the reason."""


def decoded(stream: IO[bytes]) -> Image.Image:
    """Decode a whole image: RGB, upright by its EXIF orientation, on white where transparent."""
    image = Image.open(stream)
    refuse_size(image.size)
    turn = _UPRIGHT.get(_orientation(image))
    image.load()
    opaque = _opaque(image)
    return opaque if turn is None else opaque.transpose(turn)


def upright_size(stream: IO[bytes]) -> tuple[int, int]:
    """Return (width, height) in pixels from an image's header, after its EXIF orientation."""
    with Image.open(stream) as image:
        width, height = image.size
        return (height, width) if _orientation(image) in _SWAPPING else (width, height)


def refuse_size(size: tuple[int, int]) -> None:
    """Raise `BrokenPhotographError` for (width, height) under a token or a decompression bomb."""
    width, height = size
    if min(width, height) < SMALLEST_SIDE:
        raise BrokenPhotographError(f"{width}x{height} has a side under {SMALLEST_SIDE} pixels")
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise BrokenPhotographError(
            f"{width}x{height} is more than {Image.MAX_IMAGE_PIXELS} pixels (decompression bomb)"
        )


@contextmanager
def while_reading() -> Iterator[None]:
    """Turn what damaged bytes raise into `BrokenPhotographError`.

    Running out of memory or of open files is no fault of the photograph and passes through.
    """
    try:
        yield
    except BrokenPhotographError:
        raise
    except Image.UnidentifiedImageError as error:  # its own text holds an object's address
        raise BrokenPhotographError("empty, or no image that Pillow reads") from error
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            raise
        raise BrokenPhotographError(f"{type(error).__name__}: {error}") from error


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation as far as the header says it; 1 is upright.

    Of a PNG, Pillow's own `getexif` would decode the pixels to look behind them too.
    """
    return Image.Image.getexif(image).get(_ORIENTATION, 1)


def _opaque(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
