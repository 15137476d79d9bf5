"""Programs that are built from Go modules: each folder under `tools/` pins one of them with its checksums."""

import fcntl
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from paths import CACHE, ROOT, TOOLS

from cluster.report import ClusterError, say


@dataclass(frozen=True, slots=True)
class Tool:
    """`module` pins the version; `packages` are built into programs; `{version}` in `stamps` becomes that version.

    `files` of the module are kept beside the programs.
    """

    module: str
    packages: tuple[str, ...]
    files: tuple[str, ...] = ()
    stamps: tuple[str, ...] = ()
    tags: str = ""
    cgo: bool = False
    static_cgo: bool = False
    debian_packages: tuple[str, ...] = ()

    def made(self, name: str) -> tuple[str, ...]:
        """The files that a build makes; `name` is the module's own, for a package that is the module's root."""
        programs = tuple(Path(re.sub(r"/v\d+$", "", package)).name or name for package in self.packages)
        return (*programs, *(Path(file).name for file in self.files))


SIGN_OF_LIFE_S = 30.0
_KUBERNETES = "k8s.io/kubernetes"
_CONTAINERD = "github.com/containerd/containerd/v2"
_MPI_OPERATOR = "github.com/kubeflow/mpi-operator"
_KUBE_ROUTER = "github.com/cloudnativelabs/kube-router/v2"
_CNI = "github.com/containernetworking/plugins"
_NVIDIA_DRA = "sigs.k8s.io/dra-driver-nvidia-gpu"
_NVIDIA_TOOLKIT = "github.com/NVIDIA/nvidia-container-toolkit"

TOOL = {
    "kubernetes": Tool(
        module=_KUBERNETES,
        packages=tuple(
            f"{_KUBERNETES}/cmd/{program}"
            for program in (
                "kube-apiserver",
                "kube-controller-manager",
                "kube-proxy",
                "kube-scheduler",
                "kubectl",
                "kubelet",
            )
        ),
        stamps=tuple(
            f"{package}.{variable}"
            for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
            for variable in (
                "gitVersion={version}",
                "gitMajor={major}",
                "gitMinor={minor}",
                "gitTreeState=clean",
            )
        ),
    ),
    "etcd": Tool(module="go.etcd.io/etcd/server/v3", packages=(".",)),
    "containerd": Tool(
        module=_CONTAINERD,
        packages=tuple(f"{_CONTAINERD}/cmd/{program}" for program in ("containerd", "containerd-shim-runc-v2", "ctr")),
        stamps=(f"{_CONTAINERD}/version.Version={{version}}",),
    ),
    "runc": Tool(
        module="github.com/opencontainers/runc",
        packages=("github.com/opencontainers/runc",),
        tags="netgo,osusergo,seccomp",
        static_cgo=True,
        debian_packages=("gcc", "libc6-dev", "libseccomp-dev", "pkg-config"),
    ),
    "cni": Tool(
        module=_CNI,
        packages=tuple(f"{_CNI}/plugins/{plugin}" for plugin in ("main/ptp", "ipam/host-local", "meta/portmap")),
        stamps=(f"{_CNI}/pkg/utils/buildversion.BuildVersion={{version}}",),
    ),
    "kube-router": Tool(module=_KUBE_ROUTER, packages=(f"{_KUBE_ROUTER}/cmd/kube-router",)),
    "kind": Tool(module="sigs.k8s.io/kind", packages=("sigs.k8s.io/kind",)),
    "coredns": Tool(module="github.com/coredns/coredns", packages=(".",)),
    "mpi-operator": Tool(
        module=_MPI_OPERATOR,
        packages=(f"{_MPI_OPERATOR}/cmd/mpi-operator",),
        files=("deploy/v2beta1/mpi-operator.yaml",),
    ),
    "nvidia-dra-driver": Tool(module=_NVIDIA_DRA, packages=(f"{_NVIDIA_DRA}/cmd/gpu-kubelet-plugin",), cgo=True),
    "nvidia-container-toolkit": Tool(
        module=_NVIDIA_TOOLKIT, packages=(f"{_NVIDIA_TOOLKIT}/cmd/nvidia-cdi-hook",), cgo=True
    ),
    "helm": Tool(
        module="helm.sh/helm/v4",
        packages=("helm.sh/helm/v4/cmd/helm",),
        stamps=("helm.sh/helm/v4/internal/version.version={version}",),
    ),
}


def pinned_version(name: str) -> str:
    """`1.37.1`, as the tool's go.mod requires it."""
    text = (TOOLS / name / "go.mod").read_text()
    found = re.search(rf"{re.escape(TOOL[name].module)} v(\S+)", text)
    if found is None:
        raise ClusterError(f"{TOOLS / name / 'go.mod'} does not require {TOOL[name].module}")
    return found.group(1)


