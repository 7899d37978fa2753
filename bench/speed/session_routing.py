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
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import httpx
from rich.progress import track

from bench.harness.chat_requests import build_image_url, build_request
from bench.harness.docs_page import describe_machine, write_results
from bench.harness.nginx import run_nginx
from bench.harness.server_process import ServerProcess

SERVERS = 2
AT_ONCE = 8  # requests
ADD_SERVER = "add_header X-Server $upstream_addr;"
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


def find_nginx() -> str:
    """Return the path of the program nginx.

    Raises:
        SystemExit: It is not installed.
    """
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        raise SystemExit("nginx is not installed. On Debian: apt-get install nginx-light")
    return program


async def measure(nginx: str, images: int, has_header: bool) -> RoutingResult:
    """Send all questions about all images to fresh servers behind the program `nginx`."""
    questions = [(build_image_url(image, 336, "PNG"), category) for image in range(images) for category in CATEGORIES]
    random.Random(0).shuffle(questions)
    answered: dict[str, list[str]] = defaultdict(list)  # by image
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(ServerProcess()) for _ in range(SERVERS)]
        url = stack.enter_context(run_nginx(nginx, [server.port for server in servers], ADD_SERVER))
        slots = asyncio.Semaphore(AT_ONCE)
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=AT_ONCE)) as client:

            async def send_question(image: str, category: str) -> None:
                body = build_request(image, f"Is there a {category} in the image?", max_tokens=2)
                headers = {"x-session-id": hashlib.sha256(image.encode()).hexdigest()} if has_header else {}
                async with slots:
                    response = await client.post(f"{url}/v1/chat/completions", json=body, headers=headers)
                response.raise_for_status()
                answered[image].append(response.headers["x-server"])

            tasks = [asyncio.create_task(send_question(*question)) for question in questions]
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
    nginx = find_nginx()
    results = [asyncio.run(measure(nginx, options.images, has_header)) for has_header in (False, True)]
    table = format_table(results)
    print(table)
    if options.write:
        figures = {**describe_machine(), "rows": [asdict(result) for result in results]}
        write_results("session_routing", table, figures)


if __name__ == "__main__":
    main()
