"""Layers and archives as the OCI image specification 1.1 has them (image-spec: layer, config, manifest, layout)."""

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}  # GOARCH of what uname calls the machine
EPOCH = "1970-01-01T00:00:00Z"  # a build says what it is by its content, not by when it ran


@dataclass(frozen=True, slots=True)
class Layer:
    """An uncompressed layer: archives are read on the machine that wrote them, where compression only costs time."""

    path: Path
    digest: str  # "sha256:..." of the tar, which is blob digest and diff id alike


@dataclass(frozen=True, slots=True)
class Image:
    """`names` are full references such as docker.io/library/partita:dev; `config` the OCI "config" object."""

    names: tuple[str, ...]
    layers: tuple[Layer, ...]
    config: dict[str, Any] = field(default_factory=dict)


def write_layer(tree: Path, path: Path, prefix: str = "") -> Layer:
    """A layer of everything below `tree`, placed below `prefix`; same content, same bytes."""
    unfinished = path.with_suffix(".unfinished")
    with tarfile.open(unfinished, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in parents_of(prefix):
            archive.addfile(directory_entry(name))
        for source in sorted(walk(tree)):
            add_entry(archive, source, "/".join(filter(None, (prefix, source.relative_to(tree).as_posix()))))
    unfinished.rename(path)
    return read_layer(path)


def read_layer(path: Path) -> Layer:
    with path.open("rb") as file:
        return Layer(path, "sha256:" + hashlib.file_digest(file, "sha256").hexdigest())


def parents_of(prefix: str) -> Iterator[str]:
    parts = [part for part in prefix.split("/") if part]
    return ("/".join(parts[: i + 1]) for i in range(len(parts)))


def walk(tree: Path) -> Iterator[Path]:
    for path in tree.iterdir():
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from walk(path)


def directory_entry(name: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    return entry


def add_entry(archive: tarfile.TarFile, source: Path, name: str) -> None:
    """Owner, times and hard links of the building machine are left behind; kind, mode and content count."""
    entry = tarfile.TarInfo(name)
    status = source.lstat()
    entry.mode = status.st_mode & 0o7777
    if source.is_symlink():
        entry.type, entry.linkname = tarfile.SYMTYPE, str(source.readlink())
        archive.addfile(entry)
    elif source.is_dir():
        entry.type = tarfile.DIRTYPE
        archive.addfile(entry)
    elif source.is_file():
        entry.size = status.st_size
        with source.open("rb") as content:
            archive.addfile(entry, content)


def write_archive(image: Image, path: Path) -> None:
    """An OCI layout in one tar file; the references are where containerd and skopeo look for them."""
    config = encode(build_config(image))
    manifest = encode(build_manifest(image, config))
    descriptors = [describe_manifest(manifest, name) for name in image.names]
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": descriptors}
    unfinished = path.with_suffix(".unfinished")
    with tarfile.open(unfinished, "w", format=tarfile.PAX_FORMAT) as archive:
        add_bytes(archive, "oci-layout", encode({"imageLayoutVersion": "1.0.0"}))
        add_bytes(archive, "index.json", encode(index))
        for blob in (config, manifest):
            add_bytes(archive, blob_path(digest(blob)), blob)
        for layer in sorted({layer.digest: layer for layer in image.layers}.values(), key=lambda each: each.digest):
            add_entry(archive, layer.path, blob_path(layer.digest))
    unfinished.rename(path)


def build_config(image: Image) -> dict[str, Any]:
    return {
        "created": EPOCH,
        "architecture": architecture(),
        "os": "linux",
        "config": image.config,
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in image.layers]},
    }


def build_manifest(image: Image, config: bytes) -> dict[str, Any]:
    layers = [
        {
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": layer.digest,
            "size": layer.path.stat().st_size,
        }
        for layer in image.layers
    ]
    return {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": describe(config, "application/vnd.oci.image.config.v1+json"),
        "layers": layers,
    }


def describe_manifest(manifest: bytes, name: str) -> dict[str, Any]:
    annotations = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
    platform = {"architecture": architecture(), "os": "linux"}
    media_type = "application/vnd.oci.image.manifest.v1+json"
    return {**describe(manifest, media_type), "annotations": annotations, "platform": platform}


def describe(blob: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(blob), "size": len(blob)}


def digest(blob: bytes) -> str:
    return "sha256:" + hashlib.sha256(blob).hexdigest()


def blob_path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def add_bytes(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o644
    archive.addfile(entry, io.BytesIO(content))


def architecture() -> str:
    return ARCHITECTURES[platform.machine()]
