"""GET /: a page that runs several strategies on one image, side by side.

The page works without a network. Its content security policy allows only files of this server.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse

from server.routes.docs import CONTENT_SECURITY_POLICY
from server.routes.file_response import FileContentResponse
from server.service import ServiceDep
from server.settings import EMBEDDED_DIR, Settings
from server.startup_banner import REAL_MODEL_COMMAND, describe_embedded_model, list_categories

PAGE_DIR = Path(__file__).parent / "playground_page"
INDEX = PAGE_DIR / "index.html"
ASSETS = {file.name: file for file in sorted(PAGE_DIR.iterdir()) if file.suffix in {".js", ".css"}}
SAMPLES = {file.name: file for file in sorted((EMBEDDED_DIR / "samples").glob("*.png"))}
OBJECTS = EMBEDDED_DIR / "samples" / "objects.json"

router = APIRouter(include_in_schema=False)


class SampleImage(BaseModel):
    """An example image of the embedded model."""

    name: str
    objects: dict[str, int] = Field(description="Number of objects of each category in the image.")


class SampleList(BaseModel):
    """The example images, and the words for their objects."""

    images: list[SampleImage]
    words: dict[str, list[str]] = Field(description="Singular and plural of each category.")


def open_paths(settings: Settings) -> tuple[str, ...]:
    """List the paths that need no API key with `--playground open`: a browser cannot send a key to load a page."""
    if settings.playground != "open":
        return ()
    return (
        "/",
        "/notice",
        "/samples",
        *(f"/samples/{name}" for name in SAMPLES),
        *(f"{get_asset_folder()}/{name}" for name in ASSETS),
    )


@cache
def get_asset_folder() -> str:
    """Return the address of the scripts and styles. It holds their digest, so that no cache serves an older file."""
    digest = hashlib.sha256()
    for file in ASSETS.values():
        digest.update(file.read_bytes())
    return f"/playground/{digest.hexdigest()[:16]}"


@router.get("/")
async def get_playground() -> HTMLResponse:
    html = INDEX.read_text().replace("{base}", get_asset_folder())
    headers = {"content-security-policy": CONTENT_SECURITY_POLICY, "cache-control": "no-cache"}
    return HTMLResponse(html, headers=headers)


@router.get("/playground/{digest}/{name}")
async def get_asset(digest: str, name: str) -> FileContentResponse:
    """Return a script or the style sheet of the page.

    Raises:
        HTTPException: There is no such file, or it belongs to another version of the page.
    """
    if name not in ASSETS or f"/playground/{digest}" != get_asset_folder():
        raise HTTPException(404)
    return FileContentResponse(ASSETS[name], headers={"cache-control": "max-age=3600"})


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
async def list_samples() -> SampleList:
    """List the example images with the objects that were drawn in them."""
    truth = json.loads(OBJECTS.read_text())
    images = [SampleImage(name=name, objects=truth["images"][name]) for name in SAMPLES]
    return SampleList(images=images, words=truth["words"])


@router.get("/samples/{name}")
async def get_sample(name: str) -> FileContentResponse:
    """Return an example image.

    Raises:
        HTTPException: There is no such image.
    """
    if name not in SAMPLES:
        raise HTTPException(404)
    return FileContentResponse(SAMPLES[name], headers={"cache-control": "max-age=3600"})
