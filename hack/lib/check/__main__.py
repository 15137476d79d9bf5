"""Run the static checks one after another, print each with its time, and fail when any of them fails."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from paths import CACHE, ROOT

from check import manifests, purity, size

BIN = Path(sys.executable).parent
PROGRAMS = ("api", "kubeletplugin", "controller")


def run(*command: str | Path, **environment: str) -> list[str]:
    """Run a tool from the repository root; its output is the finding where it fails. An empty list means: clean."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return [] if done.returncode == 0 else [done.stdout.rstrip() or f"exit status {done.returncode}"]


def tracked_files() -> list[Path]:
    """What git knows or would add, so that build outputs in ignored folders are never looked at."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    paths = sorted(ROOT / name for name in listed.stdout.split("\0") if name)
    return [path for path in paths if path.is_file()]


def check_types() -> list[str]:
    """`mypy --strict` over the programs, then over the helper packages of the commands (another import root)."""
    findings = run(BIN / "mypy", *(word for name in PROGRAMS for word in ("-p", name)))
    helpers = sorted(path.parent.name for path in (ROOT / "hack/lib").glob("*/__init__.py"))
    if helpers:
        findings += run(BIN / "mypy", *(word for name in helpers for word in ("-p", name)), MYPYPATH="hack/lib")
    return findings


def check_scripts() -> list[str]:
    """shellcheck over every shell script, known by its first line."""
    scripts = [path for path in tracked_files() if path.suffix == ".sh" or is_shell(path)]
    return run(BIN / "shellcheck", "-x", "-e", "SC1091", "-P", ROOT, *scripts) if scripts else []


def is_shell(path: Path) -> bool:
    if path.suffix:
        return False
    with path.open("rb") as file:
        first = file.readline(80)
    return first.startswith(b"#!") and (b"bash" in first or first.rstrip().endswith(b"/sh"))


def check_chart() -> list[str]:
    """`helm lint`, where helm has been built: a first check does not wait for a compiler, the chart's tests do."""
    programs = sorted(CACHE.glob("bin/helm-*/helm"))
    charts = sorted(path.parent for path in (ROOT / "deployments/helm").glob("*/Chart.yaml"))
    return run(programs[-1], "lint", "--quiet", "--strict", *charts) if programs and charts else []


STEPS: dict[str, Callable[[], list[str]]] = {
    "lint": lambda: run(BIN / "ruff", "check", "--quiet", "--output-format=concise", "."),
    "format": lambda: run(BIN / "ruff", "format", "--check", "--quiet", "."),
    "imports": lambda: run(BIN / "lint-imports", "--no-cache", "--no-logo"),
    "purity": lambda: purity.check(ROOT),
    "size": lambda: size.check(ROOT, PROGRAMS),
    "generated": lambda: run(sys.executable, "-m", "generate", "--check"),
    "manifests": lambda: manifests.check(tracked_files()),
    "scripts": check_scripts,
    "chart": check_chart,
    "types": check_types,
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hack/check", description=__doc__)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(STEPS))
    steps = parser.parse_args(arguments).steps
    if unknown := sorted(set(steps) - STEPS.keys()):
        parser.error(f"no step named {', '.join(unknown)}; there are: {', '.join(STEPS)}")
    failed = []
    for name in steps or STEPS:
        started = time.monotonic()
        findings = STEPS[name]()
        print(f"{'FAIL' if findings else 'ok  '} {name:<10} {time.monotonic() - started:5.1f} s", flush=True)
        for finding in findings:
            print("    " + finding.replace("\n", "\n    "), flush=True)
        if findings:
            failed.append(name)
    print(f"check: {'FAILED: ' + ', '.join(failed) if failed else 'all steps passed'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
