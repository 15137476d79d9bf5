"""The base layer: the Debian packages that a Python program needs, unpacked, without what no program reads."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from image.cache import LAYERS, cached_folder, cached_layer, key_of
from image.oci import Layer, write_layer

SUITE = "bookworm"
PACKAGES = ("base-files", "coreutils", "dash", "grep", "libc-bin", "libstdc++6", "mount", "python3", "sed")

# Perl comes with a dependency of the MIME tables; tests, editors and documentation of Python come with its library.
USELESS = (
    "dev/*",
    "etc/apt",
    "etc/dpkg",
    "usr/bin/perl*",
    "usr/include",
    "usr/lib/*/libperl*",
    "usr/lib/*/perl*",
    "usr/lib/python3.*/ensurepip",
    "usr/lib/python3.*/idlelib",
    "usr/lib/python3.*/lib2to3",
    "usr/lib/python3.*/pydoc_data",
    "usr/lib/python3.*/test",
    "usr/share/bash-completion",
    "usr/share/bug",
    "usr/share/doc",
    "usr/share/doc-base",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/perl*",
    "usr/share/zoneinfo",
    "var/cache/*",
    "var/lib/apt",
    "var/lib/dpkg",
    "var/log/*",
)
MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")  # /usr merge: each is a link to its twin below /usr

USERS = "root:x:0:0:root:/root:/bin/sh\npartita:x:65532:65532:Partita:/nonexistent:/usr/sbin/nologin\n"
GROUPS = "root:x:0:\npartita:x:65532:\n"
NAME_SERVICES = "passwd: files\ngroup: files\nhosts: files dns\n"


def base_tree() -> Path:
    """The root file system as a folder; the interpreter in it also compiles the other layers' modules."""
    sources = read_sources()
    key = key_of(SUITE, *PACKAGES, *USELESS, USERS, GROUPS, NAME_SERVICES, "\n".join(sources), Path(__file__))
    return cached_folder("debian", key, lambda tree: unpack(tree, sources))


def base_layer() -> Layer:
    tree = base_tree()
    return cached_layer("base", tree.name.rpartition("-")[2], lambda path: write_layer(tree, path))


def read_sources() -> list[str]:
    """The machine's own archives of the suite, where it has them; else mmdebstrap's default for it is taken."""
    fields = ("ORIGIN", "CREATED_BY", "RELEASE", "REPO_URI", "COMPONENT")
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", " ".join(f"$({field})" for field in fields)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    targets = [line.split(" ") for line in listed.stdout.splitlines()]
    return sorted(
        {
            f"deb {target[3]} {target[2]} {target[4]}"
            for target in targets
            if target[:2] == ["Debian", "Packages"] and re.fullmatch(rf"{SUITE}(-security|-updates)?", target[2])
        }
    )


def unpack(tree: Path, sources: list[str]) -> None:
    unpack_packages(tree, PACKAGES, sources)
    compile_modules(tree, tree / "usr/lib", "/usr/lib")


def unpack_packages(tree: Path, packages: Sequence[str], sources: list[str]) -> None:
    """Packages and what they depend on, without running their scripts."""
    command = ["mmdebstrap", "--quiet", "--variant=extract", f"--include={','.join(packages)}", SUITE, str(tree)]
    done = subprocess.run(
        command + (["-"] if sources else []),
        input="\n".join(sources),
        env={**os.environ, "TMPDIR": str(LAYERS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"mmdebstrap could not unpack {SUITE}:\n{done.stdout}")
    for pattern in USELESS:
        for path in list(tree.glob(pattern)):
            remove(path)
    merge_usr(tree)
    for name, text in (("passwd", USERS), ("group", GROUPS), ("nsswitch.conf", NAME_SERVICES)):
        (tree / "etc" / name).write_text(text)
    (tree / "tmp").chmod(0o1777)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def merge_usr(tree: Path) -> None:
    """Unpacked packages of this suite still carry files below /bin and /lib, which an installed system has in /usr."""
    for name in MERGED:
        folder = tree / name
        if folder.is_symlink() or not folder.is_dir():
            continue
        (tree / "usr" / name).mkdir(exist_ok=True)
        for source in sorted(folder.rglob("*")):
            target = tree / "usr" / name / source.relative_to(folder)
            if source.is_dir() and not source.is_symlink():
                target.mkdir(parents=True, exist_ok=True)
            elif not target.exists() and not target.is_symlink():
                source.rename(target)
        shutil.rmtree(folder)
        folder.symlink_to(f"usr/{name}")


def python_version(tree: Path) -> str:
    """Such as "3.11"."""
    return (tree / "usr/bin/python3").readlink().name.removeprefix("python")


def compile_modules(base: Path, folder: Path, installed: str) -> None:
    """Compile everything below `folder`, which will be `installed`, with the interpreter of the image itself.

    Unchecked: sources in an image do not change, and modification times would make every build differ. Forced: else
    what the compiler itself imports keeps files with such times, which no start of a program can use.
    """
    libraries = next(base.glob("usr/lib/*-linux-gnu"))
    loader = next(libraries.glob("ld-linux*.so.*"))
    program = base / "usr/bin" / f"python{python_version(base)}"
    options = ["-q", "-f", "-j1", "--invalidation-mode", "unchecked-hash", "-s", str(folder), "-p", installed]
    subprocess.run(
        [loader, "--library-path", libraries, program, "-s", "-m", "compileall", *options, folder],
        env={"PYTHONHOME": str(base / "usr"), "PYTHONHASHSEED": "0", "PATH": os.environ["PATH"]},
        stdout=subprocess.DEVNULL,
        check=False,  # 2to3's samples and the like do not compile; what programs import is run by the tests
    )
