"""What the controller counts."""

from collections.abc import Callable
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0)


class Metrics:
    """Labels come from closed sets: names of actions, reasons of conditions."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._actions = Counter(
            "partita_controller_actions_total", "Actions carried out, by kind.", ["action"], registry=self.registry
        )
        self._reconcile = Histogram(
            "partita_controller_reconcile_seconds",
            "From taking up an object to having it in order.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        # The name and label of NVIDIA's DRA driver: dashboards that exist go on working.
        self._domains = Gauge(
            "nvidia_dra_compute_domain_info", "ComputeDomains by status.", ["status"], registry=self.registry
        )
        self._leading = Gauge("partita_controller_leading", "1 where this process acts.", registry=self.registry)
        self._queue = Gauge("partita_controller_queue", "Objects that wait to be looked at.", registry=self.registry)

    def acted(self, action: str) -> None:
        self._actions.labels(action).inc()

    def reconciled(self, seconds: float) -> None:
        self._reconcile.observe(seconds)

    def watch_leading(self, leading: Callable[[], bool]) -> None:
        self._leading.set_function(lambda: float(leading()))

    def watch_queue(self, length: Callable[[], int]) -> None:
        self._queue.set_function(length)

    def watch_domains(self, count: Callable[[str], int]) -> None:
        for status in ("Ready", "NotReady"):
            self._domains.labels(status).set_function(partial(count, status))
