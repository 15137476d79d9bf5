"""`python -m simulator VERB ...`: the verbs for NVIDIA's hardware, and those for AMD's, which pass on to them."""

import sys
from collections.abc import Callable

from simulator import amd, nvidia

VERBS: dict[str, tuple[str, Callable[[list[str]], int]]] = nvidia.VERBS | amd.VERBS
"""Verb -> (one line of help, function of its arguments)."""


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in VERBS:
        print("usage: simulator VERB [options]   (simulator VERB --help says more)\n")
        for verb, (text, _) in sorted(VERBS.items()):
            print(f"  {verb:<14} {text}")
        return 0 if arguments in (["--help"], ["-h"]) else 2
    try:
        return VERBS[arguments[0]][1](arguments[1:])
    except (ValueError, OSError) as error:
        print(f"simulator {arguments[0]}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
