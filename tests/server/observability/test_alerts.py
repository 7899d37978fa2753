"""The alert rules for Prometheus against the metrics of a server."""

from __future__ import annotations

import re
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from decoding.hf_engine.engine import COUNTER_HELP
from decoding.vllm_engine.core.gangs import GangCounters
from tests.docker_image import DOCKER, ROOT
from tests.server.conftest import FakeServer

ALERTS: list[dict[str, Any]] = yaml.safe_load((DOCKER / "alerts.yml").read_text())["groups"][0]["rules"]
PROMETHEUS_LABELS = {"instance", "job", "le"}  # Prometheus adds them
PROMQL = {"sum", "by", "rate", "increase", "histogram_quantile", "absent", "or", "up", "job"}


async def read_labels(server: FakeServer) -> dict[str, set[str]]:
    """Read the names of all samples of a server that has answered and refused requests, with their labels."""
    gangs = {f"gang_{name}": 1 for name in GangCounters().as_dict()}
    server.engine.counter_values = gangs | dict.fromkeys(COUNTER_HELP, 1)
    await server.chat()
    await server.chat(temperature=9)
    page = (await server.http.get("/metrics")).text
    return {
        sample.name: set(sample.labels) for family in text_string_to_metric_families(page) for sample in family.samples
    }


async def test_alerts_use_existing_metrics_labels_and_codes(server: FakeServer) -> None:
    labels = await read_labels(server)
    sources = [file.read_text() for folder in ("server", "decoding") for file in (ROOT / folder).rglob("*.py")]
    for rule in ALERTS:
        expression = rule["expr"]
        used = re.findall(r"\b(onlyseen_\w+)(?:\{([^}]*)\})?", expression)
        assert used or "up{" in expression
        for name, matchers in used:
            assert name in labels, name
            for label, values in re.findall(r'(\w+)=~?"([^"]*)"', matchers):
                assert label in labels[name] | PROMETHEUS_LABELS
                for value in values.split("|") if label == "code" else ():
                    assert any(f'"{value}"' in source for source in sources), value
        for grouped in re.findall(r"by \(([^)]*)\)", expression):
            names = {each for name, _ in used for each in labels[name]}
            assert set(grouped.split(", ")) <= names | PROMETHEUS_LABELS
        words = set(re.findall(r"(?<![\w\"|])[a-z_]+(?=[ ({])", re.sub(r'"[^"]*"|onlyseen_\w+', "", expression)))
        assert words <= PROMQL, words - PROMQL
        assert all(expression.count(opening) == expression.count(closing) for opening, closing in ("()", "[]", "{}"))
