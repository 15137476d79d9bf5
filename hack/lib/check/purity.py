"""Pure modules decide on values: they import each other and what computes, and call nothing that acts.

`[tool.purity]` in pyproject.toml says which these are: those named `pure` with all below them, but for the `shells`.
What is neither pure nor in `may_import` is out of their reach: the client, IO, the clock, chance, logs.
"""

import ast
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

IMPURE_NAMES = frozenset({"open", "print", "input", "breakpoint", "exec", "eval", "__import__"})
IMPURE_METHODS = frozenset({"now", "utcnow", "today"})  # of datetime: the time is an argument


@dataclass(frozen=True)
class Rule:
    pure: tuple[str, ...]
    shells: tuple[str, ...]
    may_import: tuple[str, ...]

    def is_pure(self, name: str) -> bool:
        """A module, or a name in it."""
        return is_below(name, self.pure) and not is_below(name, self.shells)

    def allows(self, imported: str) -> bool:
        return self.is_pure(imported) or is_below(imported, self.may_import)


def is_below(name: str, packages: Iterable[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def read_rule(root: Path) -> Rule:
    table = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["purity"]
    return Rule(**{key: tuple(names) for key, names in table.items()})


def check(root: Path) -> list[str]:
    rule = read_rule(root)
    modules = dict(sorted(list_modules(root, rule)))
    stale = [name for name in (*rule.pure, *rule.shells) if name not in modules]
    findings = [f"pyproject.toml: [tool.purity] names {name}, which is no module" for name in stale]
    for module, path in modules.items():
        name = path.relative_to(root).as_posix()
        tree = ast.parse(path.read_text(), name)
        if rule.is_pure(module):
            findings += find_impure(name, tree, rule)
        elif re.search(r"\bPure\b", ast.get_docstring(tree) or ""):
            findings.append(f"{name}: calls itself pure, but [tool.purity] in pyproject.toml does not")
    return findings


def list_modules(root: Path, rule: Rule) -> Iterator[tuple[str, Path]]:
    """Those of every program that has pure ones."""
    for program in {name.partition(".")[0] for name in rule.pure}:
        for path in (root / program).rglob("*.py"):
            yield ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"), path


def find_impure(name: str, tree: ast.Module, rule: Rule) -> list[str]:
    findings = []
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            findings.append(f"{name}:{node.lineno}: async code in a pure module")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            impure = [imported for imported in list_imported(node) if not rule.allows(imported)]
            findings += [f"{name}:{node.lineno}: {imported} in a pure module" for imported in impure]
        elif isinstance(node, ast.Call) and (called := impure_call(node.func)):
            findings.append(f"{name}:{node.lineno}: {called}() in a pure module; a shell does it and passes the value")
    return findings


def list_imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    """By their full names, whether modules or names in them."""
    origin = "" if isinstance(node, ast.Import) else f"{'.' * node.level}{node.module or ''}."
    return [f"{origin}{alias.name}" for alias in node.names]


def impure_call(function: ast.expr) -> str | None:
    match function:
        case ast.Name(id=name) if name in IMPURE_NAMES:
            return name
        case ast.Attribute(attr=name, value=ast.Name(id="datetime" | "date" as owner)) if name in IMPURE_METHODS:
            return f"{owner}.{name}"
        case _:
            return None
