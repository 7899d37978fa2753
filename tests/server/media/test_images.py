"""Images from data URLs: conversion to RGB, refusals before decoding, and the cache."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.hostile.images import build_png, encode_image_url
from decoding.errors import BadRequest
from decoding.prompt import ImageInput
from server.media.image_bounds import MAX_PIXELS
from server.media.image_ref import ImageRef
from server.media.images import ImageCache, build_content_key, decode_cached, open_source
from tests.server.conftest import FakeServer, StartServer, data_url, image_messages

pytestmark = pytest.mark.flaky(reruns=2)  # refusals have a limit in time, and the machine may be busy

RED = (255, 0, 0)
SVG = b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><svg xmlns="http://www.w3.org/2000/svg">&e;</svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n"
GIF = b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\xff\xff\xff\xff\x00\x02\x02D\x01\x00;"


def load_data_url(url: str, param: str, cache: ImageCache | None = None) -> ImageInput:
    source, cache = ImageRef(url, param), cache or ImageCache(0)
    return decode_cached(open_source(source, None, MAX_PIXELS, cache), source, cache)


def image(mode: str, colour: Any, size: tuple[int, int] = (4, 4)) -> Image.Image:
    return Image.new(mode, size, colour)


def half_transparent_palette() -> Image.Image:
    palette_image = image("P", 0)
    palette_image.putpalette([0, 255, 0, *RED])
    palette_image.info["transparency"] = 0
    return palette_image


@pytest.mark.parametrize(
    ("image_url", "expected"),
    [
        (data_url(image("RGB", RED)), RED),
        (data_url(image("RGB", RED, (1, 1))), RED),
        (data_url(image("RGB", RED, (1, 100))), RED),
        (data_url(image("RGB", RED), "WEBP", lossless=True), RED),
        (data_url(image("RGB", RED), "GIF"), RED),
        (data_url(image("RGB", RED)).replace("image/png", "IMAGE/JPG"), RED),
        (data_url(image("L", 9)), (9, 9, 9)),
        (data_url(image("1", 1)), (255, 255, 255)),
        (data_url(image("I;16", 0x8012)), (128, 128, 128)),
        (data_url(image("RGBA", (*RED, 0))), (255, 255, 255)),
        (data_url(image("RGBA", (*RED, 255))), RED),
        (data_url(image("LA", (9, 255))), (9, 9, 9)),
        (data_url(image("P", 0).convert("RGB").convert("P")), (0, 0, 0)),
        (data_url(half_transparent_palette()), (255, 255, 255)),
    ],
)
def test_every_mode_is_converted_to_rgb(image_url: str, expected: tuple[int, int, int]) -> None:
    loaded = load_data_url(image_url, "url")
    assert loaded.visible.mode == "RGB"
    assert loaded.visible.getpixel((0, 0)) == expected


def test_cmyk_is_converted_to_rgb() -> None:
    pixel = load_data_url(data_url(image("CMYK", (0, 255, 255, 0), (16, 16)), "JPEG"), "url").visible.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    assert all(abs(actual - expected) < 6 for actual, expected in zip(pixel, RED, strict=True))


def test_exif_orientation_rotates_the_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_data_url(data_url(image("RGB", RED, (8, 4)), "JPEG", exif=exif), "url").visible.size == (4, 8)


def test_first_frame_is_used() -> None:
    animation = data_url(image("RGB", RED), "GIF", save_all=True, append_images=[image("RGB", "blue")])
    assert load_data_url(animation, "url").visible.getpixel((0, 0)) == RED


WHOLE = data_url(image("RGB", RED, (64, 64)))


@pytest.mark.parametrize(
    ("image_url", "code"),
    [
        ("", "invalid_image_url"),
        ("http://127.0.0.1/a.png", "invalid_image_url"),
        ("https://example.com/a.png", "invalid_image_url"),
        ("file:///etc/passwd", "invalid_image_url"),
        ("/etc/passwd", "invalid_image_url"),
        ("ftp://example.com/a.png", "invalid_image_url"),
        ("javascript:alert(1)", "invalid_image_url"),
        ("https://user:secret@example.com/\r\nX: y", "invalid_image_url"),
        ("https://example.com/" + "a" * 300_000, "invalid_image_url"),
        ("data:", "invalid_image"),
        ("data:image/png;base64", "invalid_image"),
        ("data:image/png;base64,", "invalid_image"),
        ("data:image/png,abc", "invalid_image"),
        ("data:text/plain;base64,aGVsbG8=", "invalid_image"),
        ("data:image/png;base64,%%%%", "invalid_image"),
        ("data:image/png;base64,aGVsbG8", "invalid_image"),
        (encode_image_url(b"hello"), "invalid_image"),
        (encode_image_url(SVG), "invalid_image"),
        (encode_image_url(SVG, "svg+xml"), "invalid_image"),
        (encode_image_url(EPS), "invalid_image"),
        (WHOLE[: len(WHOLE) // 8 * 4], "invalid_image"),
        (encode_image_url(build_png(0, 0)), "invalid_image"),
        (encode_image_url(build_png(20_000, 20_000)), "image_too_large"),
        (encode_image_url(build_png(65_535, 65_535)), "image_too_large"),
        (encode_image_url(build_png(5_001, 5_000)), "image_too_large"),
        (encode_image_url(build_png(1, 25_000_000)), "image_too_large"),
        (encode_image_url(build_png(16_385, 200)), "image_too_large"),
        (encode_image_url(build_png(101, 1)), "invalid_image_aspect_ratio"),
        (encode_image_url(build_png(1, 16_384)), "invalid_image_aspect_ratio"),
        (encode_image_url(GIF, "gif"), "image_too_large"),
    ],
    ids=lambda value: value[:40],
)
def test_invalid_image_is_refused(image_url: str, code: str) -> None:
    start = time.perf_counter()
    with pytest.raises(BadRequest) as error:
        load_data_url(image_url, "url")
    assert (error.value.code, error.value.param) == (code, "url")
    assert "0x" not in error.value.message
    assert time.perf_counter() - start < 1


ROTATED = Image.Exif()
ROTATED[0x0112] = 6


@pytest.mark.parametrize(
    ("mode", "image_format", "options"),
    [
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("LA", "PNG", {}),
        ("P", "PNG", {"transparency": 0}),
        ("I;16", "PNG", {}),
        ("P", "GIF", {}),
        ("RGB", "JPEG", {"exif": ROTATED}),
        ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
        ("CMYK", "JPEG", {"progressive": True, "subsampling": 0}),
        ("RGB", "WEBP", {"lossless": True, "quality": 0, "method": 0}),
        ("RGBA", "WEBP", {"lossless": True, "quality": 0, "method": 0}),
    ],
)
def test_largest_image_is_bounded_in_time_and_memory(mode: str, image_format: str, options: dict[str, Any]) -> None:
    """It never holds the interpreter for 100 ms, and takes less than 280 MB while it is decoded."""
    size = (5_000, 2_500) if image_format == "WEBP" or mode == "CMYK" else (5_000, 5_000)
    url = data_url(image(mode, 0, size), image_format, **options)
    before = reset_peak_megabytes()
    assert longest_hold(lambda: load_data_url(url, "url")) < 0.1
    assert read_megabytes("VmHWM") - before < 280


@pytest.mark.parametrize(("mode", "image_format"), [("RGB", "WEBP"), ("CMYK", "JPEG")])
def test_costly_formats_have_a_lower_bound_of_pixels(mode: str, image_format: str) -> None:
    with pytest.raises(BadRequest) as error:
        load_data_url(data_url(image(mode, 0, (5_000, 2_501)), image_format), "url")
    assert error.value.code == "image_too_large"


def reset_peak_megabytes() -> int:
    """Reset the peak of this process's memory, and return the memory that it has now."""
    Path("/proc/self/clear_refs").write_text("5")
    return read_megabytes("VmRSS")


