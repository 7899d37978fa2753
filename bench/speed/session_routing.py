"""Images that two servers behind nginx read, with and without the header X-Session-ID.

    python -m bench.speed.session_routing --write

nginx has the shipped configuration. Questions about each image are sent in random order, eight at once. The header is
the hash of the image. Without it, nginx balances by running requests. The program `nginx` must be installed.
"""

import argparse
import asyncio
import contextlib
import hashlib
import random
import re
import shutil
import socket
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from rich.progress import track

from bench.harness.chat_requests import build_image_url, build_request
from bench.harness.docs_page import ROOT, describe_machine, write_results
from bench.harness.server_process import ServerProcess

SERVERS = 2
AT_ONCE = 8  # requests
CATEGORIES = ("person", "dog", "cat", "car", "chair", "cup", "book", "kite")


@dataclass(frozen=True)
class RoutingResult:
    """One row of the table.

    Attributes:
        has_header: Whether the requests had the header.
        images: Number of different images.
        requests: Number of requests.
        read: Images that each server read.
        by_several: Images that more than one server read.
        shares: Share of the requests that each server answered.
    """

    has_header: bool
    images: int
    requests: int
    read: tuple[int, ...]
    by_several: int
    shares: tuple[float, ...]


@contextlib.contextmanager
def run_nginx(ports: Sequence[int]) -> Iterator[str]:
    """Run nginx with the shipped configuration in front of servers.

    Args:
        ports: Ports of the servers.

    Yields:
        The URL of nginx.

    Raises:
        SystemExit: nginx is not installed.
    """
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if nginx is None:
        raise SystemExit("nginx is not installed. On Debian: apt-get install nginx-light")
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free_socket:
        free_socket.bind(("127.0.0.1", 0))
        port = free_socket.getsockname()[1]
        free_socket.close()
        upstreams = "".join(f"server 127.0.0.1:{server};\n" for server in ports)
        text = re.sub(r"server server:8000.*;", upstreams, (ROOT / "docker" / "nginx.conf").read_text())
        Path(folder).chmod(0o755)  # its workers are another user
        config = Path(folder) / "nginx.conf"
        text = text.replace("access_log off;", "access_log off; add_header X-Server $upstream_addr;")
        config.write_text(text.replace(" /tmp/", f" {folder}/").replace("listen 8080", f"listen 127.0.0.1:{port}"))
        with subprocess.Popen([nginx, "-c", config, "-g", "daemon off;"]) as handle:
            try:
                while True:
                    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                        break
                yield f"http://127.0.0.1:{port}"
            finally:
                handle.terminate()


async def measure(images: int, has_header: bool) -> RoutingResult:
    """Send all questions about all images to fresh servers."""
    questions = [(build_image_url(image, 336, "PNG"), category) for image in range(images) for category in CATEGORIES]
    random.Random(0).shuffle(questions)
    answered: dict[str, list[str]] = defaultdict(list)  # by image
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(ServerProcess()) for _ in range(SERVERS)]
        url = stack.enter_context(run_nginx([server.port for server in servers]))
        slots = asyncio.Semaphore(AT_ONCE)
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=AT_ONCE)) as client:

            async def ask(image: str, category: str) -> None:
                body = build_request(image, f"Is there a {category} in the image?", max_tokens=2)
                headers = {"x-session-id": hashlib.sha256(image.encode()).hexdigest()} if has_header else {}
                async with slots:
                    response = await client.post(f"{url}/v1/chat/completions", json=body, headers=headers)
                response.raise_for_status()
                answered[image].append(response.headers["x-server"])

            tasks = [asyncio.create_task(ask(*question)) for question in questions]
            label = "with the header" if has_header else "without the header"
            for task in track(asyncio.as_completed(tasks), label, len(tasks)):
                await task
    names = sorted({server for own in answered.values() for server in own})
    shares = [sum(own.count(name) for own in answered.values()) / len(questions) for name in names]
    return RoutingResult(
        has_header,
        images,
        len(questions),
        tuple(sum(name in own for own in answered.values()) for name in names),
        sum(len(set(own)) > 1 for own in answered.values()),
        tuple(round(share, 3) for share in shares),
    )


def format_table(results: Sequence[RoutingResult]) -> str:
    """Format the results as a Markdown table."""
    lines = [
        "| X-Session-ID | images | requests | images read by each server | by both | share of the requests |",
        "|---|---|---|---|---|---|",
    ]
    for each in results:
        lines.append(
            f"| {'hash of the image' if each.has_header else 'none'} | {each.images} | {each.requests} | "
            f"{' and '.join(map(str, each.read))} | {each.by_several} | "
            f"{' and '.join(f'{share:.0%}' for share in each.shares)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--write", action="store_true", help="store the figures in docs/ and bench/results/")
    options = parser.parse_args()
    results = [asyncio.run(measure(options.images, has_header)) for has_header in (False, True)]
    table = format_table(results)
    print(table)
    if options.write:
        figures = {**describe_machine(), "rows": [asdict(result) for result in results]}
        write_results("session_routing", table, figures)


if __name__ == "__main__":
    main()
