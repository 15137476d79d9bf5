"""The images beside our own that a cluster without a registry needs: the pod sandbox and a shell to try claims with."""

import shutil
import subprocess
from pathlib import Path

from image.cache import cached_folder, cached_layer, key_of
from image.debian import base_tree
from image.oci import Layer, write_layer

PAUSE_SOURCE = Path(__file__).with_name("pause.c")
# Driver tools that are injected into a container (nvidia-smi among them) are linked against the C library.
C_LIBRARY = ("ld-linux*", "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libgcc_s.so.1")


def pause_layer() -> Layer:
    key = key_of(PAUSE_SOURCE, Path(__file__))
    tree = cached_folder("pause", key, compile_pause)
    return cached_layer("sandbox", key, lambda path: write_layer(tree, path))


def compile_pause(folder: Path) -> None:
    subprocess.run(["gcc", "-static", "-Os", "-s", "-Wall", "-o", folder / "pause", PAUSE_SOURCE], check=True)


def busybox_layer() -> Layer:
    base = base_tree()
    key = key_of(base.name, Path(__file__))
    tree = cached_folder("applets", key, lambda folder: unpack_busybox(base, folder))
    return cached_layer("busybox", key, lambda path: write_layer(tree, path))


def unpack_busybox(base: Path, folder: Path) -> None:
    # As root itself: apt's own user need not have access to the cache.
    command = ["apt-get", "-o", "APT::Sandbox::User=root", "download", "-qq", "busybox-static"]
    subprocess.run(command, cwd=folder, check=True)
    package = next(folder.glob("*.deb"))
    subprocess.run(["dpkg-deb", "-x", package, folder / "package"], check=True)
    program = folder / "usr/bin/busybox"
    program.parent.mkdir(parents=True)
    next((folder / "package").glob("**/bin/busybox")).rename(program)
    shutil.rmtree(folder / "package")
    package.unlink()
    applets = subprocess.run([program, "--list"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    for applet in sorted(set(applets) - {"busybox"}):
        (program.parent / applet).symlink_to("busybox")
    for name in ("bin", "lib", "lib64", "sbin"):
        (folder / name).symlink_to("usr/bin" if name == "sbin" else f"usr/{name}")
    copy_c_library(base, folder)
    for name in ("etc", "proc", "root", "run", "sys", "tmp", "var"):
        (folder / name).mkdir()
    (folder / "tmp").chmod(0o1777)
    for name in ("passwd", "group", "nsswitch.conf"):
        shutil.copy(base / "etc" / name, folder / "etc" / name)


def copy_c_library(base: Path, folder: Path) -> None:
    for pattern in C_LIBRARY:
        for source in [*base.glob(f"usr/lib/*-linux-gnu/{pattern}"), *base.glob(f"usr/lib64/{pattern}")]:
            target = folder / source.relative_to(base)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target, follow_symlinks=False)
