"""Rings import inward only, and pure modules stay pure."""

import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from check import purity

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
APART, INNERMOST, VENDORS, CLIENT, DAEMON, PLUGIN = (
    each["name"] for each in PROJECT["tool"]["importlinter"]["contracts"]
)


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=root, env={"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False)


def test_every_import_contract_is_kept() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("contract", "module", "imported"),
    [
        (APART, "controller/loop.py", "kubeletplugin.disk"),
        (INNERMOST, "api/logs.py", "controller.settings"),
        (VENDORS, "kubeletplugin/publisher.py", "pynvml"),
        (VENDORS, "kubeletplugin/hardware/amdsmi.py", "amdsmi"),
        (CLIENT, "kubeletplugin/stale.py", "kubernetes"),
        (CLIENT, "controller/loop.py", "aiohttp"),
        (DAEMON, "kubeletplugin/imexdaemon/files.py", "grpc"),
        (DAEMON, "api/clique.py", "pydantic"),
        (DAEMON, "api/logs.py", "api.client"),
        (PLUGIN, "kubeletplugin/membership.py", "kubeletplugin.make_key"),
        (PLUGIN, "kubeletplugin/amd.py", "cryptography.x509"),
    ],
)
def test_an_import_that_a_contract_forbids_breaks_it(contract: str, module: str, imported: str, tmp_path: Path) -> None:
    for name in ("api", "controller", "kubeletplugin"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / module).open("a") as file:
        file.write(f"\nimport {imported}\n")
    result = lint_imports(tmp_path)
    assert f"{contract} BROKEN" in result.stdout, result.stdout + result.stderr


def test_pure_modules_neither_act_nor_import_what_acts() -> None:
    assert purity.check(ROOT) == []


@pytest.mark.parametrize(
    "source",
    [
        "def plan(): return open('/etc/passwd').read()",
        "print('x')",
        "async def plan(): ...",
        "from datetime import datetime\nnow = datetime.now()",
        "import time",
        "import random",
        "from os import path",
        "import api.client",
        "from api import connection, names",
        "def plan():\n    from kubeletplugin.disk import write_whole",
        "from kubeletplugin import files",
        "from kubeletplugin.imexdaemon import plan, process",
        "from controller.observe import Cache",
        "from controller import computedomain, leader",
        "from controller.computedomain.execute import Executor",
        "from controller.nodepartitioning import reconcile",
        "from . import plan",
    ],
)
def test_the_rule_of_purity_bites(source: str) -> None:
    assert len(purity.find_impure("x.py", ast.parse(source), purity.read_rule(ROOT))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "door.open()\nlog.now()",
        "import json\nfrom collections.abc import Mapping",
        "from api import compute_domain\nfrom controller.computedomain.state import Member",
    ],
)
def test_the_rule_of_purity_lets_pure_modules_be(source: str) -> None:
    assert purity.find_impure("x.py", ast.parse(source), purity.read_rule(ROOT)) == []


@pytest.mark.parametrize(
    ("file", "finding"),
    [
        ("api/new.py", "api/new.py:3: time in a pure module"),
        ("controller/computedomain/new.py", "controller/computedomain/new.py:3: time in a pure module"),
        ("kubeletplugin/new.py", "kubeletplugin/new.py: calls itself pure"),
    ],
)
def test_a_new_module_is_held_to_what_its_package_or_its_own_words_promise(
    file: str, finding: str, tmp_path: Path
) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text('"""What is new. Pure."""\n\nimport time\n')
    assert [each for each in purity.check(tmp_path) if each.startswith(finding)]


def test_modules_of_the_model_stay_small() -> None:
    """Past 400 lines a module holds two ideas, past 40 a function does."""
    for path in sorted((ROOT / "kubeletplugin" / "model").glob("**/*.py")):
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 42, f"{path}: {node.name}"
