"""What the IMEX daemon decides: node tables, files, when to restart or reload, and when it is ready."""

import json
import re
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from api.clique import ANY_NODE_NAME, Membership, parse_membership
from api.errors import InvalidObject
from kubeletplugin.imexdaemon.config import (
    HOSTS_BEGIN,
    NO_MEMBER_ADDRESS,
    NodeTable,
    Tls,
    TlsFiles,
    TlsMissing,
    build_node_table,
    choose_server_name,
    find_tls,
    render_config,
    render_hosts,
    render_node_list,
)
from kubeletplugin.imexdaemon.plan import (
    Keep,
    Reload,
    Restart,
    Running,
    Start,
    Stop,
    count_crashes,
    plan_imex,
    poll_interval_s,
    reload_delay_s,
    restart_delay_s,
)
from kubeletplugin.imexdaemon.readiness import check_readiness
from kubeletplugin.imexdaemon.settings import read_settings

UID, CLIQUE = "5b8e2a0c-0000-4000-8000-000000000001", "7a1d9c3e-0000-4000-8000-000000000002.1"


def membership(*members: tuple[str, str, int], max_nodes: int = 4) -> Membership:
    """(node, address, index) of each."""
    daemons = [{"nodeName": node, "ipAddress": address, "index": index} for node, address, index in members]
    return parse_membership({"metadata": {"name": f"{UID}.{CLIQUE}"}, "maxNodes": max_nodes, "daemons": daemons})


def with_a_lost_node(address: str, own_index: int, *, names: bool) -> NodeTable:
    """Node `a` beside node `b`, which is lost and has that address."""
    daemons = [
        {"nodeName": "b", "ipAddress": address, "index": 0, "absent": True},
        {"nodeName": "a", "ipAddress": "10.0.0.1", "index": own_index},
    ]
    raw = {"metadata": {"name": f"{UID}.{CLIQUE}"}, "maxNodes": 4, "daemons": daemons}
    built = build_node_table(parse_membership(raw), "a", "10.0.0.1", use_names=names)
    assert built is not None
    return built


def table(*members: tuple[str, str, int], node: str = "a", address: str = "10.0.0.1", names: bool = True) -> NodeTable:
    built = build_node_table(membership(*members), node, address, use_names=names)
    assert built is not None
    return built


class TestNodeTable:
    def test_with_names_every_index_has_its_name_whoever_is_there(self) -> None:
        made = table(("a", "10.0.0.1", 0), ("b", "10.0.0.2", 2))
        assert render_node_list(made).splitlines() == [f"compute-domain-daemon-{index:04d}" for index in range(4)]
        assert made.addresses == ("10.0.0.1", None, "10.0.0.2", None)
        assert made.peers == {2}

    def test_the_own_address_is_the_pods_even_where_the_membership_is_of_the_pod_before(self) -> None:
        assert table(("a", "10.0.0.99", 0)).addresses[0] == "10.0.0.1"

    def test_a_node_that_is_no_member_has_no_table(self) -> None:
        assert build_node_table(membership(("b", "10.0.0.2", 0)), "a", "10.0.0.1", use_names=True) is None

    def test_with_addresses_the_list_is_dense_and_in_order_of_the_indexes(self) -> None:
        made = table(("b", "10.0.0.2", 0), ("a", "", 3), names=False)
        assert render_node_list(made) == "10.0.0.2\n10.0.0.1\n"
        assert made.own_index == 1

    def test_with_addresses_there_is_no_table_until_all_are_known(self) -> None:
        incomplete = membership(("a", "", 0), ("b", "", 1))
        assert build_node_table(incomplete, "a", "10.0.0.1", use_names=False) is None

    @pytest.mark.parametrize(("has_run", "is_ready"), [(True, False), (False, True)])
    def test_with_addresses_a_domain_that_has_formed_goes_on_without_a_member_that_has_none_yet(
        self, has_run: bool, is_ready: bool
    ) -> None:
        """Whoever runs does not stop for it, whoever is made anew does not wait for it: their lists are the same."""
        seen = membership(("a", "", 0), ("c", "", 1), ("b", "10.0.0.2", 2))
        seen = replace(seen, members=tuple(replace(each, ready=is_ready and each.node == "b") for each in seen.members))
        made = build_node_table(seen, "a", "10.0.0.1", use_names=False, has_run=has_run)
        assert made is not None
        assert render_node_list(made) == "10.0.0.1\n10.0.0.2\n"
        assert (made.own_index, made.peers, made.required) == (0, {1}, {1})

    @pytest.mark.parametrize("names", [True, False])
    def test_a_lost_node_stays_in_the_list_and_is_not_required(self, names: bool) -> None:
        made = with_a_lost_node("10.0.0.2", own_index=3, names=names)
        assert (made.peers, made.required) == ({0}, set())
        assert "10.0.0.2" in made.addresses

    @pytest.mark.parametrize("names", [True, False])
    def test_a_node_that_died_before_it_had_an_address_holds_no_list_up(self, names: bool) -> None:
        assert with_a_lost_node("", own_index=1, names=names).required == set()

    def test_an_index_past_the_limit_still_fits(self) -> None:
        made = build_node_table(membership(("a", "", 5), max_nodes=2), "a", "10.0.0.1", use_names=True)
        assert made is not None
        assert len(made.names) == 6


