"""The chart as tests see it: values in, objects out."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
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


def render(
    *settings: str,
    namespace: str = NAMESPACE,
    release: str = "partita",
    chart: Path = CHART,
    options: Sequence[str] = (),
    values: Object | None = None,
) -> list[Object]:
    """`settings` are those of `helm --set`, `values` those of a file, `options` others of `helm`. Raises Refused."""
    flags = [word for setting in settings for word in ("--set", setting)]
    command = [helm(), "template", release, chart, "--namespace", namespace, "--values", "-", *flags, *options]
    done = subprocess.run(command, input=yaml.safe_dump(values or {}), capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(done.stderr)
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def notes(folder: Path, *settings: str, kubernetes: str = "1.37") -> str:
    """What Helm says when it has installed. It has no command for that; so here it is a field of an object."""
    chart = shutil.copytree(CHART, folder / "chart")
    (chart / "templates/NOTES.txt").rename(chart / "notes")
    told = """kind: Notes\nmetadata: {name: notes}\ntext: {{ tpl (.Files.Get "notes") . | toJson }}\n"""
    (chart / "templates/notes.yaml").write_text(told)
    objects = render(*settings, chart=chart, options=("--kube-version", kubernetes))
    text: str = of_kind(objects, "Notes")["notes"]["text"]
    return text


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
