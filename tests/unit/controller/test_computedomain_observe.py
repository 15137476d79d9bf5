"""What the shell shows to the planner: only what belongs to a domain, whatever others write into their labels."""

import asyncio
from dataclasses import dataclass
from typing import Any

from api.client import Conflict
from controller.computedomain.actions import Delete
from controller.computedomain.execute import Executor
from controller.computedomain.reconcile import ComputeDomains
from controller.computedomain.state import Ref, Settings
from controller.loop import WorkQueue
from controller.metrics import Metrics

LABEL = "resource.nvidia.com/computeDomain"


@dataclass
class _Nothing:
    """Neither client nor Events are used while only looking."""


def _domains() -> ComputeDomains:
    nothing: Any = _Nothing()
    return ComputeDomains(nothing, Settings("driver", "image"), nothing, Metrics())


async def _delete(domains: ComputeDomains, ref: Ref) -> None:
    """The API server answers that the object with this uid is not there."""

    class Refusing:
        async def delete(self, *_: Any, **__: Any) -> None:
            raise Conflict("DELETE", 409, {"message": "the UID in the precondition does not match"})

    client: Any = Refusing()
    await Executor(client, domains._record, domains._drop).execute(Delete(ref))


def _metadata(name: str, namespace: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "namespace": namespace, "uid": f"{namespace}-{name}", "resourceVersion": "1", **more}


def _put(domains: ComputeDomains, kind: str, obj: dict[str, Any]) -> None:
    cache, changed = domains.caches[kind]
    cache.record(obj, changed)


def _put_domain(domains: ComputeDomains, name: str = "train") -> str:
    spec = {"channel": {"resourceClaimTemplate": {"name": "channel"}}}
    _put(domains, "ComputeDomain", {"metadata": _metadata(name, "team", generation=1), "spec": spec})
    return f"team-{name}"


def _put_clique(domains: ComputeDomains, uid: str, namespace: str, node: str) -> None:
    entry = {"nodeName": node, "ipAddress": "10.0.0.1", "cliqueID": "f.0", "index": 0}
    obj = {
        "metadata": _metadata(f"{uid}.f.0", namespace, labels={LABEL: uid}),
        "domainName": uid,
        "domainNamespace": "elsewhere",
        "daemons": [entry],
    }
    _put(domains, "ComputeDomainClique", obj)


def _put_claim(domains: ComputeDomains, uid: str, node: str) -> None:
    parameters = {
        "apiVersion": "resource.nvidia.com/v1beta1",
        "kind": "ComputeDomainChannelConfig",
        "domainID": uid,
    }
    opaque = {"driver": "compute-domain.nvidia.com", "parameters": parameters}
    result = {"request": "r", "driver": "compute-domain.nvidia.com", "pool": node, "device": "channel-0"}
    allocation = {"devices": {"results": [result], "config": [{"source": "FromClaim", "opaque": opaque}]}}
    status = {"allocation": allocation, "reservedFor": [{"resource": "pods", "name": "p", "uid": "p"}]}
    _put(domains, "ResourceClaim", {"metadata": _metadata("c", "team"), "status": status})


def test_a_label_in_a_strangers_namespace_makes_nothing_ours() -> None:
    domains = _domains()
    uid = _put_domain(domains)
    labels = {LABEL: uid}
    claim = _metadata("c", "stranger", labels=labels, annotations={"resource.nvidia.com/node": "n"})
    _put(domains, "ResourceClaim", {"metadata": claim})
    _put(domains, "ResourceClaimTemplate", {"metadata": _metadata("t", "stranger", labels=labels)})
    seen = domains.observe(uid, 0.0)
    assert not seen.daemon_claims and not seen.templates


def test_the_template_of_the_wanted_name_is_seen_whoever_made_it() -> None:
    domains = _domains()
    uid = _put_domain(domains)
    _put(domains, "ResourceClaimTemplate", {"metadata": _metadata("channel", "team")})
    assert [template.domain_uid for template in domains.observe(uid, 0.0).templates] == [""]
    assert len(domains.queue) == 1


def test_another_domain_with_a_daemon_on_the_node_is_seen_by_name() -> None:
    domains = _domains()
    uid = _put_domain(domains)
    _put_claim(domains, uid, "n1")
    _put_clique(domains, "other", "driver", "n1")
    _put_clique(domains, "forged", "stranger", "n1")
    assert domains.observe(uid, 0.0).occupied == {"n1": "elsewhere/other"}


def test_a_domain_on_whose_node_anothers_daemon_comes_or_goes_is_looked_at() -> None:
    domains = _domains()
    uid = _put_domain(domains)
    _put_claim(domains, uid, "n1")
    domains.queue = WorkQueue()
    _put_clique(domains, "other", "driver", "n1")
    assert len(domains.queue) == 2, "its own domain, and ours"


def test_a_template_with_the_label_of_a_domain_that_is_gone_is_ours_only_if_that_owns_it() -> None:
    domains = _domains()
    labels = {LABEL: "gone"}
    _put(domains, "ResourceClaimTemplate", {"metadata": _metadata("copied", "stranger", labels=labels)})
    owners = [{"uid": "gone", "kind": "ComputeDomain", "name": "train"}]
    made = _metadata("made", "team", labels=labels, ownerReferences=owners)
    _put(domains, "ResourceClaimTemplate", {"metadata": made})
    assert [template.ref.name for template in domains.observe("gone", 0.0).templates] == ["made"]


def test_a_refused_delete_does_not_hide_the_object_that_has_the_name_now() -> None:
    domains = _domains()
    now = {"metadata": {**_metadata("channel", "team"), "uid": "second"}}
    _put(domains, "ResourceClaimTemplate", now)
    asyncio.run(_delete(domains, Ref("ResourceClaimTemplate", "team", "channel", "first")))
    assert domains.templates.get("team", "channel") is not None
    asyncio.run(_delete(domains, Ref("ResourceClaimTemplate", "team", "channel", "second")))
    assert domains.templates.get("team", "channel") is None


def test_what_was_refused_and_need_not_be_done_any_more_is_forgotten() -> None:
    domains = _domains()
    domains._failures["gone"] = (0.0, ("exceeded quota",))
    assert domains.observe("gone", 100.0).failures
    asyncio.run(domains.reconcile("gone"))
    assert not domains.observe("gone", 100.0).failures


def test_a_node_that_publishes_another_clique_wakes_the_domains_that_use_it() -> None:
    domains = _domains()
    uid = _put_domain(domains)
    _put_claim(domains, uid, "n1")
    domains.queue = WorkQueue()
    device = {"name": "channel-0", "attributes": {"cliqueID": {"string": "f.3"}}}
    spec = {"nodeName": "n1", "devices": [device]}
    _put(domains, "ResourceSlice", {"metadata": {"name": "s", "resourceVersion": "4"}, "spec": spec})
    assert domains.observe(uid, 0.0).fabric == {"n1": "f.3"}
    assert len(domains.queue) == 1
