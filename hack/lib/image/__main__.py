"""Build images; print where each archive lies, its size and the time it took."""

import argparse
import sys
import time
from collections.abc import Callable

from cluster import tools
from paths import IMAGES

from image import debian, mpi, simulated, site, small
from image.cache import one_build
from image.oci import Image, write_archive

PYTHON_ENVIRONMENT = ["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "PYTHONUNBUFFERED=1"]
NOBODY = "65532:65532"  # the node plugin alone runs as root, which its DaemonSet says


def build_partita() -> Image:
    config = {
        "User": NOBODY,
        "WorkingDir": "/app",
        "Env": [*PYTHON_ENVIRONMENT, "PYTHONPATH=/app:/app/site"],
        "Cmd": ["partita-kubelet-plugin"],
    }
    layers = (debian.base_layer(), site.dependencies_layer(), site.program_layer())
    return Image(("docker.io/library/partita:dev",), layers, config)


def build_simulator() -> Image:
    environment = [*PYTHON_ENVIRONMENT, "PYTHONPATH=/app"]
    config = {"WorkingDir": "/app", "Env": environment, "Cmd": ["python3", "-m", "simulator"]}
    layers = (debian.base_layer(), simulated.simulator_layer())
    return Image(("docker.io/library/partita-simulator:dev",), layers, config)


def build_busybox() -> Image:
    """Under its own name, and under that of the samples: Debian's busybox of that version with glibc, as theirs."""
    names = ("docker.io/library/busybox:dev", "docker.io/library/busybox:1.35-glibc")
    return Image(names, (small.busybox_layer(),), {"Env": ["PATH=/bin"], "Cmd": ["sh"]})


def build_pause() -> Image:
    return Image(("registry.k8s.io/pause:3.10",), (small.pause_layer(),), {"Entrypoint": ["/pause"], "User": NOBODY})


def build_openmpi() -> Image:
    """Under the name that the samples have for nvbandwidth."""
    environment = ["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"]
    names = ("ghcr.io/nvidia/k8s-samples:nvbandwidth-v0.7-8d103163",)
    return Image(names, (mpi.mpi_layer(),), {"Env": environment, "WorkingDir": f"/{mpi.HOME}"})


def build_mpi_operator() -> Image:
    """Under the name that its own manifest has."""
    names = (f"docker.io/mpioperator/mpi-operator:{tools.pinned_version('mpi-operator')}",)
    layer = mpi.program_layer("mpi-operator", "mpi-operator")
    return Image(names, (layer,), {"Entrypoint": ["/mpi-operator"], "User": NOBODY})


def build_coredns() -> Image:
    layer = mpi.program_layer("coredns", "coredns")
    return Image(("docker.io/library/coredns:dev",), (layer,), {"Entrypoint": ["/coredns"], "User": NOBODY})


IMAGE_BUILDERS: dict[str, Callable[[], Image]] = {
    "pause": build_pause,
    "busybox": build_busybox,
    "partita-simulator": build_simulator,
    "partita": build_partita,
}
# Built where they are named: only the tests of an MPIJob need them.
FURTHER_BUILDERS: dict[str, Callable[[], Image]] = {
    "openmpi": build_openmpi,
    "mpi-operator": build_mpi_operator,
    "coredns": build_coredns,
}


def main(arguments: list[str]) -> int:
    builders = IMAGE_BUILDERS | FURTHER_BUILDERS
    parser = argparse.ArgumentParser(prog="hack/image", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="look at the names, and build nothing")
    known = f"{', '.join(builders)}; without names the first {len(IMAGE_BUILDERS)}"
    parser.add_argument("names", nargs="*", metavar="NAME", help=known)
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - builders.keys()):
        parser.error(f"no image named {', '.join(unknown)}; there are: {', '.join(builders)}")
    if options.dry_run:
        return 0
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name in options.names or IMAGE_BUILDERS:
        started = time.monotonic()
        path = IMAGES / f"{name}.tar"
        with one_build():
            image = builders[name]()
            write_archive(image, path)
        size = path.stat().st_size / 1e6
        print(f"{path}  {' '.join(image.names)}  {size:.0f} MB  {time.monotonic() - started:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
