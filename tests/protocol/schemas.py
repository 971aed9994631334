"""JSON schemas and values for hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

_names = st.sampled_from(["a", "b"])


values = st.recursive(
    st.sampled_from([None, True, 0, 1, 2.5, "", "a", "ab"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=2),
    max_leaves=6,
)


def _keywords(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    schemas = st.lists(inner, min_size=1, max_size=2)
    properties = st.dictionaries(_names, inner, max_size=2)
    types = st.sampled_from(["object", "array", "string", "integer", "null"])
    keywords: dict[str, st.SearchStrategy[Any]] = {
        **dict.fromkeys(("anyOf", "oneOf", "allOf", "prefixItems"), schemas),
        **dict.fromkeys(("not", "if", "then", "else", "items", "contains", "propertyNames"), inner),
        **dict.fromkeys(("additionalProperties", "unevaluatedProperties", "unevaluatedItems"), inner),
        **{name: st.integers(0, 3) for name in ("minItems", "maxLength", "minimum", "minProperties", "minContains")},
        "properties": properties,
        "patternProperties": properties,
        "dependentSchemas": properties,
        "type": types | st.lists(types, min_size=1, max_size=2, unique=True),
        "enum": st.lists(values, min_size=1),
        "const": values,
        "required": st.lists(_names, unique=True),
        "uniqueItems": st.booleans(),
        "$ref": st.sampled_from(["#/properties/a", "#/not", "#/anyOf/0", "#/oneOf/0"]),
    }
    return st.fixed_dictionaries({}, optional=keywords)


schemas = st.recursive(st.booleans() | st.just({"type": "object"}), _keywords, max_leaves=6).filter(
    lambda schema: isinstance(schema, dict)
)
