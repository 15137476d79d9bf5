"""Pods that are bound when their domain is formed, under a scheduler that loses patience after seconds."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import tools

from tests.support.cluster import Cluster, path, wait_until
from tests.support.computedomain import FABRIC, Controller, Kubelets, build_domain, build_worker, make_node
from tests.support.domain_controller_world import World, controller, kubelets, world

__all__ = ["controller", "kubelets", "world"]

PATIENCE = "10s"  # instead of ten minutes


@pytest.fixture
def hasty(prepared: Cluster, tmp_path: Path) -> Iterator[str]:
    """The name of a scheduler beside the control plane's own."""
    name, file = "hasty", tmp_path / "scheduler.json"
    config = json.loads((prepared.state / "scheduler.json").read_text())
    arguments = {"apiVersion": config["apiVersion"], "kind": "DynamicResourcesArgs", "bindingTimeout": PATIENCE}
    plugins = [{"name": "DynamicResources", "args": arguments}]
    file.write_text(json.dumps({**config, "profiles": [{"schedulerName": name, "pluginConfig": plugins}]}))
    program = tools.build("kubernetes") / "kube-scheduler"
    with (tmp_path / "scheduler.log").open("wb") as log:
        process = subprocess.Popen([program, f"--config={file}", "--secure-port=0"], stderr=log)
    try:
        yield name
    finally:
        process.kill()
        process.wait()


def test_a_pod_whose_domain_outlasts_the_schedulers_patience_is_scheduled_again_and_bound_once_it_is_formed(
    world: World, controller: Controller, kubelets: Kubelets, hasty: str
) -> None:
    make_node(world.cluster, "cd-bind", f"{FABRIC}.0", binding=True)
    kubelets.ready = False
    world.create(build_domain("late", 2))
    world.start_workers("cd-a")
    worker = build_worker("late-cd-bind", "late", "cd-bind")
    worker["spec"]["schedulerName"] = hasty
    world.cluster.create(world.pods, worker)
    events = path("v1", "events", namespace=world.namespace)

    def given_up() -> list[str]:
        messages = [each["message"] for each in world.cluster.list(events) if each["reason"] == "FailedScheduling"]
        return [message for message in messages if "device binding timeout" in message]

    wait_until("the scheduler has lost its patience", given_up)
    waiting = f"{world.pods}/late-cd-bind"
    assert "nodeName" not in world.cluster.get(waiting)["spec"]
    kubelets.ready = True
    world.cluster.wait(waiting, "it is bound", lambda pod: pod["spec"].get("nodeName") == "cd-bind", 120.0)
    world.wait_ready(2)
