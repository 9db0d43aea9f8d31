import numpy as np
import pytest

from fit_training.evaluation.contact_sheet import SheetRow, captioned_strip, contact_sheet


def plain(height: int, width: int, level: int) -> np.ndarray:
    """A picture of one colour that no caption has: captions are grey."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = level
    return pixels


def places(image: np.ndarray, level: int) -> np.ndarray:
    return np.argwhere((image == (level, 0, 0)).all(axis=2))


def count(image: np.ndarray, level: int) -> int:
    return len(places(image, level))


def test_every_picture_is_on_the_sheet_whole_and_not_enlarged():
    rows = [
        SheetRow("ant", [plain(32, 64, 10), plain(64, 32, 20)]),
        SheetRow("bee", [plain(16, 16, 30)]),
    ]
    sheet = np.array(contact_sheet(rows, cell=64))
    assert [count(sheet, level) for level in (10, 20, 30)] == [32 * 64, 64 * 32, 16 * 16]
    first, second, third = (places(sheet, level) for level in (10, 20, 30))
    assert first[:, 1].max() < second[:, 1].min()  # side by side
    assert first[:, 0].max() < third[:, 0].min()  # one class under the other


def test_a_large_picture_is_made_smaller_with_its_aspect():
    sheet = np.array(contact_sheet([SheetRow("ant", [plain(200, 100, 40)])], cell=50))
    assert count(sheet, 40) == 50 * 25


def test_a_caption_is_written():
    without, written = (
        np.array(contact_sheet([SheetRow(text, [plain(16, 16, 200)])])) for text in ("", "ant")
    )
    assert count(without, 0) == 0
    assert count(written, 0) > 0


def test_a_strip_shows_pixels_at_their_own_sizes_in_order():
    strip = np.array(captioned_strip([("a\n1x1", plain(48, 32, 10)), ("b", plain(32, 96, 20))]))
    assert [count(strip, level) for level in (10, 20)] == [48 * 32, 32 * 96]
    left, right = (places(strip, level)[:, 1] for level in (10, 20))
    assert left.max() < right.min()


def test_a_strip_can_be_enlarged():
    strip = np.array(captioned_strip([("", plain(10, 20, 50))], enlargement=2))
    assert count(strip, 50) == 20 * 40


def test_nothing_to_show_is_an_error():
    with pytest.raises(ValueError, match="no picture"):
        contact_sheet([SheetRow("ant", [])])
    with pytest.raises(ValueError, match="no picture"):
        captioned_strip([])
