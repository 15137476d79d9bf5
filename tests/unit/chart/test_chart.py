"""What the chart makes of its values, by `helm template`."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from api.device_config import DOMAIN_ID
from tests.unit.chart.chart import CHART, Object, Refused, environment, notes, of_kind, plugin_pod, render

EVERYTHING = (
    "resources.amd.enabled=true",
    "simulator.profile=h100",
    "resources.gpus.migClasses={1g.10gb,3g.40gb}",
    "kubeletPlugin.networkPolicy.enabled=true",
    "controller.networkPolicy.enabled=true",
    "controller.nodePartitioning.enabled=true",
    "podMonitor.enabled=true",
)


def expression(device_class: Object) -> str:
    (selector,) = device_class["spec"]["selectors"]
    text: str = selector["cel"]["expression"]
    return text


def drivers(objects: list[Object]) -> str:
    return environment(plugin_pod(objects)["containers"][0])["DRIVERS"]


def test_without_values_the_chart_serves_nvidia_gpus_and_compute_domains() -> None:
    objects = render()
    assert set(of_kind(objects, "DeviceClass")) == {
        "gpu.nvidia.com",
        "mig.nvidia.com",
        "compute-domain-daemon.nvidia.com",
        "compute-domain-default-channel.nvidia.com",
    }
    assert drivers(objects) == "gpu.nvidia.com,compute-domain.nvidia.com"
    assert set(of_kind(objects, "Deployment")) == {"partita-controller"}


def test_gpus_alone_need_no_controller() -> None:
    objects = render("resources.computeDomains.enabled=false", "controller.enabled=false")
    assert set(of_kind(objects, "DeviceClass")) == {"gpu.nvidia.com", "mig.nvidia.com"}
    assert drivers(objects) == "gpu.nvidia.com"
    assert not of_kind(objects, "Deployment")


def test_device_classes_select_what_the_reference_driver_publishes() -> None:
    classes = of_kind(render(*EVERYTHING), "DeviceClass")
    assert {name: expression(each) for name, each in classes.items() if not name.startswith("mig-")} == {
        "gpu.nvidia.com": "device.driver == 'gpu.nvidia.com' && device.attributes['gpu.nvidia.com'].type == 'gpu'",
        "mig.nvidia.com": "device.driver == 'gpu.nvidia.com' && device.attributes['gpu.nvidia.com'].type == 'mig'",
        "gpu.amd.com": "device.driver == 'gpu.amd.com'",
        "gpu.amd.com-spx": "device.driver == 'gpu.amd.com' && device.attributes['gpu.amd.com'].type == 'amdgpu'",
        "compute-domain-daemon.nvidia.com": "device.driver == 'compute-domain.nvidia.com' "
        "&& device.attributes['compute-domain.nvidia.com'].type == 'daemon'",
        "compute-domain-default-channel.nvidia.com": "device.driver == 'compute-domain.nvidia.com' "
        "&& device.attributes['compute-domain.nvidia.com'].type == 'channel' "
        "&& device.attributes['compute-domain.nvidia.com'].id == 0",
    }


def test_a_mig_profile_becomes_a_class_that_pods_may_ask_for_as_extended_resource() -> None:
    classes = of_kind(render("resources.gpus.migClasses={1g.10gb,1g.10gb+me}"), "DeviceClass")
    assert classes["mig-1g.10gb.nvidia.com"]["spec"]["extendedResourceName"] == "nvidia.com/mig-1g.10gb"
    media = classes["mig-1g.10gb.me.nvidia.com"]
    assert media["spec"]["extendedResourceName"] == "nvidia.com/mig-1g.10gb.me"
    assert expression(media).endswith(".profile == '1g.10gb+me'")


def test_extended_resources_are_offered_only_when_named() -> None:
    assert "extendedResourceName" not in of_kind(render(), "DeviceClass")["gpu.nvidia.com"]["spec"]
    named = of_kind(render("resources.gpus.extendedResourceName=nvidia.com/gpu"), "DeviceClass")
    assert named["gpu.nvidia.com"]["spec"]["extendedResourceName"] == "nvidia.com/gpu"


@pytest.mark.parametrize(("partitioning", "holder"), [("on-claim", "gpu.amd.com-spx"), ("static", "gpu.amd.com")])
def test_an_extended_resource_is_never_a_part_of_an_amd_gpu_that_could_be_whole(partitioning: str, holder: str) -> None:
    settings = ("resources.amd.enabled=true", "resources.amd.extendedResourceName=amd.com/gpu")
    classes = of_kind(render(*settings, f"resources.amd.partitioning={partitioning}"), "DeviceClass")
    named = {name for name, each in classes.items() if each["spec"].get("extendedResourceName") == "amd.com/gpu"}
    assert named == {holder}


@pytest.mark.parametrize(
    ("settings", "host", "seen"),
    [
        ((), "/", "/driver-root"),
        (("nvidiaDriverRoot=/run/nvidia/driver",), "/run/nvidia/driver", "/run/nvidia/driver"),
        (("simulator.profile=h100",), "/run/nvidia/driver", "/run/nvidia/driver"),
    ],
)
def test_the_driver_root_is_mounted_where_the_plugin_is_told(settings: tuple[str, ...], host: str, seen: str) -> None:
    pod = plugin_pod(render(*settings))
    plugin = pod["containers"][0]
    assert (environment(plugin)["DRIVER_ROOT"], environment(plugin)["DRIVER_ROOT_CTR_PATH"]) == (host, seen)
    volumes = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in plugin["volumeMounts"]}
    assert (volumes["driver-root"], mounts["driver-root"]) == (host, seen)


@pytest.mark.parametrize(
    ("nvidia", "amd", "told", "mounted"),
    [
        ("/", "", ("/", "/driver-root"), {"/": "/driver-root"}),
        (
            "/run/nvidia/driver",
            "/",
            ("/", "/driver-root"),
            {"/run/nvidia/driver": "/run/nvidia/driver", "/": "/driver-root"},
        ),
        ("/", "/opt/amd", ("/opt/amd", "/opt/amd"), {"/": "/driver-root", "/opt/amd": "/opt/amd"}),
    ],
)
def test_amds_driver_may_be_elsewhere_than_nvidias(
    nvidia: str, amd: str, told: tuple[str, str], mounted: dict[str, str]
) -> None:
    roots = (f"nvidiaDriverRoot={nvidia}", f"resources.amd.driverRoot={amd}")
    pod = plugin_pod(render("resources.amd.enabled=true", *roots))
    plugin = pod["containers"][0]
    assert (environment(plugin)["AMD_DRIVER_ROOT"], environment(plugin)["AMD_DRIVER_ROOT_CTR_PATH"]) == told
    volumes = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}
    mounts = {mount["name"]: mount["mountPath"] for mount in plugin["volumeMounts"]}
    assert {volumes[name]: mounts[name] for name in volumes if name.endswith("driver-root")} == mounted


def test_sockets_and_cdi_files_have_one_path_inside_and_outside() -> None:
    pod = plugin_pod(render("kubeletPlugin.kubeletPluginsDirectoryPath=/data/kubelet/plugins"))
    volumes = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert volumes["plugins"] == mounts["plugins"] == "/data/kubelet/plugins"
    assert all(volumes[name] == mounts[name] for name in ("registry", "cdi"))


def test_an_upgrade_starts_the_new_plugin_before_the_old_one_ends() -> None:
    (daemon_set,) = of_kind(render(), "DaemonSet").values()
    assert daemon_set["spec"]["updateStrategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    names = [entry["name"] for entry in plugin_pod(render())["containers"][0]["env"]]
    assert "POD_UID" in names  # gives each instance sockets of its own


@pytest.mark.parametrize(
    ("rolling", "kept"),
    [
        ({"maxUnavailable": "100%"}, {"maxUnavailable": "100%"}),
        ({"maxUnavailable": 3}, {"maxUnavailable": 3}),
        ({"maxUnavailable": "0%"}, {"maxSurge": 1, "maxUnavailable": "0%"}),
        ({"maxSurge": "10%"}, {"maxSurge": "10%", "maxUnavailable": 0}),
    ],
)
def test_who_lets_plugins_be_unavailable_gets_no_surge_which_no_daemon_set_has_beside_it(
    rolling: Object, kept: Object
) -> None:
    objects = render(values={"kubeletPlugin": {"updateStrategy": {"rollingUpdate": rolling}}})
    (daemon_set,) = of_kind(objects, "DaemonSet").values()
    assert daemon_set["spec"]["updateStrategy"] == {"type": "RollingUpdate", "rollingUpdate": kept}


def test_a_variable_of_the_charts_own_that_the_values_have_too_is_theirs_and_is_there_once() -> None:
    """One that is there twice is refused by whoever applies on the server's side, as Helm 4 and Argo CD do."""
    controller = [{"name": "IMEX_TLS", "value": "false"}, {"name": "MINE", "value": "here"}]
    plugin = [{"name": "LOG_LEVEL", "value": "DEBUG"}, {"name": "NODE_NAME", "value": "given"}]
    values = {
        "controller": {"containers": {"controller": {"env": controller}}},
        "kubeletPlugin": {"containers": {"plugin": {"env": plugin}}},
    }
    objects = render(values=values)
    deployment = of_kind(objects, "Deployment")["partita-controller"]
    pods = ((deployment["spec"]["template"]["spec"], controller), (plugin_pod(objects), plugin))
    for pod, given in pods:
        env = pod["containers"][0]["env"]
        names = [each["name"] for each in env]
        assert len(set(names)) == len(names) > len(given) + 5
        assert env[-len(given) :] == given


