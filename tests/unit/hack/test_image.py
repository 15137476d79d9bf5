"""Images made of folders: layers, archives, and the Debian tree that they start from."""

import hashlib
import json
import os
import tarfile
from pathlib import Path

import pytest
from image import oci
from image.debian import merge_usr


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/tool").write_text("#!/bin/sh\n")
    (folder / "bin/tool").chmod(0o755)
    (folder / "bin/alias").symlink_to("tool")
    return folder


def read_archive(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {entry.name: content.read() for entry in archive if (content := archive.extractfile(entry))}


def test_equal_content_gives_equal_layers_whenever_and_by_whomever_it_was_written(tree: Path, tmp_path: Path) -> None:
    first = oci.write_layer(tree, tmp_path / "first.tar")
    os.utime(tree / "bin/tool", (1, 1))
    assert oci.write_layer(tree, tmp_path / "second.tar").digest == first.digest


def test_a_changed_mode_gives_another_layer(tree: Path, tmp_path: Path) -> None:
    first = oci.write_layer(tree, tmp_path / "first.tar")
    (tree / "bin/tool").chmod(0o700)
    assert oci.write_layer(tree, tmp_path / "second.tar").digest != first.digest


def test_a_layer_belongs_to_root_keeps_links_and_lies_below_its_prefix(tree: Path, tmp_path: Path) -> None:
    layer = oci.write_layer(tree, tmp_path / "layer.tar", "app/site")
    with tarfile.open(layer.path) as archive:
        entries = {entry.name: entry for entry in archive}
    assert list(entries) == ["app", "app/site", "app/site/bin", "app/site/bin/alias", "app/site/bin/tool"]
    assert entries["app/site/bin/alias"].linkname == "tool"
    assert {(entry.uid, entry.gid, entry.mtime) for entry in entries.values()} == {(0, 0, 0)}


def test_an_archive_holds_every_blob_that_its_index_leads_to(tree: Path, tmp_path: Path) -> None:
    layer = oci.write_layer(tree, tmp_path / "layer.tar")
    oci.write_archive(oci.Image(("docker.io/library/x:dev",), (layer,), {"User": "1:1"}), tmp_path / "x.tar")
    files = read_archive(tmp_path / "x.tar")
    blobs = {name.replace("blobs/sha256/", "sha256:"): blob for name, blob in files.items() if "sha256" in name}
    assert all(name == "sha256:" + hashlib.sha256(blob).hexdigest() for name, blob in blobs.items())
    (descriptor,) = json.loads(files["index.json"])["manifests"]
    manifest = json.loads(blobs[descriptor["digest"]])
    config = json.loads(blobs[manifest["config"]["digest"]])
    assert [each["digest"] for each in manifest["layers"]] == config["rootfs"]["diff_ids"] == [layer.digest]
    assert config["config"] == {"User": "1:1"}


def test_one_image_may_have_several_names(tree: Path, tmp_path: Path) -> None:
    layer = oci.write_layer(tree, tmp_path / "layer.tar")
    names = ("docker.io/library/x:dev", "docker.io/library/x:1")
    oci.write_archive(oci.Image(names, (layer,)), tmp_path / "x.tar")
    index = json.loads(read_archive(tmp_path / "x.tar")["index.json"])
    assert tuple(each["annotations"]["io.containerd.image.name"] for each in index["manifests"]) == names
    assert len({each["digest"] for each in index["manifests"]}) == 1


def test_the_usr_merge_keeps_every_file_and_what_usr_has_already(tree: Path) -> None:
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/bin/alias").write_text("of the package that was moved already")
    merge_usr(tree)
    assert (tree / "bin").readlink() == Path("usr/bin")
    assert (tree / "bin/tool").read_text() == "#!/bin/sh\n"
    assert (tree / "bin/alias").read_text() == "of the package that was moved already"
