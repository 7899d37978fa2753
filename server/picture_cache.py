"""Pictures that were decoded before, so that a conversation about one decodes it once."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from decoding.prompt import Picture

DECODED_AS = b"rgb-white-exif-1;"  # changes with how images are decoded: part of the key


class PictureCache:
    """Holds at most so many bytes of pixels, the longest unused go first. Called from several threads."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._pictures: OrderedDict[bytes, Picture] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Picture | None:
        with self._lock:
            picture = self._pictures.get(key)
            if picture is None:
                self.misses += 1
                return None
            self.hits += 1
            self._pictures.move_to_end(key)
            return picture

    def put(self, key: bytes, picture: Picture) -> None:
        with self._lock:
            if key in self._pictures or size(picture) > self.most_bytes:
                return
            self._pictures[key] = picture
            self.bytes += size(picture)
            while self.bytes > self.most_bytes:
                self.bytes -= size(self._pictures.popitem(last=False)[1])


def key_of(content: bytes) -> bytes:
    """Two contents never share one: the whole SHA-256 of all bytes."""
    return hashlib.sha256(DECODED_AS + content).digest()


def size(picture: Picture) -> int:
    """Bytes. Pillow keeps four of them for each pixel, also where there are three colours only."""
    return 4 * picture.image.width * picture.image.height
