"""`onlyseen-check PACKAGE:CLASS` checks that a strategy keeps the rules of the plugin interface."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from decoding.strategy import Strategy

DESCRIPTION = "Check that a strategy keeps the rules of the plugin interface. No model is loaded."
EPILOG = "Exit status: 0 if all rules pass, 1 if a rule fails, 2 if the class cannot be loaded."


class StrategyLoadError(Exception):
    """The argument does not name a strategy class. The message is for the terminal."""


def main() -> None:
    """Run the command and exit with a status."""
    parser = argparse.ArgumentParser(prog="onlyseen-check", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("target", metavar="PACKAGE:CLASS", help="as in an entry point, e.g. my_package.module:MyClass")
    target = parser.parse_args().target
    sys.path.insert(0, os.getcwd())  # a console script does not look in the working directory
    try:
        strategy_class = load_class(target)
    except StrategyLoadError as error:
        print(f"onlyseen-check: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(print_report(target, strategy_class))


def load_class(target: str) -> type[Strategy]:
    """Import the class that `PACKAGE:CLASS` names.

    Returns:
        The class.

    Raises:
        StrategyLoadError: There is no such class, or it is not a strategy.
    """
    from decoding.strategy import Strategy

    module, _, name = target.partition(":")
    if not module or not name:
        raise StrategyLoadError(f"'{target}' is not of the form PACKAGE:CLASS")
    try:
        strategy_class = getattr(import_module(module), name)
    except Exception as error:
        raise StrategyLoadError(f"'{target}' cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(strategy_class, type) and issubclass(strategy_class, Strategy)):
        raise StrategyLoadError(f"'{target}' is not a subclass of onlyseen.Strategy")
    return strategy_class


def print_report(target: str, strategy_class: type[Strategy]) -> int:
    """Print the result of each rule.

    Returns:
        The exit status.
    """
    from decoding.conformance.rules import run_rules

    results = run_rules(strategy_class)
    for result in results:
        print(f"{'FAIL' if result.problems else 'ok':<6}{result.rule}")
        for problem in result.problems:
            print(f"      {problem}")
    failed = sum(bool(result.problems) for result in results)
    print(f"{target}: {f'{failed} of {len(results)} rules failed' if failed else f'all {len(results)} rules passed'}")
    return 1 if failed else 0


if __name__ == "__main__":
    main()
