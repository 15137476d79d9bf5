"""Where a domain's UID, which anybody may write into a claim's config, leads on the node and in the API."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest

from api.client import Client
from api.errors import InvalidObject
from kubeletplugin.domain_folders import DomainFolders
from kubeletplugin.membership import Cliques

UID = "5b8e2a0c-0000-4000-8000-000000000001"


@pytest.mark.parametrize("uid", ["", ".", "..", "../x", "a/b", f"{UID}.c,metadata.namespace!=/../../x", f"{UID}\n"])
def test_what_is_no_uid_leads_to_no_folder(uid: str, tmp_path: Path) -> None:
    folders = DomainFolders(tmp_path / "domains")
    with pytest.raises(InvalidObject, match="domainID"):
        folders.make(uid)
    assert list(tmp_path.iterdir()) == []


def test_folders_of_domains_that_are_not_used_are_removed(tmp_path: Path) -> None:
    folders = DomainFolders(tmp_path / "domains")
    assert folders.list_domains() == set()
    for uid in (UID, "other"):
        assert folders.make(uid).is_dir()
    folders.remove_others({UID, "elsewhere"})
    assert folders.list_domains() == {UID}


class Api:
    def __init__(self) -> None:
        self.selectors: list[str] = []

    async def list_watch(self, path: str, *, field_selector: str, **_: Any) -> AsyncIterator[tuple[str, Any]]:
        self.selectors.append(field_selector)
        yield "SYNC", []
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        (f"{UID}.{UID}.1", [f"metadata.name={UID}.{UID}.1"]),
        (f"{UID}.c,metadata.namespace!=x", []),
        ("a=b", []),
        ("a\n", []),
    ],
)
def test_a_field_selector_asks_for_one_object_by_name_and_for_nothing_else(name: str, asked: list[str]) -> None:
    api = Api()

    async def main() -> str:
        cliques = Cliques(cast(Client, api), "/cliques")
        running = asyncio.create_task(cliques.run())
        async with aclosing(cliques.follow(name)) as found:
            seen = await anext(found)
        running.cancel()
        return seen.refusal

    refusal = asyncio.run(main())
    assert api.selectors == asked
    assert bool(refusal) is not bool(asked)
