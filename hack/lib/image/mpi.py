"""What an MPIJob needs on a cluster without a registry: Open MPI over OpenSSH, the MPI Operator, a DNS server."""

import shutil
from pathlib import Path

from cluster import tools

from image.cache import cached_folder, cached_layer, key_of
from image.debian import GROUPS, USERS, read_sources, unpack_packages
from image.oci import Layer, write_layer
from image.simulated import build_artefacts

PACKAGES = ("base-files", "coreutils", "dash", "libc-bin", "openmpi-bin", "openssh-client", "openssh-server")
BINDINGS = "python3-mpi4py"  # the stand-in is a program of a few lines
STAND_IN = Path(__file__).with_name("nvbandwidth.py")
USER = "mpiuser"
HOME = f"home/{USER}"
# The MPI Operator mounts one key pair from a Secret, as the host's and as the user's; nobody can write beside it.
SSH = """\
Host *
    Port 2222
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
"""
SSHD = f"""\
Port 2222
HostKey /{HOME}/.ssh/id_rsa
PidFile none
StrictModes no
"""
TRANSPORTS = "pml = ob1\nbtl = self,vader,tcp\n"  # of shared memory and TCP, without looking for other networks


def mpi_layer() -> Layer:
    sources = read_sources()
    key = key_of("\n".join(sources), STAND_IN, fabric_test(), Path(__file__))
    tree = cached_folder("openmpi", key, lambda tree: lay_out(tree, sources))
    return cached_layer("mpi", key, lambda path: write_layer(tree, path))


def fabric_test() -> Path:
    return build_artefacts() / "fabric-test"


def lay_out(tree: Path, sources: list[str]) -> None:
    unpack_packages(tree, (*PACKAGES, BINDINGS), sources)
    (tree / "etc/passwd").write_text(f"{USERS}{USER}:x:1000:1000::/{HOME}:/bin/sh\n")
    (tree / "etc/group").write_text(f"{GROUPS}{USER}:x:1000:\n")
    (tree / "etc/ssh/ssh_config").write_text(SSH)
    (tree / "etc/openmpi/openmpi-mca-params.conf").write_text(TRANSPORTS)
    (tree / HOME).mkdir(parents=True)
    (tree / HOME / ".sshd_config").write_text(SSHD)
    (tree / "usr/bin/mpirun").symlink_to("mpirun.openmpi")
    programs = tree / "usr/local/bin"
    programs.mkdir(parents=True, exist_ok=True)
    shutil.copy(fabric_test(), programs / "fabric-test")
    shutil.copy(STAND_IN, programs / "nvbandwidth")
    (programs / "nvbandwidth").chmod(0o755)


def program_layer(tool: str, program: str) -> Layer:
    """One static program of a Go module at the root."""
    built = tools.build(tool) / program
    key = key_of(built, Path(__file__))
    tree = cached_folder(program, key, lambda tree: put(built, tree))
    return cached_layer(f"{program}-program", key, lambda path: write_layer(tree, path))


def put(program: Path, tree: Path) -> None:
    shutil.copy(program, tree / program.name)
