"""Other people's programs, built from their Go modules."""

import subprocess
from functools import cache
from pathlib import Path

import pytest
from cluster import tools

from tests.support.cluster import ROOT


@cache
def built(name: str) -> Path:
    """The folder with a tool's programs (`cluster.tools`). Skips the test where no module proxy has the module."""
    fetch = f". '{ROOT}/hack/lib/env.sh'; need_go; go mod download {tools.TOOL[name].module}"
    fetched = subprocess.run(["bash", "-c", fetch], cwd=tools.TOOLS / name, capture_output=True, text=True, check=False)
    if fetched.returncode:
        pytest.skip(f"{name} cannot be had here: {fetched.stderr.strip()}")
    return tools.build(name)
