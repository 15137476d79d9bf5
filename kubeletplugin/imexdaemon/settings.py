"""Settings of the daemon: environment variables; the controller sets what the domain and the node decide.

Plain dataclasses and the standard library only: this program runs once per ComputeDomain and node, and pydantic alone
would double its memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from api.clique import clique_object_name
from api.errors import InvalidObject


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the daemon is told from outside."""

    domain_uid: str
    clique_id: str
    """"" on a node without NVLink fabric."""
    node: str
    address: str
    """This pod's."""
    namespace: str
    """Where the ComputeDomainClique is."""
    directory: Path = Path("/imexd")
    """The domain's directory on this node; mounted by the claim's CDI device."""
    hosts_path: Path = Path("/etc/hosts")
    use_names: bool = True
    """Node list of names that /etc/hosts resolves (NVIDIA driver 570.158.01 and later), or of addresses."""
    membership_wait_s: float = 60.0
    """How long to wait for the file with the membership, which comes into a container only when that is made anew."""
    hang_limit_s: float = 30.0
    """An nvidia-imex that has answered nothing for so long is started anew."""
    grace_s: float = 8.0
    """For nvidia-imex between SIGTERM and SIGKILL; less than the pod's own grace."""

    @property
    def clique_name(self) -> str:
        return clique_object_name(self.domain_uid, self.clique_id)


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Raises InvalidObject, which names the variable."""
    node_list = environment.get("IMEX_NODE_LIST", "names")
    if node_list not in ("names", "addresses"):
        raise InvalidObject(f"IMEX_NODE_LIST is {node_list!r}; right would be names or addresses")
    return Settings(
        domain_uid=_need(environment, "COMPUTE_DOMAIN_UUID"),
        clique_id=environment.get("CLIQUE_ID", ""),
        node=_need(environment, "NODE_NAME"),
        address=_need(environment, "POD_IP"),
        namespace=_need(environment, "POD_NAMESPACE"),
        directory=Path(environment.get("IMEX_DIRECTORY", "/imexd")),
        hosts_path=Path(environment.get("HOSTS_PATH", "/etc/hosts")),
        use_names=node_list == "names",
        membership_wait_s=_number(environment, "MEMBERSHIP_WAIT_S", 60),
        hang_limit_s=_number(environment, "HANG_LIMIT_S", 30),
    )


def _need(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise InvalidObject(f"environment variable {name} is not set: this program runs in a pod of the controller's")
    return value


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    value = environment.get(name) or str(default)
    if not value.isdigit():
        raise InvalidObject(f"environment variable {name} is {value!r}; right would be a number")
    return int(value)
