"""Every strategy against plain decoding and against its controls, with what chance can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from eval.metrics import Floats, Metric, Ratios, ratios
from eval.plan import Contender
from eval.results import Difference, Estimate, Match, Part, Row, Signal, Verdict
from eval.sheet import Sheet
from eval.statistics import Bootstrap, detectable, exchange, holm, mcnemar, signal
from eval.tasks.task import Task

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Comparison:
    """Of one scope; None is all of them."""

    sheet: Sheet
    task: Task
    scope: str | None
    contenders: Sequence[Contender]
    reference: str

    @cached_property
    def places(self) -> list[int]:
        return self.sheet.within(self.scope)

    @cached_property
    def ratios(self) -> Ratios:
        return ratios(self.task.metrics)

    @cached_property
    def bootstrap(self) -> Bootstrap:
        return Bootstrap.of(len(self.sheet.pictures(self.places)))

    @cached_property
    def counts(self) -> dict[str, Floats]:
        return {each.label: self.sheet.counts(each.label, self.places, self.ratios.names) for each in self.contenders}

    def part(self) -> Part:
        rows = [self.row(contender) for contender in self.contenders]
        self._adjust(rows)
        return Part(
            scope=self.scope or self.task.whole or "all",
            questions=len(self.places),
            pictures=len(self.bootstrap.weights[0]),
            rows=rows,
            matches=[self.match(each, control) for each in self.contenders for control in each.controls],
        )

    def row(self, contender: Contender) -> Row:
        label = contender.label
        estimates = self.bootstrap.values(self.counts[label], self.ratios)
        values = {metric.name: Estimate.of(each) for metric, each in zip(self.task.metrics, estimates, strict=True)}
        against = {} if label == self.reference else self.differences(label, self.reference)
        return Row(
            strategy=label,
            metrics=values,
            against_plain=against,
            signal=self._signal(label),
            warnings=list(self._warnings(values, against)),
        )

    def match(self, contender: Contender, control: str) -> Match:
        differences = self.differences(contender.label, control)
        for metric in self.task.metrics:
            differences[metric.name].verdict = verdict(metric, differences[metric.name])
        return Match(strategy=contender.label, control=control, differences=differences)

    def differences(self, label: str, reference: str) -> dict[str, Difference]:
        one, other = self.counts[label], self.counts[reference]
        pvalues = exchange(one, other, self._tested_by_exchange)
        by_exchange = dict(zip([metric.name for metric in self._tested_by_exchange.metrics], pvalues, strict=True))
        found: dict[str, Difference] = {}
        for metric, interval in zip(
            self.task.metrics, self.bootstrap.differences(one, other, self.ratios), strict=True
        ):
            difference = Difference(
                value=interval.value,
                low=interval.low,
                high=interval.high,
                test="exchange",
                p=by_exchange.get(metric.name),
                detectable=detectable(interval.error, len(one)),
            )
            if metric.name not in by_exchange:
                places = self.sheet.distinct(self.places)
                table = mcnemar(*(self.sheet.outcomes(each, places, metric) for each in (label, reference)))
                difference.test, difference.p = "mcnemar", table.p
                difference.gained, difference.lost = table.gained, table.lost
            found[metric.name] = difference
        return found

    @cached_property
    def _tested_by_exchange(self) -> Ratios:
        """McNemar's test wants every question once; under several seeds, pictures are exchanged instead."""
        several = len(self.sheet.seeds) > 1
        chosen = [metric for metric in self.task.metrics if several or not metric.per_question]
        found = ratios(chosen)
        columns = [self.ratios.metrics.index(metric) for metric in chosen]
        return Ratios(found.metrics, self.ratios.names, self.ratios.over[:, columns], self.ratios.under[:, columns])

    def _adjust(self, rows: Sequence[Row]) -> None:
        """Holm, over the strategies that were asked for."""
        wanted = {each.label for each in self.contenders if each.asked_for}
        tested = [row for row in rows if row.against_plain and row.strategy in wanted]
        for metric in self.task.metrics:
            differences = [row.against_plain[metric.name] for row in tested]
            pvalues = [np.nan if each.p is None else each.p for each in differences]
            for difference, adjusted in zip(differences, holm(pvalues), strict=True):
                difference.p_holm = None if np.isnan(adjusted) else adjusted
        for row in rows:
            for metric in self.task.metrics:
                if metric.name in row.against_plain:
                    row.against_plain[metric.name].verdict = verdict(metric, row.against_plain[metric.name])

    def _signal(self, label: str) -> Signal | None:
        names = ("tp", "fp", "tn", "fn")
        if not {"tp", "fp", "fn"} <= set(self.ratios.names):
            return None
        found = signal(*self.sheet.counts(label, self.places, names).sum(0))
        return found and Signal(sensitivity=found.sensitivity, criterion=found.criterion)

    def _warnings(self, values: dict[str, Estimate], against: dict[str, Difference]) -> list[str]:
        if not against:
            return []
        titles = {metric.name: metric.title for metric in self.task.metrics}
        said = [
            f"{titles[one]} falls together with {titles[other].lower()}: it names fewer objects of either kind"
            for one, other in self.task.cautions
            if (against[one].value or 0) < 0 and (against[other].value or 0) < 0
        ]
        for metric in self.task.metrics:
            value, moved = values[metric.name].value, against[metric.name].value
            if metric.watch is None or value is None or moved is None or value == moved:
                continue
            if abs(share := moved / (value - moved)) > metric.watch:
                said.append(f"{metric.title} moves by {share:+.0%}")
        return said


def verdict(metric: Metric, difference: Difference) -> Verdict:
    p = difference.chance
    if p is None or p >= SIGNIFICANT or not difference.value or metric.better == "neither":
        return "unclear"
    # The number counts what splits share in each of them, the test once: they may point to opposite sides.
    if ((difference.gained or 0) - (difference.lost or 0)) * difference.value < 0:
        return "unclear"
    return "better" if (difference.value > 0) == (metric.better == "higher") else "worse"
