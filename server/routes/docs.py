"""GET /docs: Swagger UI from the server's own files.

The page works without a network. Its content security policy allows only files of this server, whose digests it names.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from html import escape
from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse

from server.routes.file_response import FileContentResponse

ASSET_DIR = Path(__file__).parent / "swagger_ui"
STYLE_NAMES = ("swagger-ui.css",)
SCRIPT_NAMES = ("swagger-ui-bundle.js", "initializer.js")
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

router = APIRouter(include_in_schema=False)


@router.get("/docs")
def get_docs_page() -> HTMLResponse:
    headers = {"content-security-policy": CONTENT_SECURITY_POLICY, "cache-control": "no-cache"}
    return HTMLResponse(build_page(), headers=headers)


@router.get("/docs/{name}")
async def get_asset(name: str) -> FileContentResponse:
    """Return a style sheet or a script of the page.

    Raises:
        HTTPException: There is no such file.
    """
    if name not in (*STYLE_NAMES, *SCRIPT_NAMES):
        raise HTTPException(404)
    return FileContentResponse(ASSET_DIR / name, headers={"cache-control": "max-age=3600"})


@cache
def build_page() -> str:
    """Build the page. Each address holds a digest of its file, so that no cache serves an older file."""
    styles = (f'<link rel="stylesheet" {build_reference("href", name)}>' for name in STYLE_NAMES)
    scripts = (f"<script {build_reference('src', name)}></script>" for name in SCRIPT_NAMES)
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>OnlySeen API</title>',
            '<link rel="icon" href="data:,">',
            *styles,
            '<div id="swagger-ui"></div>',
            *scripts,
        )
    )


def build_reference(attribute: str, name: str) -> str:
    """Build the attributes that load a file and check its content."""
    integrity = f"sha384-{base64.b64encode(hashlib.sha384((ASSET_DIR / name).read_bytes()).digest()).decode()}"
    version = hashlib.sha256(integrity.encode()).hexdigest()[:12]
    return f'{attribute}="/docs/{escape(name)}?v={version}" integrity="{integrity}"'
