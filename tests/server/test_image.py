"""Data URLs: what is taken, how it comes out, and what is refused before it is decoded."""

from __future__ import annotations

import time
import zlib
from typing import Any

import pytest
from PIL import Image

from bench.hostile import chunk, png, url
from decoding.errors import BadRequest
from server.image import load
from tests.server.conftest import Serve, Served, data_url, seeing

RED = (255, 0, 0)
SVG = b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><svg xmlns="http://www.w3.org/2000/svg">&e;</svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n"
GIF = b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\xff\xff\xff\xff\x00\x02\x02D\x01\x00;"


def image(mode: str, colour: Any, size: tuple[int, int] = (4, 4)) -> Image.Image:
    return Image.new(mode, size, colour)


def half_transparent_palette() -> Image.Image:
    picture = image("P", 0)
    picture.putpalette([0, 255, 0, *RED])
    picture.info["transparency"] = 0
    return picture


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (data_url(image("RGB", RED)), RED),
        (data_url(image("RGB", RED, (1, 1))), RED),
        (data_url(image("RGB", RED, (1, 2000))), RED),
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
def test_every_kind_of_picture_comes_out_as_rgb(given: str, expected: tuple[int, int, int]) -> None:
    picture = load(given, "url")
    assert picture.image.mode == "RGB"
    assert picture.image.getpixel((0, 0)) == expected


def test_cmyk() -> None:
    pixel = load(data_url(image("CMYK", (0, 255, 255, 0), (16, 16)), "JPEG"), "url").image.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    assert all(abs(seen - meant) < 6 for seen, meant in zip(pixel, RED, strict=True))


def test_exif_turns_the_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load(data_url(image("RGB", RED, (8, 4)), "JPEG", exif=exif), "url").image.size == (4, 8)


def test_the_first_frame_counts() -> None:
    moving = data_url(image("RGB", RED), "GIF", save_all=True, append_images=[image("RGB", "blue")])
    assert load(moving, "url").image.getpixel((0, 0)) == RED


WHOLE = data_url(image("RGB", RED, (64, 64)))


@pytest.mark.parametrize(
    ("given", "code"),
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
        (url(b"hello"), "invalid_image"),
        (url(SVG), "invalid_image"),
        (url(SVG, "svg+xml"), "invalid_image"),
        (url(EPS), "invalid_image"),
        (WHOLE[: len(WHOLE) // 8 * 4], "invalid_image"),
        (url(png(0, 0)), "invalid_image"),
        (url(png(20_000, 20_000)), "image_too_large"),
        (url(png(65_535, 65_535)), "image_too_large"),
        (url(png(5_001, 5_000)), "image_too_large"),
        (url(GIF, "gif"), "image_too_large"),
        (url(png(1, 1, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 100_000_000)))), "image_too_large"),
    ],
    ids=lambda value: value[:40],
)
def test_refused(given: str, code: str) -> None:
    began = time.perf_counter()
    with pytest.raises(BadRequest) as refused:
        load(given, "url")
    assert (refused.value.code, refused.value.param) == (code, "url")
    assert "0x" not in refused.value.message
    assert time.perf_counter() - began < 1


async def test_a_picture_that_cannot_be_loaded_is_an_error(served: Served) -> None:
    response = await served.chat(messages=seeing(data_url(), "https://example.com/a.png"), stream=True)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "invalid_image_url")
    assert error["param"] == "messages[0].content[1].image_url.url"
    assert not served.engine.asks


async def test_too_many_pictures(serve: Serve) -> None:
    served = await serve(max_images=2)
    response = await served.chat(messages=seeing(*[data_url()] * 3))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages")


async def test_the_pixels_of_all_pictures_are_bounded(served: Served) -> None:
    large = data_url(Image.new("1", (4900, 5000)))
    response = await served.chat(messages=seeing(large, large, large))
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("image_too_large", "messages[0].content[2].image_url.url")


async def test_details_are_taken(served: Served) -> None:
    messages = seeing()
    messages[0]["content"][0]["image_url"]["detail"] = "low"
    assert (await served.chat(messages=messages)).status_code == 200
    messages[0]["content"][0]["image_url"]["detail"] = "extreme"
    assert (await served.chat(messages=messages)).json()["error"]["param"] == "messages[0].content[0].image_url.detail"
