"""A cluster as tests see it: the commands of `hack/cluster`, the API by plain dicts, and waiting for what must come."""

import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import yaml
from cluster import tools
from cluster.processes import GO
from cluster.provider import Provider, read_provider

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("PARTITA_CACHE") or ROOT / ".cache")
PATIENCE_S = 60.0  # generous: a test waits for a fact, its duration is no fact that it asserts
POLL_S = 0.2

Object = dict[str, Any]
T = TypeVar("T")


class CommandFailed(AssertionError):
    """A command that a test relies on ended with another code than 0; the message holds what it printed."""


class ApiError(AssertionError):
    """`status` is the HTTP code, `reason` that of the Status object (NotFound, Forbidden, Invalid, ...)."""

    def __init__(self, request: str, status: int, body: Object) -> None:
        super().__init__(f"{request}: {status} {body.get('message', body)}")
        self.status, self.reason = status, str(body.get("reason", ""))


def run(
    command: Sequence[str | Path],
    *,
    text: str | None = None,
    environment: Mapping[str, str] | None = None,
    patience_s: float = 300.0,
) -> str:
    """Its standard output; `text` is its input, `environment` replaces ours."""
    done = subprocess.run(
        command, input=text, env=environment, capture_output=True, text=True, timeout=patience_s, check=False
    )
    if done.returncode != 0:
        raise CommandFailed(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def wait_until(what: str, probe: Callable[[], T | None], patience_s: float = PATIENCE_S) -> T:
    """Ask until the answer is true, and return it. On failure: what was awaited, and the last answer or error."""
    deadline = time.monotonic() + patience_s
    while True:
        last: object
        try:
            answer = probe()
            if answer:
                return answer
            last = answer
        except (ApiError, CommandFailed, OSError) as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience_s:.0f} s in vain until {what}; last seen: {last}")
        time.sleep(POLL_S)


def path(api_version: str, plural: str, *, namespace: str | None = None, name: str | None = None) -> str:
    """`path("resource.k8s.io/v1", "resourceclaims", namespace="x", name="y")`."""
    parts = ["/apis" if "/" in api_version else "/api", api_version]
    parts += ["namespaces", namespace] if namespace else []
    return "/".join([*parts, plural, *([name] if name else [])])


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, file: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._file = file

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        # The address of a unix socket is limited to 107 bytes, which a checkout's path may exceed.
        folder = os.open(self._file.parent, os.O_PATH)
        try:
            self.sock.connect(f"/proc/self/fd/{folder}/{self._file.name}")
        finally:
            os.close(folder)


