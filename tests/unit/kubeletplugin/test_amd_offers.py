"""When the library is asked for the modes of GPUs: once, and again only where it may answer otherwise."""

from kubeletplugin.hardware.amd_offers import FIRST_PAUSE_S, LONGEST_PAUSE_S, Asked, without_library
from kubeletplugin.model.amd_partitions import Mode, ModeOffer

ONE, TWO = ("0000:05:00.0", "0x74a1", "a1"), ("0000:27:00.0", "0x74a1", "a2")
BOTH = frozenset({ONE, TWO})
FILE, NEWER_FILE = (1, 1, 1), (2, 2, 2)
OFFER = (ModeOffer(Mode("SPX", "NPS1"), 1),)
OFFERS = {ONE[0]: OFFER, TWO[0]: OFFER}


def test_a_library_that_has_told_of_every_gpu_is_not_asked_again() -> None:
    asked = Asked().answered(BOTH, OFFERS, FILE, 0.0)
    assert not asked.is_due(BOTH, FILE, 1e9)
    assert not asked.is_due(frozenset({ONE}), FILE, 1e9), "a GPU that cannot be read for a moment changes nothing"
    assert asked.is_due(frozenset({ONE, ("0000:27:00.0", "0x74a1", "b7")}), FILE, 0.0), "another GPU in its place"


def test_a_node_without_gpus_that_can_be_partitioned_never_opens_it() -> None:
    assert not Asked().is_due(frozenset(), FILE, 0.0)


def test_a_gpu_that_it_will_not_tell_of_is_asked_for_less_and_less_often() -> None:
    asked, now_s, pauses_s = Asked(), 0.0, []
    for _ in range(12):
        asked = asked.answered(BOTH, {ONE[0]: OFFER}, FILE, now_s)
        assert asked.again_at_s is not None
        assert not asked.is_due(BOTH, FILE, asked.again_at_s - 0.1)
        assert asked.is_due(BOTH, FILE, asked.again_at_s)
        pauses_s.append(asked.again_at_s - now_s)
        now_s = asked.again_at_s
    assert pauses_s[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses_s[-1] == LONGEST_PAUSE_S
    assert not asked.answered(BOTH, OFFERS, FILE, now_s).is_due(BOTH, FILE, 1e9), "once it tells, that is that"


def test_a_library_that_was_installed_or_replaced_is_asked_at_once() -> None:
    missing = without_library(BOTH, None)
    assert not missing.is_due(BOTH, None, 1e9)
    assert missing.is_due(BOTH, FILE, 0.0)
    broken = without_library(BOTH, FILE)
    assert not broken.is_due(BOTH, FILE, 1e9), "what cannot be loaded is not loaded at every look"
    assert broken.is_due(BOTH, NEWER_FILE, 0.0)