class TestFiles:
    def test_hosts_keep_foreign_lines_and_have_every_name_once(self) -> None:
        foreign = "127.0.0.1\tlocalhost\n10.244.0.7\tpod-7\n"
        first = render_hosts(foreign, table(("a", "", 0), ("b", "10.0.0.2", 1)))
        second = render_hosts(first, table(("a", "", 0), ("b", "10.0.0.3", 1)))
        assert second.startswith(foreign)
        assert second.count(HOSTS_BEGIN) == 1
        lines = [line.split("\t") for line in second.splitlines() if "compute-domain-daemon-" in line]
        assert [address for address, _ in lines] == ["10.0.0.1", "10.0.0.3", NO_MEMBER_ADDRESS, NO_MEMBER_ADDRESS]

    def test_hosts_of_an_address_list_name_nobody(self) -> None:
        assert "daemon" not in render_hosts("", table(("a", "", 0), names=False))

    def test_the_configuration_has_the_reference_drivers_keys_and_values(self) -> None:
        lines = dict(line.split("=", 1) for line in render_config("/imexd/nodes.cfg", "10.0.0.1", None).splitlines())
        assert lines["IMEX_NODE_CONFIG_FILE"] == "/imexd/nodes.cfg"
        assert lines["IMEX_CMD_BIND_INTERFACE_IP"] == "10.0.0.1"
        assert (lines["SERVER_PORT"], lines["IMEX_CMD_PORT"]) == ("50000", "50005")
        assert lines["IMEX_WAIT_FOR_QUORUM"] == "RECOVERY"
        assert lines["IMEX_ENABLE_AUTH_ENCRYPTION"] == "0"
        assert lines["IMEX_NODE_DISCONNECTED_GRACE_TIME"] == "-1"

    def test_encryption_is_mutual_tls_from_files(self) -> None:
        text = render_config("/imexd/nodes.cfg", "10.0.0.1", TlsFiles("/tls/ca", "/tls/crt", "/tls/key", ""))
        for line in ("IMEX_AUTH_SOURCE=FILE", "IMEX_SERVER_CERT_AUTH=/tls/ca", "IMEX_CLIENT_KEY=/tls/key"):
            assert f"{line}\n" in text


ONE = table(("a", "10.0.0.1", 0), ("b", "10.0.0.2", 1))
MOVED = table(("a", "10.0.0.1", 0), ("b", "10.0.0.3", 1))
SWAPPED = table(("b", "10.0.0.2", 0), ("a", "10.0.0.1", 1))
LONGER = build_node_table(membership(("a", "", 0), max_nodes=8), "a", "10.0.0.1", use_names=True)


