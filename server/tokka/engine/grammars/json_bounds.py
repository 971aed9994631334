"""Bounds for the unlimited parts of JSON: the digits of numbers, and whitespace between the parts.

The library's grammars allow any number of digits, and a weak model writes digits until the token limit. The library
has no option against that. The engine therefore follows a second, plain grammar beside the first one (`guidance.py`).
It describes JSON as text without nesting. A whole number has at most 64 bits, a fraction 17 digits, an exponent two.
"""

from __future__ import annotations

from typing import Any

from tokka.protocol.json_schema import mapped

_MAX_INT64 = 2**63 - 1
_FRACTION_DIGITS = 17
# Minimum and maximum, in absolute value, of a number with `multipleOf`. It is also exact as a float.
_MAX_MULTIPLE = 10**18
# Largest `multipleOf` that gets a minimum and a maximum. With both, a larger one exceeds the library's limits.
_MAX_BOUNDED = 256
# The same as in the library's own grammars.
_ITEMS = r"""
json_text: (json_item? JSON_MARK)* json_item?
json_item: JSON_STRING | JSON_WORD | JSON_NUMBER
JSON_MARK: /[\[\]{}]|[:,] ?/
JSON_WORD: /true|false|null/
JSON_STRING: /"(\\(["\\\/bfnrt]|u[a-fA-F0-9]{4})|[^"\\\x00-\x1F\x7F])*"/
"""


def json_rules() -> str:
    """Return the rule `json_text` and its parts, in Lark."""
    return f"{_ITEMS}JSON_NUMBER: /{_number()}/\n"


def with_bounded_multiples(schema: Any) -> Any:
    """Return a validated schema with a minimum and a maximum at each `multipleOf` up to _MAX_BOUNDED.

    Only the schema's own grammar knows how many digits a multiple still needs. The second grammar would stop the number
    where it is not a multiple.
    """
    if not isinstance(schema, dict):
        return schema
    bounded = {
        name: mapped(name, value, lambda _, below: with_bounded_multiples(below)) for name, value in schema.items()
    }
    if schema.get("multipleOf", _MAX_BOUNDED + 1) <= _MAX_BOUNDED:
        if "exclusiveMinimum" not in schema:
            bounded.setdefault("minimum", -_MAX_MULTIPLE)
        if "exclusiveMaximum" not in schema:
            bounded.setdefault("maximum", _MAX_MULTIPLE)
    return bounded


def _number() -> str:
    # Zeros before the first other digit do not count as digits.
    after_zeros = rf"0{{0,{_FRACTION_DIGITS}}}[1-9](?:{_digits(0, _FRACTION_DIGITS - 1)})"
    fractions = [rf"0\.(?:{after_zeros}|0{{1,{_FRACTION_DIGITS}}})"]
    fractions += [
        rf"[1-9][0-9]{{{whole - 1}}}\.(?:{_digits(1, _FRACTION_DIGITS - whole)})"
        for whole in range(1, _FRACTION_DIGITS)
    ]
    scaled = rf"(?:{'|'.join(fractions)}|[0-9])(?:[eE][+-]?[0-9]{{1,2}})?"
    return rf"-?(?:{_up_to(str(_MAX_INT64))}|{scaled})"


def _digits(least: int, most: int) -> str:
    """Return an expression for `least` to `most` digits. If the number of digits varies, digit `most` is not zero.

    With an exclusive bound the library does not let a fraction end with zero. After a zero as the last digit, the
    fraction would never end.
    """
    if least == most:
        return rf"[0-9]{{{most}}}"
    return rf"[0-9]{{{least},{most - 1}}}|[0-9]{{{most - 1}}}[1-9]"


def _up_to(most: str) -> str:
    """Return an expression for the whole numbers from 0 to `most`."""
    shorter = rf"[1-9][0-9]{{0,{len(most) - 2}}}"
    # The same number of digits, and the first differing digit is smaller.
    lower = [
        rf"{most[:place]}[{int(place == 0)}-{int(digit) - 1}][0-9]{{{len(most) - place - 1}}}"
        for place, digit in enumerate(most)
        if int(digit) > int(place == 0)
    ]
    return rf"(?:0|{shorter}|{'|'.join(lower)}|{most})"
