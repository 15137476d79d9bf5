"""A cluster for the planner: nodes, pods with disruption budgets, the node plugin, and a Device Config Manager.

Everything is a value in memory; `Cluster.tick` lets one plan of each node be carried out, and time pass.
"""

import json
from dataclasses import dataclass, field, replace

from api.kaiwo import (
    CONFIG_MAP_KEY,
    DCM_PROFILE_LABEL,
    DCM_STATE_LABEL,
    DEFAULT_CONFIG,
    KaiwoNodeSpec,
    PartitioningSpec,
    Profile,
    Target,
    TargetReport,
    assign_modes,
    parse_profile,
    parse_profiles,
)
from controller.nodepartitioning.actions import (
    Action,
    AddTolerations,
    EnsureConfigMap,
    EnsureKaiwoNode,
    EvictPod,
    Report,
    SetSpec,
    SetTaints,
    SetTarget,
    StartDcm,
    StopDcm,
    WriteStatus,
)
from controller.nodepartitioning.admission import admit, find_unavailable
from controller.nodepartitioning.plan import APPLY_TAINTS, DCM_TAINTS
from controller.nodepartitioning.plan_steps import plan_node
from controller.nodepartitioning.state import Device, KaiwoNode, Node, Observation, Pod, Settings, Workload
from controller.settings import parse_settings

GPUS = 8


@dataclass
class Machine:
    """One node and what runs on it."""

    node: Node
    kaiwo: KaiwoNode | None = None
    pods: list[Pod] = field(default_factory=list)
    modes: list[str] = field(default_factory=lambda: ["spx_nps1"] * GPUS)
    has_dcm: bool = False
    target: Target | None = None
    started_s: float | None = None
    applies_after_s: float | None = 10.0
    """None: whoever applies never answers."""
    fails: int = 0
    """So many attempts fail."""
    budget: bool = True
    """Whether PodDisruptionBudgets allow an eviction now."""
    on_claim: bool = False
    """Claims choose the modes, while there is no target: every GPU offers several."""
    unreadable: int = 0
    """So many GPUs are not shown."""
    has_slices: bool = True
    dcm_unready: str = ""
    read_modes: tuple[str | None, ...] | None = None
    """What the plugin says that it has read, where that is not what there is."""
    history: list[str] = field(default_factory=list)

    @property
    def phase(self) -> str:
        return self.kaiwo.status.partitioning.phase if self.kaiwo else ""

    @property
    def is_tainted(self) -> bool:
        ours = APPLY_TAINTS if self.node.owns_dcm_taint else APPLY_TAINTS - DCM_TAINTS
        return bool(self.node.taints & ours)

    @property
    def message(self) -> str:
        assert self.kaiwo is not None
        return self.kaiwo.status.conditions[0].message

    def published(self) -> tuple[Device, ...] | None:
        if not self.has_slices:
            return None
        shown = list(enumerate(self.modes))[self.unreadable :]
        if self.on_claim and self.target is None:
            offers = ("spx_nps1", "cpx_nps1", "cpx_nps4")
            return tuple(Device(pci(n), mode, is_present=mode == now) for n, now in shown for mode in offers)
        return tuple(Device(pci(n), mode) for n, mode in shown for _ in range(8 if "cpx" in mode else 1))

    def label(self, **labels: str | None) -> None:
        merged = {**self.node.labels, **{key: value for key, value in labels.items() if value is not None}}
        self.node = replace(self.node, labels={k: v for k, v in merged.items() if labels.get(k, v) is not None})


def pci(number: int) -> str:
    return f"0000:{number:02x}:00.0"


