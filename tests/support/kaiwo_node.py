"""A node that is partitioned, as people see it: what is asked of it, and what its KaiwoNode and its taints say."""

from dataclasses import dataclass

from api.kaiwo import ENABLED_LABEL, KAIWO_TAINT_KEY, PROFILE_LABEL
from api.names import KAIWO_API_VERSION
from tests.support.cluster import Cluster, Object, path


@dataclass(frozen=True)
class KaiwoNode:
    cluster: Cluster
    name: str

    @property
    def where(self) -> str:
        return path("v1", "nodes", name=self.name)

    @property
    def kaiwo(self) -> str:
        return path(KAIWO_API_VERSION, "kaiwonodes", name=self.name)

    def label(self, **labels: str | None) -> None:
        """`enabled`, `profile`, or a label's own name; None takes one away."""
        names = {"enabled": ENABLED_LABEL, "profile": PROFILE_LABEL}
        body = {"metadata": {"labels": {names.get(key, key): value for key, value in labels.items()}}}
        self.cluster.patch(self.where, body)

    def ask(self, profile: str) -> None:
        self.label(enabled="true", profile=profile)

    def partitioning(self) -> Object:
        found = self.cluster.find(self.kaiwo) or {}
        status: Object = found.get("status", {}).get("partitioning", {})
        return status

    def phase(self) -> str:
        return str(self.partitioning().get("phase", ""))

    def message(self) -> str:
        conditions = (self.cluster.find(self.kaiwo) or {}).get("status", {}).get("conditions", ())
        return next((str(each["message"]) for each in conditions if each["type"] == "PartitioningCompleted"), "")

    def taints(self) -> set[str]:
        """`key:effect` of those of partitioning."""
        taints = self.cluster.get(self.where)["spec"].get("taints", ())
        return {f"{t['key']}:{t['effect']}" for t in taints if t["key"] in ("amd-dcm", KAIWO_TAINT_KEY)}
