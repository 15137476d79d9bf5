"""What a program says of itself over HTTP: its probes, and its metrics as values."""

import socket
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Metrics:
    """One scrape. Histograms are known by their own name here, and by `<name>_count` and so on as values."""

    labels: Mapping[str, frozenset[str]]
    """Label names by metric; of a metric that nothing was counted in, none."""
    values: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    def value(self, name: str, **labels: str) -> float | None:
        """None where nothing was counted under these labels."""
        return self.values.get((name, frozenset(labels.items())))

    def by(self, label: str, name: str, **others: str) -> dict[str, float]:
        """All values of a metric with these other labels, by one label."""
        found = {key: value for (metric, key), value in self.values.items() if metric == name}
        rest = frozenset(others.items())
        return {dict(key)[label]: value for key, value in found.items() if key - {(label, dict(key)[label])} == rest}


def get(port: int, target: str, method: str = "GET") -> tuple[int, str]:
    """Status and body. Raises OSError where nobody listens."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{target}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def scrape(port: int, *prefixes: str) -> Metrics:
    """The metrics whose names begin so."""
    status, text = get(port, "/metrics")
    assert status == 200
    labels: dict[str, frozenset[str]] = {}
    values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(text):
        if not family.name.startswith(prefixes) or family.name.endswith("_created"):
            continue  # the times at which counting began are none of ours
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels[name] = frozenset(label for sample in family.samples for label in sample.labels) - {"le"}
        values |= {(sample.name, frozenset(sample.labels.items())): sample.value for sample in family.samples}
    return Metrics(labels, values)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
