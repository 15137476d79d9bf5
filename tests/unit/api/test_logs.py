"""Log lines: one JSON object each, with what they belong to."""

import io
import json
import logging

from api.logs import JsonFormatter, add_to_log_context, log_context


def test_what_is_learned_on_the_way_is_in_the_lines_that_follow_until_the_context_ends() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    log = logging.Logger("test")
    log.addHandler(handler)
    with log_context(claim="team/c"):
        log.info("begins")
        add_to_log_context(pod="team/p")
        log.info("prepared", extra={"took_ms": 1.5})
    log.info("idle")
    begins, prepared, idle = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (begins["claim"], "pod" in begins) == ("team/c", False)
    assert (prepared["msg"], prepared["claim"], prepared["pod"], prepared["took_ms"]) == (
        "prepared",
        "team/c",
        "team/p",
        1.5,
    )
    assert not {"claim", "pod"} & idle.keys()
