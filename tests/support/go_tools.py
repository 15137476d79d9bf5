"""Other people's programs, built from their Go modules."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
from cluster import tools

from tests.support.cluster import ROOT


@cache
def built(name: str) -> Path:
    """The folder with a tool's programs (`cluster.tools`). Skips where the module proxy says that it does not have it.

    Every other failure is one: a test that cannot fetch what it needs says nothing.
    """
    fetch = f". '{ROOT}/hack/lib/env.sh'; need_go; go mod download {tools.TOOL[name].module}"
    fetched = subprocess.run(["bash", "-c", fetch], cwd=tools.TOOLS / name, capture_output=True, text=True, check=False)
    if fetched.returncode and re.search(r"\b(403 Forbidden|404 Not Found|410 Gone)\b", fetched.stderr):
        pytest.skip(f"{name} cannot be had here: {fetched.stderr.strip()}")
    return tools.build(name)
