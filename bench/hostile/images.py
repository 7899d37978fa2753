"""Images that cost much to decode or to resize: bombs, extreme shapes and the largest allowed image of each format."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import struct
import zlib
from collections.abc import Callable

from PIL import Image

from bench.harness.chat_requests import build_request
from bench.harness.server_process import ServerProcess
from bench.hostile.attack_table import AttackTable, count_outcomes, measure_cost
from bench.hostile.bodies import CHAT, post

PARALLEL = 6
SIDE = 5000  # 25 megapixels, the limit of the server
COSTLY_SIDE = 3500  # 12.25 megapixels, nearly the limit for WebP and CMYK
BASE_SCANS = 10  # of Pillow's progressive JPEG


def build_chunk(kind: bytes, content: bytes) -> bytes:
    """Build a PNG chunk."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def build_png(width: int, height: int, *chunks: bytes, pixels: bytes = b"") -> bytes:
    """Build a PNG file with the given header."""
    head = build_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"".join(
        (b"\x89PNG\r\n\x1a\n", head, *chunks, build_chunk(b"IDAT", zlib.compress(pixels)), build_chunk(b"IEND", b""))
    )


def encode_image_url(content: bytes, kind: str = "png") -> str:
    """Encode bytes as a data URL of an image."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def draw(mode: str, size: tuple[int, int], seed: int, kind: str = "png", **options: object) -> str:
    """Draw an image of one colour, and encode it as a data URL.

    Args:
        mode: Pillow's mode.
        size: Width and height.
        seed: Images with different seeds differ, so that no cache holds them.
        kind: The format.
        options: Options of Pillow's encoder.

    Returns:
        The data URL.
    """
    buffer = io.BytesIO()
    colour = (40 * seed + 17) % 256
    image = Image.new(mode, size, colour if mode == "L" else (colour,) * len(Image.new(mode, (1, 1)).getbands()))
    image.save(buffer, kind, **options)
    return encode_image_url(buffer.getvalue(), kind)


def draw_noise(mode: str, side: int, seed: int, kind: str, **options: object) -> str:
    """Draw a square of noise, which decoders work on for longer than on one colour, and encode it as a data URL.

    Args:
        mode: Pillow's mode, which has a letter for each channel.
        side: Width and height.
        seed: Images with different seeds differ, so that no cache holds them.
        kind: The format. Lossless ones get grey noise of four levels, so that the body is within the server's limit.
        options: Options of Pillow's encoder.

    Returns:
        The data URL.
    """
    generator, buffer = random.Random(seed), io.BytesIO()
    if kind == "png" or options.get("lossless"):
        four_levels = bytes(85 * (value >> 6) for value in range(256))
        grey = generator.randbytes(side * side).translate(four_levels)
        image = Image.frombytes("L", (side, side), grey).convert(mode)
    else:
        image = Image.frombytes(mode, (side, side), generator.randbytes(side * side * len(mode)))
    image.save(buffer, kind, **options)
    return encode_image_url(buffer.getvalue(), kind)


def build_scan_bomb(seed: int, scans: int) -> str:
    """Build a progressive JPEG whose last scan comes many times. A decoder visits all pixels for each."""
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (40 * seed + 17,) * 3).save(buffer, "jpeg", progressive=True)
    content = buffer.getvalue()
    scan = content[content.rindex(b"\xff\xda") : -2]
    return encode_image_url(content[:-2] + scan * (scans - BASE_SCANS) + content[-2:], "jpeg")


def build_gif_bomb(seed: int) -> str:
    """Build a GIF with a screen of 65535 x 65535."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0x80, 0, 0) + bytes([seed]) * 6
    return encode_image_url(screen + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;", "gif")


def build_exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Build an Exif directory from tags, types, counts and values of more than four bytes."""
    start = 8 + 2 + 12 * len(entries) + 4
    offsets = [start + sum(len(value) for *_, value in entries[:number]) for number in range(len(entries))]
    directory = b"".join(
        struct.pack("<HHII", tag, kind, count, offset)
        for (tag, kind, count, _), offset in zip(entries, offsets, strict=True)
    )
    return struct.pack("<4sIH", b"II*\0", 8, len(entries)) + directory + bytes(4) + b"".join(v for *_, v in entries)


def build_exif_bomb(entries: int = 2_500) -> bytes:
    """Build an Exif directory of 64 kB whose entries name the same 4,000 fractions: ten million numbers."""
    start = 8 + 2 + 12 * (entries + 1) + 4
    directory = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    directory += b"".join(struct.pack("<HHII", 0x9000 + number, 5, 4_000, start) for number in range(entries))
    return struct.pack("<4sIH", b"II*\0", 8, entries + 1) + directory + bytes(4) + b"\3" * 32_000


def build_jpeg_with_segments(jpeg: bytes, *segments: tuple[int, bytes]) -> bytes:
    """Insert segments, each a marker and at most 65,533 bytes, in place of the JFIF header of a JPEG."""
    inserted = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments)
    return jpeg[:2] + inserted + jpeg[4 + int.from_bytes(jpeg[4:6], "big") :]


def build_metadata_bomb(seed: int, kind: str, numbers: bytes | None = None) -> str:
    """Build a small image with hostile Exif.

    Args:
        seed: Images with different seeds differ.
        kind: Format of the image.
        numbers: Numbers that the orientation lists; None: a directory that names the same numbers again and again.

    Returns:
        The data URL.
    """
    exif = build_exif_bomb() if numbers is None else build_exif((0x0112, 5, len(numbers) // 8, numbers))
    image, buffer = Image.new("RGB", (8, 8), (40 * seed + 17,) * 3), io.BytesIO()
    if kind == "png":
        return encode_image_url(build_png(8, 8, build_chunk(b"eXIf", exif), pixels=8 * (b"\0" + bytes([seed]) * 24)))
    if kind == "webp":
        image.save(buffer, kind, exif=b"Exif\0\0" + exif)
        return encode_image_url(buffer.getvalue(), kind)
    image.save(buffer, kind)
    parts = [exif[start : start + 65_000] for start in range(0, len(exif), 65_000)]
    segments = [(0xE1, b"Exif\0\0" + part) for part in parts]
    return encode_image_url(build_jpeg_with_segments(buffer.getvalue(), *segments), kind)


def build_text_bomb(seed: int) -> str:
    """Build a PNG with 60 MB in a compressed text."""
    text = build_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes([seed]) * 60_000_000, 9))
    return encode_image_url(build_png(8, 8, text, pixels=bytes(8 * 25)))


def build_segment_flood(seed: int) -> str:
    """Build a JPEG with a million empty comments."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (40 * seed + 17,) * 3).save(buffer, "jpeg")
    content = buffer.getvalue()
    return encode_image_url(content[:2] + b"\xff\xfe\0\2" * 1_000_000 + content[2:], "jpeg")


def build_chunk_flood(seed: int) -> str:
    """Build a PNG with 300,000 short texts."""
    text = build_chunk(b"tEXt", b"a\0" + bytes([seed + 65]))
    return encode_image_url(build_png(8, 8, *[text] * 300_000, pixels=bytes(8 * 25)))


def build_inflating_texts(seed: int) -> str:
    """Build a PNG with 60 compressed texts, each of a million characters of four bytes in Python."""
    text = zlib.compress(("\U0001f600" + chr(97 + seed) * 1_000_000).encode())
    texts = [build_chunk(b"iTXt", b"%d\0\1\0\0\0" % number + text) for number in range(60)]
    return encode_image_url(build_png(8, 8, *texts, pixels=bytes(8 * 25)))


IMAGES: dict[str, Callable[[int], str]] = {  # name -> the image of a seed
    "PNG bomb of 20000 x 20000": lambda seed: encode_image_url(build_png(20_000, 20_000, pixels=bytes([seed]) * 10**6)),
    "PNG header of 65535 x 65535": lambda seed: encode_image_url(build_png(65_535, 65_535, pixels=bytes([seed]))),
    "GIF screen of 65535 x 65535": build_gif_bomb,
    "60 MB in a PNG's text": build_text_bomb,
    "1,000,000 comments in a JPEG": build_segment_flood,
    "300,000 texts in a PNG": build_chunk_flood,
    "60 compressed texts in a PNG": build_inflating_texts,
    "1,750,000 fractions as the orientation of a PNG": lambda seed: build_metadata_bomb(
        seed, "png", bytes([3]) * 14_000_000
    ),
    "1,750,000 fractions as the orientation of a JPEG": lambda seed: build_metadata_bomb(
        seed, "jpeg", bytes([3]) * 14_000_000
    ),
    "1,750,000 fractions as the orientation of a WebP": lambda seed: build_metadata_bomb(
        seed, "webp", bytes([3]) * 14_000_000
    ),
    "10,000,000 fractions in 64 kB of Exif of a JPEG": lambda seed: build_metadata_bomb(seed, "jpeg"),
    "1 x 25,000,000": lambda seed: draw("RGB", (1, 25_000_000), seed),
    "25,000,000 x 1": lambda seed: draw("RGB", (25_000_000, 1), seed),
    "16,384 x 164": lambda seed: draw("RGB", (16_384, 164), seed),
    "25 MP, PNG": lambda seed: draw("RGB", (SIDE, SIDE), seed),
    "25 MP, transparent PNG": lambda seed: draw("RGBA", (SIDE, SIDE), seed),
    "25 MP, grey and transparent PNG": lambda seed: draw("LA", (SIDE, SIDE), seed),
    "25 MP, grey PNG": lambda seed: draw("L", (SIDE, SIDE), seed),
    "25 MP, JPEG": lambda seed: draw("RGB", (SIDE, SIDE), seed, "jpeg"),
    "25 MP, progressive JPEG": lambda seed: draw("RGB", (SIDE, SIDE), seed, "jpeg", progressive=True),
    "25 MP, JPEG of 100 scans": lambda seed: build_scan_bomb(seed, 100),
    "25 MP, JPEG of 2,000 scans": lambda seed: build_scan_bomb(seed, 2000),
    "25 MP of noise, JPEG": lambda seed: draw_noise("RGB", SIDE, seed, "jpeg", quality=50),
    "12 MP of noise, PNG": lambda seed: draw_noise("RGB", COSTLY_SIDE, seed, "png", compress_level=1),
    "12 MP of noise, WebP": lambda seed: draw_noise("RGB", COSTLY_SIDE, seed, "webp", method=0),
    "12 MP of noise, lossless WebP": lambda seed: draw_noise(
        "RGB", COSTLY_SIDE, seed, "webp", lossless=True, method=0, quality=0
    ),
    "12 MP of noise, transparent WebP": lambda seed: draw_noise(
        "RGBA", COSTLY_SIDE, seed, "webp", method=0, quality=20, alpha_quality=20
    ),
    "12 MP of noise, CMYK JPEG": lambda seed: draw_noise("CMYK", COSTLY_SIDE, seed, "jpeg", quality=20),
    "16 MP, WebP": lambda seed: draw("RGB", (4000, 4000), seed, "webp", method=0),
    "25 MP, GIF": lambda seed: draw("L", (SIDE, SIDE), seed, "gif"),
    "25 MP, JPEG, under agla": lambda seed: draw("RGB", (SIDE, SIDE), seed, "jpeg"),
}
DECODING = {"25 MP, JPEG, under agla": {"strategy": "agla"}}  # the matcher reads the image, too


async def attack_with_images(server: ServerProcess, table: AttackTable) -> None:
    """Send each image alone, and then six different ones of its kind at once.

    Args:
        server: The server.
        table: Gets a row for each.
    """
    for base_name, build in IMAGES.items():
        name = f"image: {base_name}"
        if not table.is_selected(name):
            continue
        fields = {"max_tokens": 1, "decoding": DECODING.get(base_name, {})}
        bodies = [json.dumps(build_request(build(seed), **fields)).encode() for seed in range(PARALLEL + 1)]
        for sent in (bodies[:1], bodies[1:]):
            with measure_cost(server) as cost:
                answers = await asyncio.gather(*(post(server.port, CHAT, body) for body in sent))
            table.add(name, len(sent), count_outcomes(answers), cost=cost)
