"""Pictures side by side on one image, to be looked at.

Knows pixels, rows and captions. Knows nothing of models, figures or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP = 4
_CAPTION_WIDTH = 128
_LINE_HEIGHT = 16
_FONT_SIZE = 13
_BACKGROUND = "white"
_INK = "black"


@dataclass(frozen=True)
class SheetRow:
    """A caption and its pictures, uint8 [height, width, 3] of any sizes."""

    caption: str
    pictures: Sequence[np.ndarray]


def contact_sheet(rows: Sequence[SheetRow], cell: int = 128) -> Image.Image:
    """One row of pictures per caption, captions at the left.

    Args:
        rows: from top to bottom; they may differ in length.
        cell: longest side of a picture in pixels; larger ones are made smaller, none larger.

    Raises:
        ValueError: there is nothing to show.
    """
    columns = max((len(row.pictures) for row in rows), default=0)
    if not columns:
        raise ValueError("contact sheet: no picture to show")
    pitch = cell + _GAP
    size = (_CAPTION_WIDTH + columns * pitch, len(rows) * pitch)
    sheet = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_SIZE)
    for number, row in enumerate(rows):
        top = number * pitch
        draw.text((_GAP, top + cell // 2), row.caption, fill=_INK, font=font, anchor="lm")
        for column, pixels in enumerate(row.pictures):
            picture = _fitted(pixels, cell)
            left = _CAPTION_WIDTH + column * pitch + (cell - picture.width) // 2
            sheet.paste(picture, (left, top + (cell - picture.height) // 2))
    return sheet


def captioned_strip(
    pictures: Sequence[tuple[str, np.ndarray]], enlargement: int = 1
) -> Image.Image:
    """Pictures at their own sizes in one line, each over its caption of one or more lines.

    Args:
        pictures: (caption, uint8 [height, width, 3]) from left to right.
        enlargement: whole number of pixels shown for one.

    Raises:
        ValueError: there is nothing to show.
    """
    if not pictures:
        raise ValueError("strip: no picture to show")
    font = ImageFont.load_default(_FONT_SIZE)
    images = [
        image.resize(
            (image.width * enlargement, image.height * enlargement), Image.Resampling.BICUBIC
        )
        for image in (Image.fromarray(pixels) for _, pixels in pictures)
    ]
    widths = [
        max(image.width, *(int(font.getlength(line)) + 1 for line in caption.split("\n")))
        for (caption, _), image in zip(pictures, images, strict=True)
    ]
    tallest = max(image.height for image in images)
    lines = max(caption.count("\n") + 1 for caption, _ in pictures)
    height = tallest + _GAP + lines * _LINE_HEIGHT
    strip = Image.new("RGB", (sum(widths) + 3 * _GAP * (len(images) - 1), height), _BACKGROUND)
    draw = ImageDraw.Draw(strip)
    left = 0
    for (caption, _), image, width in zip(pictures, images, widths, strict=True):
        strip.paste(image, (left + (width - image.width) // 2, tallest - image.height))
        for number, line in enumerate(caption.split("\n")):
            middle = (left + width / 2, tallest + _GAP + number * _LINE_HEIGHT)
            draw.text(middle, line, fill=_INK, font=font, anchor="ma")
        left += width + 3 * _GAP
    return strip


def _enlarged(pixels: np.ndarray, factor: int) -> Image.Image:
    height, width = pixels.shape[:2]
    return Image.fromarray(pixels).resize(
        (width * factor, height * factor), Image.Resampling.BICUBIC
    )


def _fitted(pixels: np.ndarray, cell: int) -> Image.Image:
    image = Image.fromarray(pixels)
    if max(image.size) > cell:
        image.thumbnail((cell, cell), Image.Resampling.LANCZOS)
    return image
