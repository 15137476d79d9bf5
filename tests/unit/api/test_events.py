"""Events: what is sent, and what is not."""

import asyncio
from typing import Any

import pytest

from api.client import Invalid
from api.events import NOTE_LENGTH, Recorder, node_reference
from api.ref import Ref

POD = Ref("Pod", "team", "worker", "uid-of-worker")


class Server:
    """Takes Events, but for those that are about nothing."""

    def __init__(self) -> None:
        self.stored: list[dict[str, Any]] = []

    async def create(self, path: str, event: dict[str, Any]) -> None:
        if not event["note"]:
            raise Invalid("note: Required value", 422)
        self.stored.append({"path": path, **event})


def send(*reports: tuple[Ref, str]) -> list[dict[str, Any]]:
    """What the API server has in the end."""
    server = Server()

    async def main() -> None:
        recorder = Recorder(server, "partita-controller", "us")  # type: ignore[arg-type]
        for regarding, note in reports:
            recorder.warn(regarding, "Why", "Reconcile", note)
        task = asyncio.create_task(recorder.run())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    return server.stored


def test_an_event_names_its_object_and_is_where_that_is_or_in_default() -> None:
    about_pod, about_node = send((POD, "waits"), (node_reference("n1"), "is odd"))
    assert about_pod["path"] == "/apis/events.k8s.io/v1/namespaces/team/events"
    assert about_pod["regarding"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": "team",
        "name": "worker",
        "uid": "uid-of-worker",
    }
    assert about_node["path"] == "/apis/events.k8s.io/v1/namespaces/default/events"
    assert about_node["regarding"]["uid"] == "n1"


def test_a_long_note_is_cut_to_what_the_api_takes() -> None:
    (event,) = send((POD, "x" * 5000))
    assert len(event["note"]) == NOTE_LENGTH == 1024


def test_the_same_thing_is_told_once_and_what_is_refused_holds_nothing_up() -> None:
    notes = [event["note"] for event in send((POD, "a"), (POD, "a"), (POD, ""), (POD, "b"))]
    assert notes == ["a", "b"]
