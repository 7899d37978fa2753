"""Metadata is removed before a decoder reads it. Only the orientation of the Exif has an effect."""

from __future__ import annotations

import base64
import io
import struct
import time
import zlib
from contextlib import suppress
from typing import Any

import pytest
from PIL import Image, ImageOps

from bench.hostile.images import (
    build_chunk,
    build_exif,
    build_exif_bomb,
    build_jpeg_with_segments,
    build_metadata_bomb,
)
from decoding.errors import BadRequest
from server.media.image_metadata import strip_metadata
from server.media.images import decode_image, open_image
from tests.server.interpreter_holds import measure_longest_hold

SIZE = (8, 4)


def draw(image_format: str, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(SIZE, 90).convert(mode).save(buffer, image_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize(("image_format", "options"), [("PNG", {}), ("JPEG", {}), ("WEBP", {"lossless": True})])
def test_orientation_of_the_exif_is_applied(image_format: str, options: dict[str, Any], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "a description"
    content = draw(image_format, exif=exif, **options)
    with Image.open(io.BytesIO(content)) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    decoded = decode_image(content, "url")
    assert decoded.size == expected.size
    assert decoded.tobytes() == expected.tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_of_either_byte_order_is_read(order: str) -> None:
    header = b"II*\0" if order == "<" else b"MM\0*"
    exif = header + struct.pack(f"{order}IHHHIHH", 8, 1, 0x0112, 3, 1, 6, 0)
    assert strip_metadata(build_jpeg_with_segments(draw("JPEG"), (0xE1, b"Exif\0\0" + exif)))[1] == 6


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff",
        b"XX*\0" + bytes(100),
        build_exif((0x0112, 3, 7_000, bytes(14_000))),
        build_exif((0x0112, 5, 1, bytes(8))),
    ],
)
def test_invalid_orientation_leaves_the_image_upright(exif: bytes) -> None:
    content = draw("PNG")
    assert strip_metadata(content[:33] + build_chunk(b"eXIf", exif) + content[33:]) == (content, 1)


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("PNG", {"mode": "P"}),
        ("PNG", {"mode": "LA"}),
        ("PNG", {"mode": "I;16"}),
        ("JPEG", {"mode": "CMYK"}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"mode": "L", "comment": "a comment", "dpi": (72, 72)}),
        ("WEBP", {"mode": "RGBA", "lossless": True}),
        ("WEBP", {"xmp": b"<x/>", "icc_profile": bytes(200)}),
        ("GIF", {"mode": "P"}),
    ],
)
def test_pixels_are_those_of_the_whole_image(image_format: str, options: dict[str, Any]) -> None:
    content = draw(image_format, **options)
    with Image.open(io.BytesIO(content)) as whole, Image.open(io.BytesIO(strip_metadata(content)[0])) as stripped:
        assert (whole.mode, whole.tobytes()) == (stripped.mode, stripped.tobytes())


def test_transparency_is_kept() -> None:
    content = draw("PNG", "P", transparency=0)
    with Image.open(io.BytesIO(strip_metadata(content)[0])) as stripped:
        assert stripped.info["transparency"] == 0


def test_texts_and_profile_of_a_png_are_not_decoded() -> None:
    content = draw("PNG", icc_profile=bytes(100_000))
    text = build_chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(("\U0001f600" + "a" * 1_000_000).encode()))
    content = content[:33] + 60 * text + content[33:-12] + text + content[-12:] + bytes(100)
    image = open_image(content, "url")
    image.load()
    assert not {"a", "icc_profile"} & set(image.info)
    assert len(strip_metadata(content)[0]) < 1_000


def test_segments_after_a_false_end_of_a_jpeg_are_not_decoded() -> None:
    """Pillow reads on behind a marker that ends the image before its first scan."""
    content = draw("JPEG")
    hidden = content[:2] + b"\xff\xd9" + build_jpeg_with_segments(content, (0xE1, b"Exif\0\0" + build_exif_bomb()))[2:]
    assert build_exif_bomb()[100:200] not in strip_metadata(hidden)[0]


