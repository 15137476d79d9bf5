"""What the chart lets whom do: roles, admission policies, OpenShift."""

import json
from typing import Any

import pytest

from api.kaiwo import TOLERATIONS
from tests.unit.chart.chart import Object, environment, of_kind, plugin_pod, render

EVERYTHING = (
    "resources.amd.enabled=true",
    "simulator.profile=h100",
    "resources.gpus.migClasses={1g.10gb,3g.40gb}",
    "kubeletPlugin.networkPolicy.enabled=true",
    "controller.networkPolicy.enabled=true",
)


def test_the_admission_policy_names_the_account_that_the_plugin_runs_under() -> None:
    for settings in ((), ("serviceAccount.create=false", "serviceAccount.name=given"), ("fullnameOverride=other",)):
        objects = render(*settings)
        account = plugin_pod(objects)["serviceAccountName"]
        policies = of_kind(objects, "ValidatingAdmissionPolicy")
        (policy,) = (each for name, each in policies.items() if "resourceslices" in name)
        (condition,) = policy["spec"]["matchConditions"]
        assert f'"system:serviceaccount:partita-system:{account}"' in condition["expression"]
        bound = {each["spec"]["policyName"] for each in of_kind(objects, "ValidatingAdmissionPolicyBinding").values()}
        assert bound == policies.keys()


@pytest.mark.parametrize(
    ("settings", "checked"),
    [
        ((), {"gpu.nvidia.com", "compute-domain.nvidia.com"}),
        (("resources.amd.enabled=true",), {"gpu.nvidia.com", "compute-domain.nvidia.com", "gpu.amd.com"}),
        (("resources.computeDomains.enabled=false",), {"gpu.nvidia.com"}),
        (("resources.amd.enabled=true", "allowOtherDriver=true"), {"compute-domain.nvidia.com"}),
        (("resources.computeDomains.enabled=false", "allowOtherDriver=true"), set()),
    ],
)
def test_configs_of_drivers_that_another_chart_serves_are_not_ours_to_refuse(
    settings: tuple[str, ...], checked: set[str]
) -> None:
    policy = of_kind(render(*settings), "ValidatingAdmissionPolicy").get("partita-deviceconfigs.partita-system")
    variables = policy["spec"]["variables"] if policy else []
    assert {
        driver for each in variables if each["name"] == "drivers" for driver in json.loads(each["expression"])
    } == checked


def test_a_plugin_that_may_patch_nodes_is_held_to_its_own_whatever_the_values_say() -> None:
    amd = ("resources.amd.enabled=true", "controller.nodePartitioning.enabled=true")
    for enabled in ("true", "false"):
        policies = of_kind(
            render(*amd, f"kubeletPlugin.admissionPolicy.enabled={enabled}"), "ValidatingAdmissionPolicyBinding"
        )
        assert ("partita-nodes.partita-system" in policies) is True
        assert ("partita-resourceslices.partita-system" in policies) is (enabled == "true")


PARTITIONING = ("resources.amd.enabled=true", "controller.nodePartitioning.enabled=true")


def rules(objects: list[Object], kind: str, name: str) -> dict[str, Any]:
    """Resource -> rule."""
    return {resource: rule for rule in of_kind(objects, kind)[name]["rules"] for resource in rule["resources"]}


@pytest.mark.parametrize("switch", ["true", "false"])
def test_a_controller_that_may_patch_workloads_is_held_to_its_tolerations_whatever_the_values_say(switch: str) -> None:
    objects = render(*PARTITIONING, f"kubeletPlugin.admissionPolicy.enabled={switch}")
    name = "partita-workloads.partita-system"
    policy = of_kind(objects, "ValidatingAdmissionPolicy")[name]["spec"]
    assert of_kind(objects, "ValidatingAdmissionPolicyBinding")[name]["spec"]["validationActions"] == ["Deny"]
    assert policy["failurePolicy"] == "Fail"
    (rule,) = policy["matchConstraints"]["resourceRules"]
    assert rule["apiGroups"] == ["apps"] and rule["operations"] == ["UPDATE"]
    assert set(rule["resources"]) == {"deployments", "daemonsets"}
    (deployment,) = of_kind(objects, "Deployment").values()
    account = deployment["spec"]["template"]["spec"]["serviceAccountName"]
    (condition,) = policy["matchConditions"]
    assert f'"system:serviceaccount:partita-system:{account}"' in condition["expression"]
    (ours,) = [each["expression"] for each in policy["variables"] if each["name"] == "ours"]
    assert json.loads(ours.replace("'", '"')) == [*TOLERATIONS]


def test_a_controller_that_may_not_patch_workloads_needs_no_policy_for_it() -> None:
    objects = render(*PARTITIONING, "controller.nodePartitioning.tolerateKubeSystem=false")
    assert "partita-workloads.partita-system" not in of_kind(objects, "ValidatingAdmissionPolicy")
    assert {each["metadata"]["namespace"] for each in objects if each["kind"] == "Role"} == {
        "partita-system",
        "kube-amd-gpu",
    }


@pytest.mark.parametrize(
    ("settings", "groups"),
    [
        ((), {"resource.nvidia.com"}),
        (PARTITIONING, {"resource.nvidia.com", "kaiwo.silogen.ai"}),
        ((*PARTITIONING, "resources.computeDomains.enabled=false"), {"kaiwo.silogen.ai"}),
    ],
)
def test_the_controller_may_renew_the_definitions_of_what_is_enabled(
    settings: tuple[str, ...], groups: set[str]
) -> None:
    rule = rules(render(*settings), "ClusterRole", "partita-controller")["customresourcedefinitions"]
    assert {name.partition(".")[2] for name in rule["resourceNames"]} == groups


