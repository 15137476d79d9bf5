"""The chart as tests see it: values in, objects out."""

import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "deployments/helm/partita"
NAMESPACE = "partita-system"

Object = dict[str, Any]


class Refused(Exception):
    """Helm would not render the chart; the message is Helm's."""


@lru_cache
def helm() -> Path:
    """Built from the Go module that hack/cluster pins, unless it is there."""
    sys.path.insert(0, str(ROOT / "hack/lib"))
    from cluster import tools

    return tools.build("helm") / "helm"


def render(*settings: str, namespace: str = NAMESPACE, release: str = "partita") -> list[Object]:
    """`settings` are those of `helm --set`. Raises Refused."""
    flags = [word for setting in settings for word in ("--set", setting)]
    command = [helm(), "template", release, CHART, "--namespace", namespace, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(done.stderr)
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(objects: list[Object], kind: str) -> dict[str, Object]:
    """Name -> object."""
    return {each["metadata"]["name"]: each for each in objects if each["kind"] == kind}


def environment(container: Object) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}


def plugin_pod(objects: list[Object]) -> Object:
    """The pod template's spec of the node plugin."""
    (daemon_set,) = of_kind(objects, "DaemonSet").values()
    spec: Object = daemon_set["spec"]["template"]["spec"]
    return spec
