"""From the JSON schema of a pydantic model to a structural schema of a CustomResourceDefinition.

Rules: k8s.io/apiextensions-apiserver "structural schema": every value has a type, no $ref, no null type; unknown fields
are pruned by the server, so `additionalProperties: false` is left out. Keys `x-kubernetes-*` that a model puts into
`json_schema_extra` are kept.
"""

from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]

DROPPED = ("title", "examples", "discriminator", "$defs")


def build_schema(model: type[BaseModel]) -> Schema:
    """The structural schema of a whole custom resource: `model` has the fields spec and, mostly, status."""
    raw = model.model_json_schema(by_alias=True, mode="validation")
    schema = convert(raw, raw.get("$defs", {}))
    properties = schema.setdefault("properties", {})
    for name in ("apiVersion", "kind", "metadata"):
        properties.pop(name, None)
    schema["properties"] = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
        **properties,
    }
    required = [name for name in schema.get("required", []) if name not in ("apiVersion", "kind", "metadata")]
    schema.pop("required", None)
    return {**schema, **({"required": required} if required else {})}


def convert(raw: Schema, definitions: dict[str, Schema], trail: tuple[str, ...] = ()) -> Schema:
    """`trail` names the definitions being expanded, because a structural schema can't be recursive."""
    if "$ref" in raw:
        name = raw["$ref"].rsplit("/", 1)[-1]
        if name in trail:
            raise ValueError(f"{name} contains itself, which a structural schema cannot express")
        expanded = convert(definitions[name], definitions, (*trail, name))
        return {**expanded, **convert({k: v for k, v in raw.items() if k != "$ref"}, definitions, trail)}
    for combined in ("anyOf", "oneOf", "allOf"):
        if combined in raw:
            return convert(merge_alternatives(raw, combined), definitions, trail)
    schema = {key: value for key, value in raw.items() if key not in DROPPED}
    return convert_values(convert_children(schema, definitions, trail))


def merge_alternatives(raw: Schema, combined: str) -> Schema:
    """`X | None` is X that may be left out; int or string is a notion of the API; nothing else has a form here."""
    outer = {key: value for key, value in raw.items() if key != combined}
    if outer.get("default", 0) is None:
        del outer["default"]
    others = [part for part in raw[combined] if part.get("type") != "null"]
    if len(others) == 1:
        return {**others[0], **outer}
    if {part.get("type") for part in others} == {"integer", "string"}:
        return {**outer, "x-kubernetes-int-or-string": True}
    raise ValueError(f"no structural form for {combined}: {others}")


def convert_children(schema: Schema, definitions: dict[str, Schema], trail: tuple[str, ...]) -> Schema:
    if "properties" in schema:
        properties = {name: convert(part, definitions, trail) for name, part in schema["properties"].items()}
        schema["properties"] = properties
    if isinstance(schema.get("items"), dict):
        schema["items"] = convert(schema["items"], definitions, trail)
    match schema.get("additionalProperties"):
        case dict() as values if values:
            schema["additionalProperties"] = convert(values, definitions, trail)
        case False:
            del schema["additionalProperties"]
        case True | {}:
            del schema["additionalProperties"]
            schema["x-kubernetes-preserve-unknown-fields"] = True
    return schema


def convert_values(schema: Schema) -> Schema:
    """JSON schema 2020-12 words in those of OpenAPI 3.0, which the API server reads."""
    if "const" in schema:
        schema["enum"] = [schema.pop("const")]
    for exclusive, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if exclusive in schema:
            schema[limit] = schema[exclusive]
            schema[exclusive] = True
    if "default" in schema and schema["default"] is None:
        del schema["default"]
    if schema.get("type") == "integer":
        schema.setdefault("format", "int64")
    if "description" in schema:
        schema["description"] = " ".join(schema["description"].split())
    if "enum" in schema and "type" not in schema:
        schema["type"] = "string"
    return schema