def resolve(version: str) -> str:
    """A Kubernetes release: the pinned one for "", the newest patch for "1.34", else the version itself."""
    if version.count(".") != 1:
        return version or pinned_version("kubernetes")
    listing = subprocess.run(
        ["bash", "-c", f". '{ROOT}/hack/lib/env.sh'; need_go; cd /; go list -m -versions {_KUBERNETES}"],
        capture_output=True,
        text=True,
        check=False,
    )
    patches = re.findall(rf"v{re.escape(version)}\.(\d+)(?= |$)", listing.stdout.strip())
    if not patches:
        raise ClusterError(f"the Go module proxy lists no release of Kubernetes {version}: {listing.stderr.strip()}")
    return f"{version}.{max(map(int, patches))}"


def build(name: str, version: str | None = None) -> Path:
    """The folder that holds the tool's programs, built now unless it is there."""
    wanted = version or pinned_version(name)
    folder = CACHE / "bin" / f"{name}-{wanted}"
    files = TOOL[name].made(name)
    if not _complete(folder, files):
        with _building():
            if not _complete(folder, files):
                _build(name, wanted, folder)
    return folder


def _complete(folder: Path, files: tuple[str, ...]) -> bool:
    return all((folder / file).exists() for file in files)


@contextmanager
def _building() -> Iterator[None]:
    """One build at a time: each uses every core that it should, and would fill the same cache."""
    (CACHE / "bin").mkdir(parents=True, exist_ok=True)
    with (CACHE / "bin" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(name: str, version: str, folder: Path) -> None:
    tool = TOOL[name]
    if tool.debian_packages:
        run_bash(f"need_debian_packages {' '.join(tool.debian_packages)}", ROOT)
    source = TOOLS / name if version == pinned_version(name) else _module_for(name, version)
    say(f"building {name} {version} from Go modules (minutes, once)")
    unfinished = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    major, minor, *_ = version.split(".")
    stamps = [stamp.format(version=f"v{version}", major=major, minor=minor) for stamp in tool.stamps]
    flags = " ".join(["-s -w", *(f"-X {stamp}" for stamp in stamps), *(["-extldflags -static"] * tool.static_cgo)])
    command = (
        f"need_go; export CGO_ENABLED={int(tool.cgo or tool.static_cgo)} GOFLAGS=-buildvcs=false; "
        f"export CGO_CFLAGS='-O1 -Wno-deprecated-declarations'; "
        f"nice -n 10 go build -p 2 -trimpath "
        f"-tags '{tool.tags}' -ldflags '{flags}' -o '{unfinished}/' {' '.join(tool.packages)}"
    )
    for file in tool.files:
        command += f"; cp --no-preserve=mode \"$(go list -m -f '{{{{.Dir}}}}' {tool.module})/{file}\" '{unfinished}/'"
    run_bash(command, source)
    folder.mkdir(exist_ok=True)
    for made in unfinished.iterdir():
        made.rename(folder / made.name)
    unfinished.rmdir()
    say(f"built {name} {version} into {folder}")


def run_bash(command: str, cwd: Path) -> None:
    """Run a command with the functions of hack/lib/env.sh; a sign of life every half minute."""
    process = subprocess.Popen(["bash", "-c", f". '{ROOT}/hack/lib/env.sh'; set -e; {command}"], cwd=cwd)
    while True:
        try:
            code = process.wait(SIGN_OF_LIFE_S)
            break
        except subprocess.TimeoutExpired:
            say("still at it")
    if code != 0:
        raise ClusterError(f"this failed in {cwd}: {command}")


def _module_for(name: str, version: str) -> Path:
    """A main module for another Kubernetes release, made from the pinned one by that release's own go.mod.

    k8s.io/kubernetes requires its staging modules at v0.0.0 and replaces them by folders; whoever builds it from the
    module proxy has to replace them by their releases, v0.<minor>.<patch>.
    """
    if name != "kubernetes":
        raise ClusterError(f"{name} can be had only in the version that {TOOLS / name / 'go.mod'} pins")
    folder = CACHE / "modules" / f"{name}-{version}"
    if (folder / "go.sum").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    run_bash(f"need_go; cd '{folder}'; go mod download -json {_KUBERNETES}@v{version} > download.json", ROOT)
    found = re.search(r'"GoMod": "(.*)"', (folder / "download.json").read_text())
    if found is None:
        raise ClusterError(f"the Go module proxy has no {_KUBERNETES} v{version}")
    upstream = Path(found.group(1)).read_text()
    staging = re.findall(r"^\s*(?:replace )?(k8s\.io/\S+) => \./staging/", upstream, re.MULTILINE)
    release = f"v0.{version.split('.', 1)[1]}"
    lines = [
        f"module partita.dev/hack/lib/cluster/tools/{name}",
        *re.findall(r"^(?:go|godebug) .*$", upstream, re.MULTILINE),
        f"require {_KUBERNETES} v{version}",
        *(f"replace {module} => {module} {release}" for module in staging),
    ]
    (folder / "go.mod").write_text("\n".join(lines) + "\n")
    shutil.copy(TOOLS / name / "tools.go", folder / "tools.go")
    run_bash("need_go; GOFLAGS=-mod=mod go mod tidy", folder)
    return folder
