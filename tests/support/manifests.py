"""Pods and claims that tests start from."""

from typing import Any

Object = dict[str, Any]

IMAGE = "busybox:dev"
IDLE = "trap 'exit 0' TERM INT; sleep 86400 & wait"


def request(name: str, device_class: str, *, cel: str | None = None, **fields: Any) -> Object:
    """One `exactly` request; `cel` is the body of a selector."""
    exactly: Object = {"deviceClassName": device_class, **fields}
    if cel:
        exactly["selectors"] = [{"cel": {"expression": cel}}]
    return {"name": name, "exactly": exactly}


def gpu_request(name: str = "gpu", **fields: Any) -> Object:
    return request(name, "gpu.nvidia.com", **fields)


def mig_request(profile: str = "1g.10gb", name: str = "mig", **fields: Any) -> Object:
    cel = f"device.attributes['gpu.nvidia.com'].profile == '{profile}'"
    return request(name, "mig.nvidia.com", cel=cel, **fields)


def config(driver: str, parameters: Object, requests: tuple[str, ...] = ()) -> Object:
    entry: Object = {"opaque": {"driver": driver, "parameters": parameters}}
    if requests:
        entry["requests"] = list(requests)
    return entry


def _devices(requests: tuple[Object, ...], configs: tuple[Object, ...], constraints: tuple[Object, ...]) -> Object:
    devices: Object = {"requests": list(requests)}
    if configs:
        devices["config"] = list(configs)
    if constraints:
        devices["constraints"] = list(constraints)
    return devices


def claim(
    name: str,
    namespace: str,
    *requests: Object,
    configs: tuple[Object, ...] = (),
    constraints: tuple[Object, ...] = (),
) -> Object:
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"devices": _devices(requests, configs, constraints)},
    }


def claim_template(
    name: str,
    namespace: str,
    *requests: Object,
    configs: tuple[Object, ...] = (),
    constraints: tuple[Object, ...] = (),
) -> Object:
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"spec": {"devices": _devices(requests, configs, constraints)}},
    }


def pod(
    name: str,
    namespace: str,
    *,
    claims: tuple[str, ...] = (),
    templates: tuple[str, ...] = (),
    node: str | None = None,
    command: str = IDLE,
    containers: int = 1,
    used: bool = True,
    grace_s: int = 1,
    **spec: Any,
) -> Object:
    """One that idles; every container uses every claim unless `used` is False. The node is chosen by selector."""
    names = [f"c-{claim}" for claim in claims] + [f"t-{template}" for template in templates]
    entries = [{"name": f"c-{claim}", "resourceClaimName": claim} for claim in claims]
    entries += [{"name": f"t-{template}", "resourceClaimTemplateName": template} for template in templates]
    container: Object = {"image": IMAGE, "command": ["sh", "-c", command]}
    if used and names:
        container["resources"] = {"claims": [{"name": each} for each in names]}
    body: Object = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace_s,
        "automountServiceAccountToken": False,
        "containers": [{"name": f"c{number}", **container} for number in range(containers)],
        **spec,
    }
    if entries:
        body["resourceClaims"] = entries
    if node:
        body["nodeSelector"] = {"kubernetes.io/hostname": node}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": body}
