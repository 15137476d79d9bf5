"""What can be broken and mended in a local cluster."""

from cluster import controlplane, groups, network, nodes
from cluster.provider import COMPONENTS, SERVICES, Fault, check_known
from cluster.report import ClusterError
from cluster.shape import Cluster

SIGNALS = {"kill": "KILL", "pause": "STOP", "resume": "CONT"}


def apply(cluster: Cluster, fault: Fault) -> None:
    if fault.where == "control-plane":
        _disturb_control_plane(cluster, fault)
        return
    node = cluster.check_node(fault.where)
    match fault.verb:
        case "start":
            check_known(fault.what, SERVICES)
            nodes.start_service(cluster, node, fault.what)
        case "kill" | "pause" | "resume":
            check_known(fault.what, SERVICES)
            nodes.signal_service(cluster, node, fault.what, SIGNALS[fault.verb])
        case "cut" | "heal":
            network.set_cable(cluster, node, "down" if fault.verb == "cut" else "up")
        case "freeze" | "thaw":
            groups.freeze(nodes.group(cluster, node), fault.verb == "freeze")
        case "poweroff":
            nodes.power_off(cluster, node)
        case "poweron":
            nodes.power_on(cluster, node)
            nodes.wait_booted(cluster, node)
        case _:
            raise ClusterError(f"there is no fault {fault.verb!r}")


def _disturb_control_plane(cluster: Cluster, fault: Fault) -> None:
    check_known(fault.what, COMPONENTS)
    match fault.verb:
        case "kill":
            controlplane.kill(cluster, fault.what)
        case "start":
            controlplane.start(cluster, fault.what)
        case _:
            raise ClusterError(f"{fault.verb} is for services of nodes")
