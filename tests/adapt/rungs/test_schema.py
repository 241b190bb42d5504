"""Schemas out of examples."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pando.adapt.rungs.schema import infer_schema

scalar = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
value = st.recursive(
    scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


@given(st.lists(value, min_size=1, max_size=8))
def test_every_example_follows_its_schema(values: list[Any]) -> None:
    schema = infer_schema(values)
    for one in values:
        assert follows(one, schema), (one, schema)


def test_lists_and_texts_may_share_a_field() -> None:
    rows = [{"name": "a"}, {"name": ["b", "c"]}, {"name": "d", "n": 1.5}]
    assert infer_schema(rows)["properties"]["name"] == {
        "anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]
    }
    assert infer_schema(rows)["required"] == ["name"]


def test_few_values_seen_often_are_a_closed_list() -> None:
    assert infer_schema(["a", "b"] * 5) == {"enum": ["a", "b"]}
    assert infer_schema(["a", "b"] * 4) == {"type": "string"}
    assert infer_schema([str(i) for i in range(31)] * 10) == {"type": "string"}


def follows(one: Any, schema: dict[str, Any]) -> bool:
    """A judge of the keywords that are used, independent of how they are made."""
    if "anyOf" in schema:
        return any(follows(one, option) for option in schema["anyOf"])
    if "enum" in schema:
        return one in schema["enum"]
    match schema["type"]:
        case "object":
            known = schema["properties"]
            return (
                isinstance(one, dict)
                and set(schema["required"]) <= set(one) <= set(known)
                and all(follows(inner, known[name]) for name, inner in one.items())
            )
        case "array":
            most = schema.get("maxItems", len(one) if isinstance(one, list) else 0)
            return (
                isinstance(one, list)
                and len(one) <= most
                and all(follows(inner, schema.get("items", {})) for inner in one)
            )
    kinds = {"null": type(None), "boolean": bool, "integer": int, "number": float, "string": str}
    return type(one) is kinds[schema["type"]]
