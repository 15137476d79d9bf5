"""Changes of a tree that others may be reading."""

import shutil
from pathlib import Path


def write_bytes(path: Path, content: bytes, mode: int = 0o444) -> None:
    """In place at once, so that whoever uses the old file keeps it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.new")
    aside.write_bytes(content)
    aside.chmod(mode)
    aside.replace(path)


def remove(path: Path) -> None:
    """A file, a link or a folder with everything in it, where it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
