"""GET /: a page that runs two strategies on one image, side by side.

The page is a single file, and its content security policy allows no other script or style.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse

from server.routes.file_response import FileContentResponse
from server.service import ServiceDep
from server.settings import EMBEDDED_DIR, Settings
from server.startup_banner import REAL_MODEL_COMMAND, describe_embedded_model, list_categories

PAGE = Path(__file__).with_suffix(".html")
SAMPLES = {file.name: file for file in sorted((EMBEDDED_DIR / "samples").glob("*.png"))}

router = APIRouter(include_in_schema=False)


def open_paths(settings: Settings) -> tuple[str, ...]:
    """List the paths that need no API key with `--playground open`: a browser cannot send a key to load a page."""
    return (
        ("/", "/notice", "/samples", *(f"/samples/{name}" for name in SAMPLES)) if settings.playground == "open" else ()
    )


@router.get("/")
async def get_playground() -> HTMLResponse:
    html = PAGE.read_text()
    headers = {"content-security-policy": build_content_security_policy(html), "cache-control": "no-cache"}
    return HTMLResponse(html, headers=headers)


@router.get("/notice")
def get_notice(service: ServiceDep) -> dict[str, str | list[str]]:
    """Describe what the embedded model knows. For another model the notice is empty."""
    if not service.settings.is_embedded:
        return {}
    return {
        "notice": describe_embedded_model(),
        "categories": list(list_categories()),
        "command": REAL_MODEL_COMMAND,
    }


@router.get("/samples")
async def list_samples() -> list[str]:
    return list(SAMPLES)


@router.get("/samples/{name}")
async def get_sample(name: str) -> FileContentResponse:
    """Return an example image.

    Raises:
        HTTPException: There is no such image.
    """
    if name not in SAMPLES:
        raise HTTPException(404)
    return FileContentResponse(SAMPLES[name], headers={"cache-control": "max-age=3600"})


@cache
def build_content_security_policy(html: str) -> str:
    """Allow only the page's own script and style, and only connections to this server."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {hash_blocks(html, 'script')}",
            f"style-src {hash_blocks(html, 'style')}",
            "img-src 'self' data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def hash_blocks(html: str, tag: str) -> str:
    blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digests = [hashlib.sha256(block.encode()).digest() for block in blocks]
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
