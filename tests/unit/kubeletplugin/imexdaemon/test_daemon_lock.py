"""By what the node plugin knows that the daemon lives."""

import os
from pathlib import Path

import pytest

from kubeletplugin.disk import is_locked
from kubeletplugin.imexdaemon import files
from kubeletplugin.imexdaemon.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings("uid", "clique", "n1", "10.0.0.1", "driver", directory=tmp_path)


def test_a_lock_is_seen_as_long_as_its_holder_lives(settings: Settings) -> None:
    file = settings.directory / "daemon.lock"
    assert is_locked(file) is None
    first = files.hold_lock(settings)
    assert is_locked(file)
    os.close(first)
    assert is_locked(file) is False
    second = files.hold_lock(settings)
    assert is_locked(file)
    os.close(second)


def test_whoever_looks_at_the_lock_is_led_nowhere(settings: Settings) -> None:
    held = files.hold_lock(settings)
    link, pipe = settings.directory / "link", settings.directory / "pipe"
    link.symlink_to("daemon.lock")
    os.mkfifo(pipe)
    assert is_locked(link) is None
    assert not is_locked(pipe)
    os.close(held)


def test_a_daemon_that_cannot_lock_leaves_no_sign_of_the_death_of_the_one_before(settings: Settings) -> None:
    os.close(files.hold_lock(settings))
    (settings.directory / ".daemon.lock.new").mkdir()
    with pytest.raises(OSError, match="directory"):
        files.hold_lock(settings)
    assert is_locked(settings.directory / "daemon.lock") is None
