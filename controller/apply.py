"""Carries plans out: stage after stage, the actions of one stage together, and says what could not be done.

An action is safe to repeat, so there is nothing to undo: what is left of a plan that was cut is planned again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, TypeVar

from api.client import ApiError, Conflict, TooManyRequests
from api.errors import PartitaError, Retryable

A = TypeVar("A")

IN_FLIGHT: Final = 32
"""Requests of one plan at a time: enough to keep an API server busy, few enough to stay inside one fair share of it."""


class PartlyApplied(PartitaError):
    """Some actions of a stage failed in a way that waiting may cure; later stages were not begun."""

    reason = "PartlyApplied"

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        """`retry_after_s`: what the API server asked for."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


async def apply_stages(stages: Iterable[Sequence[A]], execute: Callable[[A], Awaitable[None]]) -> tuple[str, ...]:
    """Carry out the stages in order; stop after the first stage in which something was refused.

    An API server that sheds load (429) gets nothing more of that stage either.

    Returns what the API server refused, in its words, without repetitions. Raises PartlyApplied when it could not be
    reached, or when somebody else wrote first: then the world is to be looked at again.
    """
    limit = asyncio.Semaphore(IN_FLIGHT)
    shed: list[TooManyRequests] = []

    async def guarded(action: A) -> PartitaError | None:
        async with limit:
            if shed:
                return shed[0]
            try:
                await execute(action)
            except TooManyRequests as error:
                shed.append(error)
                return error
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
            wish_s = max((error.retry_after_s or 0.0 for error in shed), default=0.0)
            raise PartlyApplied(str(transient[0]), wish_s) from transient[0]
    return ()
