"""Removal of metadata from encoded images, before a decoder reads it.

Exif may list millions of numbers, and a compressed text can grow a thousandfold.
Decoders read both when they open an image, and make Python objects of them. Only the parts that determine the pixels
are kept here, and the orientation of the Exif.
"""

from __future__ import annotations

import struct

from server.media.image_structure import (
    EOI,
    EXTENSION,
    GIF_BLOCK,
    MARKER,
    MARKERS_WITHOUT_LENGTH,
    PNG_SIGNATURE,
    SOI,
    SOS,
    TooManyParts,
    find_gif_blocks,
    search,
    skip_sub_blocks,
)

PNG_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT"}
WEBP_CHUNKS = {b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"}
WEBP_METADATA_FLAGS = 0x20 | 0x08 | 0x04  # of VP8X: a colour profile, Exif and XMP follow
APP0, APP1, APP14 = 0xE0, 0xE1, 0xEE
# Tables, frames and scans, the JFIF header, and the colour transform of Adobe.
# Pillow takes JPG, C8, for a marker without length.
JPG, DQT, DHP, EXP = 0xC8, 0xDB, 0xDE, 0xDF
JPEG_MARKERS = {*range(0xC0, 0xE0)} - MARKERS_WITHOUT_LENGTH - {EOI, JPG, DHP, EXP} | {APP0, APP14}
FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, JPG, 0xCC}
MAX_FRAME_BYTES = 20  # of a frame header with four components
MAX_TABLE_BYTES = 16_384  # of all quantization tables. Four tables have 520
GIF_FRAME, GIF_CONTROL = ord(","), b"!\xf9\x04"
EXIF_HEADER = b"Exif\0\0"
ORIENTATION_TAG = 0x0112
ORIENTATION_TYPES = {3: "H", 4: "I", 8: "h"}  # types of Exif that hold an integer of two or four bytes
MAX_EXIF_ENTRIES = 1_000  # that are searched for the orientation
UPRIGHT = 1


def strip_metadata(content: bytes) -> tuple[bytes, int]:
    """Remove the metadata of an encoded image.

    Args:
        content: The image. Images of other formats are returned as they are.

    Returns:
        The image without metadata, and its Exif orientation, from 1 to 8. The orientation that XMP states is ignored.
    """
    if content.startswith(PNG_SIGNATURE):
        return strip_png(content)
    if content.startswith(b"\xff\xd8"):
        return strip_jpeg(content)
    if content.startswith(b"RIFF"):
        return strip_webp(content)
    if content.startswith(b"GIF8"):
        return strip_gif(content), UPRIGHT
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
        elif kind == b"eXIf":
            exif = position + 8
        if kind == b"IEND":
            break
        position = end
    return join(kept, content), read_orientation(content, exif)


def strip_jpeg(content: bytes) -> tuple[bytes, int]:
    """Keep the segments of a JPEG that determine its pixels, and all that follows its first scan header.

    Returns:
        The image without bytes between its segments, and its orientation.

    Raises:
        TooManyParts: There are too many quantization tables.
    """
    kept, exif, position, table_bytes = [bytes((0xFF, SOI))], None, 2, 0
    while (found := search(MARKER, content, position)) is not None:
        marker, start = content[found + 1], found + 2
        if marker in (SOS, EOI):  # Pillow reads on behind an end that comes before the first scan
            kept.append(content[found:] if marker == SOS else content[found:start])
            break
        if marker in MARKERS_WITHOUT_LENGTH:
            position = start
            continue
        position = start + max(2, int.from_bytes(content[start : start + 2], "big"))
        if marker in FRAME_MARKERS and position - start > MAX_FRAME_BYTES:
            continue
        if marker == DQT:
            table_bytes += position - start
            if table_bytes > MAX_TABLE_BYTES:
                raise TooManyParts
        if marker in JPEG_MARKERS:
            kept.append(content[found:position])
        elif marker == APP1 and exif is None and content.startswith(EXIF_HEADER, start + 2):
            tiff = start + 2 + len(EXIF_HEADER)
            exif = tiff if tiff < position else None
    return join(kept, content), read_orientation(content, exif)


def strip_webp(content: bytes) -> tuple[bytes, int]:
    """Keep the chunks of a WebP that determine its pixels.

    Returns:
        The image up to its end, and its orientation.
    """
    content = content[: 8 + int.from_bytes(content[4:8], "little")]
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
        position = end
    size = sum(map(len, kept))
    return join([b"RIFF" + size.to_bytes(4, "little"), *kept], content), read_orientation(content, exif)


def strip_gif(content: bytes) -> bytes:
    """Keep the header and the palette of a GIF, the control block of its first frame, and all from this frame on.

    Returns:
        The image without its comments and other extensions before the first frame.
    """
    position = find_gif_blocks(content)
    kept, control = [content[:position]], b""
    while (found := search(GIF_BLOCK, content, position)) is not None and content[found] == EXTENSION:
        if content.startswith(GIF_CONTROL, found) and content[found + 7 : found + 8] == b"\0":
            control = content[found : found + 8]
        position = skip_sub_blocks(content, found + 2)
    if found is not None and content[found] == GIF_FRAME:
        kept += [control, content[found:]]
    return join(kept, content)


def join(parts: list[bytes], content: bytes) -> bytes:
    """Join the kept parts of an image. If nothing was dropped, the image itself is returned, which takes no memory."""
    return content if sum(map(len, parts)) == len(content) else b"".join(parts)


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
    while content.startswith(EXIF_HEADER, start):  # PNG and WebP have none, but some programs write it
        start += len(EXIF_HEADER)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(content[start : start + 4])
    if order is None:
        return UPRIGHT
    try:
        directory = start + struct.unpack_from(f"{order}I", content, start + 4)[0]
        entries = struct.unpack_from(f"{order}H", content, directory)[0]
        for number in range(min(entries, MAX_EXIF_ENTRIES)):
            entry = directory + 2 + 12 * number
            tag, kind, count = struct.unpack_from(f"{order}HHI", content, entry)
            if tag == ORIENTATION_TAG and count == 1 and kind in ORIENTATION_TYPES:
                (value,) = struct.unpack_from(order + ORIENTATION_TYPES[kind], content, entry + 8)
                return value if UPRIGHT <= value <= 8 else UPRIGHT
    except struct.error:  # it ends before
        pass
    return UPRIGHT