def test_the_controller_runs_without_root_and_without_capabilities() -> None:
    deployment = of_kind(render(), "Deployment")["partita-controller"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    security = container["securityContext"]
    assert security["runAsNonRoot"] and security["readOnlyRootFilesystem"]
    assert security["capabilities"] == {"drop": ["ALL"]}


def test_two_controllers_are_kept_apart_where_there_is_room_unless_told_otherwise() -> None:
    def pod(*settings: str) -> Object:
        spec: Object = of_kind(render(*settings), "Deployment")["partita-controller"]["spec"]
        return {"replicas": spec["replicas"], "labels": spec["selector"]["matchLabels"], **spec["template"]["spec"]}

    default = pod()
    assert default["replicas"] == 2
    (preferred,) = default["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred["podAffinityTerm"] == {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": default["labels"]},
    }
    assert pod("controller.affinity.nodeAffinity.x=y")["affinity"] == {"nodeAffinity": {"x": "y"}}


def test_simulated_hardware_is_installed_before_the_plugin_starts_and_marks_its_nodes() -> None:
    objects = render("simulator.profile=gb200", "simulator.nodeSelector.trial=yes")
    pod = plugin_pod(objects)
    (installer,) = pod["initContainers"]
    assert "--profile=gb200" in installer["args"]
    assert pod["nodeSelector"] == {"trial": "yes"}
    jobs = of_kind(objects, "Job")
    arguments = jobs["partita-mark-nodes"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[1:] == ["trial=yes", "partita/simulated=gb200"]
    assert jobs["partita-unmark-nodes"]["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete"


def test_a_profile_of_mixed_models_makes_a_valid_label() -> None:
    jobs = of_kind(render("simulator.profile=a100-40x4+h100x4:clique=2"), "Job")
    arguments = jobs["partita-mark-nodes"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[2] == "partita/simulated=a100-40x4_h100x4_clique_2"


def test_what_may_write_nodes_is_gone_when_the_hook_has_run() -> None:
    writers = [
        each
        for each in render("simulator.profile=h100")
        if each["kind"] == "ClusterRole"
        and any("nodes" in rule["resources"] and "patch" in rule["verbs"] for rule in each["rules"])
    ]
    assert writers
    for each in writers:
        assert "hook-succeeded" in each["metadata"]["annotations"]["helm.sh/hook-delete-policy"]


def test_without_a_profile_nothing_is_simulated() -> None:
    objects = render()
    assert "initContainers" not in plugin_pod(objects)
    assert "simulator" not in yaml.safe_dump_all(objects)


@pytest.mark.parametrize(
    ("settings", "namespace", "reason"),
    [
        ((), "default", "allowDefaultNamespace=true"),
        (
            ("resources.gpus.enabled=false", "resources.computeDomains.enabled=false"),
            "partita-system",
            "no driver is enabled",
        ),
        (("controller.enabled=false",), "partita-system", "compute domains are formed by the controller"),
        (("serviceAccount.create=false",), "partita-system", "serviceAccount.name"),
        (("resources.gpu.enabled=true",), "partita-system", "additional properties 'gpu' not allowed"),
        (("image.pullPolicy=Sometimes",), "partita-system", "/image/pullPolicy"),
        (("nvidiaDriverRoot=run/nvidia",), "partita-system", "/nvidiaDriverRoot"),
        (("webhook.enabled=true",), "partita-system", "left out: configs are checked without one"),
        (("featureGates.MPSSupport=true",), "partita-system", "MPS, passthrough, consumable shares and Fabric"),
        (("resources.gpus.migClasses={1g}",), "partita-system", "/resources/gpus/migClasses/0"),
        (("resources.gpus.extendedResourceName=gpu",), "partita-system", "/resources/gpus/extendedResourceName"),
    ],
)
def test_values_that_cannot_work_are_refused_with_their_name(
    settings: tuple[str, ...], namespace: str, reason: str
) -> None:
    with pytest.raises(Refused, match=re.escape(reason)):
        render(*settings, namespace=namespace)


def test_namespace_default_is_taken_when_it_is_meant() -> None:
    (daemon_set,) = of_kind(render("allowDefaultNamespace=true", namespace="default"), "DaemonSet").values()
    assert daemon_set["metadata"]["namespace"] == "default"


def test_two_releases_share_no_name() -> None:
    """Classes, definitions and hooks apart, whose sharing the refusal and Helm itself deal with."""
    kinds = {"ClusterRole", "ClusterRoleBinding", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
    first, second = (
        {(each["kind"], each["metadata"]["name"]) for each in render(*EVERYTHING[:1], release=name, namespace=name)}
        for name in ("one", "two")
    )
    assert not {name for name in first & second if name[0] in kinds}


def test_every_object_says_which_release_it_belongs_to() -> None:
    for each in render(*EVERYTHING):
        assert each["metadata"]["labels"]["app.kubernetes.io/instance"] == "partita", each["metadata"]["name"]


def test_every_pod_template_matches_its_own_selector() -> None:
    for each in render(*EVERYTHING):
        if each["kind"] in ("DaemonSet", "Deployment"):
            selector = each["spec"]["selector"]["matchLabels"]
            assert selector.items() <= each["spec"]["template"]["metadata"]["labels"].items()


def test_what_values_of_nvidias_chart_are_called_here_exists() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def advices(schema: Object) -> list[str]:
        others = schema.get("additionalProperties")
        inner = [*schema.get("properties", {}).values(), *([others] if isinstance(others, dict) else [])]
        nested = [advice for each in inner for advice in advices(each)]
        return [schema["const"], *nested] if "const" in schema else nested

    names = [name for advice in advices(schema) for name in re.findall(r"its name here is ([A-Za-z.]+)", advice)]
    assert names
    for name in names:
        found = values
        for part in name.split("."):
            found = found[part]


def test_the_default_values_are_valid_and_every_value_has_a_type() -> None:
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    jsonschema.Draft202012Validator(schema).validate(values)

    def unknown(schema: Object, values: Object, trail: str) -> list[str]:
        known = schema.get("properties", {})
        if not known:
            return []
        missing = [trail + name for name in values if name not in known]
        nested = [(name, value) for name, value in values.items() if isinstance(value, dict) and name in known]
        return missing + [each for name, value in nested for each in unknown(known[name], value, f"{trail}{name}.")]

    assert unknown(schema, values, "") == []


@pytest.mark.parametrize(
    ("settings", "sample"),
    [
        ((), "samples/gpu.yaml"),
        (("resources.amd.enabled=true", "resources.gpus.enabled=false"), "samples/amd/gpu.yaml"),
        (("resources.gpus.enabled=false",), None),
    ],
)
def test_the_notes_name_a_sample_of_what_is_installed(
    tmp_path: Path, settings: tuple[str, ...], sample: str | None
) -> None:
    told = re.findall(r"deployments/(samples/\S+)", notes(tmp_path, *settings))
    assert told == ([sample] if sample else [])
    assert all((CHART.parents[1] / each).exists() for each in told)


@pytest.mark.parametrize(
    ("settings", "kubernetes", "warned"),
    [
        (("resources.gpus.extendedResourceName=nvidia.com/gpu",), "v1.35.9", True),
        (("resources.gpus.migClasses={1g.10gb}",), "v1.34.2-eks.1", True),
        (("resources.gpus.extendedResourceName=nvidia.com/gpu",), "v1.36.0", False),
        ((), "v1.35.9", False),
    ],
)
def test_the_notes_say_where_kubernetes_may_drop_an_extended_resource(
    tmp_path: Path, settings: tuple[str, ...], kubernetes: str, warned: bool
) -> None:
    assert ("DRAExtendedResource" in notes(tmp_path, *settings, kubernetes=kubernetes)) is warned


def test_the_notes_name_what_is_lost_without_the_admission_policies(tmp_path: Path) -> None:
    told = notes(tmp_path, "kubeletPlugin.admissionPolicy.enabled=false")
    for lost in ("every node's ResourceSlices", "privileged pods in partita-system", "daemon", "config"):
        assert lost in told


def test_admission_takes_the_same_domain_ids_as_the_drivers() -> None:
    policies = [each for each in render() if each["kind"] == "ValidatingAdmissionPolicy"]
    (rule,) = (
        validation
        for policy in policies
        for validation in policy["spec"]["validations"]
        if "domainID must be" in validation.get("message", "")
    )
    assert f".matches('{DOMAIN_ID}')" in rule["expression"]
    assert DOMAIN_ID in rule["message"]
