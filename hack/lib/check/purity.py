"""Pure modules decide on values: a call that reads, writes, prints or asks for the time is a finding.

Import contracts (pyproject.toml) keep modules of the outside world away; this rule covers what needs no import.
"""

import ast
from pathlib import Path

PURE = ("kubeletplugin/model/**/*.py", "controller/**/plan*.py", "api/*.py")
SHELLS = ("api/client.py", "api/connection.py")
IMPURE_NAMES = frozenset({"open", "print", "input", "breakpoint", "exec", "eval", "__import__"})
IMPURE_METHODS = frozenset({"now", "utcnow", "today"})  # of datetime: the time is an argument


def check(root: Path) -> list[str]:
    findings = []
    for path in sorted({path for pattern in PURE for path in root.glob(pattern)}):
        name = path.relative_to(root).as_posix()
        if name not in SHELLS:
            findings += find_impure(name, ast.parse(path.read_text(), name))
    return findings


def find_impure(name: str, tree: ast.Module) -> list[str]:
    findings = []
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            findings.append(f"{name}:{node.lineno}: async code in a pure module")
        elif isinstance(node, ast.Call) and (called := impure_call(node.func)):
            findings.append(f"{name}:{node.lineno}: {called}() in a pure module; a shell does it and passes the value")
    return findings


def impure_call(function: ast.expr) -> str | None:
    match function:
        case ast.Name(id=name) if name in IMPURE_NAMES:
            return name
        case ast.Attribute(attr=name, value=ast.Name(id="datetime" | "date" as owner)) if name in IMPURE_METHODS:
            return f"{owner}.{name}"
        case _:
            return None
