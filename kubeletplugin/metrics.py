"""Metrics of the node plugin. `nvidia_dra_*` are names and labels of NVIDIA's DRA driver: dashboards keep working."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

# The reference's nine buckets from 0.05 s, doubling, and finer ones below, where our requests lie.
_BUCKETS: Final = (0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)

_REQUESTS: Final = Counter(
    "nvidia_dra_requests_total", "Claims prepared or unprepared successfully.", ["driver", "operation"]
)
_DURATION: Final = Histogram(
    "nvidia_dra_request_duration_seconds",
    "Time for one claim, failures included.",
    ["driver", "operation"],
    buckets=_BUCKETS,
)
_IN_FLIGHT: Final = Gauge("nvidia_dra_requests_inflight", "Claims being worked on.", ["driver", "operation"])
_PREPARED: Final = Gauge(
    "nvidia_dra_prepared_devices", "Devices that prepared claims hold.", ["node", "driver", "device_type"]
)
_PREPARE_ERRORS: Final = Counter(
    "nvidia_dra_node_prepare_errors_total", "Claims that could not be prepared, by reason.", ["driver", "error_type"]
)
_UNPREPARE_ERRORS: Final = Counter(
    "nvidia_dra_node_unprepare_errors_total",
    "Claims that could not be unprepared, by reason.",
    ["driver", "error_type"],
)
PUBLISH_DURATION: Final = Histogram(
    "partita_publish_duration_seconds", "Time to bring the ResourceSlices in line.", ["driver"], buckets=_BUCKETS
)
PUBLISH_ERRORS: Final = Counter(
    "partita_publish_errors_total", "Attempts to publish that failed, by reason.", ["driver", "error_type"]
)
SLICES: Final = Gauge("partita_resource_slices", "ResourceSlices of this node, as last published.", ["driver"])
DEVICES: Final = Gauge("partita_published_devices", "Devices of this node, as last published.", ["driver"])


class RequestMetrics:
    """One operation of one driver, with its label values looked up once."""

    def __init__(self, driver: str, operation: str) -> None:
        self._driver = driver
        self._done = _REQUESTS.labels(driver, operation)
        self._duration = _DURATION.labels(driver, operation)
        self._in_flight = _IN_FLIGHT.labels(driver, operation)
        self._errors = _PREPARE_ERRORS if operation == "prepare" else _UNPREPARE_ERRORS

    @contextmanager
    def measure(self) -> Iterator[None]:
        started_s = time.perf_counter()
        self._in_flight.inc()
        try:
            yield
        finally:
            self._in_flight.dec()
            self._duration.observe(time.perf_counter() - started_s)

    def succeed(self) -> None:
        self._done.inc()

    def fail(self, reason: str) -> None:
        self._errors.labels(self._driver, reason).inc()


def show_prepared(node: str, driver: str, counts: dict[str, int]) -> None:
    """`counts` by device type: gpu, mig, channel, daemon, ..."""
    for device_type, count in counts.items():
        _PREPARED.labels(node, driver, device_type).set(count)
