"""What single values of the chart do, and which of them it refuses."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.unit.chart.chart import ROOT, Object, Refused, notes, of_kind, plugin_pod, render

NO_DOMAINS = "resources.computeDomains.enabled=false"
PARTITIONING = ("resources.amd.enabled=true", "controller.nodePartitioning.enabled=true")
NETWORK_POLICIES = ("kubeletPlugin.networkPolicy.enabled=true", "controller.networkPolicy.enabled=true")


@pytest.mark.parametrize(
    ("settings", "runs"),
    [((), True), ((NO_DOMAINS,), False), ((NO_DOMAINS, *PARTITIONING[:1]), False), ((NO_DOMAINS, *PARTITIONING), True)],
)
def test_the_controller_runs_where_it_has_something_to_do(settings: tuple[str, ...], runs: bool) -> None:
    theirs = [
        f"{each['kind']} {each['metadata']['name']}"
        for each in render(*settings, *NETWORK_POLICIES)
        if "controller" in each["metadata"]["name"]
    ]
    assert ("Deployment partita-controller" in theirs) is runs
    assert bool(theirs) is runs, "nor is anything else of it there: rights, account, NetworkPolicy"


def test_the_notes_speak_of_daemons_only_where_there_are_any(tmp_path: Path) -> None:
    told = notes(tmp_path, NO_DOMAINS, "kubeletPlugin.admissionPolicy.enabled=false")
    assert "daemon" not in told and "every node's ResourceSlices" in told


def test_every_profile_that_a_gpu_has_may_get_a_class() -> None:
    files = sorted((ROOT / "hack/lib/simulator/profiles").glob("*.toml"))
    names = sorted({row[0] for file in files for row in tomllib.loads(file.read_text())["mig"]["profiles"]})
    assert "1g.24gb-me" in names
    classes = of_kind(render(values={"resources": {"gpus": {"migClasses": names}}}), "DeviceClass")
    for name in names:
        assert f"mig-{name.replace('+', '.')}.nvidia.com" in classes


@pytest.mark.parametrize(
    "settings",
    [
        (
            "resources.gpus.extendedResourceName=x.io/gpu",
            "resources.amd.enabled=true",
            "resources.amd.extendedResourceName=x.io/gpu",
        ),
        ("resources.gpus.extendedResourceName=nvidia.com/mig-1g.10gb", "resources.gpus.migClasses={1g.10gb}"),
    ],
)
def test_two_classes_may_not_have_one_extended_resource(settings: tuple[str, ...]) -> None:
    name = settings[0].partition("=")[2]
    with pytest.raises(Refused, match=rf"DeviceClasses \S+ and \S+ would both have the extended resource {name}"):
        render(*settings)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("kubeletPlugin.containers.gpus.env[0].name=A", "kubeletPlugin.containers.plugin"),
        ("kubeletPlugin.containers.gpus.healthcheckPort=1", "kubeletPlugin.metrics.port"),
        ("kubeletPlugin.containers.computeDomains.resources.x=y", "kubeletPlugin.containers.plugin"),
        ("kubeletPlugin.containers.computeDomains.healthcheckPort=1", "kubeletPlugin.metrics.port"),
        (
            "kubeletPlugin.containers.computeDomains.gpuCliqueLabelEnabled=true",
            "resources.computeDomains.gpuCliqueLabelEnabled",
        ),
        ("nvidiaCtkPath=/usr/bin/nvidia-ctk", "nvidiaCDIHookPath"),
        ("namespace=x", "helm --namespace"),
        ("controller.pdb.enabled=true", "of two replicas the other one goes on"),
    ],
)
def test_who_brings_a_value_of_nvidias_chart_is_told_what_is_right_for_it(value: str, reason: str) -> None:
    with pytest.raises(Refused, match=f"left out: .*{re.escape(reason)}"):
        render(value)


def test_a_node_selector_for_simulated_hardware_says_nothing_without_a_profile() -> None:
    assert "nodeSelector" not in plugin_pod(render("simulator.nodeSelector.trial=yes"))


def test_the_nodes_that_are_marked_as_simulated_are_those_that_the_plugin_runs_on() -> None:
    selectors = ("simulator.nodeSelector.trial=yes", "kubeletPlugin.nodeSelector.pool=gpu")
    objects = render("simulator.profile=h100", *selectors)
    (container,) = of_kind(objects, "Job")["partita-mark-nodes"]["spec"]["template"]["spec"]["containers"]
    assert plugin_pod(objects)["nodeSelector"] == {"pool": "gpu", "trial": "yes"}
    assert container["args"][1] == "pool=gpu,trial=yes"


def test_a_pod_monitor_is_there_when_asked_for_and_chooses_the_pods_of_both_programs() -> None:
    assert not of_kind(render(), "PodMonitor")
    enabled = ("podMonitor.enabled=true", "podMonitor.labels.release=prometheus", "podMonitor.interval=30s")
    objects = render(*enabled)
    monitor = of_kind(objects, "PodMonitor")["partita"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint == {"port": "http", "interval": "30s"}
    selector = monitor["spec"]["selector"]
    (wanted,) = selector["matchExpressions"]
    for each in objects:
        if each["kind"] in ("DaemonSet", "Deployment"):
            template = each["spec"]["template"]
            assert selector["matchLabels"].items() <= template["metadata"]["labels"].items()
            assert template["metadata"]["labels"][wanted["key"]] in wanted["values"]
            assert endpoint["port"] in [port["name"] for port in template["spec"]["containers"][0]["ports"]]


def test_both_programs_reach_the_api_server_on_the_ports_that_it_has() -> None:
    def ports(*settings: str) -> list[Any]:
        policies = of_kind(render(*NETWORK_POLICIES, *settings), "NetworkPolicy")
        told = [policies[f"partita-{name}"]["spec"]["egress"] for name in ("controller", "kubelet-plugin")]
        assert told[0] == told[1]
        return [each["port"] for rule in told[0] for each in rule["ports"]]

    assert ports() == [443, 6443]
    assert ports("apiServerPorts={443,16443}") == [443, 16443]


@pytest.mark.parametrize("values", [{"updateStrategy": None}, {"updateStrategy": {"rollingUpdate": None}}])
def test_an_update_strategy_that_is_taken_away_is_kubernetes_own(values: Object) -> None:
    (daemon_set,) = of_kind(render(values={"kubeletPlugin": values}), "DaemonSet").values()
    assert "rollingUpdate" not in daemon_set["spec"].get("updateStrategy", {})


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        ("leaseDuration=10s", r"leaseDuration \(10s\) must be longer than renewDeadline \(10s\)"),
        ("retryPeriod=12s", r"renewDeadline \(10s\), and that than retryPeriod \(12s\)"),
        ("retryPeriod=0s", "/controller/leaderElection/retryPeriod"),
    ],
)
def test_times_of_the_leader_election_that_the_controller_refuses_are_not_installed(times: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        render(f"controller.leaderElection.{times}")


@pytest.mark.parametrize("component", ["kubeletPlugin", "controller"])
@pytest.mark.parametrize("label", ["app.kubernetes.io/name", "app.kubernetes.io/component"])
def test_a_label_that_pods_are_selected_by_is_not_for_the_values_to_set(component: str, label: str) -> None:
    with pytest.raises(Refused, match=re.escape(f"{component}.podLabels: {label} is a label that the chart itself")):
        render(values={component: {"podLabels": {label: "mine"}}})
