"""The cache of pictures: never another's, never more than its bytes."""

from __future__ import annotations

from PIL import Image

from decoding.prompt import Picture
from server.image import load
from server.picture_cache import PictureCache, key_of
from tests.server.conftest import data_url


def test_the_same_content_is_decoded_once() -> None:
    cache = PictureCache(1000)
    first, again = (load(data_url(), "url", cache=cache) for _ in range(2))
    assert first is again
    assert load(data_url(Image.new("RGB", (6, 8), "red")), "url", cache=cache).image.size == (6, 8)


def test_it_holds_no_more_than_its_bytes() -> None:
    cache = PictureCache(3 * 10 * 10 * 4)
    for content in (b"a", b"b", b"c", b"a", b"d"):
        if cache.get(key_of(content)) is None:
            cache.put(key_of(content), Picture(Image.new("RGB", (10, 10))))
    assert cache.bytes == cache.most_bytes
    assert [cache.get(key_of(content)) is None for content in (b"a", b"b", b"c", b"d")] == [False, True, False, False]
    cache.put(key_of(b"e"), Picture(Image.new("RGB", (100, 100))))
    assert cache.get(key_of(b"e")) is None
