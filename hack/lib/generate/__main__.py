"""Write the generated files, or with `--check` tell which of them are stale."""

import argparse
import difflib
import sys

from paths import ROOT

from generate import crd, protos


def main() -> int:
    parser = argparse.ArgumentParser(prog="hack/generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is stale")
    check = parser.parse_args().check
    outputs = {**protos.build_outputs(ROOT), **crd.build_outputs()}
    stale = [name for name, text in sorted(outputs.items()) if not is_current(name, text)]
    for name in stale:
        if check:
            print(f"{name} is stale; run hack/generate\n{show_difference(name, outputs[name])}")
        else:
            (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / name).write_text(outputs[name])
            print(f"wrote {name}")
    return 1 if check and stale else 0


def is_current(name: str, text: str) -> bool:
    path = ROOT / name
    return path.is_file() and protos.comparable(path.read_text()) == protos.comparable(text)


def show_difference(name: str, text: str) -> str:
    path = ROOT / name
    stored = path.read_text() if path.is_file() else ""
    lines = difflib.unified_diff(stored.splitlines(), text.splitlines(), name, "generated", lineterm="", n=1)
    return "\n".join(list(lines)[:40])


if __name__ == "__main__":
    sys.exit(main())
