"""The journal gives back what was written, recovers a torn end, and refuses everything else by line and byte."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.errors import StateUnreadable
from kubeletplugin.model.checkpoint import (
    Checkpoint,
    ClaimRecord,
    ClaimState,
    GpuHolding,
    Holding,
    MigHolding,
    PreparedDevice,
    decode_journal,
    encode_checkpoint,
    encode_header,
    encode_record,
    encode_removal,
)
from kubeletplugin.model.inventory import Placement

DRIVER = "gpu.nvidia.com"
names = st.text(min_size=1, max_size=8)
holdings: st.SearchStrategy[Holding] = st.one_of(
    st.builds(GpuHolding, names, st.one_of(st.none(), st.integers(0, 3))),
    st.builds(
        MigHolding,
        names,
        st.integers(0, 70),
        st.builds(Placement, st.integers(0, 11), st.integers(1, 12)),
        st.booleans(),
        st.one_of(st.none(), st.integers(0, 14)),
        st.one_of(st.none(), st.integers(0, 7)),
        st.one_of(st.none(), names),
    ),
)
devices = st.builds(
    PreparedDevice,
    request=names,
    pool=names,
    device=names,
    holding=holdings,
    cdi_ids=st.lists(names, max_size=2).map(tuple),
    admin_access=st.booleans(),
    share_id=st.one_of(st.none(), names),
)
records = st.builds(
    ClaimRecord,
    driver=st.just(DRIVER),
    uid=st.sampled_from("abcdef"),
    namespace=names,
    name=names,
    state=st.sampled_from(ClaimState),
    boot_id=names,
    devices=st.lists(devices, max_size=3).map(tuple),
)
changes = st.lists(st.one_of(records, st.sampled_from("abcdef")), max_size=12)


def record(uid: str = "a", *holdings: Holding, admin: bool = False) -> ClaimRecord:
    prepared = tuple(PreparedDevice("r", "node", f"d{i}", h, admin_access=admin) for i, h in enumerate(holdings))
    return ClaimRecord(DRIVER, uid, "ns", f"claim-{uid}", ClaimState.COMPLETED, "boot", prepared)


def write(entries: list[ClaimRecord | str]) -> tuple[bytes, Checkpoint]:
    journal, checkpoint = encode_header(DRIVER), Checkpoint()
    for entry in entries:
        if isinstance(entry, str):
            journal, checkpoint = journal + encode_removal(entry), checkpoint.without(entry)
        else:
            journal, checkpoint = journal + encode_record(entry), checkpoint.with_record(entry)
    return journal, checkpoint


@given(changes)
def test_a_journal_reads_back_as_what_was_written_and_so_does_its_compaction(entries: list[ClaimRecord | str]) -> None:
    journal, checkpoint = write(entries)
    read = decode_journal(DRIVER, journal)
    assert (read.checkpoint, read.valid_bytes, read.lines) == (checkpoint, len(journal), 1 + len(entries))
    compact = decode_journal(DRIVER, encode_checkpoint(DRIVER, checkpoint))
    assert compact.checkpoint.records == checkpoint.records
    assert compact.lines == 1 + len(checkpoint.records)


@given(changes, records, st.data())
def test_an_append_that_was_cut_short_loses_itself_only(
    entries: list[ClaimRecord | str], last: ClaimRecord, data: st.DataObject
) -> None:
    journal, checkpoint = write(entries)
    line = encode_record(last)
    torn = line[: data.draw(st.integers(0, len(line) - 1))]
    read = decode_journal(DRIVER, journal + torn)
    assert (read.checkpoint, read.valid_bytes) == (checkpoint, len(journal))


@given(changes, st.data())
def test_a_flipped_bit_is_never_read_as_something_else(entries: list[ClaimRecord | str], data: st.DataObject) -> None:
    journal, _ = write([*entries, record("z")])
    at = data.draw(st.integers(0, len(journal) - 2))
    altered = journal[:at] + bytes([journal[at] ^ (1 << data.draw(st.integers(0, 7)))]) + journal[at + 1 :]
    with pytest.raises(StateUnreadable):
        decode_journal(DRIVER, altered)


def test_holders_follow_the_records() -> None:
    gpu, mig = GpuHolding("GPU-1"), MigHolding("GPU-2", 19, Placement(0, 1), owned=True)
    both = Checkpoint().with_record(record("a", gpu, mig)).with_record(record("b", mig))
    assert both.holders == {"GPU-1": ("a",), "GPU-2": ("a", "b")}
    assert [(r.uid, h) for r, h in both.on_gpu("GPU-2")] == [("a", mig), ("b", mig)]
    assert both.with_record(record("a", gpu)).holders == {"GPU-2": ("b",), "GPU-1": ("a",)}
    assert both.without("a").without("b") == Checkpoint()
    assert both.without("unknown") is both
    assert Checkpoint().with_record(record("c", gpu, admin=True)).holders == {}


@pytest.mark.parametrize("data", [b"", b"torn header", encode_header(DRIVER)[:-1]])
def test_an_emptied_file_is_no_empty_checkpoint(data: bytes) -> None:
    with pytest.raises(StateUnreadable, match="has no header line"):
        decode_journal(DRIVER, data)


def test_another_drivers_journal_is_refused() -> None:
    with pytest.raises(StateUnreadable, match=r"header names 'gpu.amd.com'; expected 'gpu.nvidia.com'"):
        decode_journal(DRIVER, encode_header("gpu.amd.com"))


def test_a_newer_format_says_which_program_is_needed() -> None:
    newer = encode_header(DRIVER) + b"2 00000000 whatever\n"
    with pytest.raises(StateUnreadable, match=r"line 2 at byte \d+: format 2 was written by a newer version"):
        decode_journal(DRIVER, newer)


@pytest.mark.parametrize("body", [b"{}", b'{"set":{}}', b'{"set":{"devices":7}}', b"[]", b"not json"])
def test_a_line_that_is_whole_but_no_record_is_refused(body: bytes) -> None:
    line = b"1 %08x %b\n" % (zlib.crc32(body), body)
    with pytest.raises(StateUnreadable, match=r"line 2 at byte \d+"):
        decode_journal(DRIVER, encode_header(DRIVER) + line)