OLD = Tls("authority", "certificate", "key", frozenset({"of b"}))
RENEWED = replace(OLD, certificate="another", key="another")
COMING = replace(OLD, authorities="both")  # with a member who has no address yet
COME = replace(COMING, peers=frozenset({"of b", "of c"}))
RESIGNED = replace(OLD, peers=frozenset({"of b by the same authority"}))
NONE = TlsMissing("no certificate")


class TestTls:
    ENTRY: ClassVar = {"nodeName": "a", "index": 0, "publicKey": "A1", "certificate": "signed"}

    def find(self, key: str = "private", **clique: Any) -> Tls | TlsMissing | None:
        raw = {"metadata": {"name": f"{UID}.{CLIQUE}"}, "tls": True, "authorities": ["first\n", "second"]}
        return find_tls(parse_membership({**raw, "daemons": [self.ENTRY], **clique}), "a", key)

    def test_a_node_trusts_all_authorities_and_shows_its_own_certificate(self) -> None:
        assert self.find() == Tls("first\nsecond\n", "signed", "private")

    def test_the_authorities_are_for_the_others_who_have_an_address(self) -> None:
        others = [
            {"nodeName": "b", "index": 1, "certificate": "of b", "ipAddress": "10.0.0.2"},
            {"nodeName": "c", "index": 2, "certificate": "of c"},
        ]
        found = self.find(daemons=[{**self.ENTRY, "ipAddress": "10.0.0.1"}, *others])
        assert isinstance(found, Tls)
        assert found.peers == {"of b"}

    @pytest.mark.parametrize("clique", [{"tls": False}, {"tls": None}, {"daemons": []}])
    def test_there_is_nothing_without_encryption_or_for_no_member(self, clique: dict[str, Any]) -> None:
        assert self.find(**clique) is None

    @pytest.mark.parametrize(
        ("lack", "words"),
        [
            (
                {"daemons": [{**ENTRY, "publicKey": ""}]},
                "node a has no certificate yet: the controller has found no key",
            ),
            ({"daemons": [{**ENTRY, "certificate": ""}]}, "node a has no certificate yet: .* not signed its key A1"),
            ({"authorities": []}, "node a has no certificate yet"),
            ({"key": ""}, "node a has a certificate for key A1, and not that key"),
        ],
    )
    def test_what_is_missing_is_said(self, lack: dict[str, Any], words: str) -> None:
        found = self.find(**lack)
        assert isinstance(found, TlsMissing)
        assert re.match(words, found.reason)

    def test_the_private_key_is_in_no_description(self) -> None:
        assert "private" not in repr(self.find())

    def test_only_a_list_of_addresses_needs_a_name_that_all_certificates_share(self) -> None:
        assert (choose_server_name(use_names=True), choose_server_name(use_names=False)) == ("", ANY_NODE_NAME)


