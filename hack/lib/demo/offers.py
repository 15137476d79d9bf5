"""ResourceSlices as JSON on standard input, one line for each node and kind of device on standard output."""

import json
import sys
from collections import Counter
from typing import Any


def summarise(slices: list[dict[str, Any]]) -> list[str]:
    counts: Counter[tuple[str, str]] = Counter()
    for each in slices:
        for device in each["spec"].get("devices", ()):
            attributes = {name.rpartition("/")[2]: value for name, value in device.get("attributes", {}).items()}
            words = [attributes[name]["string"] for name in ("productName", "profile") if name in attributes]
            counts[each["spec"].get("nodeName", "cluster"), " ".join(words)] += 1
    return [f"{node}: {count:3} x {what}" for (node, what), count in sorted(counts.items())]


if __name__ == "__main__":
    print("\n".join(summarise(json.load(sys.stdin)["items"])))