def test_the_controller_may_make_events_of_the_api_that_it_uses_and_change_none() -> None:
    rule = rules(render(), "ClusterRole", "partita-controller")["events"]
    assert (rule["apiGroups"], rule["verbs"]) == (["events.k8s.io"], ["create"])


def test_users_who_may_edit_a_namespace_may_make_compute_domains_there_unless_told_otherwise() -> None:
    def granted(*settings: str) -> dict[str, set[str]]:
        """Kubernetes' own role -> verbs on ComputeDomains."""
        found: dict[str, set[str]] = {}
        for role in of_kind(render(*settings), "ClusterRole").values():
            for label in role["metadata"]["labels"]:
                if label.startswith("rbac.authorization.k8s.io/aggregate-to-"):
                    (rule,) = role["rules"]
                    assert (rule["apiGroups"], rule["resources"]) == (["resource.nvidia.com"], ["computedomains"])
                    found[label.rpartition("-")[2]] = set(rule["verbs"])
        return found

    read, write = {"get", "list", "watch"}, {"create", "update", "patch", "delete", "deletecollection"}
    assert granted() == {"admin": read | write, "edit": read | write, "view": read}
    assert granted("aggregateClusterRoles=false") == {}
    assert granted("resources.computeDomains.enabled=false") == {}


def test_pods_of_the_controller_are_held_to_the_account_of_the_daemons() -> None:
    objects = render("fullnameOverride=other")
    policy = of_kind(objects, "ValidatingAdmissionPolicy")["other-daemonpods.partita-system"]
    (deployment,) = of_kind(objects, "Deployment").values()
    pod = deployment["spec"]["template"]["spec"]
    (condition,) = policy["spec"]["matchConditions"]
    assert f'"system:serviceaccount:partita-system:{pod["serviceAccountName"]}"' in condition["expression"]
    account = environment(pod["containers"][0])["DAEMON_SERVICE_ACCOUNT"]
    assert account in of_kind(objects, "ServiceAccount")
    assert f'== "{account}"' in policy["spec"]["validations"][0]["expression"]


def test_the_kubelet_must_read_something_of_a_daemons_pod_before_it_asks_for_its_claim() -> None:
    """Asked too soon, the API server does not know the pod yet and refuses, and the kubelet comes again much later."""
    objects = render()
    account = of_kind(objects, "ServiceAccount")["partita-imex-daemon"]
    (wanted,) = account["imagePullSecrets"]
    secret = of_kind(objects, "Secret")[wanted["name"]]
    assert secret["type"] == "kubernetes.io/dockerconfigjson"
    assert json.loads(secret["stringData"][".dockerconfigjson"]) == {"auths": {}}, "and it opens nothing"


def test_on_openshift_plugin_and_daemons_may_be_what_they_are() -> None:
    assert not of_kind(render(), "SecurityContextConstraints")
    objects = render(options=("--api-versions", "security.openshift.io/v1"))
    binding = of_kind(objects, "RoleBinding")["partita-kubelet-plugin-scc"]
    assert binding["roleRef"]["name"] == "system:openshift:scc:privileged"
    assert [each["name"] for each in binding["subjects"]] == [plugin_pod(objects)["serviceAccountName"]]
    (constraints,) = of_kind(objects, "SecurityContextConstraints").values()
    assert constraints["users"] == ["system:serviceaccount:partita-system:partita-imex-daemon"]
    assert not [name for name, value in constraints.items() if name.startswith("allow") and value]


def test_no_role_may_read_secrets_or_write_nodes() -> None:
    objects = render(*EVERYTHING[:1])
    for role in (*of_kind(objects, "ClusterRole").values(), *of_kind(objects, "Role").values()):
        for rule in role["rules"]:
            assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]], role["metadata"]["name"]
            assert "secrets" not in rule["resources"]
            if "nodes" in rule["resources"]:
                assert set(rule["verbs"]) <= {"get", "list", "watch"}


def test_the_controller_may_patch_nodes_only_where_it_is_to_label_them() -> None:
    def verbs(*settings: str) -> set[str]:
        role = of_kind(render(*settings), "ClusterRole")["partita-controller"]
        return {verb for rule in role["rules"] if "nodes" in rule["resources"] for verb in rule["verbs"]}

    assert verbs() == set()
    label = "resources.computeDomains.gpuCliqueLabelEnabled=true"
    assert verbs(label) == {"list", "watch", "patch"}
    amd = ("resources.computeDomains.enabled=false", *EVERYTHING[:1], "controller.nodePartitioning.enabled=true")
    (deployment,) = of_kind(render(label, *amd), "Deployment").values()
    told = environment(deployment["spec"]["template"]["spec"]["containers"][0])
    assert "GPU_CLIQUE_LABEL" not in told  # nothing is asked of it that it may not do


def test_the_plugin_reads_claims_and_its_node_and_writes_slices_and_events() -> None:
    role = of_kind(render(), "ClusterRole")["partita-kubelet-plugin"]
    verbs = {resource: set(rule["verbs"]) for rule in role["rules"] for resource in rule["resources"]}
    assert verbs["resourceclaims"] == {"get", "list"}
    assert verbs["nodes"] == {"get"}
    assert verbs["events"] == {"create"}
    assert verbs["resourceslices"] == {"list", "watch", "create", "update", "delete"}


def test_the_plugin_sees_the_processes_of_its_node() -> None:
    """NVIDIA's driver leaves out those of other PID namespaces; devices in use would look free to the plugin."""
    assert plugin_pod(render())["hostPID"] is True
