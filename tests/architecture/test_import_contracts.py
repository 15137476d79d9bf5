"""Rings import inward only, and pure modules stay pure."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def purity() -> ModuleType:
    """The rule that `hack/check` runs."""
    spec = importlib.util.spec_from_file_location("purity", ROOT / "hack" / "lib" / "check" / "purity.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_import_contract_is_kept() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_pure_modules_neither_read_nor_write_nor_print() -> None:
    assert purity().check(ROOT) == []


@pytest.mark.parametrize(
    "source",
    [
        "def plan(): return open('/etc/passwd').read()",
        "print('x')",
        "async def plan(): ...",
        "import datetime\nnow = datetime.now()",
    ],
)
def test_the_rule_of_purity_bites(source: str) -> None:
    assert len(purity().find_impure("model/x.py", ast.parse(source))) == 1


def test_modules_of_the_model_stay_small() -> None:
    """Past 400 lines a module holds two ideas, past 40 a function does."""
    for path in sorted((ROOT / "kubeletplugin" / "model").glob("**/*.py")):
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 42, f"{path}: {node.name}"
