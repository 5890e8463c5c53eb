"""Rewrites `propertyNames` of a JSON schema into keywords that llguidance knows.

What libraries make of a record (`z.record(z.enum([...]), value)`) has it. Where it cannot be rewritten it stays, and
the schema is refused.
"""

from typing import Any

PART = ("items", "additionalProperties", "not", "if", "then", "else", "contains")
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def without_property_names(schema: Any) -> Any:
    """The same schema, its parts too, as far as that can be."""
    if not isinstance(schema, dict):
        return schema
    found = {}
    for key, value in schema.items():
        if key in PART:
            value = without_property_names(value)
        elif key in LISTS and isinstance(value, list):
            value = [without_property_names(part) for part in value]
        elif key in NAMED and isinstance(value, dict):
            value = {name: without_property_names(part) for name, part in value.items()}
        found[key] = value
    return _said_otherwise(found) if "propertyNames" in found else found


def _said_otherwise(schema: dict[str, Any]) -> dict[str, Any]:
    names = schema["propertyNames"]
    rest = {key: value for key, value in schema.items() if key != "propertyNames"}
    if names is True or names in ({}, {"type": "string"}):  # as every name is
        return rest
    is_simple = (
        isinstance(names, dict) and names.get("type", "string") == "string" and len(names.keys() - {"type"}) == 1
    )
    if not is_simple or "properties" in rest or "patternProperties" in rest:
        return schema
    value = rest.get("additionalProperties", True)
    if isinstance(listed := names.get("enum"), list) and all(isinstance(name, str) for name in listed):
        return {**rest, "properties": dict.fromkeys(listed, value), "additionalProperties": False}
    if isinstance(pattern := names.get("pattern"), str):
        return {**rest, "patternProperties": {pattern: value}, "additionalProperties": False}
    return schema
