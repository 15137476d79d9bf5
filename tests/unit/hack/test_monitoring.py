"""docs/monitoring.md and the metrics that the programs have."""

import re
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

import kubeletplugin.metrics
from controller.metrics import Metrics

PAGE = Path(__file__).parents[3] / "docs/monitoring.md"
Row = tuple[str, str, tuple[str, ...]]


def _read_table(heading: str) -> set[Row]:
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?)\| .* \|$", section, re.MULTILINE)
    return {(name, kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def _list_metrics(owner: object) -> set[Row]:
    metrics = [each for each in vars(owner).values() if isinstance(each, MetricWrapperBase)]
    described = [(family, each._labelnames) for each in metrics for family in each.describe()]
    return {
        (f"{family.name}_total" if family.type == "counter" else family.name, family.type, tuple(labels))
        for family, labels in described
    }


def test_the_page_lists_every_metric_of_the_node_plugin_with_its_labels_and_no_other() -> None:
    assert _read_table("Node plugin") == _list_metrics(kubeletplugin.metrics)


def test_the_page_lists_every_metric_of_the_controller_with_its_labels_and_no_other() -> None:
    assert _read_table("Controller") == _list_metrics(Metrics())
