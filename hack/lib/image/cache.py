"""Where layers and scratch folders lie, and what makes them stale."""

import fcntl
import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from paths import CACHE

from image.oci import Layer, read_layer

LAYERS = CACHE / "image-layers"


@contextmanager
def one_build() -> Iterator[None]:
    """Builds in one cache take turns, for they share its scratch folders; the second finds what the first has made."""
    LAYERS.mkdir(parents=True, exist_ok=True)
    with (LAYERS / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def key_of(*inputs: str | bytes | Path) -> str:
    """A short digest of texts and files; a folder counts with every file below it."""
    total = hashlib.sha256()
    for part in inputs:
        for chunk in read_parts(part):
            total.update(hashlib.sha256(chunk).digest())
    return total.hexdigest()[:16]


def read_parts(part: str | bytes | Path) -> Iterable[bytes]:
    if isinstance(part, str):
        yield part.encode()
    elif isinstance(part, bytes):
        yield part
    elif part.is_dir():
        for path in sorted(path for path in part.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
            yield path.relative_to(part).as_posix().encode()
            yield path.read_bytes()
    else:
        yield part.read_bytes()


def cached_layer(name: str, key: str, build: Callable[[Path], Layer]) -> Layer:
    """The layer `name` for `key`; where it is missing, `build` writes it to the given path and older ones go."""
    path = LAYERS / f"{name}-{key}.tar"
    if path.exists():
        return read_layer(path)
    LAYERS.mkdir(parents=True, exist_ok=True)
    layer = build(path)
    for older in LAYERS.glob(f"{name}-{'?' * len(key)}.tar"):
        if older != path:
            older.unlink()
    return layer


def cached_folder(name: str, key: str, fill: Callable[[Path], None]) -> Path:
    """A folder that `fill` has completed for `key`; one that an interrupted build left behind is never used."""
    path = LAYERS / f"{name}-{key}"
    if path.is_dir():
        return path
    LAYERS.mkdir(parents=True, exist_ok=True)
    unfinished = LAYERS / f"{name}-unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    fill(unfinished)
    for older in LAYERS.glob(f"{name}-{'?' * len(key)}"):
        shutil.rmtree(older)
    unfinished.rename(path)
    return path
