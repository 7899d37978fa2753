"""The metrics of many replicas as one page, each figure with the replica that it is of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


def gathered(pages: Mapping[str, str]) -> bytes:
    """`pages`: name of a replica -> what its own /metrics says."""
    registry = CollectorRegistry()
    registry.register(Pages(pages))
    return generate_latest(registry)


class Pages(Collector):
    def __init__(self, pages: Mapping[str, str]) -> None:
        self._pages = pages

    def collect(self) -> Iterable[Metric]:
        """Of one family there is one, however many replicas have it: Prometheus takes no name twice."""
        families: dict[str, Metric] = {}
        for replica, family in self._families():
            first = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for name, labels, value, *_ in family.samples:
                first.add_sample(name, {**labels, "replica": replica}, value)
        return families.values()

    def _families(self) -> Iterator[tuple[str, Metric]]:
        for replica, page in self._pages.items():
            for family in text_string_to_metric_families(page):
                yield replica, family
