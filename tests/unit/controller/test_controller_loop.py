"""The queue: what comes is looked at, by one worker at a time, and again when it failed."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from limited import run_limited

from api.errors import Retryable
from controller.apply import PartlyApplied
from controller.loop import WorkQueue, back_off_s


def test_a_key_that_comes_while_it_is_in_work_is_looked_at_once_more() -> None:
    async def scenario() -> int:
        queue, seen, done = WorkQueue(), 0, asyncio.Event()

        async def reconcile(key: str) -> None:
            nonlocal seen
            seen += 1
            if seen == 1:
                for _ in range(5):
                    queue.add(key)
            else:
                done.set()

        queue.add("a")
        queue.add("a")
        worker = asyncio.ensure_future(queue.run(reconcile, workers=4))
        await done.wait()
        await asyncio.sleep(0.01)
        worker.cancel()
        return seen

    assert run_limited(scenario()) == 2


def test_a_key_is_never_in_two_workers_at_once() -> None:
    async def scenario() -> int:
        queue, inside, most, rounds = WorkQueue(), 0, 0, 0
        done = asyncio.Event()

        async def reconcile(key: str) -> None:
            nonlocal inside, most, rounds
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.001)
            inside -= 1
            rounds += 1
            if rounds == 10:
                done.set()
            queue.add(key)

        queue.add("a")
        worker = asyncio.ensure_future(queue.run(reconcile, workers=4))
        await done.wait()
        worker.cancel()
        return most

    assert run_limited(scenario()) == 1


async def see_one_key_fail(error: Exception) -> list[str]:
    """The keys in the order in which they were reconciled, where one of two fails twice."""
    queue, seen, done = WorkQueue(), [], asyncio.Event()

    async def reconcile(key: str) -> None:
        seen.append(key)
        if key == "bad" and seen.count("bad") < 3:
            raise error
        if seen.count("bad") == 3:
            done.set()

    queue.add("bad")
    queue.add("good")
    worker = asyncio.ensure_future(queue.run(reconcile, workers=1))
    await done.wait()
    worker.cancel()
    return seen


def test_a_key_that_fails_comes_back_and_others_are_not_held_up() -> None:
    assert run_limited(see_one_key_fail(Retryable("not yet")))[:2] == ["bad", "good"]


def test_a_defect_costs_its_key_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    assert sorted(run_limited(see_one_key_fail(KeyError("ca.key")))) == ["bad", "bad", "bad", "good"]
    assert [record.message for record in caplog.records] == ["defect", "defect"], "whoever mends it is told"


def test_a_key_can_ask_to_be_looked_at_later_without_a_change() -> None:
    async def scenario() -> int:
        queue, seen, done = WorkQueue(), 0, asyncio.Event()

        async def reconcile(key: str) -> float | None:
            nonlocal seen
            seen += 1
            if seen == 3:
                done.set()
            return 0.005

        queue.add("a")
        worker = asyncio.ensure_future(queue.run(reconcile, workers=1))
        await done.wait()
        worker.cancel()
        return seen

    assert run_limited(scenario()) >= 3


def test_no_key_is_looked_at_while_the_api_server_wants_to_be_left_alone() -> None:
    async def scenario() -> tuple[list[str], float]:
        queue, seen, done = WorkQueue(), [], asyncio.Event()
        loop = asyncio.get_running_loop()

        async def reconcile(key: str) -> None:
            seen.append(key)
            if len(seen) == 1:
                raise PartlyApplied("too many requests", retry_after_s=0.3)
            if set(seen) == {"a", "b"} and seen.count("a") == 2:
                done.set()

        begun = loop.time()
        worker = asyncio.ensure_future(queue.run(reconcile, workers=4))
        queue.add("a")
        await asyncio.sleep(0.05)
        queue.add("a")
        queue.add("b")
        await asyncio.sleep(0.05)
        assert seen == ["a"]
        await done.wait()
        worker.cancel()
        return seen, loop.time() - begun

    seen, took_s = run_limited(scenario())
    assert sorted(seen) == ["a", "a", "b"]
    assert took_s >= 0.3


def test_others_have_their_turn_while_a_full_queue_of_keys_that_await_nothing_is_worked_off() -> None:
    """The lease is renewed by the same loop."""

    async def scenario() -> int:
        queue, seen, begun = WorkQueue(), [], asyncio.Event()

        async def reconcile(key: str) -> None:
            seen.append(key)
            begun.set()

        for number in range(100):
            queue.add(str(number))
        worker = asyncio.ensure_future(queue.run(reconcile, workers=2))
        await begun.wait()
        worker.cancel()
        return len(seen)

    assert run_limited(scenario()) <= 4


@given(st.integers(1, 500), st.floats(0, 1, exclude_max=True))
def test_back_off_stays_between_its_bounds(failures: int, chance: float) -> None:
    assert 0.05 <= back_off_s(failures, chance) <= 45.0
