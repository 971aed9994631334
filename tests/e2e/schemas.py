"""Random JSON schemas from a seed: valid, odd, unsatisfiable and unenforceable ones."""

from __future__ import annotations

import random
from typing import Any

from tokka.protocol.json_schema import FORMATS

NAMES = ["name", "id", "a b", "", "ä🦌", 'quo"te', "$ref", "type", "0", "very_long_" * 6]
PATTERNS = ["^[a-z]+$", "^(a|b)*$", r"^\d{3}-\d{2}$", "x", "^.{0,40}$", "(a+)+$", "(", "(?=a)", r"\p{Lu}", "[", "^$"]
UNENFORCED = [
    "not",
    "if",
    "uniqueItems",
    "contains",
    "propertyNames",
    "dependentRequired",
    "x-guidance",
    "unevaluatedItems",
]


def schema(seed: int) -> dict[str, Any]:
    chance = random.Random(seed)
    made: dict[str, Any] = _Schemas(chance).any(0)
    if chance.random() < 0.3:
        made["$defs"] = {"node": _Schemas(chance).any(1)}
    return made


class _Schemas:
    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def any(self, depth: int) -> Any:
        chance = self._chance
        simple = [self._string, self._number, self._values, self._odd]
        nested = [self._object, self._object, self._array, self._combined, self._reference]
        made = chance.choice(simple if depth > 3 else simple + nested * 2)(depth)
        if chance.random() < 0.05:
            made[chance.choice(UNENFORCED)] = chance.choice([True, {}, [], 1])
        if chance.random() < 0.05:
            made |= chance.choice([{"title": "t"}, {"default": None}, {"type": "null"}, {"enum": []}, {"type": "text"}])
        return made

    def _string(self, _depth: int) -> dict[str, Any]:
        chance = self._chance
        made: dict[str, Any] = {"type": "string"}
        if chance.random() < 0.4:
            made["maxLength"] = chance.choice([0, 1, 5, 40, 10**5, 10**6])
        if chance.random() < 0.3:
            made["minLength"] = chance.choice([0, 1, 3, 10**5, -1])
        if chance.random() < 0.3:
            made["pattern"] = chance.choice(PATTERNS)
        if chance.random() < 0.2:
            made["format"] = chance.choice([*FORMATS, "other"])
        return made

    def _number(self, _depth: int) -> dict[str, Any]:
        chance = self._chance
        made: dict[str, Any] = {"type": chance.choice(["integer", "number", ["number", "null"]])}
        for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            if chance.random() < 0.25:
                made[name] = chance.choice([0, 1, -5, 2.5, 100, 2**53, -1e9, 1e-7, 1e300])
        if chance.random() < 0.2:
            made["multipleOf"] = chance.choice([1, 2, 0.5, 0.01, 7, 997, 0, 123457])
        return made

    def _values(self, _depth: int) -> dict[str, Any]:
        chance = self._chance
        values: list[Any] = [0, 1.5, True, None, "a", "b" * 50, [], {"k": [1]}, "\n", "ä🦌", -0.0]
        if chance.random() < 0.5:
            return {"const": chance.choice(values)}
        return {"enum": chance.sample(values, chance.randint(1, 6))}

    def _odd(self, _depth: int) -> dict[str, Any]:
        return dict(
            self._chance.choice([{}, {"type": "boolean"}, {"type": "null"}, {"maxLength": 3}, {"required": ["a"]}])
        )

    def _object(self, depth: int) -> dict[str, Any]:
        chance = self._chance
        names = chance.sample(NAMES, chance.randint(0, 5))
        made: dict[str, Any] = {"type": "object", "properties": {name: self.any(depth + 1) for name in names}}
        if chance.random() < 0.7:
            made["required"] = chance.sample(names, chance.randint(0, len(names)))
        if chance.random() < 0.7:
            made["additionalProperties"] = chance.choice([False, False, True, self.any(depth + 1)])
        if chance.random() < 0.1:
            made[chance.choice(["minProperties", "maxProperties"])] = chance.randint(0, 3)
        if chance.random() < 0.1:
            made["patternProperties"] = {chance.choice(PATTERNS): self.any(depth + 1)}
        return made

    def _array(self, depth: int) -> dict[str, Any]:
        chance = self._chance
        made: dict[str, Any] = {"type": "array"}
        if chance.random() < 0.8:
            made["items"] = chance.choice([True, self.any(depth + 1)])
        if chance.random() < 0.2:
            made["prefixItems"] = [self.any(depth + 1) for _ in range(chance.randint(1, 3))]
        for name in ("minItems", "maxItems"):
            if chance.random() < 0.3:
                made[name] = chance.choice([0, 1, 2, 50, 1000, 10**9])
        return made

    def _combined(self, depth: int) -> dict[str, Any]:
        name = self._chance.choice(["anyOf", "anyOf", "oneOf", "allOf"])
        return {name: [self.any(depth + 1) for _ in range(self._chance.randint(1, 4))]}

    def _reference(self, _depth: int) -> dict[str, Any]:
        return {"$ref": self._chance.choice(["#", "#/$defs/node", "#/properties/name", "#/$defs/none", "http://a/b"])}
