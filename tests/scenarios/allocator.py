"""The scheduler's allocator, reduced: first fit over slices in order, devices exclusive, counters respected."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from api.quantity import parse_quantity

Slices = Sequence[dict[str, Any]]


def devices_in_order(slices: Slices) -> list[dict[str, Any]]:
    return [device for spec in slices for device in spec.get("devices", ())]


def free_devices(slices: Slices, allocated: Iterable[str]) -> list[dict[str, Any]]:
    """What the allocator could give next, in its order."""
    taken = set(allocated)
    left: Counter[tuple[str, str]] = Counter()
    for spec in slices:
        for counter_set in spec.get("sharedCounters", ()):
            for name, value in counter_set["counters"].items():
                left[counter_set["name"], name] = parse_quantity(value["value"])
    devices = devices_in_order(slices)
    for device in devices:
        if device["name"] in taken:
            left.subtract(_needs(device))
    return [
        device
        for device in devices
        if device["name"] not in taken
        and not any(taint["effect"] != "None" for taint in device.get("taints", ()))
        and all(left[key] >= amount for key, amount in _needs(device).items())
    ]


def first_fit(slices: Slices, allocated: Iterable[str], wanted: Callable[[dict[str, Any]], bool]) -> str | None:
    return next((device["name"] for device in free_devices(slices, allocated) if wanted(device)), None)


def profile(name: str) -> Callable[[dict[str, Any]], bool]:
    return lambda device: device["attributes"].get("profile", {}).get("string") == name


def whole_gpu(device: dict[str, Any]) -> bool:
    return bool(device["attributes"]["type"] == {"string": "gpu"})


def _needs(device: dict[str, Any]) -> Counter[tuple[str, str]]:
    return Counter(
        {
            (use["counterSet"], name): parse_quantity(value["value"])
            for use in device.get("consumesCounters", ())
            for name, value in use["counters"].items()
        }
    )
