"""Carries plans out: stage after stage, the actions of one stage together, and says what could not be done.

An action is safe to repeat, so there is nothing to undo: what is left of a plan that was cut is planned again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, TypeVar

from api.client import ApiError, Conflict
from api.errors import PartitaError, Retryable

A = TypeVar("A")

IN_FLIGHT: Final = 32
"""Requests of one plan at a time: enough to keep an API server busy, few enough to stay inside one fair share of it."""


class PartlyApplied(PartitaError):
    """Some actions of a stage failed in a way that waiting may cure; later stages were not begun."""

    reason = "PartlyApplied"


async def apply_stages(stages: Iterable[Sequence[A]], execute: Callable[[A], Awaitable[None]]) -> tuple[str, ...]:
    """Carry out the stages in order; stop after the first stage in which something was refused.

    Returns what the API server refused, in its words, without repetitions. Raises PartlyApplied when it could not be
    reached, or when somebody else wrote first: then the world is to be looked at again.
    """
    limit = asyncio.Semaphore(IN_FLIGHT)

    async def guarded(action: A) -> PartitaError | None:
        async with limit:
            try:
                await execute(action)
            except (ApiError, Retryable) as error:
                return error
        return None

    for stage in stages:
        errors = [error for error in await asyncio.gather(*map(guarded, stage)) if error is not None]
        transient = [error for error in errors if isinstance(error, (Retryable, Conflict))]
        refused = [error for error in errors if error not in transient]
        if refused:
            return tuple(dict.fromkeys(str(error) for error in refused))
        if transient:
            raise PartlyApplied(str(transient[0])) from transient[0]
    return ()
