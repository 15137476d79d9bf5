"""Every plain YAML file parses, names no key twice, and every Kubernetes object in it says what it is."""

from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml


class StrictLoader(yaml.CSafeLoader):
    """PyYAML lets a later key replace an earlier one silently; a manifest with the same key twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def check(files: Iterable[Path]) -> list[str]:
    findings = []
    for path in files:
        if path.suffix not in (".yaml", ".yml") or "templates" in path.parts:
            continue
        try:
            documents = list(yaml.load_all(path.read_text(), StrictLoader))
        except yaml.YAMLError as error:
            findings.append(f"{path}: {error}")
            continue
        if "samples" in path.parts or "crds" in path.parts:
            findings += [f"{path}: document {i}: {why}" for i, d in enumerate(documents) if (why := find_fault(d))]
    return findings


def find_fault(document: object) -> str | None:
    """Why a document is no Kubernetes object; None when it is one."""
    if not isinstance(document, dict):
        return "not an object"
    for field in ("apiVersion", "kind", "metadata"):
        if field not in document:
            return f"has no {field}"
    return None if document["metadata"].get("name") else "has no metadata.name"
