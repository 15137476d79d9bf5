"""Every state that objects go through, in the API server's order: polling would miss the short ones."""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.cluster import Cluster, Object


@dataclass(frozen=True)
class History:
    """Of the objects of a collection."""

    beginning: list[Object]
    file: Path

    def states(self) -> list[Object]:
        """All that the watch has told so far, oldest first, after the objects of the beginning."""
        lines = self.file.read_text().split("\n")[:-1]  # the last one may not be whole yet
        return [*self.beginning, *(json.loads(line)["object"] for line in lines)]


@contextmanager
def watching(cluster: Cluster, where: str) -> Iterator[History]:
    """A collection's history from now on, while the block runs."""
    listed = cluster.get(where)
    query = f"watch=1&resourceVersion={listed['metadata']['resourceVersion']}"
    with tempfile.NamedTemporaryFile() as told:
        command = cluster.command("kubectl", "get", "--raw", f"{where}?{query}")
        process = subprocess.Popen(command, stdout=told)
        try:
            yield History(listed["items"], Path(told.name))
        finally:
            process.kill()
            process.wait()
