"""Pictures that are bombs, and addresses inside: how soon each is refused, what memory it takes, who is called.

python -m bench.hostile
"""

from __future__ import annotations

import argparse
import base64
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from bench.process import Server
from bench.questions import request

ROUNDS = 20
LISTED = "pictures.example.org"  # so that addresses are looked at, and not refused for being addresses
INSIDE = (
    "127.0.0.1:{0}",
    "localhost:{0}",
    "127.1:{0}",
    "2130706433:{0}",
    "0x7f000001:{0}",
    "0.0.0.0:{0}",
    "[::1]:{0}",
    "[::ffff:127.0.0.1]:{0}",
    "10.0.0.1",
    "169.254.169.254/latest/meta-data",
    f"somebody:secret@{LISTED}",
)
ADDRESSES = (*(f"http://{place}" for place in INSIDE), "file:///etc/passwd", "ftp://a/b", "http://" + "a" * 300_000)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *more: bytes, pixels: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"".join((b"\x89PNG\r\n\x1a\n", head, *more, chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")))


def url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


HARMLESS = url(png(8, 8, pixels=bytes(8 * 25)))
BOMBS = {
    "PNG of 20000 x 20000": url(png(20_000, 20_000, pixels=bytes(10**6))),
    "PNG that says 65535 x 65535": url(png(65_535, 65_535)),
    "GIF with a screen of 65535 x 65535": url(
        b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0x80, 0, 0) + bytes(6) + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
        "gif",
    ),
    "60 MB in a PNG's zTXt": url(
        png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(60 * 10**6), 9)), pixels=bytes(8 * 25))
    ),
}


@contextmanager
def target() -> Iterator[tuple[int, list[object]]]:
    """A port at all addresses of this machine, and who has called there."""
    called: list[object] = []
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    with socket.create_server(("", 0), family=family, dualstack_ipv6=both) as door:

        def listen() -> None:
            while True:
                try:
                    connection, address = door.accept()
                except OSError:
                    return
                connection.close()
                called.append(address)

        threading.Thread(target=listen, daemon=True).start()
        yield door.getsockname()[1], called


def asked(client: httpx.Client, picture: str) -> tuple[int, str | None, float]:
    """(status, code, milliseconds)."""
    began = time.perf_counter()
    response = client.post("/v1/chat/completions", json=request(picture, max_tokens=1))
    took = 1000 * (time.perf_counter() - began)
    return response.status_code, response.json().get("error", {}).get("code"), took


def worst(client: httpx.Client, picture: str) -> str:
    answers = [asked(client, picture) for _ in range(ROUNDS)]
    said = {(status, code) for status, code, _ in answers}
    return f"{', '.join(f'{status} {code}' for status, code in said)} | {max(took for *_, took in answers):.0f}"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with (
        Server("--image-hosts", LISTED) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
        target() as (port, called),
    ):
        asked(client, HARMLESS)
        print(f"| what, {ROUNDS} times | answer | slowest, ms | MB more |\n|---|---|---|---|")
        pictures = {**BOMBS, **{address.format(port)[:40]: address.format(port) for address in ADDRESSES}}
        for name, picture in pictures.items():
            before = server.megabytes
            print(f"| {name} | {worst(client, picture)} | {server.megabytes - before:.1f} |")
        print(f"\nCalls at the target: {len(called)}")


if __name__ == "__main__":
    main()
