"""A module past 400 lines or a function past 40 is an alarm: it probably holds two ideas."""

import ast
from pathlib import Path

MODULE_LINES = 400
FUNCTION_LINES = 40


def check(root: Path, packages: tuple[str, ...]) -> list[str]:
    findings = []
    for path in sorted(path for package in packages for path in (root / package).rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if "_pb2" in name:
            continue
        text = path.read_text()
        lines = text.count("\n")
        if lines > MODULE_LINES:
            findings.append(f"{name}: {lines} lines; {MODULE_LINES} at most")
        findings += find_long_functions(name, ast.parse(text, name))
    return findings


def find_long_functions(name: str, tree: ast.Module) -> list[str]:
    """Length is counted from `def` to the last line, the docstring apart: words that explain are free."""
    findings = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            lines = (node.end_lineno or node.lineno) - body[0].lineno + 2
            if lines > FUNCTION_LINES:
                findings.append(f"{name}:{node.lineno}: {node.name}() has {lines} lines; {FUNCTION_LINES} at most")
    return findings
