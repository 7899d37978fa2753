"""Bounds on the parts of an encoded image. Decoders spend time on every part, even on an empty one.

A progressive JPEG may repeat a scan of 12 bytes, each of which visits every pixel. Metadata may consist of millions of
parts. This module steps from part to part, and does not look at the bytes between.
"""

from __future__ import annotations

import re

MAX_SCANS = 100  # of a JPEG. Encoders write about 10
MAX_SEGMENTS = 2_000  # markers of a JPEG outside of its entropy-coded data
MAX_JUNK = 65_536  # bytes of a JPEG or a GIF between its parts
MAX_METADATA_CHUNKS = 1_000  # of a PNG
MAX_CHUNKS = 20_000  # of a PNG or a WebP. Each frame of an animation is one
MAX_SUB_BLOCKS = 10_000  # of a GIF, before its first frame
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_PIXEL_CHUNKS = {b"IDAT", b"fcTL", b"fdAT"}
SEARCH_BYTES = 1 << 20  # A search holds the interpreter.
MARKER = re.compile(rb"\xff[^\x00\xff]")
MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # RST0 ... RST7 belong to the data
GIF_BLOCK = re.compile(rb"[!,;]")  # an extension, a frame or the end
EXTENSION = ord("!")
SOI, EOI, SOS = 0xD8, 0xD9, 0xDA
MARKERS_WITHOUT_LENGTH = {0x01, SOI, *range(0xD0, 0xD8)}


class TooManyParts(ValueError):
    """The image has more parts than a decoder should have to read."""


def check_parts(content: bytes) -> None:
    """Raise `TooManyParts` for an encoded image with too many parts. Images of unknown formats pass."""
    if content.startswith(b"\xff\xd8"):
        check_jpeg(content)
    elif content.startswith(PNG_SIGNATURE):
        check_png(content)
    elif content.startswith(b"RIFF"):
        check_riff(content)
    elif content.startswith(b"GIF8"):
        check_gif(content)


def check_jpeg(content: bytes) -> None:
    """Check the segments and the scans of a JPEG, and the bytes between them.

    Raises:
        TooManyParts: There are too many.
    """
    position, segments, scans, junk = 0, 0, 0, 0
    in_scan = False
    while (found := search(MARKER_IN_SCAN if in_scan else MARKER, content, position)) is not None:
        junk += 0 if in_scan else found - position
        marker, position, in_scan = content[found + 1], found + 2, False
        if marker == EOI:
            return
        segments += 1
        if marker not in MARKERS_WITHOUT_LENGTH:
            position += max(2, int.from_bytes(content[position : position + 2], "big"))
        if marker == SOS:
            scans, in_scan = scans + 1, True
        if segments > MAX_SEGMENTS or scans > MAX_SCANS or junk > MAX_JUNK:
            raise TooManyParts
    if not in_scan and len(content) - position > MAX_JUNK:
        raise TooManyParts


def search(pattern: re.Pattern[bytes], content: bytes, start: int) -> int | None:
    """Return the position of the first match of a pattern of at most two bytes, at or after `start`."""
    for position in range(start, len(content), SEARCH_BYTES):
        if found := pattern.search(content, position, position + SEARCH_BYTES + 1):
            return found.start()
    return None


def check_png(content: bytes) -> None:
    """Check the chunks of a PNG.

    Raises:
        TooManyParts: There are too many.
    """
    position, chunks, metadata_chunks = len(PNG_SIGNATURE), 0, 0
    while position < len(content):
        kind = content[position + 4 : position + 8]
        if kind == b"IEND":
            return
        chunks += 1
        metadata_chunks += kind not in PNG_PIXEL_CHUNKS
        if chunks > MAX_CHUNKS or metadata_chunks > MAX_METADATA_CHUNKS:
            raise TooManyParts
        position += 12 + int.from_bytes(content[position : position + 4], "big")


def check_riff(content: bytes) -> None:
    """Check the chunks of a WebP.

    Raises:
        TooManyParts: There are too many.
    """
    position, end, chunks = 12, min(len(content), 8 + int.from_bytes(content[4:8], "little")), 0
    while position < end:
        size = int.from_bytes(content[position + 4 : position + 8], "little")
        position += 8 + size + size % 2
        chunks += 1
        if chunks > MAX_CHUNKS:
            raise TooManyParts


def check_gif(content: bytes) -> None:
    """Check the extensions before the first frame of a GIF, and the bytes between them.

    Raises:
        TooManyParts: There are too many.
    """
    position = find_gif_blocks(content)
    sub_blocks, junk = 0, 0
    while (found := search(GIF_BLOCK, content, position)) is not None:
        junk += found - position
        if content[found] != EXTENSION:
            break
        position, size = found + 2, 1
        while size and position < len(content):
            size = content[position]
            position += 1 + size
            sub_blocks += 1
            if sub_blocks > MAX_SUB_BLOCKS:
                raise TooManyParts
    else:
        junk += len(content) - position
    if junk > MAX_JUNK:
        raise TooManyParts


def find_gif_blocks(content: bytes) -> int:
    """Return the position of the first block of a GIF, behind its header and palette."""
    has_palette = content[10:11] > b"\x7f"
    return 13 + (3 << (content[10] % 8 + 1) if has_palette else 0)


def skip_sub_blocks(content: bytes, position: int) -> int:
    """Return the position behind the sub-blocks of a GIF that begin at `position`."""
    size = 1
    while size and position < len(content):
        size = content[position]
        position += 1 + size
    return position