@dataclass
class Cluster:
    machines: dict[str, Machine]
    settings: Settings = field(default_factory=Settings)
    now: float = 1_000_000.0
    config: str | None = None
    kube_system: list[Workload] = field(default_factory=list)
    events: list[Report] = field(default_factory=list)
    is_rigid: bool = False
    """Somebody takes tolerations away from the workloads of kube-system."""
    is_down: bool = False
    """The API server does not answer."""
    cut_after: int | None = None
    """So many more writes, then the controller is killed once."""

    def observe(self, name: str) -> Observation:
        machine = self.machines[name]
        states = [(m.node, m.kaiwo.status.partitioning) for m in self.machines.values() if m.kaiwo is not None]
        return Observation(
            now=self.now,
            node=machine.node,
            kaiwo=machine.kaiwo,
            profiles=parse_profiles({CONFIG_MAP_KEY: self.config}) if self.config else None,
            pods=tuple(machine.pods),
            kube_system=tuple(self.kube_system),
            published=machine.published(),
            dcm_present=machine.has_dcm and not machine.dcm_unready,
            dcm_unready=machine.dcm_unready,
            is_admitted=name in admit(states, self.settings),
            unavailable=tuple(f"{who} {why}" for who, why in find_unavailable(states).items()),
        )

    def tick(self, seconds: float = 5.0) -> None:
        for name in sorted(self.machines):
            plan = plan_node(self.observe(name), self.settings)
            if self.is_down:
                continue
            self.events += plan.reports
            for action in plan.actions:
                if self.cut_after is not None:
                    if self.cut_after == 0:
                        self.cut_after = None
                        break
                    self.cut_after -= 1
                if not self._do(name, action):
                    break
        self.now += seconds
        for machine in self.machines.values():
            self._work(machine)

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds // 5)):
            self.tick()
            self.check()

    def check(self) -> None:
        """What must always hold."""
        tainted = [m for m in self.machines.values() if m.is_tainted]
        assert len(tainted) <= self.settings.max_unavailable, [m.node.name for m in tainted]
        for machine in tainted:
            assert machine.kaiwo is not None
            assert machine.kaiwo.status.conditions, f"{machine.node.name} is tainted without an explanation"

    def _do(self, name: str, action: Action) -> bool:
        """False where the API server refused."""
        machine = self.machines[name]
        match action:
            case EnsureKaiwoNode():
                machine.kaiwo = machine.kaiwo or KaiwoNode()
            case SetSpec():
                assert machine.kaiwo is not None
                old = machine.kaiwo.spec.partitioning
                spec = PartitioningSpec(
                    enabled=old.enabled if action.enabled is None else action.enabled,
                    profile=old.profile if action.profile is None else action.profile,
                )
                machine.kaiwo = replace(machine.kaiwo, spec=KaiwoNodeSpec(partitioning=spec))
            case EnsureConfigMap():
                self.config = self.config or json.dumps(DEFAULT_CONFIG)
            case AddTolerations():
                self.kube_system = [
                    replace(w, tolerates=not self.is_rigid) if (w.kind, w.name) == (action.kind, action.name) else w
                    for w in self.kube_system
                ]
            case SetTaints():
                is_ours = bool(action.add & DCM_TAINTS) or (
                    machine.node.owns_dcm_taint and not action.remove & DCM_TAINTS
                )
                taints = (machine.node.taints - action.remove) | action.add
                machine.node = replace(machine.node, taints=taints, owns_dcm_taint=is_ours)
                if any(taint.effect == "NoExecute" for taint in action.add):
                    killed = [pod for pod in machine.pods if not pod.tolerates and not pod.is_static]
                    assert not killed, f"the taint killed {killed}, whatever their budgets say"
            case EvictPod():
                if machine.budget:
                    machine.pods = [pod for pod in machine.pods if pod.uid != action.uid]
            case SetTarget():
                machine.target, machine.started_s = action.target, self.now
                machine.node = replace(machine.node, target_id=action.target.id if action.target else "", report=None)
            case StartDcm():
                machine.label(**{DCM_STATE_LABEL: None})
                if machine.node.labels.get(DCM_PROFILE_LABEL) != action.profile:
                    machine.started_s = self.now
                machine.label(**{DCM_PROFILE_LABEL: action.profile})
                machine.node = replace(machine.node, asked_dcm=True)
            case StopDcm():
                machine.label(**{DCM_PROFILE_LABEL: None, DCM_STATE_LABEL: None})
                machine.node = replace(machine.node, asked_dcm=False)
                machine.started_s = None
            case WriteStatus():
                assert machine.kaiwo is not None
                machine.kaiwo = replace(machine.kaiwo, status=action.status)
                if not machine.history or machine.history[-1] != machine.phase:
                    machine.history.append(machine.phase)
        return True

    def _work(self, machine: Machine) -> None:
        """What the node plugin or the Device Config Manager does meanwhile."""
        if machine.started_s is None or machine.applies_after_s is None:
            return
        if self.now - machine.started_s < machine.applies_after_s:
            return
        is_done = machine.fails == 0
        machine.fails = max(0, machine.fails - 1)
        profile = machine.node.labels.get(DCM_PROFILE_LABEL)
        if profile is not None:
            wanted = [mode.profile if mode else None for mode in assign_modes(profile, self._profile(profile), GPUS)]
            machine.label(**{DCM_STATE_LABEL: "success" if is_done else "failure"})
            machine.started_s = None if is_done else self.now + 60 - machine.applies_after_s
        else:
            if machine.target is None:
                return
            wanted = list(machine.target.modes)
            machine.started_s = None
        if is_done:
            changes = any(new not in (None, old) for new, old in zip(wanted, machine.modes, strict=True))
            is_held = any(pod.claims for pod in machine.pods)
            if changes and is_held and not machine.is_tainted:
                is_done = False  # a claim was quicker than the target; the plugin says so
            assert not (is_done and changes and is_held), "repartitioned under a claim"
        if is_done:
            machine.modes = [new or old for new, old in zip(wanted, machine.modes, strict=True)]
        if profile is None and machine.target is not None:
            report = TargetReport(
                id=machine.target.id,
                state="success" if is_done else "failure",
                message="" if is_done else "the GPU is busy",
                modes=tuple(machine.modes) if machine.read_modes is None else machine.read_modes,
            )
            machine.node = replace(machine.node, report=report)

    def _profile(self, name: str) -> Profile:
        assert self.config is not None
        return parse_profile(name, parse_profiles({CONFIG_MAP_KEY: self.config})[name])


def build_cluster(count: int = 1, **settings: object) -> Cluster:
    machines = {f"node-{i}": Machine(Node(f"node-{i}", f"uid-{i}")) for i in range(count)}
    return Cluster(machines, replace(parse_settings([], {}).partitioning, **settings))  # type: ignore[arg-type]
