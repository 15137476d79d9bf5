"""Hosts with the daemon on them; the test brings it what the node plugin would."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from api.clique import MEMBERSHIP_FILE
from tests.contract.imex.imex_hosts import Host, wait_until

ROOT = Path(__file__).resolve().parents[3]


DOMAIN = "5b8e2a0c-0000-4000-8000-000000000001"


CLIQUE = "7a1d9c3e-0000-4000-8000-000000000002.1"


@dataclass
class Member:
    """A host with the daemon on it."""

    host: Host
    process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return f"node-{self.host.address.rpartition('.')[2]}"

    def status(self) -> dict[str, Any]:
        path = self.host.folder / "imexd" / "status" / "status.json"
        result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"ready": False, "message": ""}
        return result

    def tell(self, obj: dict[str, Any]) -> None:
        """What the node plugin writes."""
        path = self.host.folder / "imexd" / MEMBERSHIP_FILE
        temporary = path.with_name("new")
        temporary.write_text(json.dumps(obj))
        temporary.replace(path)

    def ready(self) -> bool:
        return bool(self.status()["ready"])

    def events(self) -> list[str]:
        lines = (self.host.folder / "log").read_text().splitlines()
        return [json.loads(line)["msg"] for line in lines if line.startswith("{")]

    def imex_pid(self) -> int:
        """Of the nvidia-imex that runs; 0 for none."""
        listed = subprocess.run(["ip", "netns", "pids", self.host.name], capture_output=True, text=True, check=True)
        for pid in listed.stdout.split():
            try:
                if Path(f"/proc/{pid}/comm").read_text().strip() == "nvidia-imex":
                    return int(pid)
            except FileNotFoundError:
                continue
        return 0

    def get(self, path: str, agent: str = "curl") -> tuple[int, str]:
        code = (
            "import urllib.request, urllib.error, sys\n"
            "request = urllib.request.Request(sys.argv[1], headers={'User-Agent': sys.argv[2]})\n"
            "try:\n    answer = urllib.request.urlopen(request)\n"
            "except urllib.error.HTTPError as error:\n    answer = error\n"
            "print(answer.status, answer.read().decode().strip())"
        )
        url = f"http://{self.host.address}:8097{path}"
        command = ["ip", "netns", "exec", self.host.name, sys.executable, "-S", "-c", code, url, agent]
        status, _, text = subprocess.run(command, capture_output=True, text=True, check=True).stdout.partition(" ")
        return int(status), text.strip()


@dataclass
class Cluster:
    """The members and what the controller says of them."""

    folder: Path
    members: list[Member]

    def publish(self, addresses: dict[int, Member | None]) -> None:
        """Make the object: index to member; None in place of a member leaves its address out."""
        daemons = []
        for index, member in addresses.items():
            entry = {"nodeName": member.name, "ipAddress": member.host.address} if member else {"nodeName": "node-9"}
            daemons.append({"cliqueID": CLIQUE, "index": index, "status": "NotReady", **entry})
        self.write({"metadata": {"name": f"{DOMAIN}.{CLIQUE}"}, "maxNodes": 4, "daemons": daemons})

    def write(self, obj: dict[str, Any]) -> None:
        for member in self.members:
            member.tell(obj)

    def start(self, *members: Member, **environment: str) -> None:
        for member in members:
            folder = member.host.folder
            base = {
                **member.host.environment(),
                "PATH": f"{member.host.programs}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "COMPUTE_DOMAIN_UUID": DOMAIN,
                "CLIQUE_ID": CLIQUE,
                "NODE_NAME": member.name,
                "POD_IP": member.host.address,
                "POD_NAMESPACE": "partita-system",
                "IMEX_DIRECTORY": str(folder / "imexd"),
                "HOSTS_PATH": str(folder / "hosts"),
                **environment,
            }
            command = ["ip", "netns", "exec", member.host.name, sys.executable, "-m", "kubeletplugin.imexdaemon"]
            with (folder / "log").open("ab") as log:
                member.process = subprocess.Popen(command, env=base, stderr=log)

    def connect(self, first: Member, second: Member, **settings: str) -> None:
        """The two are the members, and connected."""
        self.publish({0: first, 1: second})
        self.start(first, second, **settings)
        self.wait_ready(first, second)

    def wait_ready(self, *members: Member) -> None:
        for member in members:
            wait_until(member.ready)


@pytest.fixture
def cluster(hosts: list[Host], tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path, [Member(host) for host in hosts])
    for host in hosts:
        (host.folder / "imexd" / MEMBERSHIP_FILE).parent.mkdir(parents=True)
    made.write({"version": 1})
    try:
        yield made
    finally:
        for member in made.members:
            if member.process is not None and member.process.poll() is None:
                member.process.terminate()
        for member in made.members:
            if member.process is not None:
                member.process.wait(30)
