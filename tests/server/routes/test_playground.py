"""The page at /: its content security policy, and access to it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from decoding.strategies.verify import Verify
from server.routes.playground import PAGE
from server.settings import EMBEDDED_DIR
from tests.server.conftest import StartServer

KEYS = {"api_keys": "secret"}


async def test_security_policy_allows_only_the_page(start_server: StartServer) -> None:
    response = await (await start_server()).http.get("/")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert not re.search(r"unsafe|http|\*", policy)
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=.?(?:http|//)", response.text)
    assert len(response.content) < 30_000


def test_figures_are_those_of_the_study() -> None:
    study = json.loads((Path(__file__).parents[3] / "bench" / "results" / "verify_study.json").read_text())
    page = PAGE.read_text()
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
    pages = [(await http.get(path)).status_code for path in ("/", "/notice", "/samples", "/samples/kitchen.png")]
    assert (set(pages), (await http.get("/v1/models")).status_code) == ({statuses[0]}, statuses[1])


@pytest.mark.parametrize("name", ["..%2f..%2fpyproject.toml", "kitchen", "%2e%2e/README.md"])
async def test_only_samples_are_served(start_server: StartServer, name: str) -> None:
    assert (await (await start_server()).http.get(f"/samples/{name}")).status_code == 404


def test_page_has_one_script_and_one_style() -> None:
    assert PAGE.read_text().count("<script") == PAGE.read_text().count("<style") == 1


async def test_notice_describes_the_embedded_model_only(start_server: StartServer) -> None:
    other = await start_server(model="some/model")
    assert (await other.http.get("/notice")).json() == {}
    embedded = (await (await start_server(model=str(EMBEDDED_DIR / "model"))).http.get("/notice")).json()
    assert "48 kinds of pictograms" in embedded["notice"]
    assert {"person", "wine glass"} < set(embedded["categories"])
    assert len(embedded["categories"]) == 48
