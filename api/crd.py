"""CustomResourceDefinitions from pydantic models: a model is the schema, there is no second one.

A structural schema (apiextensions.k8s.io/v1) is JSON Schema without `$ref`, `title`, `const` and `additionalProperties:
false`, and with Kubernetes' own `x-kubernetes-*` keys, which the models carry in `json_schema_extra`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

SCHEMA_ANNOTATION: Final = "partita/schema"
"""Tells a definition from that of another version: a digest of its spec."""


class Model(BaseModel):
    """Camel-case on the wire; unknown fields are left to the API server, which prunes them."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")


class Condition(Model):
    """`metav1.Condition`."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""
    last_transition_time: str = Field(json_schema_extra={"format": "date-time"})


@dataclass(frozen=True, slots=True)
class Column:
    """One printer column: what `kubectl get` shows. `kind` is an OpenAPI type, or `date` for an age."""

    name: str
    json_path: str
    kind: str = "string"
    wide: bool = False


@dataclass(frozen=True, slots=True)
class CustomResource:
    """One kind that we define. `properties` are the top-level fields beside apiVersion, kind and metadata."""

    group: str
    version: str
    kind: str
    plural: str
    scope: Literal["Namespaced", "Cluster"]
    description: str
    properties: Mapping[str, Any]
    required: tuple[str, ...] = ()
    status_subresource: bool = True
    replicas_path: str = ""
    """Where an object says how many pods it wants (`.spec.replicas`): what asks for its scale is told that."""
    short_names: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.plural}.{self.group}"

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}"


def build_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The structural schema of a model: references inlined, what Kubernetes does not know left out."""
    raw = model.model_json_schema(by_alias=True, mode="validation")
    definitions = raw.pop("$defs", {})
    schema: dict[str, Any] = _structural(raw, definitions)
    return schema


_NOT_KUBERNETES = frozenset({"title", "$defs", "additionalProperties", "const", "discriminator"})


def _structural(node: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(node, list):
        return [_structural(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[1]]
        merged = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
        return _structural(merged, definitions)
    if "anyOf" in node:  # pydantic's way to say "or null": absent and null are one to the API server
        (only,) = [option for option in node["anyOf"] if option != {"type": "null"}]
        rest = {key: value for key, value in node.items() if key not in {"anyOf", "default"}}
        return _structural({**only, **rest}, definitions)
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key == "properties":
            out[key] = {name: _structural(item, definitions) for name, item in value.items()}
        elif key == "additionalProperties" and isinstance(value, dict):
            out[key] = _structural(value, definitions)
        elif key == "default":
            out[key] = value
        elif key not in _NOT_KUBERNETES:
            out[key] = _structural(value, definitions)
    return out


def build_crd(resource: CustomResource) -> dict[str, Any]:
    """The CustomResourceDefinition object, as it goes into the chart."""
    properties: dict[str, Any] = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
        **resource.properties,
    }
    schema: dict[str, Any] = {"type": "object", "description": resource.description, "properties": properties}
    if resource.required:
        schema["required"] = list(resource.required)
    version: dict[str, Any] = {
        "name": resource.version,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "additionalPrinterColumns": [_column(column) for column in resource.columns],
    }
    if resource.status_subresource:
        version["subresources"] = {"status": {}}
    if resource.replicas_path:
        # The server wants a path for those that are there, too, below status; nobody asks for it.
        scale = {"specReplicasPath": resource.replicas_path, "statusReplicasPath": ".status.replicas"}
        version.setdefault("subresources", {})["scale"] = scale
    names: dict[str, Any] = {
        "kind": resource.kind,
        "listKind": f"{resource.kind}List",
        "plural": resource.plural,
        "singular": resource.kind.lower(),
    }
    if resource.short_names:
        names["shortNames"] = list(resource.short_names)
    spec = {"group": resource.group, "names": names, "scope": resource.scope, "versions": [version]}
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": resource.name, "annotations": {SCHEMA_ANNOTATION: digest}},
        "spec": spec,
    }


def _column(column: Column) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": column.name, "type": column.kind, "jsonPath": column.json_path}
    return {**shown, "priority": 1} if column.wide else shown
