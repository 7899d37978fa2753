"""`python -m onlyseen COMMAND` runs one of the commands of this package."""

from __future__ import annotations

import sys
from importlib import import_module

import onlyseen

COMMANDS = {
    "serve": ("server.__main__", "start the server (also onlyseen-server)"),
    "eval": ("eval.__main__", "evaluate strategies (also onlyseen-eval)"),
    "check": ("onlyseen.check", "check a strategy of your own (also onlyseen-check)"),
    "attention-statistics": ("onlyseen.attention_statistics", "measure a model's attention heads for adaiat"),
    "steering-vectors": ("onlyseen.steering_vectors", "measure a model's directions of true captions for vti"),
    "strategies": ("onlyseen.strategies", "list the installed strategies"),
}


def format_usage() -> str:
    """Return the text of `--help`."""
    lines = [f"  {name:<22}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: python -m onlyseen COMMAND [OPTIONS]", "", *lines, "", "  --version   print the version"])


def main() -> None:
    """Run the command that the first argument names, with the other arguments."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(format_usage())
    elif command == "--version":
        print(onlyseen.__version__)
    elif command in COMMANDS:
        module, _ = COMMANDS[command]
        sys.argv = [f"{sys.argv[0]} {command}", *sys.argv[2:]]
        import_module(module).main()
    else:
        sys.exit(f"python -m onlyseen: there is no command '{command}'\n\n{format_usage()}")


if __name__ == "__main__":
    main()
