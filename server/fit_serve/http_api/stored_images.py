"""Images that are fetched by URL: kept in memory for a while, the oldest given up first.

Knows bytes and their media type; one store a server. Used from the event loop only.
"""

import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

LIFETIME_S = 3600.0


@dataclass(frozen=True)
class StoredImage:
    """One file, and when it is forgotten."""

    data: bytes
    media_type: str
    expires: float


class StoredImages:
    """The latest images, within a number of bytes."""

    def __init__(
        self, max_bytes: int, lifetime_s: float = LIFETIME_S, clock: Callable[[], float] = time.time
    ) -> None:
        self._max_bytes = max_bytes
        self._lifetime_s = lifetime_s
        self._clock = clock
        self._images: OrderedDict[str, StoredImage] = OrderedDict()
        self._bytes = 0

    def put(self, data: bytes, media_type: str) -> str:
        """Keep a file and return its id; one larger than all that may be kept is kept alone."""
        image_id = f"img-{uuid.uuid4().hex}"
        self._forget_old()
        while self._images and self._bytes + len(data) > self._max_bytes:
            self._drop_oldest()
        expires = self._clock() + self._lifetime_s
        self._images[image_id] = StoredImage(data, media_type, expires)
        self._bytes += len(data)
        return image_id

    def get(self, image_id: str) -> StoredImage | None:
        """The file of this id, or None if there is none any more."""
        self._forget_old()
        return self._images.get(image_id)

    def _forget_old(self) -> None:
        now = self._clock()
        while self._images and next(iter(self._images.values())).expires <= now:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, image = self._images.popitem(last=False)
        self._bytes -= len(image.data)
