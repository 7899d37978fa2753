"""The study of the embedded model: every strategy with its controls, greedy and sampled, on the held-out scenes.

    make serve
    python -m bench.study --base-url http://127.0.0.1:8000 --out runs/study --write

Several servers with the same weights, separated by commas, share the images of every run. The study runs all registered
strategies and resumes from the answers stored in --out. New strategies are added without repeating the others, unless
the weights differ. Parameters default to those of the papers. The tuned rows take one parameter from a small grid,
chosen on other scenes (`bench/quality/parameter_search.py`).
"""

import argparse
import json
from pathlib import Path

from bench.quality import study_report
from bench.quality.parameter_search import search_parameters
from bench.quality.study_spec import PARTS, VOTERS, Study
from eval.runs.strategy_catalog import StrategyCatalog

CONTROLS = frozenset({"truncate", "sharpen"})  # the runs add matched controls by themselves


def list_runnable_strategies(registry: StrategyCatalog) -> list[str]:
    """Return the strategies that the server can run, plain decoding first."""
    names = [entry.name for entry in registry.data if not entry.engines or any(engine.runs for engine in entry.engines)]
    return ["plain", *sorted(set(names) - CONTROLS - {"plain"})]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000", help="comma-separated URLs")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="folder of the answers")
    parser.add_argument("--concurrency", type=int, default=16, help="concurrent requests per server")
    parser.add_argument("--only", help="comma-separated strategies, instead of all registered ones")
    parser.add_argument("--parts", default=",".join(part.name for part in PARTS), help="comma-separated names")
    parser.add_argument("--no-tuning", action="store_true", help="leave out tuned rows that are not stored yet")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/results.md, with the figure")
    options = parser.parse_args()
    study = Study(tuple(options.base_url.split(",")), options.out, options.concurrency)
    state = study.describe_servers()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "state.json").write_text(json.dumps(state, indent=1))
    registry = study.fetch_registry()
    strategies = options.only.split(",") if options.only else list_runnable_strategies(registry)
    choice_file = options.out / f"tuned-{state['weights']}.json"
    choices: dict[str, str] = json.loads(choice_file.read_text()) if choice_file.is_file() else {}
    if not options.no_tuning:
        choices |= search_parameters(study, registry, [name for name in strategies if name not in {*choices, *VOTERS}])
        choice_file.write_text(json.dumps(choices, indent=1))
    tuned_labels = [label for name, label in choices.items() if name in strategies and label != name]
    for part in PARTS:
        if part.name in options.parts.split(","):
            study.run(part, [*part.select_strategies(strategies), *(tuned_labels if part.with_tuned else ())])
    if options.write:
        study_report.write_report(options.out, choices, state)


if __name__ == "__main__":
    main()
