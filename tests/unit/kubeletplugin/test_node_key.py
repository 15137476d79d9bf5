"""The life of a node's key: one domain has it, once, whatever ends when."""

import asyncio
import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kubeletplugin import node_key as node_key_module
from kubeletplugin.disk import DiskFailed, DiskFull
from kubeletplugin.make_key import make_key
from kubeletplugin.node_key import KeyNotMade, NodeKey, make_key_apart
from tests.support.disk import fill, small_disk

A, B = "5b8e2a0c-0000-4000-8000-00000000000a", "5b8e2a0c-0000-4000-8000-00000000000b"


class Node:
    """A node with some daemons, and any number of instances of the plugin."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "plugin/imex-key.json"
        self.serving: set[str] = set()
        self.made = 0

    async def _make(self) -> dict[str, str]:
        self.made += 1
        await asyncio.sleep(0.01)
        return make_key()

    def start(self) -> NodeKey:
        return NodeKey(self.file, self._make, lambda: self.serving)

    def hand_out(self, domain: str, key: NodeKey | None = None) -> str:
        """To a domain whose ComputeDomainClique has the key that the node publishes now."""
        key = key or self.start()
        return asyncio.run(key.hand_out(domain, key.read_public()))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def renew(key: NodeKey) -> bool:
    return asyncio.run(key.renew())


def test_a_key_is_made_once_and_is_its_owners_alone(node: Node) -> None:
    assert node.start().read_public() == ""
    assert renew(node.start())
    public = node.start().read_public()
    assert not renew(node.start())
    assert (node.start().read_public(), node.made) == (public, 1)
    assert node.file.stat().st_mode & 0o777 == 0o600


def test_a_file_that_a_crash_left_half_written_does_not_open_the_key_to_others(node: Node) -> None:
    node.file.parent.mkdir()
    node.file.with_name(f"{node.file.name}.{os.getpid()}.tmp").touch(0o644)
    renew(node.start())
    assert node.file.stat().st_mode & 0o777 == 0o600


def test_a_key_goes_to_one_domain_only_and_another_one_is_made_when_that_has_ended_here(node: Node) -> None:
    renew(node.start())
    node.serving = {A, B}
    first = node.hand_out(A)
    assert "PRIVATE KEY" in first
    assert node.hand_out(A) == first, "after a restart, too"
    assert node.hand_out(B) == ""
    assert not renew(node.start()), "A goes on"
    node.serving = {B}
    assert node.hand_out(B) == ""
    assert renew(node.start())
    assert node.hand_out(B) not in ("", first)
    assert not renew(node.start())


def test_a_key_that_nobody_had_is_kept_however_many_domains_come_and_go(node: Node) -> None:
    renew(node.start())
    public = node.start().read_public()
    node.serving = {A}
    renew(node.start())
    node.serving = set()
    assert not renew(node.start())
    assert node.start().read_public() == public


def test_a_certificate_for_another_key_gets_none(node: Node) -> None:
    renew(node.start())
    node.serving = {A}
    assert asyncio.run(node.start().hand_out(A, make_key()["publicKey"])) == ""
    assert json.loads(node.file.read_text())["domain"] == ""


def test_a_domain_that_another_instance_has_seen_end_gets_none(node: Node) -> None:
    renew(node.start())
    assert node.hand_out(A) == ""
    assert json.loads(node.file.read_text())["domain"] == ""


def test_two_instances_agree_on_one_key_and_on_whose_it_is(node: Node) -> None:
    old, new = node.start(), node.start()

    async def both_renew() -> list[bool]:
        return await asyncio.gather(old.renew(), new.renew())

    async def both_hand_out(*domains: str) -> list[str]:
        return await asyncio.gather(
            *(key.hand_out(domain, key.read_public()) for key, domain in zip((old, new), domains, strict=True))
        )

    assert sorted(asyncio.run(both_renew())) == [False, True]
    assert old.read_public() == new.read_public()
    node.serving = {A, B}
    assert sorted(map(bool, asyncio.run(both_hand_out(A, B)))) == [False, True]
    node.serving = set()
    assert renew(new)
    assert old.read_public() == new.read_public()
    node.serving = {A}
    first, second = asyncio.run(both_hand_out(A, A))
    assert first == second != ""


def test_whoever_waits_for_another_instance_stands_in_nobodys_way(node: Node) -> None:
    renew(node.start())
    node.serving = {A}

    async def scenario() -> None:
        key = node.start()
        with node.file.with_suffix(".lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            waiting = asyncio.ensure_future(key.hand_out(A, key.read_public()))
            await asyncio.sleep(0.1)
            assert not waiting.done()
        assert await waiting

    asyncio.run(scenario())


@pytest.mark.parametrize("survives", ["before it is written", "after it is written"])
def test_a_plugin_that_is_killed_while_it_hands_a_key_out_has_given_it_to_nobody_else(
    node: Node, survives: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    real = node_key_module.replace_whole

    def write(path: Path, data: bytes, *, durable: bool, private: bool) -> None:
        assert durable
        assert private
        if survives == "after it is written":
            real(path, data, durable=durable, private=private)
        raise Killed

    renew(node.start())
    node.serving = {A, B}
    monkeypatch.setattr(node_key_module, "replace_whole", write)
    with pytest.raises(Killed):
        node.hand_out(A)
    monkeypatch.undo()
    node.serving = {B}
    renew(node.start())
    assert node.hand_out(B)
    node.serving = {A, B}
    assert node.hand_out(A) == ""
    assert node.made == (2 if survives == "after it is written" else 1)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff{", b"[]", b'{"publicKey": "A1"}', b'{"publicKey": "A1", "privateKey": "x", "domain": ""}'],
)
def test_a_key_file_that_cannot_be_read_is_replaced(node: Node, content: bytes) -> None:
    node.file.parent.mkdir()
    node.file.write_bytes(content)
    key = node.start()
    assert key.read_public() == ""
    node.serving = {A}
    assert asyncio.run(key.hand_out(A, "A1")) == ""
    assert renew(key)
    assert node.hand_out(A)


def test_a_key_that_cannot_be_read_for_a_while_is_not_replaced_and_not_taken_for_none(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The domain that has it would lose its daemon's certificate."""
    renew(node.start())
    node.serving = {A}
    before = node.hand_out(A)

    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_bytes", fail)
        for ask in (lambda: renew(node.start()), lambda: node.start().read_public(), lambda: node.hand_out(A)):
            with pytest.raises(DiskFailed, match=r"imex-key\.json: Input/output error"):
                ask()
    assert not renew(node.start())
    assert node.hand_out(A) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
