"""The driver's libraries below its root, wherever links lead to them.

Links are made for the host or the driver container, which may be mounted here at another path: they are followed as for
a process whose root the driver root is.
"""

import errno
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from kubeletplugin.model.cdi import PLUGIN_FOLDERS, DriverFile

# As NVIDIA's container toolkit looks for libraries; then where hosts keep a driver that came as an image of its own.
_DIRECTORIES: Final = (
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu/nvidia/current",
    "/usr/lib/aarch64-linux-gnu/nvidia/current",
    "/usr/lib",
    "/lib64",
    "/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/lib/x86_64-linux-gnu/nvidia/current",
    "/lib/aarch64-linux-gnu/nvidia/current",
    "/usr/local/nvidia/lib64",
    "/usr/local/nvidia/lib",
)
_NVML: Final = "libnvidia-ml.so.1"
# Parts of the driver with a version of their own.
_OWN_VERSION: Final = re.compile(r"libnvidia-(nvvm70\.so\.\d+|egl-(gbm|wayland2?|xcb|xlib)\.so(\.\d+){2,})")
_MAX_LINKS: Final = 40  # include/linux/namei.h MAXSYMLINKS


def find_library(root: Path, name: str) -> Path | None:
    """The file itself, as this process sees it."""
    found = (resolve_below(root, f"{directory}/{name}") for directory in _DIRECTORIES)
    return next((_seen(root, real) for real in found if real), None)


def list_directories(root: Path) -> tuple[str, ...]:
    """Where libraries are looked for: the usual directories, and that in which the driver's own NVML really lies."""
    nvml = find_library(root, _NVML)
    own = () if nvml is None else (f"/{nvml.parent.relative_to(root)}",)
    return tuple(dict.fromkeys((*_DIRECTORIES, *own)))


def read_libraries(root: Path, directories: Sequence[str], driver_version: str) -> tuple[DriverFile, ...]:
    """Libraries of the driver are files whose name ends in its version, and a few; with the links to them.

    Of two with one name the first counts, as for the loader.
    """
    below_each = ("", *(f"/{folder}" for folder in PLUGIN_FOLDERS))
    folders = (resolve_below(root, f"{directory}{below}") for directory in directories for below in below_each)
    files: dict[str, str] = {}
    links: dict[str, list[str]] = {}
    for folder in dict.fromkeys(folder for folder in folders if folder):  # some are links to others
        for path, real in _follow_libraries(root, folder):
            name = PurePosixPath(real).name
            if name.endswith(f".so.{driver_version}") or _OWN_VERSION.fullmatch(name):
                files.setdefault(name, real)
                links.setdefault(real, []).extend([path] if path != real else ())
    return tuple(DriverFile(files[name], tuple(links[files[name]])) for name in sorted(files))


def _follow_libraries(root: Path, folder: str) -> Iterator[tuple[str, str]]:
    """Every library and link to one in a folder, by name, with the path of the file that it is in the end."""
    directory = _seen(root, folder)
    names = sorted(path.name for path in directory.iterdir() if ".so" in path.name) if directory.is_dir() else ()
    for name in names:
        real = resolve_below(root, name, folder)
        if real:
            yield f"{folder}/{name}", real


def resolve_below(root: Path, path: str, folder: str = "/") -> str | None:
    """Where a path really lies for a process whose root this is; None where it leads nowhere.

    `folder` is what the path is relative to, and no link itself.
    """
    pending = path.split("/")[::-1]
    real = [part for part in folder.split("/") if part]
    links = 0
    while pending:
        part = pending.pop()
        if part == "..":
            del real[-1:]
        if part in ("", ".", ".."):
            continue
        try:
            target = str(root.joinpath(*real, part).readlink())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            real.append(part)  # it is there, and no link
            continue
        links += 1
        if links > _MAX_LINKS:
            return None
        if target.startswith("/"):
            real.clear()
        pending += target.split("/")[::-1]
    return "/" + "/".join(real)


def _seen(root: Path, path: str) -> Path:
    return root / path.lstrip("/")