@pytest.mark.flaky(reruns=2)  # a busy machine may delay it
@pytest.mark.parametrize("place", ["eXIf of a PNG", "Exif of a JPEG", "MPF of a JPEG", "EXIF of a WebP"])
def test_directory_that_names_the_same_numbers_again_and_again_costs_nothing(place: str) -> None:
    bomb = build_exif_bomb()
    png, jpeg, webp = draw("PNG"), draw("JPEG"), draw("WEBP", exif=b"Exif\0\0" + bomb)
    content = {
        "eXIf of a PNG": png[:33] + build_chunk(b"eXIf", bomb) + png[33:],
        "Exif of a JPEG": build_jpeg_with_segments(jpeg, (0xE1, b"Exif\0\0" + bomb)),
        "MPF of a JPEG": build_jpeg_with_segments(jpeg, (0xE2, b"MPF\0" + bomb)),
        "EXIF of a WebP": webp,
    }[place]
    with measure_longest_hold() as hold:
        assert decode_image(content, "url").size in (SIZE, SIZE[::-1])
    assert hold.seconds < 0.1


JPEG, WEBP, GIF = draw("JPEG"), draw("WEBP"), draw("GIF", "P")
EXIF_SEGMENT = b"\xff\xe1\0\x0aExif\0\0ab"
FLOODS = {
    "Exif inside a JPG segment": build_jpeg_with_segments(JPEG, *[(0xC8, EXIF_SEGMENT * 5_000)] * 20),
    "frame headers of a JPEG": build_jpeg_with_segments(JPEG, *[(0xC0, bytes(63_000))] * 200),
    "hierarchical headers of a JPEG": build_jpeg_with_segments(JPEG, *[(0xDE, bytes(63_000))] * 200),
    "tables of a JPEG": build_jpeg_with_segments(JPEG, *[(0xDB, (b"\0" + bytes([1]) * 64) * 1_000)] * 200),
    "frames behind the end of a WebP": WEBP + b"ANMF\0\0\0\0" * 1_500_000,
    "blocks behind an empty control block of a GIF": GIF[:781] + b"!\xf9\0" + b"\1," * 5_000_000 + GIF[781:],
    "a comment behind an empty control block of a GIF": (
        GIF[:781] + b"!\xf9\0\1,\0!\xfe" + b"\1a" * 5_000_000 + b"\0" + GIF[781:]
    ),
}


@pytest.mark.flaky(reruns=2)  # a busy machine may delay it
@pytest.mark.parametrize("content", FLOODS.values(), ids=FLOODS)
def test_parts_that_only_the_decoder_would_read_cost_nothing(content: bytes) -> None:
    start = time.process_time()
    with measure_longest_hold() as hold, suppress(BadRequest):
        decode_image(content, "url")
    assert time.process_time() - start < 0.5
    assert hold.seconds < 0.1


def test_webp_ends_at_the_length_of_its_header() -> None:
    assert decode_image(WEBP + b"VP8 \x04\0\0\0abcd", "url").tobytes() == decode_image(WEBP, "url").tobytes()


def test_transparent_pixels_of_a_gif_stay_transparent() -> None:
    content = draw("GIF", "P", transparency=0, comment=b"a comment")
    stripped = strip_metadata(content)[0]
    assert len(stripped) < len(content)
    with Image.open(io.BytesIO(stripped)) as image:
        assert image.info["transparency"] == 0
        assert "comment" not in image.info


@pytest.mark.flaky(reruns=2)  # a busy machine may delay it
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_long_list_as_the_orientation_costs_nothing(kind: str) -> None:
    """Pillow makes a fraction of every eight bytes, which took ten seconds."""
    content = base64.b64decode(build_metadata_bomb(0, kind, bytes([3]) * 14_000_000).partition(",")[2])
    start = time.process_time()
    with measure_longest_hold() as hold:
        assert decode_image(content, "url").size == (8, 8)
    assert time.process_time() - start < 0.5
    assert hold.seconds < 0.1
