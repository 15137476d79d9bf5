"""The driver's libraries are found wherever a host keeps them, and described by where they really lie."""

from pathlib import Path

import pytest

from kubeletplugin.hardware.libraries import list_directories, read_libraries, resolve_below
from kubeletplugin.hardware.tree import DriverRoot, read_driver_tree

VERSION = "580.159.04"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A driver root that is seen elsewhere than its links are made for."""
    return tmp_path / "driver-root"


def put(root: Path, *paths: str) -> None:
    for path in paths:
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def link(root: Path, path: str, target: str) -> None:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.symlink_to(target)


def found(root: Path) -> dict[str, tuple[str, ...]]:
    """Path of each library -> links to it."""
    return {file.path: file.links for file in read_libraries(root, list_directories(root), VERSION)}


def test_libraries_lie_beside_the_links_that_the_loader_made(root: Path) -> None:
    folder = "/usr/lib/x86_64-linux-gnu"
    put(root, f"{folder}/libcuda.so.{VERSION}", f"{folder}/vdpau/libvdpau_nvidia.so.{VERSION}", f"{folder}/libc.so.6")
    link(root, f"{folder}/libcuda.so.1", f"libcuda.so.{VERSION}")
    link(root, f"{folder}/libcuda.so", "libcuda.so.1")
    assert found(root) == {
        f"{folder}/libcuda.so.{VERSION}": (f"{folder}/libcuda.so", f"{folder}/libcuda.so.1"),
        f"{folder}/vdpau/libvdpau_nvidia.so.{VERSION}": (),
    }


def test_parts_of_the_driver_with_versions_of_their_own_belong_to_it(root: Path) -> None:
    folder = "/usr/lib/x86_64-linux-gnu"
    put(
        root,
        *(f"{folder}/{name}" for name in ("libnvidia-nvvm70.so.4", "libnvidia-egl-gbm.so.1.1.2", "libgbm.so.1.0.0")),
    )
    put(root, f"{folder}/libnvidia-allocator.so.{VERSION}")
    link(root, f"{folder}/libnvidia-egl-gbm.so.1", "libnvidia-egl-gbm.so.1.1.2")
    link(root, f"{folder}/gbm/nvidia-drm_gbm.so", f"../libnvidia-allocator.so.{VERSION}")
    assert found(root) == {
        f"{folder}/libnvidia-allocator.so.{VERSION}": (f"{folder}/gbm/nvidia-drm_gbm.so",),
        f"{folder}/libnvidia-egl-gbm.so.1.1.2": (f"{folder}/libnvidia-egl-gbm.so.1",),
        f"{folder}/libnvidia-nvvm70.so.4": (),
    }


def test_a_driver_below_usr_local_nvidia_is_found_with_the_links_that_lead_there(root: Path) -> None:
    own = "/usr/local/nvidia/lib64"
    put(root, f"{own}/libcuda.so.{VERSION}", f"{own}/libnvidia-ml.so.{VERSION}", f"{own}/libnvidia-nvvm.so.{VERSION}")
    for name in ("libcuda", "libnvidia-ml"):
        link(root, f"{own}/{name}.so.1", f"{name}.so.{VERSION}")
        link(root, f"/usr/lib/{name}.so.1", f"{own}/{name}.so.1")
    assert found(root) == {
        f"{own}/libcuda.so.{VERSION}": ("/usr/lib/libcuda.so.1", f"{own}/libcuda.so.1"),
        f"{own}/libnvidia-ml.so.{VERSION}": ("/usr/lib/libnvidia-ml.so.1", f"{own}/libnvidia-ml.so.1"),
        f"{own}/libnvidia-nvvm.so.{VERSION}": (),
    }


def test_the_folder_in_which_nvml_really_lies_is_searched_too(root: Path) -> None:
    put(root, f"/opt/driver/libnvidia-ml.so.{VERSION}", f"/opt/driver/libcuda.so.{VERSION}")
    link(root, "/usr/lib64/libnvidia-ml.so.1", f"/opt/driver/libnvidia-ml.so.{VERSION}")
    assert "/opt/driver" in list_directories(root)
    assert found(root) == {
        f"/opt/driver/libcuda.so.{VERSION}": (),
        f"/opt/driver/libnvidia-ml.so.{VERSION}": ("/usr/lib64/libnvidia-ml.so.1",),
    }


def test_a_link_alone_makes_a_library_in_a_folder_that_is_not_searched(root: Path) -> None:
    put(root, f"/srv/cuda/libcuda.so.{VERSION}")
    link(root, "/usr/lib64/libcuda.so.1", f"../../srv/cuda/libcuda.so.{VERSION}")
    assert found(root) == {f"/srv/cuda/libcuda.so.{VERSION}": ("/usr/lib64/libcuda.so.1",)}


def test_links_over_several_folders_are_followed_as_debian_lays_them(root: Path) -> None:
    folder = "/usr/lib/x86_64-linux-gnu"
    put(root, f"{folder}/nvidia/current/libcuda.so.{VERSION}")
    link(root, f"{folder}/nvidia/current/libcuda.so.1", f"libcuda.so.{VERSION}")
    link(root, "/etc/alternatives/glx--libcuda.so.1", f"{folder}/nvidia/current/libcuda.so.1")
    link(root, f"{folder}/libcuda.so.1", "/etc/alternatives/glx--libcuda.so.1")
    links = (f"{folder}/libcuda.so.1", f"{folder}/nvidia/current/libcuda.so.1")
    assert found(root) == {f"{folder}/nvidia/current/libcuda.so.{VERSION}": links}


@pytest.mark.parametrize("target", ["usr/lib64", "/usr/lib64"])
def test_folders_that_are_links_to_one_another_are_searched_once(root: Path, target: str) -> None:
    put(root, f"/usr/lib64/libcuda.so.{VERSION}")
    link(root, "/usr/lib64/libcuda.so.1", f"libcuda.so.{VERSION}")
    link(root, "/lib64", target)
    assert found(root) == {f"/usr/lib64/libcuda.so.{VERSION}": ("/usr/lib64/libcuda.so.1",)}


def test_links_never_lead_out_of_the_root(root: Path, tmp_path: Path) -> None:
    put(tmp_path, f"libcuda.so.{VERSION}")
    link(root, "/usr/lib64/libcuda.so.1", f"{tmp_path}/libcuda.so.{VERSION}")
    link(root, "/usr/lib/libcuda.so.1", f"../../../libcuda.so.{VERSION}")
    assert found(root) == {}
    put(root, f"/libcuda.so.{VERSION}")
    assert found(root) == {f"/libcuda.so.{VERSION}": ("/usr/lib/libcuda.so.1",)}


def test_libraries_of_another_version_and_links_to_nothing_do_not_count(root: Path) -> None:
    put(root, "/usr/lib64/libcuda.so.550.54.15", "/usr/lib64/file")
    link(root, "/usr/lib64/libcuda.so.1", "libcuda.so.550.54.15")
    link(root, "/usr/lib64/libgone.so.1", f"libgone.so.{VERSION}")
    link(root, "/usr/lib64/libodd.so.1", f"file/libodd.so.{VERSION}")
    assert found(root) == {}


def test_of_two_libraries_with_one_name_the_first_counts(root: Path) -> None:
    put(root, f"/usr/lib64/libcuda.so.{VERSION}", f"/usr/local/nvidia/lib64/libcuda.so.{VERSION}")
    link(root, "/usr/local/nvidia/lib64/libcuda.so.1", f"libcuda.so.{VERSION}")
    assert found(root) == {f"/usr/lib64/libcuda.so.{VERSION}": ()}


def test_links_in_a_circle_lead_nowhere(root: Path) -> None:
    link(root, "/usr/lib64/a.so", "b.so")
    link(root, "/usr/lib64/b.so", "a.so")
    assert resolve_below(root, "/usr/lib64/a.so") is None
    assert found(root) == {}


def test_the_library_to_load_is_found_as_this_process_sees_it(root: Path) -> None:
    put(root, f"/usr/local/nvidia/lib64/libnvidia-ml.so.{VERSION}")
    link(root, "/usr/lib/libnvidia-ml.so.1", f"/usr/local/nvidia/lib64/libnvidia-ml.so.{VERSION}")
    driver_root = DriverRoot("/", root)
    assert driver_root.find_library("libnvidia-ml.so.1") == root / f"usr/local/nvidia/lib64/libnvidia-ml.so.{VERSION}"
    assert driver_root.find_library("libcuda.so.1") is None


def test_a_driver_tree_tells_its_libraries_and_where_they_were_looked_for(root: Path) -> None:
    put(root, f"/usr/local/nvidia/lib64/libcuda.so.{VERSION}", "/usr/local/nvidia/bin/nvidia-smi")
    tree = read_driver_tree(DriverRoot("/", root), VERSION)
    assert [file.path for file in tree.libraries] == [f"/usr/local/nvidia/lib64/libcuda.so.{VERSION}"]
    assert tree.tools == ("/usr/local/nvidia/bin/nvidia-smi",)
    assert {"/usr/lib64", "/usr/local/nvidia/lib64"} <= set(tree.searched)
