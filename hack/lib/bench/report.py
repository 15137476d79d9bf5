"""Figures: one JSON line each."""

import json
import math
import statistics
from collections.abc import Sequence


def show(bench: str, case: str, figure: str, value: float, unit: str, **more: float | str) -> None:
    digits = 3 if value < 10 else 1
    line = {"bench": bench, "case": case, "figure": figure, "value": round(value, digits), "unit": unit, **more}
    print(json.dumps(line), flush=True)


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(len(ordered) * percent / 100) - 1)]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
