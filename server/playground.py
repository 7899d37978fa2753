"""GET /: a page to try strategies on a picture, side by side. It is one file, and its policy allows that file alone."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse

from server.settings import EMBEDDED, Settings

PAGE = Path(__file__).with_suffix(".html")
SAMPLES = {file.name: file for file in sorted((EMBEDDED / "samples").glob("*.png"))}

router = APIRouter(include_in_schema=False)


def open_paths(settings: Settings) -> tuple[str, ...]:
    """What needs no key where the playground is to be open: a browser that asks for a page cannot send one."""
    return ("/", "/samples", *(f"/samples/{name}" for name in SAMPLES)) if settings.playground == "open" else ()


@router.get("/")
async def page() -> HTMLResponse:
    text = PAGE.read_text()
    return HTMLResponse(text, headers={"content-security-policy": policy(text), "cache-control": "no-cache"})


@router.get("/samples")
async def samples() -> list[str]:
    return list(SAMPLES)


@router.get("/samples/{name}")
async def sample(name: str) -> FileResponse:
    if name not in SAMPLES:
        raise HTTPException(404)
    return FileResponse(SAMPLES[name], headers={"cache-control": "max-age=3600"})


@cache
def policy(page: str) -> str:
    """Nothing but the page's own script and style runs, and it talks to nobody but this server."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {hashes(page, 'script')}",
            f"style-src {hashes(page, 'style')}",
            "img-src 'self' data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def hashes(page: str, tag: str) -> str:
    blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    digests = [hashlib.sha256(block.encode()).digest() for block in blocks]
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
