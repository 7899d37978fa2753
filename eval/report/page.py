"""report.html: one file, no request to anywhere."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from eval.manifest import Manifest
from eval.report import plots, wording
from eval.report.gallery import gallery
from eval.results import Results
from eval.sheet import Sheet


def page(results: Results, manifest: Manifest, sheet: Sheet) -> str:
    environment = Environment(
        loader=PackageLoader("eval.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    overall = results.parts[-1]
    return environment.get_template("report.html.j2").render(
        results=results,
        manifest=manifest,
        parts=[overall, *results.parts[:-1]],
        primaries=[column for column in results.columns if column.primary],
        gallery=gallery(sheet),
        words=wording,
        # Made by matplotlib, which escapes the labels that it writes.
        differences=Markup(plots.differences(overall, results)),
        pareto=Markup(plots.pareto(overall, results)),
    )
