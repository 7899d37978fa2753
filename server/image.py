"""URLs to pictures. An image that cannot be loaded is an error, never an answer from the text alone."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Iterable

import anyio
from anyio.to_thread import run_sync
from PIL import Image, ImageOps

from decoding.errors import BadRequest
from decoding.prompt import Picture
from server.address import AllowList
from server.fetch import NOT_FETCHED, Fetcher
from server.picture_cache import PictureCache, key_of

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
MOST_PIXELS = 25_000_000
TOO_LARGE = "Too many pixels: at most 25 megapixels are taken for one image, and 50 for all of a request."
HEAD = re.compile(r"data:image/(?:png|jpe?g|webp|gif)(?:;[\w.-]+=[\w.-]+)*;base64", re.IGNORECASE)
EIGHT_OF_SIXTEEN_BITS = [value >> 8 for value in range(1 << 16)]


class Pictures:
    """Decodes images, a few at a time and never on the event loop, and fetches them where that is allowed."""

    def __init__(self, hosts: Iterable[str] = (), cache_bytes: int = 0, threads: int = 4) -> None:
        self.limiter = anyio.CapacityLimiter(threads)
        self.fetcher = Fetcher(AllowList(hosts))
        self.cache = PictureCache(cache_bytes)

    async def load(self, url: str, param: str, most_pixels: int = MOST_PIXELS) -> Picture:
        """The picture behind a data URL, or at an allowed address.

        Raises:
            BadRequest: the URL, the image or its size is not accepted.
        """
        most_pixels = min(most_pixels, MOST_PIXELS)
        if not self.fetcher.allowed or not url[:8].lower().startswith(("http://", "https://")):
            return await run_sync(load, url, param, most_pixels, self.cache, limiter=self.limiter)
        fetched = await self.fetcher.fetch(url, param)
        try:
            return await run_sync(seen, fetched, param, most_pixels, self.cache, limiter=self.limiter)
        except BadRequest as refused:
            if refused.code != "invalid_image":
                raise
            raise BadRequest(NOT_FETCHED, param=param, code="invalid_image_url") from None


def load(url: str, param: str, most_pixels: int = MOST_PIXELS, cache: PictureCache | None = None) -> Picture:
    return seen(content(url, param), param, most_pixels, cache or PictureCache(0))


def seen(content: bytes, param: str, most_pixels: int, cache: PictureCache) -> Picture:
    key = key_of(content)
    picture = cache.get(key)
    if picture is None:
        picture = Picture(decode(content, param, most_pixels))
        _ = picture.key  # hashed here, since the event loop will ask for it
        cache.put(key, picture)
    elif picture.image.width * picture.image.height > most_pixels:
        raise BadRequest(TOO_LARGE, param=param, code="image_too_large")
    return picture


def content(url: str, param: str) -> bytes:
    if url[:5].lower() != "data:":
        message = (
            "Images are taken as data URLs (data:image/png;base64,...) and from the hosts that this server allows."
        )
        raise BadRequest(message, param=param, code="invalid_image_url")
    head, comma, body = url.partition(",")
    if not comma or not HEAD.fullmatch(head[:200]):
        message = "The data URL must begin with data:image/png;base64, (or jpeg, webp, gif)."
        raise BadRequest(message, param=param, code="invalid_image")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest("The image is not valid base64.", param=param, code="invalid_image") from None


def decode(content: bytes, param: str, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """RGB, first frame, turned as its EXIF says, laid over white where it is transparent."""
    too_large = BadRequest(TOO_LARGE, param=param, code="image_too_large")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > most_pixels:
                raise too_large
            if min(image.size) < 1:
                raise ValueError("no pixels")
            image.load()
            return rgb(ImageOps.exif_transpose(image))
    except BadRequest:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise too_large from None
    except Exception as error:  # whatever a decoder raises on hostile bytes; its text may tell addresses
        if "Decompressed data too large" in str(error):
            raise too_large from None
        message = "The image cannot be decoded: send a whole PNG, JPEG, WebP or GIF."
        raise BadRequest(message, param=param, code="invalid_image") from None


def rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I"):
        image = image.convert("I").point(EIGHT_OF_SIXTEEN_BITS, "L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    seen = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