class TestPlan:
    @pytest.mark.parametrize(
        ("wanted", "running", "tls", "action"),
        [
            (None, None, None, Keep()),
            (ONE, None, None, Start(ONE, None)),
            (ONE, None, OLD, Start(ONE, OLD)),
            (ONE, None, NONE, Keep()),
            (ONE, Running(ONE, None), None, Keep()),
            (MOVED, Running(ONE, None), None, Reload(MOVED, None)),
            (ONE, Running(ONE, OLD), RENEWED, Reload(ONE, RENEWED)),
            (MOVED, Running(ONE, OLD), RENEWED, Reload(MOVED, RENEWED)),
            (ONE, Running(ONE, OLD), COMING, Keep()),
            (MOVED, Running(ONE, OLD), COMING, Reload(MOVED, COMING)),
            (ONE, Running(ONE, OLD), COME, Reload(ONE, COME)),
            (ONE, Running(ONE, OLD), RESIGNED, Keep()),
            (ONE, Running(ONE, OLD), NONE, Keep()),
            (MOVED, Running(ONE, OLD), NONE, Reload(MOVED, OLD)),
            (ONE, Running(ONE, None), NONE, Keep()),
            (ONE, Running(ONE, None), OLD, Restart("encryption was turned on or off")),
            (ONE, Running(ONE, OLD), None, Restart("encryption was turned on or off")),
            (SWAPPED, Running(ONE, None), None, Restart("this node's index changed from 0 to 1")),
            (LONGER, Running(ONE, None), None, Restart("the node list changed")),
            (None, Running(ONE, OLD), NONE, Stop()),
        ],
    )
    def test_every_change_has_its_action(self, wanted: Any, running: Any, tls: Any, action: Any) -> None:
        assert plan_imex(wanted, running, tls) == action

    def test_an_index_swap_among_others_is_a_reload_for_this_node(self) -> None:
        before = table(("a", "", 0), ("b", "10.0.0.2", 1), ("c", "10.0.0.3", 2))
        after = table(("a", "", 0), ("c", "10.0.0.3", 1), ("b", "10.0.0.2", 2))
        assert plan_imex(after, Running(before, None), None) == Reload(after, None)

    def test_a_signal_waits_for_the_peers_but_not_for_ever(self) -> None:
        def delay(at_once: bool, last: float | None, now: float = 10.0) -> float:
            return reload_delay_s(at_once=at_once, changed_at_s=10.0, last_reload_s=last, now_s=now)

        assert delay(True, None) == 0
        assert delay(False, None) == 1.0
        assert delay(False, None, now=11.5) == 0
        assert delay(True, 9.0) == pytest.approx(4.1)  # nvidia-imex would ignore it for 5 s
        assert delay(True, 2.0) == 0

    def test_crashes_in_a_row_are_answered_ever_later(self) -> None:
        delays, crashes = [], 0
        for _ in range(9):
            crashes = count_crashes(crashes, lived_s=0.1)
            delays.append(restart_delay_s(crashes))
        assert delays == [0, 1, 2, 4, 8, 16, 30, 30, 30]
        assert restart_delay_s(count_crashes(crashes, lived_s=61.0)) == 0

    def test_questions_are_asked_often_only_while_something_is_about_to_happen(self) -> None:
        waiting = [poll_interval_s(ready=False, since_change_s=since) for since in (0.0, 2.0, 40.0, 400.0)]
        assert waiting == [0.1, 0.2, 0.5, 3.0]
        assert poll_interval_s(ready=True, since_change_s=0.0) == 3.0


def report(*rows: tuple[str, list[str]]) -> str:
    """What nvidia-imex-ctl prints: per node its state and its connections."""
    nodes = {
        str(index): {
            "status": status,
            "host": f"10.0.0.{index + 1}",
            "connections": {str(to): {"host": "x", "status": link, "changed": True} for to, link in enumerate(links)},
        }
        for index, (status, links) in enumerate(rows)
    }
    return json.dumps({"nodes": nodes, "timestamp": "9/4/2026 00:37:39.905", "status": "DEGRADED"})


C, N, R, X = "CONNECTED", "NEVER_CONNECTED", "RECOVERING", "INVALID"


