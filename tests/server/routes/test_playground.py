"""The page at /: its content security policy, and access to it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from decoding.strategies.verify import Verify
from server.routes.playground import ASSETS, PAGE_DIR, SAMPLES, get_asset_folder
from server.settings import EMBEDDED_DIR
from tests.server.conftest import StartServer

KEYS = {"api_keys": "secret"}
PATHS = ("/", "/notice", "/samples", "/samples/kitchen.png", f"{get_asset_folder()}/main.js")


async def test_security_policy_allows_only_this_server(start_server: StartServer) -> None:
    http = (await start_server()).http
    response = await http.get("/")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert not re.search(r"unsafe|http|\*", policy)
    assert not re.search(r"<script(?! type=\"module\" src=\"/)|<style|\son\w+=|style=", response.text)
    assert not re.search(r"""(?:src|href)=.?(?:http|//)""", response.text)
    size = len(response.content)
    for file in ASSETS.values():
        assert not re.search(
            r"innerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|https?://\w", file.read_text()
        )
        size += file.stat().st_size
    assert size < 70_000


async def test_assets_are_served_under_their_digest(start_server: StartServer) -> None:
    http = (await start_server()).http
    text = (await http.get("/")).text
    for path in re.findall(r'(?:src|href)="(/playground/[^"]+)"', text):
        assert (await http.get(path)).status_code == 200
    imports = {name for file in ASSETS.values() for name in re.findall(r'from "\./([\w.]+)"', file.read_text())}
    assert imports < set(ASSETS)
    kinds = {name: (await http.get(f"{get_asset_folder()}/{name}")).headers["content-type"] for name in ASSETS}
    assert all(kind.startswith("text/css" if name == "page.css" else "text/javascript") for name, kind in kinds.items())
    for path in (
        "/playground/0123/main.js",
        f"{get_asset_folder()}/index.html",
        f"{get_asset_folder()}/..%2fplayground.py",
    ):
        assert (await http.get(path)).status_code == 404


async def test_samples_have_the_objects_that_were_drawn(start_server: StartServer) -> None:
    body = (await (await start_server()).http.get("/samples")).json()
    assert [image["name"] for image in body["images"]] == list(SAMPLES)
    objects = {image["name"]: image["objects"] for image in body["images"]}
    assert objects["living-room.png"] == {"couch": 1, "tv": 1, "cat": 1, "potted plant": 1, "book": 2}
    assert body["words"]["person"] == ["person", "people"]


def test_figures_are_those_of_the_study() -> None:
    study = json.loads((Path(__file__).parents[3] / "bench" / "results" / "verify_study.json").read_text())
    page = (PAGE_DIR / "figures.js").read_text()
    auroc = study["signals"]["signals"]["check"]["auroc"]
    assert f'CHECK_AUROC = "{auroc["value"]:.3f} [{auroc["low"]:.3f}, {auroc["high"]:.3f}]"' in page
    assert f"THRESHOLD = {Verify().threshold};" in page
    confirmed = study["signals"]["calibration"][-1]
    assert confirmed["low"] == Verify().threshold
    counts = {"hallucinated": 0.0, "real": 0.0}
    for bin_ in study["signals"]["calibration"]:
        counts["hallucinated"] += bin_["mentions"] * (1 - bin_["real"])
        counts["real"] += bin_["mentions"] * bin_["real"]
    shares = {
        "hallucinated": round(100 * confirmed["mentions"] * (1 - confirmed["real"]) / counts["hallucinated"]),
        "real": round(100 * confirmed["mentions"] * confirmed["real"] / counts["real"]),
    }
    found = re.search(r"CONFIRMED = (\{.*?\});", page)
    assert found is not None
    assert json.loads(found[1]) == shares
    found = re.search(r"VERIFY_IMAGES = (.*);", page)
    assert found is not None
    assert json.loads(found[1]) == {"scenes": study["scenes"], **study["greedy"]["verify"]["images"]}


@pytest.mark.parametrize(
    ("settings", "statuses"),
    [
        ({}, (200, 200)),
        (KEYS, (401, 401)),
        (KEYS | {"playground": "open"}, (200, 401)),
        ({"playground": "off"}, (404, 200)),
    ],
)
async def test_playground_setting_controls_access(
    start_server: StartServer, settings: dict[str, str], statuses: tuple[int, int]
) -> None:
    http = (await start_server(**settings)).http
    pages = [(await http.get(path)).status_code for path in PATHS]
    assert (set(pages), (await http.get("/v1/models")).status_code) == ({statuses[0]}, statuses[1])


@pytest.mark.parametrize("name", ["..%2f..%2fpyproject.toml", "kitchen", "%2e%2e/README.md"])
async def test_only_samples_are_served(start_server: StartServer, name: str) -> None:
    assert (await (await start_server()).http.get(f"/samples/{name}")).status_code == 404


async def test_notice_describes_the_embedded_model_only(start_server: StartServer) -> None:
    other = await start_server(model="some/model")
    assert (await other.http.get("/notice")).json() == {}
    embedded = (await (await start_server(model=str(EMBEDDED_DIR / "model"))).http.get("/notice")).json()
    assert "48 kinds of pictograms" in embedded["notice"]
    assert {"person", "wine glass"} < set(embedded["categories"])
    assert len(embedded["categories"]) == 48