def read_megabytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{field}:\s+(\d+)", status)[0]) // 1_000


def longest_hold(work: Callable[[], object]) -> float:
    """Return the most processor seconds that this thread uses between two wake-ups of a thread that always wakes.

    Processor time does not depend on the load of the machine.
    """
    clock, holds, is_finished = time.pthread_getcpuclockid(threading.get_ident()), [0.0], threading.Event()

    def watch() -> None:
        before = time.clock_gettime(clock)
        while not is_finished.wait(0.0005):
            now = time.clock_gettime(clock)
            holds.append(now - before)
            before = now

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    is_finished.set()
    watcher.join()
    return max(holds)


@pytest.mark.parametrize(("mode", "size"), [("RGB", (3, 2)), ("RGB", (2_000, 1_500)), ("L", (70, 30)), ("1", (13, 9))])
def test_key_covers_mode_size_and_all_pixels(mode: str, size: tuple[int, int]) -> None:
    noise = Image.effect_noise(size, 90).convert(mode)
    content = f"{mode} {size[0]}x{size[1]}".encode() + b"\0" + noise.tobytes()
    edits = f"{hashlib.sha256(content).hexdigest()} (None, None, None, None)".encode() + b"\0"
    assert ImageInput(noise).key == hashlib.sha256(edits).hexdigest()


async def test_image_that_cannot_be_loaded_fails_the_request(server: FakeServer) -> None:
    response = await server.chat(messages=image_messages(data_url(), "https://example.com/a.png"), stream=True)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "invalid_image_url")
    assert error["param"] == "messages[0].content[1].image_url.url"
    assert not server.engine.requests


async def test_too_many_images_are_refused(start_server: StartServer) -> None:
    server = await start_server(max_images=2)
    response = await server.chat(messages=image_messages(*[data_url()] * 3))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages")


async def test_pixels_of_all_images_are_bounded(server: FakeServer) -> None:
    large = data_url(Image.new("1", (4900, 5000)))
    response = await server.chat(messages=image_messages(large, large))
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("image_too_large", "messages[0].content[1].image_url.url")


async def test_detail_field_is_validated(server: FakeServer) -> None:
    messages = image_messages()
    messages[0]["content"][0]["image_url"]["detail"] = "low"
    assert (await server.chat(messages=messages)).status_code == 200
    messages[0]["content"][0]["image_url"]["detail"] = "extreme"
    assert (await server.chat(messages=messages)).json()["error"]["param"] == "messages[0].content[0].image_url.detail"


def test_same_content_is_decoded_once() -> None:
    cache = ImageCache(1000)
    first, again = (load_data_url(data_url(), "url", cache=cache) for _ in range(2))
    assert first is again
    assert load_data_url(data_url(Image.new("RGB", (6, 8), "red")), "url", cache=cache).visible.size == (6, 8)


def test_cache_stays_within_its_bytes() -> None:
    cache = ImageCache(3 * 10 * 10 * 4)
    for content in (b"a", b"b", b"c", b"a", b"d"):
        if cache.get(build_content_key(content)) is None:
            cache.put(build_content_key(content), ImageInput(Image.new("RGB", (10, 10))))
    assert cache.bytes == cache.max_bytes
    assert [cache.get(build_content_key(content)) is None for content in (b"a", b"b", b"c", b"d")] == [
        False,
        True,
        False,
        False,
    ]
    cache.put(build_content_key(b"e"), ImageInput(Image.new("RGB", (100, 100))))
    assert cache.get(build_content_key(b"e")) is None
