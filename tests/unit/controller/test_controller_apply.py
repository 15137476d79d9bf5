"""Carrying out a plan, stage after stage."""

import asyncio

import pytest
from limited import run_limited

from api.client import Conflict, Invalid, TooManyRequests, Unavailable
from controller.apply import IN_FLIGHT, PartlyApplied, apply_stages


def _apply(stages: list[list[str]], errors: dict[str, Exception]) -> tuple[tuple[str, ...] | str, list[str]]:
    done: list[str] = []

    async def execute(action: str) -> None:
        if action in errors:
            raise errors[action]
        done.append(action)

    async def scenario() -> tuple[str, ...] | str:
        try:
            return await apply_stages(stages, execute)
        except PartlyApplied as error:
            return f"again: {error}"

    return run_limited(scenario()), done


def test_stages_are_carried_out_in_order_and_stop_at_what_is_refused() -> None:
    refused, done = _apply([["a", "b"], ["c"], ["d"]], {"b": Invalid("b is wrong", 422)})
    assert refused == ("b is wrong",) and done == ["a"]


@pytest.mark.parametrize("error", [Unavailable("away"), Conflict("newer", 409)])
def test_what_may_pass_by_itself_is_tried_again_and_not_told(error: Exception) -> None:
    outcome, done = _apply([["a"], ["b"]], {"a": error})
    assert outcome == f"again: {error}" and done == []


def test_an_api_server_that_sheds_load_gets_no_more_of_the_stage_and_what_it_asks_for_is_passed_on() -> None:
    sent: list[int] = []

    async def execute(action: int) -> None:
        sent.append(action)
        await asyncio.sleep(0)
        raise TooManyRequests("too many requests (429)", 429, retry_after_s=7.0)

    with pytest.raises(PartlyApplied) as refusal:
        run_limited(apply_stages([range(1000), range(1000)], execute))
    assert len(sent) == IN_FLIGHT
    assert refusal.value.retry_after_s == 7.0
