"""Request /health of a server over and over, in a process that the attack does not slow down.

python -m bench.hostile.health PORT

It prints a line when it has started. When its input ends, it prints the seconds of the slowest response.
"""

from __future__ import annotations

import select
import socket
import sys
import time

INTERVAL = 0.02  # seconds
TIMEOUT = 120.0  # seconds


def time_health(port: int) -> float:
    """Return the seconds of one request on a connection of its own.

    Args:
        port: Port of the server on this machine.

    Returns:
        The seconds, or `TIMEOUT` if there is no response with the status 200.
    """
    started_at = time.perf_counter()
    try:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            response = b"".join(iter(lambda: connection.recv(4096), b""))
    except OSError:
        return TIMEOUT
    return time.perf_counter() - started_at if b" 200 " in response[:20] else TIMEOUT


def main() -> None:
    port, slowest = int(sys.argv[1]), 0.0
    slowest = time_health(port)
    print("started", flush=True)
    while not select.select([sys.stdin], [], [], INTERVAL)[0]:
        slowest = max(slowest, time_health(port))
    print(slowest)


if __name__ == "__main__":
    main()
