"""A stretch of a file as a file of its own, for threads that read side by side.

Knows offsets. Knows nothing of what the bytes are.
"""

import io
import os
from typing import IO


def open_window(descriptor: int, offset: int, length: int) -> IO[bytes]:
    """Open `length` bytes from `offset` on of an open file, read only and seekable.

    Reads by `pread`, so that the descriptor's own position does not matter; closing the window
    leaves the descriptor open.
    """
    return io.BufferedReader(_Window(descriptor, offset, length))


class _Window(io.RawIOBase):
    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        self._descriptor, self._offset, self._length = descriptor, offset, length
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        wanted = max(0, min(len(buffer), self._length - self._position))
        data = os.pread(self._descriptor, wanted, self._offset + self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
