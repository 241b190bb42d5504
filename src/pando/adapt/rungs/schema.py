"""A JSON Schema out of examples, for extract tasks that bring none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MANY_VALUES = 30  # texts with more different values than this are free
_EACH = 5  # times that each value of a closed list is seen, on average


def infer_schema(values: Sequence[Any]) -> dict[str, Any]:
    """A schema that all values follow, as narrow as these examples allow.

    Fields that every object has are required, texts of few different values are closed lists.
    """
    kinds = sorted({_kind(value) for value in values})
    if len(kinds) > 1:
        return {"anyOf": [infer_schema([v for v in values if _kind(v) == kind]) for kind in kinds]}
    match kinds:
        case ["object"]:
            names = list(dict.fromkeys(name for value in values for name in value))
            return {
                "type": "object",
                "properties": {name: infer_schema([v[name] for v in values if name in v]) for name in names},
                "required": [name for name in names if all(name in v for v in values)],
                "additionalProperties": False,
            }
        case ["array"]:
            items = [item for value in values for item in value]
            return {"type": "array", "items": infer_schema(items)} if items else {"type": "array", "maxItems": 0}
        case ["string"] if len(set(values)) <= min(MANY_VALUES, len(values) // _EACH):
            return {"enum": sorted(set(values))}
        case _:
            return {"type": kinds[0]}


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"
