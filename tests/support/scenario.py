"""Tests that are coroutines in a world: what is there for one test alone."""

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

from tests.support.cluster import Cluster

Test = Callable[..., Coroutine[Any, Any, None]]
Scenario = Callable[[Test], Callable[..., None]]


def play_in(world: Callable[[Cluster], AbstractAsyncContextManager[Any]], fixture: str) -> Scenario:
    """For a test `async def test_...(it, <parameters>)`, where `it` is a world on the cluster of that fixture."""

    def decorate(test: Test) -> Callable[..., None]:
        @functools.wraps(test)
        def play(**parameters: Any) -> None:
            async def scenario() -> None:
                async with world(parameters.pop(fixture)) as it:
                    await test(it, **parameters)

            asyncio.run(scenario())

        # pytest gives what the signature names: the cluster in place of the world.
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        others = list(inspect.signature(test).parameters.values())[1:]
        play.__signature__ = inspect.Signature([inspect.Parameter(fixture, kind), *others])  # type: ignore[attr-defined]
        return play

    return decorate
