"""Bounds on the parts of an encoded image."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
from PIL import Image

from bench.hostile.images import build_chunk
from decoding.errors import BadRequest
from server.media.image_metadata import strip_metadata
from server.media.image_structure import check_parts
from server.media.images import decode_image

HEADER_END = 33  # of a PNG: the signature and IHDR


def encode(image_format: str, size: tuple[int, int] = (64, 64), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 90).save(buffer, image_format, **options)
    return buffer.getvalue()


JPEG, PNG, GIF, WEBP = (encode(name) for name in ("JPEG", "PNG", "GIF", "WEBP"))


def repeat_last_scan(jpeg: bytes, count: int) -> bytes:
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + count * scan + jpeg[-2:]


def add_chunks(count: int) -> bytes:
    content = WEBP[12:] + count * b"junk\0\0\0\0"
    return b"RIFF" + (4 + len(content)).to_bytes(4, "little") + b"WEBP" + content


FLOODS = {
    "scans of a JPEG": repeat_last_scan(encode("JPEG", (1000, 1000), progressive=True), 101),
    "comments of a JPEG": JPEG[:2] + 200_000 * b"\xff\xfe\0\2" + JPEG[2:],
    "restart markers of a JPEG": JPEG[:2] + 200_000 * b"\xff\xd0" + JPEG[2:],
    "bytes between segments of a JPEG": JPEG[:2] + bytes(1_000_000) + JPEG[2:],
    "bytes at the end of a JPEG": JPEG[:2] + bytes(1_000_000),
    "text chunks of a PNG": PNG[:HEADER_END] + 2_000 * build_chunk(b"tEXt", b"a\0b") + PNG[HEADER_END:],
    "pixel chunks of a PNG": PNG[:HEADER_END] + 30_000 * build_chunk(b"IDAT", b"") + PNG[HEADER_END:],
    "chunks of a WebP": add_chunks(200_000),
    "extensions of a GIF": GIF[:781] + 200_000 * b"!\xfe\0" + GIF[781:],
    "blocks of a GIF": GIF[:781] + b"!\xfe" + 20_000 * b"\1a" + b"\0" + GIF[781:],
    "bytes between blocks of a GIF": GIF[:781] + bytes(1_000_000) + GIF[781:],
}


@pytest.mark.flaky(reruns=2)  # a busy machine may delay it
@pytest.mark.parametrize("content", FLOODS.values(), ids=FLOODS)
def test_image_with_too_many_parts_is_refused_at_once(content: bytes) -> None:
    start = time.perf_counter()
    with pytest.raises(BadRequest) as error:
        decode_image(content, "url")
    assert (error.value.code, error.value.param) == ("invalid_image", "url")
    assert "too many" in error.value.message
    assert time.perf_counter() - start < 0.5


ORDINARY = {
    "progressive": encode("JPEG", progressive=True),
    "100 scans": repeat_last_scan(encode("JPEG", (8, 8), progressive=True), 80),
    "restart markers": encode("JPEG", (300, 300), restart_marker_blocks=1),
    "video after a photo": JPEG + 200 * b"\xff\xda" + bytes(100_000),
    "fill bytes": JPEG[:2] + 1_000 * b"\xff" + JPEG[2:],
    "profile and EXIF": encode("JPEG", icc_profile=bytes(1_000_000), exif=Image.Exif()),
    "texts": PNG[:HEADER_END] + 500 * build_chunk(b"tEXt", b"a\0b") + PNG[HEADER_END:],
    "small pixel chunks": encode("PNG", (1000, 1000)),
    "padding of a PNG": PNG + bytes(1_000_000),
    "animation": encode("WEBP", save_all=True, append_images=100 * [Image.new("L", (64, 64))]),
    "padding of a WebP": WEBP + bytes(1_000_000),
    "long comment of a GIF": encode("GIF", comment=bytes(range(256)) * 1_000),
    "GIF without a palette": GIF[:10] + b"\0\0\0" + GIF[781:],
}


@pytest.mark.parametrize("content", ORDINARY.values(), ids=ORDINARY)
def test_image_with_many_parts_is_decoded(content: bytes) -> None:
    assert decode_image(content, "url").width > 0


@pytest.mark.parametrize("content", [JPEG, PNG, GIF, WEBP], ids=["JPEG", "PNG", "GIF", "WebP"])
def test_cut_image_is_left_to_its_decoder(content: bytes) -> None:
    for end in range(min(len(content), 1_000)):
        check_parts(content[:end])
        strip_metadata(content[:end])
