"""What the commands share that measure a model on captions of images: arguments, errors and progress."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")


def build_parser(
    name: str, description: str, epilog: str, *, captions: tuple[str, str], prompt: tuple[str, str]
) -> argparse.ArgumentParser:
    """Build the parser of a command.

    Args:
        name: Name of the command.
        description: What it does.
        epilog: Where its input comes from and where its output goes.
        captions: Option for the file of captions, and its help.
        prompt: Default prompt of the captions, and whose it is.

    Returns:
        The parser.
    """
    parser = argparse.ArgumentParser(prog=f"onlyseen {name}", description=description, epilog=epilog)
    parser.add_argument("--model", required=True, help="folder or hub id of the model")
    parser.add_argument("--images", required=True, type=Path, help="folder of the images")
    parser.add_argument(captions[0], required=True, type=Path, help=captions[1])
    parser.add_argument("--out", required=True, type=Path, help="safetensors file that is written")
    parser.add_argument("--prompt", default=prompt[0], help=f"prompt of the captions; default: {prompt[1]}")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...; auto selects a GPU if there is one")
    return parser


def run_command(parser: argparse.ArgumentParser, measure: Callable[[argparse.Namespace], None]) -> None:
    """Measure with the arguments of the command line. Exit with 2 if an input cannot be used.

    Args:
        parser: The parser.
        measure: Function that measures and writes the file. The folder of the file exists.
    """
    arguments = parser.parse_args()
    if not (folder := arguments.out.absolute().parent).is_dir():
        parser.error(f"--out: there is no folder {folder}")

    from decoding.errors import OnlySeenError
    from decoding.hf_engine.captions import InvalidCaptions

    try:
        measure(arguments)
    except (InvalidCaptions, OnlySeenError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        sys.exit(2)


def show_progress(items: Sequence[Item], noun: str) -> Iterator[Item]:
    """Yield items, and write the number of those that are done to a terminal."""
    for number, item in enumerate(items, 1):
        yield item
        if sys.stderr.isatty():
            end = "\n" if number == len(items) else ""
            print(f"\r{number} of {len(items)} {noun}", end=end, file=sys.stderr)
