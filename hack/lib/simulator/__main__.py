"""`python -m simulator VERB ...`: each part of the simulator brings its verbs in a table `VERBS`."""

import importlib
import importlib.util
import sys
from collections.abc import Callable

Verb = Callable[[list[str]], int]
PARTS = ("simulator.nvidia", "simulator.imex", "simulator.amd")
"""Modules with `VERBS: dict[str, tuple[str, Verb]]`, verb -> (one line of help, function of its arguments)."""


def find_verbs() -> dict[str, tuple[str, Verb]]:
    verbs: dict[str, tuple[str, Verb]] = {}
    for part in PARTS:
        if importlib.util.find_spec(part):
            verbs |= getattr(importlib.import_module(part), "VERBS", {})
    return verbs


def main(arguments: list[str]) -> int:
    verbs = find_verbs()
    if not arguments or arguments[0] not in verbs:
        print("usage: simulator VERB [options]   (simulator VERB --help says more)\n")
        for verb, (text, _) in sorted(verbs.items()):
            print(f"  {verb:<14} {text}")
        return 0 if arguments in (["--help"], ["-h"]) else 2
    try:
        return verbs[arguments[0]][1](arguments[1:])
    except (ValueError, OSError) as error:
        print(f"simulator {arguments[0]}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