def test_on_a_full_disk_there_is_no_key_until_there_is_room_and_none_goes_out_unrecorded(node: Node) -> None:
    with small_disk(node.file.parent, "16k") as disk:
        (disk / "imex-key.lock").touch()
        filler = fill(disk)
        with pytest.raises(DiskFull):
            renew(node.start())
        assert node.start().read_public() == ""
        ballast = filler.read_bytes()
        filler.write_bytes(ballast[:-4096])
        assert renew(node.start())
        public = node.start().read_public()
        node.serving = {A}
        with pytest.raises(DiskFull):
            node.hand_out(A)
        assert node.start().read_public() == public
        filler.unlink()
        assert node.hand_out(A)


def test_a_key_is_made_in_a_process_of_its_own() -> None:
    code = (
        "import asyncio, sys\n"
        "from kubeletplugin.node_key import make_key_apart\n"
        "made = asyncio.run(make_key_apart())\n"
        "print(len(made['publicKey']), 'PRIVATE KEY' in made['privateKey'], 'cryptography' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["44", "True", "False"]


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import sys; sys.exit('first\\nno entropy')", "ended with status 1: no entropy"),
        ("print('hello')", "printed no key"),
        ("import time; time.sleep(60)", "has not ended after 0 s"),
    ],
)
def test_a_program_that_makes_no_key_is_told_of(
    program: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\n{program}\n")
    script.chmod(0o755)
    monkeypatch.setattr(node_key_module.sys, "executable", str(script))
    if "sleep" in program:
        monkeypatch.setattr(node_key_module, "_MAKE_TIMEOUT_S", 0.2)
    with pytest.raises(KeyNotMade, match=words):
        asyncio.run(make_key_apart())