@dataclass
class Cluster:
    """One that `start` brought up. Requests go through one `kubectl proxy`, so any kubeconfig will do."""

    name: str
    _proxy: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _kinds: dict[tuple[str, str], Object] = field(default_factory=dict, repr=False)
    """What the API server says of each API version and kind."""

    @property
    def state(self) -> Path:
        return CACHE / "clusters" / self.name

    @property
    def kubeconfig(self) -> Path:
        return self.state / "kubeconfig"

    def command(self, *arguments: str | Path) -> list[str | Path]:
        return [ROOT / "hack" / "cluster", "--name", self.name, *arguments]

    def run(self, *arguments: str | Path, patience_s: float = 300.0) -> str:
        """`hack/cluster` with these arguments: `run("poweroff", "n1")`."""
        return run(self.command(*arguments), patience_s=patience_s)

    def start(self, *options: str) -> None:
        """`hack/cluster up` with these options; minutes when it must build."""
        self.run("up", *options, patience_s=3600.0)

    def stop(self) -> None:
        self.close()
        self.run("down")

    @contextmanager
    def without(self, *what: str) -> Iterator[None]:
        """A process is killed, and started again afterwards whatever fails: `without("n1", "kubelet")`."""
        self.run("kill", *what)
        try:
            yield
        finally:
            self.run("start", *what)

    def close(self) -> None:
        if self._proxy is not None:
            self._proxy.kill()
            self._proxy.wait()
            self._proxy = None

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        return self._program("kubernetes", "kubectl", *arguments, text=text)

    def helm(self, *arguments: str) -> str:
        return self._program("helm", "helm", *arguments)

    def _program(self, tool: str, program: str, *arguments: str, text: str | None = None) -> str:
        """As `hack/cluster kubectl` runs it, which takes three times as long as most of what is asked."""
        environment = {**GO, **os.environ, "KUBECONFIG": str(self.kubeconfig)}
        return run([tools.build(tool) / program, *arguments], text=text, environment=environment)

    def in_node(self, node: str, *command: str) -> str:
        return run(self._in_node(node, *command))

    def write_in_node(self, node: str, file: str, text: str) -> None:
        run(self._in_node(node, "sh", "-c", f"cat > {file}"), text=text)

    def _in_node(self, node: str, *command: str) -> list[str]:
        """What `hack/cluster exec` runs, which itself takes longer than most commands do."""
        provider: Provider = import_module(f"cluster.{read_provider(self.state)}")
        return provider.command_in(self.state, node, command)

    def in_pod(self, pod: str, *command: str, namespace: str = "default", container: str | None = None) -> str:
        chosen = ["--container", container] if container else []
        return self.kubectl("exec", "--namespace", namespace, pod, *chosen, "--", *command)

    def apply(self, manifests: str | Object | Iterable[Object]) -> None:
        """YAML text, an object, or several, as `kubectl apply --server-side --force-conflicts` does."""
        if isinstance(manifests, str):
            manifests = yaml.safe_load_all(manifests)
        query = urlencode({"fieldManager": "kubectl", "force": "true", "fieldValidation": "Strict"})
        for body in [manifests] if isinstance(manifests, dict) else manifests:
            if body:
                self.request("PATCH", f"{self._where(body)}?{query}", body, "application/apply-patch+yaml")

    def _where(self, body: Object) -> str:
        key = str(body["apiVersion"]), str(body["kind"])
        if key not in self._kinds:
            found = self.get(path(key[0], "").rstrip("/"))["resources"]
            self._kinds |= {(key[0], each["kind"]): each for each in found if "/" not in each["name"]}
        kind, metadata = self._kinds[key], body["metadata"]
        namespace = metadata.get("namespace", "default") if kind["namespaced"] else None
        return path(key[0], kind["name"], namespace=namespace, name=metadata["name"])

    def request(
        self, method: str, where: str, body: Object | None = None, content_type: str = "application/json"
    ) -> Object:
        """One request as the administrator; raises ApiError."""
        connection = _UnixConnection(self._proxy_socket())
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, where, payload, {"Content-Type": content_type})
            answer = connection.getresponse()
            content = answer.read()
        except http.client.HTTPException as error:
            raise ApiError(f"{method} {where}", 0, {"message": repr(error)}) from error
        finally:
            connection.close()
        result: Object = json.loads(content) if content[:1] == b"{" else {"message": content.decode(errors="replace")}
        if answer.status >= 300:
            raise ApiError(f"{method} {where}", answer.status, result)
        return result

    def get(self, where: str) -> Object:
        return self.request("GET", where)

    def find(self, where: str) -> Object | None:
        """None: there is no such object."""
        try:
            return self.get(where)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def list(self, where: str, **query: str) -> list[Object]:
        items: list[Object] = self.get(f"{where}?{urlencode(query)}" if query else where)["items"]
        return items

    def create(self, where: str, body: Object) -> Object:
        return self.request("POST", where, body)

    def delete(self, where: str, **options: Any) -> None:
        """Options of meta/v1 DeleteOptions; an object that is gone already is fine."""
        try:
            self.request("DELETE", where, {"apiVersion": "v1", "kind": "DeleteOptions", **options})
        except ApiError as error:
            if error.status != 404:
                raise

    def patch(self, where: str, body: Object) -> Object:
        return self.request("PATCH", where, body, "application/merge-patch+json")

    def wait(
        self, where: str, what: str, predicate: Callable[[Object], object], patience_s: float = PATIENCE_S
    ) -> Object:
        """Until the predicate holds for the object (or list) at `where`; shows its last state on failure."""

        def probe() -> Object | None:
            seen.clear()
            seen.update(self.get(where))
            return seen if predicate(seen) else None

        seen: Object = {}
        try:
            return wait_until(what, probe, patience_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{where}: {json.dumps(_brief(seen), indent=1)[:6000]}") from error

    def wait_gone(self, where: str, patience_s: float = PATIENCE_S) -> None:
        wait_until(f"{where} is gone", lambda: self.find(where) is None, patience_s)

    def wait_pod(self, name: str, *, phase: str = "Running", namespace: str = "default") -> Object:
        """Until the pod has that phase and, when Running, all of its containers are ready."""

        def there(pod: Object) -> bool:
            status = pod.get("status", {})
            ready = all(each["ready"] for each in status.get("containerStatuses", ()))
            return status.get("phase") == phase and (phase != "Running" or ready)

        return self.wait(path("v1", "pods", namespace=namespace, name=name), f"pod {name} is {phase}", there)

    def wait_node(self, name: str, *, ready: bool = True) -> Object:
        def there(node: Object) -> bool:
            conditions = {each["type"]: each["status"] for each in node["status"].get("conditions", ())}
            return (conditions.get("Ready") == "True") is ready

        what = f"node {name} is {'Ready' if ready else 'not Ready'}"
        return self.wait(path("v1", "nodes", name=name), what, there, 120.0)

    def _proxy_socket(self) -> Path:
        file = self.state / "proxy.sock"
        if self._proxy is None or self._proxy.poll() is not None:
            file.unlink(missing_ok=True)
            command = self.command("kubectl", "proxy", f"--unix-socket={file.name}")
            self._proxy = subprocess.Popen(command, cwd=self.state, stdout=subprocess.DEVNULL)
            wait_until("kubectl proxy listens", file.exists)
        return file


def _brief(seen: Object) -> Object:
    """Without what nobody reads when a test has failed."""
    metadata = {key: value for key, value in seen.get("metadata", {}).items() if key != "managedFields"}
    return {**seen, "metadata": metadata}
