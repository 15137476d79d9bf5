"""Watching files that others replace: that changes are told, also where the kernel has no room to tell of them."""

import asyncio
import json
import os
import resource
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import pytest

from api.errors import StateUnreadable
from kubeletplugin import watch as watch_module
from kubeletplugin.watch import read_json, watch_file, watch_folder


def replace(file: Path, content: object) -> None:
    new = file.with_name("new")
    new.write_text(json.dumps(content))
    new.replace(file)


@contextmanager
def no_descriptors() -> Iterator[None]:
    """The kernel then refuses an inotify instance with the error of a user who has used up all of theirs (EMFILE)."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open("/dev/null", os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_where_inotify_instances_are_used_up_a_change_is_noticed_by_looking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "LOOK_OFTEN_S", 0.01)

    async def main() -> None:
        async with aclosing(watch_file(tmp_path / "it")) as found:
            with no_descriptors():
                assert await anext(found) is None
            for content in ({"n": 1}, {"n": 2}):
                replace(tmp_path / "it", content)
                async with asyncio.timeout(10):
                    assert await anext(found) == content

    asyncio.run(main())


def test_a_file_that_cannot_be_read_is_told_from_one_that_is_not_there(tmp_path: Path) -> None:
    file = tmp_path / "it"
    assert read_json(file) is None
    for content in ("{", "null"):
        file.write_text(content)
        with pytest.raises(StateUnreadable, match="/it cannot be read: "):
            read_json(file)
    file.unlink()
    file.symlink_to("elsewhere")
    with pytest.raises(StateUnreadable, match=r"/it cannot be read: .* symbolic links"):
        read_json(file)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(FileNotFoundError):
            await anext(watch_folder(tmp_path / "nowhere"))

    asyncio.run(main())
