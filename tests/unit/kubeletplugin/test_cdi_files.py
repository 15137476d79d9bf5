"""CDI files on a real file system."""

import json
from pathlib import Path

import pytest

from kubeletplugin.cdi_files import CdiFiles
from kubeletplugin.disk import DiskFailed


def test_a_cdi_file_appears_whole_and_absent_files_are_removed_without_complaint(tmp_path: Path) -> None:
    cdi = CdiFiles(tmp_path / "cdi", "k8s.gpu.nvidia.com")
    name = "k8s.gpu.nvidia.com-claim_u1.json"
    cdi.write(name, {"kind": "x"})
    assert cdi.exists(name)
    assert [file.name for file in (tmp_path / "cdi").iterdir()] == [name]
    cdi.remove(name)
    cdi.remove(name)
    assert list((tmp_path / "cdi").iterdir()) == []


def test_cdi_files_of_others_are_not_ours_and_broken_ones_are_told_apart(tmp_path: Path) -> None:
    cdi = CdiFiles(tmp_path, "k8s.gpu.nvidia.com")
    cdi.write("k8s.gpu.nvidia.com-claim_good.json", {"kind": "x"})
    (tmp_path / "k8s.gpu.nvidia.com-claim_bad.json").write_text("{")
    (tmp_path / "other.json").write_text(json.dumps({"kind": "y"}))
    assert dict(cdi.read_all()) == {"good": {"kind": "x"}, "bad": None}


def test_a_cdi_file_that_cannot_be_read_is_not_taken_for_one_that_is_not_there(tmp_path: Path) -> None:
    cdi = CdiFiles(tmp_path / "cdi", "k8s.gpu.nvidia.com")
    assert list(cdi.read_all()) == []
    (tmp_path / "cdi/k8s.gpu.nvidia.com-claim_u1.json").mkdir(parents=True)  # to read it is an error
    (tmp_path / "cdi/k8s.gpu.nvidia.com-claim_gone.json").symlink_to("nowhere")
    with pytest.raises(DiskFailed, match=r"claim_u1\.json: Is a directory"):
        list(cdi.read_all())
    (tmp_path / "cdi/k8s.gpu.nvidia.com-claim_u1.json").rmdir()
    assert list(cdi.read_all()) == []
