"""The cluster that the user's own kubeconfig names. It is used as it is: never made, broken or removed."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from cluster import tools
from cluster.provider import Fault, run, write_provider
from cluster.report import ClusterError, say
from cluster.shape import Shape


def _kubectl(*arguments: str) -> str:
    return run([tools.build("kubernetes") / "kubectl", *arguments])


def up(state: Path, shape: Shape) -> None:
    if shape.profiles:
        raise ClusterError(
            "nodes of an existing cluster get simulated hardware from the chart: --set simulator.profile=..."
        )
    config = _kubectl("config", "view", "--minify", "--flatten", "--raw")
    version = json.loads(_kubectl("get", "--raw", "/version"))["gitVersion"]
    write_provider(state, "current")
    (state / "kubeconfig").touch(mode=0o600)
    (state / "kubeconfig").write_text(config)
    say(f"using the cluster of the current context, Kubernetes {version}")


def down(state: Path) -> None:
    shutil.rmtree(state)
    say("the cluster was not ours to remove; it is only forgotten")


def status(state: Path) -> str:
    return _kubectl(f"--kubeconfig={state / 'kubeconfig'}", "get", "nodes", "--output=wide")


def log(state: Path, where: str, what: str) -> str:
    raise ClusterError(f"who made the cluster that {state} refers to knows where {where} keeps the log of {what}")


def command_in(state: Path, node: str, command: Sequence[str]) -> list[str]:
    kubectl = str(tools.build("kubernetes") / "kubectl")
    flags = [f"--kubeconfig={state / 'kubeconfig'}", "debug", f"node/{node}", "--image=busybox", "--profile=sysadmin"]
    return [kubectl, *flags, "--quiet", "--attach", "--", "chroot", "/host", *command]


def load(state: Path, archive: Path) -> None:
    raise ClusterError(f"push {archive} to a registry that the cluster in {state} can pull from")


def disturb(state: Path, fault: Fault) -> None:
    raise ClusterError(f"{fault.verb} is for clusters that hack/cluster made, not for the one that {state} refers to")
