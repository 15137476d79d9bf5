"""What to do with `nvidia-imex` when the members, its process or the certificates change. Pure."""

from dataclasses import dataclass
from typing import Final

from kubeletplugin.imexdaemon.config import NodeTable, Tls, TlsMissing

RELOAD_INTERVAL_S: Final = 5.1
"""nvidia-imex ignores SIGUSR1 for 5 s after one (NVIDIA's IMEX guide, "Signal handling")."""

GATHER_S: Final = 1.0
"""How long to wait for peers that are not up before a signal; nvidia-imex itself tries a missing peer once a second."""

ANSWER_S: Final = 0.05
"""What nvidia-imex needs, at the least, to come up or to connect: asked sooner it has nothing new to say."""

HASTEN_AFTER_S: Final = 0.1
"""A first attempt to connect is given so long before a signal replaces it."""

POLL_INTERVALS_S: Final = (0.1, 0.5, 3.0)
"""Between two questions to nvidia-imex-ctl (10 ms of CPU each): after a change, later, and once all is settled."""

PATIENCE_S: Final = 300.0
"""Whoever is missing for so long will not be missed by three seconds."""

RESTART_DELAYS_S: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Before the n-th restart in a row after a crash."""

STEADY_S: Final = 60.0
"""A process that lived for so long had no crash in a row."""


@dataclass(frozen=True, slots=True)
class Running:
    """The nvidia-imex that runs: what it was started with and what it was last told."""

    table: NodeTable
    tls: Tls | None


@dataclass(frozen=True, slots=True)
class Start:
    """Write configuration, node list, names and TLS files; then start the process."""

    table: NodeTable
    tls: Tls | None


@dataclass(frozen=True, slots=True)
class Restart:
    """What it reads only once is another: its configuration, its node list or its own node ID."""

    reason: str


@dataclass(frozen=True, slots=True)
class Reload:
    """Write the names and the TLS files, and send SIGUSR1 when the peers are up.

    nvidia-imex can be signalled once in five seconds: a signal for a peer that does not listen yet is lost.
    """

    table: NodeTable
    tls: Tls | None


@dataclass(frozen=True, slots=True)
class Stop:
    """This node is no member (any more, or yet)."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Nothing changed."""


Action = Start | Restart | Reload | Stop | Keep


def plan_imex(wanted: NodeTable | None, running: Running | None, tls: Tls | TlsMissing | None) -> Action:
    """From what runs to what is wanted."""
    if running is None:
        return Keep() if wanted is None or isinstance(tls, TlsMissing) else Start(wanted, tls)
    if wanted is None:
        return Stop()
    old = running.table
    if wanted.own_index != old.own_index:
        return Restart(f"this node's index changed from {old.own_index} to {wanted.own_index}")
    if wanted.names != old.names:
        return Restart("the node list changed")
    if isinstance(tls, TlsMissing):
        tls = running.tls  # whoever is connected goes on with what it has
    if (tls is None) is not (running.tls is None):
        return Restart("encryption was turned on or off")
    if wanted.addresses != old.addresses or _must_be_told(tls, running.tls):
        return Reload(wanted, tls)
    return Keep()


def _must_be_told(tls: Tls | None, told: Tls | None) -> bool:
    """An authority that comes with a member who has no address yet is told with that: two signals would take 5 s."""
    if tls is None or told is None:
        return False
    if (tls.certificate, tls.key) != (told.certificate, told.key):
        return True
    return tls.authorities != told.authorities and tls.peers != told.peers


def reload_delay_s(*, at_once: bool, changed_at_s: float, last_reload_s: float | None, now_s: float) -> float:
    """Seconds from now until SIGUSR1 may be sent: after gathering, and after the window of the last one."""
    gathered_s = changed_at_s if at_once else changed_at_s + GATHER_S
    allowed_s = gathered_s if last_reload_s is None else last_reload_s + RELOAD_INTERVAL_S
    return max(gathered_s - now_s, allowed_s - now_s, 0.0)


def restart_delay_s(crashes: int) -> float:
    """Before a restart, after `crashes` crashes in a row (at least 1)."""
    return RESTART_DELAYS_S[min(crashes, len(RESTART_DELAYS_S)) - 1]


def count_crashes(before: int, lived_s: float) -> int:
    """Crashes in a row, with the one that ended a process after `lived_s`."""
    return 1 if lived_s >= STEADY_S else before + 1


def poll_interval_s(*, ready: bool, since_change_s: float) -> float:
    """Often while something is about to happen; a tenth of the time that it has taken already is not noticed."""
    first_s, most_s, settled_s = POLL_INTERVALS_S
    if ready or since_change_s > PATIENCE_S:
        return settled_s
    return min(max(first_s, since_change_s / 10), most_s)