class TestReadiness:
    def test_connected_both_ways_is_ready_whatever_the_domain_is_called(self) -> None:
        seen = check_readiness(report(("READY", [C, C, N]), ("READY", [C, C, N]), ("UNAVAILABLE", [X, X, X])), ONE, ONE)
        assert seen.ready
        assert seen.connected == {1}

    def test_ready_alone_is_not_connected(self) -> None:
        seen = check_readiness(report(("READY", [C, R]), ("READY", [C, C])), ONE, ONE)
        assert not seen.ready
        assert seen.message == "not connected to node 1 (10.0.0.2) of 1 peers"
        assert seen.lagging

    def test_nobody_is_hastened_for_a_part_of_the_missing_peers(self) -> None:
        three = table(("a", "", 0), ("b", "10.0.0.2", 1), ("c", "10.0.0.3", 2))
        rows = [("READY", [C, N, N]), ("READY", [N, C, N]), ("UNAVAILABLE", [X, X, X])]
        assert not check_readiness(report(*rows), three, three).lagging
        assert check_readiness(report(*rows[:2], ("READY", [N, N, C])), three, three).lagging

    def test_a_peer_that_is_not_connected_back_counts_as_missing(self) -> None:
        assert not check_readiness(report(("READY", [C, C]), ("READY", [R, C])), ONE, ONE).ready

    def test_a_peer_that_cannot_be_asked_is_believed_in_by_the_own_connection(self) -> None:
        assert check_readiness(report(("READY", [C, C]), ("UNAVAILABLE", [X, X])), ONE, ONE).ready

    def test_a_peer_whose_node_is_lost_is_not_waited_for(self) -> None:
        lost = replace(ONE, absent=frozenset({1}))
        seen = check_readiness(report(("READY", [C, N]), ("UNAVAILABLE", [X, X])), lost, lost)
        assert seen.ready
        assert seen.message == "connected to 0 of 1 peers"

    def test_alone_is_ready(self) -> None:
        alone = table(("a", "", 0))
        assert check_readiness(report(("READY", [C])), alone, alone).ready

    def test_a_connection_to_where_a_peer_was_before_is_none(self) -> None:
        seen = check_readiness(report(("READY", [C, C]), ("READY", [C, C])), MOVED, told=ONE)
        assert not seen.ready
        assert seen.lagging
        assert check_readiness(report(("READY", [C, C]), ("READY", [C, C])), MOVED, told=MOVED).ready

    @pytest.mark.parametrize("status", ["INITIALIZING", "WAITING_FOR_PEERS", "SHUTTING_DOWN"])
    def test_on_its_way_is_answering_but_not_ready(self, status: str) -> None:
        seen = check_readiness(report((status, [C, C]), ("READY", [C, C])), ONE, ONE)
        assert (seen.ready, seen.responding) == (False, True)
        assert status in seen.message

    @pytest.mark.parametrize(
        "output",
        ["", "Segmentation fault", "[]", '{"nodes": []}', '{"nodes": {"0": 1}}', report(("UNAVAILABLE", [X, X]))],
    )
    def test_anything_else_is_silence(self, output: str) -> None:
        seen = check_readiness(output, ONE, ONE)
        assert (seen.ready, seen.responding) == (False, False)

    def test_a_long_list_of_missing_peers_is_cut(self) -> None:
        many = table(("a", "", 0), *((f"n{index}", f"10.0.1.{index}", index) for index in range(1, 9)))
        seen = check_readiness(report(("READY", [C] + [N] * 8)), many, many)
        assert seen.message.endswith("and 4 more of 8 peers")


class TestSettings:
    ENVIRONMENT: ClassVar = {
        "COMPUTE_DOMAIN_UUID": UID,
        "CLIQUE_ID": CLIQUE,
        "NODE_NAME": "a",
        "POD_IP": "10.0.0.1",
        "POD_NAMESPACE": "partita-system",
        "KUBERNETES_SERVICE_HOST": "10.96.0.1",
    }

    def test_the_controllers_environment_is_enough(self) -> None:
        settings = read_settings(self.ENVIRONMENT)
        assert settings.clique_name == f"{UID}.{CLIQUE}"
        assert settings.use_names

    @pytest.mark.parametrize("name", ["COMPUTE_DOMAIN_UUID", "NODE_NAME", "POD_IP", "POD_NAMESPACE"])
    def test_a_missing_variable_is_named(self, name: str) -> None:
        with pytest.raises(InvalidObject, match=name):
            read_settings({key: value for key, value in self.ENVIRONMENT.items() if key != name})

    def test_wrong_values_are_named(self) -> None:
        with pytest.raises(InvalidObject, match="IMEX_NODE_LIST"):
            read_settings({**self.ENVIRONMENT, "IMEX_NODE_LIST": "dns"})
        with pytest.raises(InvalidObject, match="HANG_LIMIT_S"):
            read_settings({**self.ENVIRONMENT, "HANG_LIMIT_S": "soon"})
