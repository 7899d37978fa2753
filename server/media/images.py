"""Load images from URLs. An image that cannot be loaded is an error: the server never answers from the text alone."""

from __future__ import annotations

import binascii
import hashlib
import io
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import anyio
from PIL import Image

from decoding.errors import BadRequest
from decoding.prompt import MAX_SHIFTED_PIXELS, ImageInput
from server.fair_queue import FairQueue
from server.media.host_allowlist import HostAllowlist
from server.media.image_bounds import MAX_PIXELS, TOO_LARGE, check_pixels, check_sides, get_max_pixels
from server.media.image_fetcher import FETCH_FAILED, MAX_BYTES, ImageFetcher
from server.media.image_memory import ImageLease, ImageMemory
from server.media.image_metadata import UPRIGHT, strip_metadata
from server.media.image_ref import ImageRef
from server.media.image_structure import TooManyParts, check_parts
from server.threads import run_to_end

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
BASE64_PART = 1 << 20  # characters that are decoded at a time, a multiple of 4
MAX_FETCHED_BYTES = 160_000_000  # of fetched images that are not decoded, over all requests; each counts as MAX_BYTES
MAX_DECODING_BYTES = 150_000_000  # beside the decoded images, while images are decoded: what the largest one needs
TOO_COMPLEX = "The image has too many scans or metadata: save it again without metadata."
UNDECODABLE = "The image cannot be decoded: send a complete PNG, JPEG, WebP or GIF."
DATA_URL_HEADER = re.compile(r"data:image/(?:png|jpe?g|webp|gif)(?:;[\w.-]+=[\w.-]+)*;base64", re.IGNORECASE)
DECODER_VERSION = b"rgb-white-exif-2;"  # part of the cache key: change it with the way images are decoded
STRIP_PIXELS = 1 << 20  # Pillow holds the interpreter while it composes images, so that it composes one strip at a time
ORIENTATION = "onlyseen orientation"  # key of the Exif orientation among the details of an opened image
TRANSPOSITIONS = {  # Exif orientation -> what turns the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
HIGH_BYTES = [value >> 8 for value in range(1 << 16)]  # 16-bit value -> 8-bit value


Result = TypeVar("Result")


class ImageLoader:
    """Decodes images in a few threads, never on the event loop, and fetches them from allowed hosts."""

    def __init__(
        self,
        hosts: Iterable[str] = (),
        cache_bytes: int = 0,
        memory_bytes: int = 128_000_000,
        threads: int = 4,
        max_owner_bytes: int | None = None,
        max_owner_fetched_bytes: int | None = None,
    ) -> None:
        """Create a loader.

        Args:
            hosts: Hosts from which images may be fetched.
            cache_bytes: Bytes of the cache of decoded images.
            memory_bytes: Bytes of the decoded images of all requests.
            threads: Threads that decode.
            max_owner_bytes: Bytes of the decoded images of one API key; None: no bound of its own.
            max_owner_fetched_bytes: Bytes of the fetched images of one API key that are not decoded, at least those of
                one image; None: no bound of its own.
        """
        self.limiter = anyio.CapacityLimiter(threads)
        self.fetcher = ImageFetcher(HostAllowlist(hosts))
        self.cache = ImageCache(cache_bytes)
        self.memory = ImageMemory(memory_bytes, max_owner_bytes)
        self._max_fetched_bytes = max(MAX_BYTES, max_owner_fetched_bytes or MAX_FETCHED_BYTES)
        self.fetch_memory = ImageMemory(MAX_FETCHED_BYTES, self._max_fetched_bytes)
        self._decoding_memory = FairQueue(MAX_DECODING_BYTES)

    async def load(
        self, sources: Sequence[ImageRef], lease: ImageLease, cache_salt: str | None = None, num_copies: int = 0
    ) -> list[ImageInput]:
        """Load the images of a request.

        Args:
            sources: Where the images are.
            lease: The memory for the images. It grows to what the images and their copies keep.
            cache_salt: Requests with different salts share no cached image.
            num_copies: Copies of each image that the request keeps.

        Returns:
            The decoded images.
        """
        if not sources:  # Even no bytes would wait behind the bytes of other requests.
            return []
        urls = [source for source in sources if self._is_fetched(source)]
        if not urls:
            return await self._decode(sources, [None] * len(sources), lease, cache_salt, num_copies)
        with self.fetch_memory.lease(cache_salt) as fetch_lease:
            await fetch_lease.reserve(min(len(urls) * MAX_BYTES, self._max_fetched_bytes))
            fetched = iter(await self.fetcher.fetch_all(urls, fetch_lease.bytes))
            contents = [next(fetched) if self._is_fetched(source) else None for source in sources]
            fetch_lease.shrink(sum(len(content) for content in contents if content is not None))
            return await self._decode(sources, contents, lease, cache_salt, num_copies)

    def _is_fetched(self, source: ImageRef) -> bool:
        """Return whether the image has an http(s) URL, and any host is allowed."""
        return bool(self.fetcher.allowed) and source.url[:8].lower().startswith(("http://", "https://"))

    async def _decode(
        self,
        sources: Sequence[ImageRef],
        contents: list[bytes | None],
        lease: ImageLease,
        cache_salt: str | None,
        num_copies: int,
    ) -> list[ImageInput]:
        opened = await self._open(sources, contents, cache_salt)
        size = sum(image.kept_bytes + num_copies * image.view_bytes for image in opened)
        if lease.fits(size):
            await lease.reserve(size)
        else:  # Nothing but what the budget of bodies counts is kept while the request waits.
            del opened
            await lease.reserve(size)
            opened = await self._open(sources, contents, cache_salt)
        contents.clear()
        images = []
        for image, source in zip(opened, sources, strict=True):
            if image.cached is not None:
                images.append(image.cached)
                continue
            # Held for as long as the decoder runs, so that a large image delays those of other keys by no more.
            async with self._decoding_memory.hold(cache_salt or "", image.decoding_bytes - image.kept_bytes):
                images.append(await run_to_end(decode_cached, image, source, self.cache, limiter=self.limiter))
        return images

    async def _open(
        self, sources: Sequence[ImageRef], contents: Sequence[bytes | None], cache_salt: str | None
    ) -> list[OpenedImage]:
        opened, pixels_left = [], MAX_PIXELS
        for source, content in zip(sources, contents, strict=True):
            image = await run_to_end(
                open_source, source, content, pixels_left, self.cache, cache_salt, limiter=self.limiter
            )
            pixels_left -= image.pixels
            opened.append(image)
        return opened


@dataclass(frozen=True, slots=True)
class OpenedImage:
    """An image whose size is known and accepted. It is decoded unless it comes from the cache."""

    key: bytes
    width: int
    height: int
    encoded: Image.Image | None = None
    cached: ImageInput | None = None
    is_fetched: bool = False

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def kept_bytes(self) -> int:
        """Bytes of the decoded image. Pillow uses four bytes a pixel, for three colours as well."""
        return 4 * self.pixels

    @property
    def view_bytes(self) -> int:
        """Bytes of a view, a shifted copy."""
        return 4 * min(self.pixels, MAX_SHIFTED_PIXELS)

    @property
    def decoding_bytes(self) -> int:
        """Most bytes in use while the image is decoded, the decoded image included."""
        if self.encoded is None:
            return self.kept_bytes
        return self.pixels * (16 if self.encoded.format == "WEBP" else 12 if self.encoded.mode == "CMYK" else 10)


class ImageCache:
    """Decoded images, at most `max_bytes` of pixels. The least recently used image is evicted first. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._images: OrderedDict[bytes, ImageInput] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> ImageInput | None:
        """Return the image of a key, or None. Count a hit or a miss."""
        with self._lock:
            image = self._images.get(key)
            if image is None:
                self.misses += 1
                return None
            self.hits += 1
            self._images.move_to_end(key)
            return image

    def peek(self, key: bytes) -> ImageInput | None:
        """Return the image of a key, or None, and count nothing."""
        with self._lock:
            return self._images.get(key)

    def put(self, key: bytes, image: ImageInput) -> None:
        """Add an image, unless it is larger than the whole cache, and evict others until the bound holds."""
        with self._lock:
            if key in self._images or count_pixel_bytes(image) > self.max_bytes:
                return
            self._images[key] = image
            self.bytes += count_pixel_bytes(image)
            self._evict(self.max_bytes)

    def make_room(self, size: int) -> None:
        """Evict images until one of `size` bytes fits, before it is decoded. One that is too large is not cached."""
        with self._lock:
            if size <= self.max_bytes:
                self._evict(self.max_bytes - size)

    def _evict(self, max_bytes: int) -> None:
        while self.bytes > max_bytes:
            self.bytes -= count_pixel_bytes(self._images.popitem(last=False)[1])


def build_content_key(content: bytes, cache_salt: str | None = None) -> bytes:
    """Return the cache key of an encoded image: the SHA-256 of all its bytes, so that two contents never share one."""
    return hashlib.sha256(f"{cache_salt};".encode() + DECODER_VERSION + content).digest()


def count_pixel_bytes(image: ImageInput) -> int:
    """Return the bytes of an image in memory. Pillow uses four bytes a pixel, for three colours as well."""
    return 4 * image.visible.width * image.visible.height


def open_source(
    source: ImageRef, content: bytes | None, max_pixels: int, cache: ImageCache, cache_salt: str | None = None
) -> OpenedImage:
    """Look an image up in the cache, or open it. Slow: call it in a thread.

    Args:
        source: The image's address.
        content: The encoded image, if it has been fetched. None: the address is a data URL.
        max_pixels: Pixels that the request has left.
        cache: Cache of decoded images.
        cache_salt: Requests with different salts share no cached image.

    Returns:
        The image, not decoded.

    Raises:
        BadRequest: The image has more than `max_pixels`, or is not accepted.
    """  # noqa: DOC502 - the checks raise it
    encoded = decode_data_url(source.url, source.param) if content is None else content
    key = build_content_key(encoded, cache_salt)
    cached = cache.get(key)
    if cached is not None:
        check_pixels(cached.source.size, max_pixels, source.param)
        return OpenedImage(key, *cached.source.size, cached=cached)
    try:
        image = open_image(encoded, source.param, max_pixels)
    except BadRequest as error:
        raise hide_content(error) if content is not None else error from None
    return OpenedImage(key, *image.size, encoded=image, is_fetched=content is not None)


def decode_cached(image: OpenedImage, source: ImageRef, cache: ImageCache) -> ImageInput:
    """Return a cached image, or decode an opened one and add it to the cache. Slow: call it in a thread.

    Args:
        image: The image, cached or opened.
        source: The image's address.
        cache: Cache of decoded images.

    Returns:
        The decoded image.

    Raises:
        BadRequest: The image cannot be decoded.
    """  # noqa: DOC502 - the error is raised again
    cached = image.cached or cache.peek(image.key)  # An image may be twice in a request.
    if image.encoded is None or cached is not None:
        assert cached is not None
        return cached
    cache.make_room(image.kept_bytes)
    try:
        decoded = ImageInput(decode_opened(image.encoded, source.param))
    except BadRequest as error:
        raise hide_content(error) if image.is_fetched else error from None
    _ = decoded.key  # computed in this thread, because the event loop reads it later
    cache.put(image.key, decoded)
    return decoded


def hide_content(error: BadRequest) -> BadRequest:
    """Return the error for a fetched image. It does not reveal what an address has sent that is no image."""
    if error.code != "invalid_image":
        return error
    return BadRequest(FETCH_FAILED, param=error.param, code="invalid_image_url")


def decode_data_url(url: str, param: str) -> bytes:
    """Return the encoded image of a data URL.

    Raises:
        BadRequest: It is no data URL, has another media type, or is not valid base64.
    """
    if url[:5].lower() != "data:":
        message = "Images must be data URLs (data:image/png;base64,...) or URLs of hosts that this server allows."
        raise BadRequest(message, param=param, code="invalid_image_url")
    header, comma, body = url.partition(",")
    if not comma or not DATA_URL_HEADER.fullmatch(header[:200]):
        message = "The data URL must begin with data:image/png;base64, (or jpeg, webp, gif)."
        raise BadRequest(message, param=param, code="invalid_image")
    try:
        return b"".join(decode_base64(body))
    except (binascii.Error, ValueError):
        raise BadRequest("The image is not valid base64.", param=param, code="invalid_image") from None


def decode_base64(text: str) -> Iterator[bytes]:
    """Decode base64 in parts, between which other threads run.

    Yields:
        The bytes of each part.

    Raises:
        ValueError: The text is not valid base64.
    """
    for start in range(0, len(text), BASE64_PART):
        part = text[start : start + BASE64_PART]
        if part.endswith("=") and start + BASE64_PART < len(text):
            raise ValueError("padding before the end")
        yield binascii.a2b_base64(part, strict_mode=True)


def decode_image(content: bytes, param: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open and decode an encoded image, as `open_image` and `decode_opened` do."""
    return decode_opened(open_image(content, param, max_pixels), param)


def open_image(content: bytes, param: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Check an encoded image before it is decoded.

    Returns:
        The image, not decoded.

    Raises:
        BadRequest: The image has more than `max_pixels`, is longer or narrower than allowed, has too many parts, or
            cannot be opened.
    """
    with convert_errors(param):
        check_parts(content)
        pixels, orientation = strip_metadata(content)
        image = Image.open(io.BytesIO(pixels), formats=FORMATS)
        image.info[ORIENTATION] = orientation
        check_pixels(image.size, min(max_pixels, get_max_pixels(image)), param)
        if min(image.size) < 1:
            raise BadRequest(UNDECODABLE, param=param, code="invalid_image")
        check_sides(image.size, param)
        return image


def decode_opened(image: Image.Image, param: str) -> Image.Image:
    """Decode the first frame, rotated by its EXIF orientation and composed over white where it is transparent.

    Args:
        image: The opened image. It is closed.
        param: Field of the request that holds the image.

    Returns:
        An RGB image.
    """
    with convert_errors(param):
        image.load()
        transposition = TRANSPOSITIONS.get(image.info.get(ORIENTATION, UPRIGHT))
        result = convert_to_rgb(image)
        image.close()  # before another copy is made
        return result if transposition is None else result.transpose(transposition)


@contextmanager
def convert_errors(param: str) -> Iterator[None]:
    """Convert any error of a decoder to a refusal.

    Decoders raise anything on hostile bytes, and the texts of their errors may hold memory addresses.

    Yields:
        None.

    Raises:
        BadRequest: The block has raised.
    """
    try:
        yield
    except BadRequest:
        raise
    except TooManyParts:
        raise BadRequest(TOO_COMPLEX, param=param, code="invalid_image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadRequest(TOO_LARGE, param=param, code="image_too_large") from None
    except Exception as error:
        if "Decompressed data too large" in str(error):
            raise BadRequest(TOO_LARGE, param=param, code="image_too_large") from None
        raise BadRequest(UNDECODABLE, param=param, code="invalid_image") from None


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB. 16-bit grey keeps its high byte, and transparency becomes white.

    Strips are converted one by one, so that only the result takes much memory.

    Returns:
        A new image, which holds neither the decoder nor metadata.
    """
    result = Image.new("RGB", image.size, None)  # not filled, which would hold the interpreter
    is_transparent = image.has_transparency_data
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        if strip.mode in ("I;16", "I"):
            strip = strip.convert("I").point(HIGH_BYTES, "L")
        elif is_transparent:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        result.paste(strip.convert("RGB"), (0, top))
    return result
