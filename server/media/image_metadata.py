"""Removal of metadata from encoded images, before a decoder reads it.

A few kilobytes of Exif can name the same numbers again and again, and a compressed text can grow a thousandfold.
Decoders read both when they open an image, and make Python objects of them. Only the parts that determine the pixels
are kept here, and the orientation of the Exif.
"""

from __future__ import annotations

import struct

from server.media.image_structure import (
    EOI,
    MARKER,
    MARKERS_WITHOUT_LENGTH,
    PNG_SIGNATURE,
    SOI,
    SOS,
    search,
)

PNG_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT"}
WEBP_CHUNKS = {b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"}
WEBP_METADATA_FLAGS = 0x20 | 0x08 | 0x04  # of VP8X: a colour profile, Exif and XMP follow
APP0, APP1, APP14 = 0xE0, 0xE1, 0xEE
# Tables, frames and scans, the JFIF header, and the colour transform of Adobe.
JPEG_MARKERS = {*range(0xC0, 0xE0)} - MARKERS_WITHOUT_LENGTH - {EOI} | {APP0, APP14}
EXIF_HEADER = b"Exif\0\0"
ORIENTATION_TAG, SHORT = 0x0112, 3
MAX_EXIF_ENTRIES = 1_000  # that are searched for the orientation
UPRIGHT = 1


def strip_metadata(content: bytes) -> tuple[bytes, int]:
    """Remove the metadata of an encoded image.

    Args:
        content: The image. Images other than PNG, JPEG and WebP are returned as they are.

    Returns:
        The image without metadata, and its Exif orientation, from 1 to 8. The orientation that XMP states is ignored.
    """
    if content.startswith(PNG_SIGNATURE):
        return strip_png(content)
    if content.startswith(b"\xff\xd8"):
        return strip_jpeg(content)
    if content.startswith(b"RIFF"):
        return strip_webp(content)
    return content, UPRIGHT


def strip_png(content: bytes) -> tuple[bytes, int]:
    """Keep the chunks of a PNG that determine its pixels.

    Returns:
        The image up to its end, and its orientation.
    """
    kept, exif, position = [PNG_SIGNATURE], None, len(PNG_SIGNATURE)
    while position < len(content):
        kind = content[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(content[position : position + 4], "big")
        if kind in PNG_CHUNKS or len(kind) < 4:
            kept.append(content[position:end])
        elif kind == b"eXIf" and exif is None:
            exif = position + 8
        if kind == b"IEND":
            break
        position = end
    return b"".join(kept), read_orientation(content, exif)


def strip_jpeg(content: bytes) -> tuple[bytes, int]:
    """Keep the segments of a JPEG that determine its pixels, and all that follows its first scan header.

    Returns:
        The image without bytes between its segments, and its orientation.
    """
    kept, exif, position = [bytes((0xFF, SOI))], None, 2
    while (found := search(MARKER, content, position)) is not None:
        marker, start = content[found + 1], found + 2
        if marker in (SOS, EOI):  # Pillow reads on behind an end that comes before the first scan
            kept.append(content[found:] if marker == SOS else content[found:start])
            break
        if marker in MARKERS_WITHOUT_LENGTH:
            position = start
            continue
        position = start + max(2, int.from_bytes(content[start : start + 2], "big"))
        if marker in JPEG_MARKERS:
            kept.append(content[found:position])
        elif marker == APP1 and content.startswith(EXIF_HEADER, start + 2) and exif is None:
            exif = start + 2 + len(EXIF_HEADER)
    return b"".join(kept), read_orientation(content, exif)


def strip_webp(content: bytes) -> tuple[bytes, int]:
    """Keep the chunks of a WebP that determine its pixels.

    Returns:
        The image, and its orientation.
    """
    kept, exif, position = [content[8:12]], None, 12
    while position < len(content):
        kind, size = content[position : position + 4], int.from_bytes(content[position + 4 : position + 8], "little")
        end = position + 8 + size + size % 2
        if kind == b"VP8X" and size and position + 8 < len(content):
            flags = content[position + 8] & ~WEBP_METADATA_FLAGS
            kept.append(content[position : position + 8] + bytes([flags]) + content[position + 9 : end])
        elif kind in WEBP_CHUNKS:
            kept.append(content[position:end])
        elif kind == b"EXIF" and exif is None:
            exif = position + 8
            if content.startswith(EXIF_HEADER, exif):
                exif += len(EXIF_HEADER)
        position = end
    body = b"".join(kept)
    return b"RIFF" + len(body).to_bytes(4, "little") + body, read_orientation(content, exif)


def read_orientation(content: bytes, start: int | None) -> int:
    """Read the orientation from Exif.

    Args:
        content: Bytes with the Exif.
        start: Position of its TIFF header; None: there is no Exif.

    Returns:
        The orientation, from 1 to 8; 1 where it is missing or invalid.
    """
    if start is None:
        return UPRIGHT
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(content[start : start + 4])
    if order is None:
        return UPRIGHT
    try:
        directory = start + struct.unpack_from(f"{order}I", content, start + 4)[0]
        entries = struct.unpack_from(f"{order}H", content, directory)[0]
        for number in range(min(entries, MAX_EXIF_ENTRIES)):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", content, directory + 2 + 12 * number)
            if (tag, kind, count) == (ORIENTATION_TAG, SHORT, 1):
                return int(value) if UPRIGHT <= value <= 8 else UPRIGHT
    except struct.error:  # it ends before
        pass
    return UPRIGHT
