"""Run the cases of each installed client package against a server, and print a table.

    python bench/clients/run.py --base-url http://127.0.0.1:8000/v1 [CLIENT ...]

The script imports nothing of this project, so that any environment can run it. A package that is not installed is left
out. The exit code is 1 if a case fails.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import agents
import frameworks
import sdks

Case = Callable[[str, str], None]  # base URL, model
CLIENTS: dict[str, tuple[str, list[Case]]] = {**sdks.CLIENTS, **frameworks.CLIENTS, **agents.CLIENTS}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="onlyseen-tiny")
    parser.add_argument("--traceback", action="store_true")
    parser.add_argument("clients", nargs="*")
    options = parser.parse_args()
    os.environ.update(OPENAI_BASE_URL=options.base_url, OPENAI_API_KEY="none", LITELLM_LOCAL_MODEL_COST_MAP="True")
    failures = 0
    for name, (package, cases) in CLIENTS.items():
        if options.clients and name not in options.clients:
            continue
        try:
            installed = version(package)
        except PackageNotFoundError:
            continue
        for case in cases:
            result = "works"
            try:
                case(options.base_url, options.model)
            except Exception as error:
                failures += 1
                result = f"fails: {type(error).__name__}: {str(error)[:160]}".replace("\n", " ")
                if options.traceback:
                    traceback.print_exc()
            print(f"| {package} {installed} | {(case.__doc__ or '').rstrip('.')} | {result} |", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
