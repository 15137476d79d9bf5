"""The folders of ComputeDomains on this node: what their daemons, their pods and the node plugin tell each other."""

import logging
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from api.errors import InvalidObject
from kubeletplugin.disk import disk_errors
from kubeletplugin.model.channels import DOMAIN_FOLDERS

log = logging.getLogger(__name__)


class DomainFolders:
    """`<directory>/<domain uid>` of each domain."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find(self, domain_uid: str) -> Path:
        """Raises InvalidObject: the UID is in a config that anybody may write, and must lead nowhere else."""
        if not re.fullmatch("[A-Za-z0-9-]+", domain_uid):
            raise InvalidObject(f"domainID {domain_uid!r}: right would be the uid of a ComputeDomain")
        return self._directory / domain_uid

    def make(self, domain_uid: str) -> Path:
        """Raises InvalidObject, DiskFull, DiskFailed."""
        folder = self.find(domain_uid)
        with disk_errors(folder):
            for each in DOMAIN_FOLDERS:
                (folder / each).mkdir(parents=True, exist_ok=True)
        return folder

    def list_domains(self) -> set[str]:
        """UIDs of the domains that have a folder. Raises DiskFailed."""
        with disk_errors(self._directory):
            return {folder.name for folder in self._directory.iterdir()} if self._directory.is_dir() else set()

    def remove_others(self, used: Collection[str]) -> None:
        """The folders of all domains but these. Raises DiskFailed."""
        for name in sorted(self.list_domains() - set(used)):
            folder = self._directory / name
            try:
                shutil.rmtree(folder)
            except OSError as error:
                log.error("folder_not_removed", extra={"path": str(folder), "error": str(error)})
