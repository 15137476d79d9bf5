"""A node whose repartitioning outlasts its API server.

The last of the folder, by its name: after an outage Kubernetes' own components hear of taints late, and evict pods for
ones that are gone.
"""

from tests.e2e.amd.helpers import AmdNode
from tests.support.cluster import Cluster, wait_until


def test_an_api_server_that_is_away_in_between_only_delays_it(cluster: Cluster, n2: AmdNode) -> None:
    n2.simulate("--reload-pause-ms", "2000")
    n2.ask("cpx")
    n2.wait_phase("ApplyingPartitions")
    with cluster.without("control-plane", "apiserver"):
        wait_until("the hardware is changed meanwhile", lambda: set(n2.modes().values()) == {"cpx_nps4"}, 60.0)
    n2.wait_partitioned("cpx")
