"""Bounds for what a JSON Schema leaves without end: numbers, and blanks between the parts of a text.

The library's grammars let a number have any number of digits, and a weak model writes them until the token limit. The
library has no option for that, so a second, plain grammar is followed beside the first one (`guidance.py`): JSON as
text, without nesting, in which a whole number has 64 bits, a fraction 17 digits and an exponent two.
"""

from __future__ import annotations

from typing import Any

from tokka.protocol.json_schema import mapped

_MAX_INT64 = 2**63 - 1
_FRACTION_DIGITS = 17
# Exact as a float, too.
_MAX_MULTIPLE = 10**18
# Multiples of more than this, with bounds, run into the library's limits.
_MAX_BOUNDED = 256
# As in a grammar of the library.
_ITEMS = r"""
json_text: (json_item? JSON_MARK)* json_item?
json_item: JSON_STRING | JSON_WORD | JSON_NUMBER
JSON_MARK: /[\[\]{}]|[:,] ?/
JSON_WORD: /true|false|null/
JSON_STRING: /"(\\(["\\\/bfnrt]|u[a-fA-F0-9]{4})|[^"\\\x00-\x1F\x7F])*"/
"""


def json_rules() -> str:
    """Return the rule `json_text`, and what it is made of, in Lark."""
    return f"{_ITEMS}JSON_NUMBER: /{_number()}/\n"


def with_bounded_multiples(schema: Any) -> Any:
    """Return a checked schema in which each `multipleOf` has a minimum and a maximum.

    Only the schema's own grammar knows how many digits a multiple still needs: the second grammar would stop it at a
    number that is not one.
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
    # Zeros before the first other digit do not count.
    after_zeros = rf"0{{0,{_FRACTION_DIGITS}}}[1-9](?:{_digits(0, _FRACTION_DIGITS - 1)})"
    fractions = [rf"0\.(?:{after_zeros}|0{{1,{_FRACTION_DIGITS}}})"]
    fractions += [
        rf"[1-9][0-9]{{{whole - 1}}}\.(?:{_digits(1, _FRACTION_DIGITS - whole)})"
        for whole in range(1, _FRACTION_DIGITS)
    ]
    scaled = rf"(?:{'|'.join(fractions)}|[0-9])(?:[eE][+-]?[0-9]{{1,2}})?"
    return rf"-?(?:{_up_to(str(_MAX_INT64))}|{scaled})"


def _digits(least: int, most: int) -> str:
    """Return an expression for so many digits, of which the last possible one is no zero.

    Beside an exclusive bound the library lets a fraction end with another digit only, and would go on without end.
    """
    if least == most:
        return rf"[0-9]{{{most}}}"
    return rf"[0-9]{{{least},{most - 1}}}|[0-9]{{{most - 1}}}[1-9]"


def _up_to(most: str) -> str:
    """Return an expression for the whole numbers from 0 to this one."""
    shorter = rf"[1-9][0-9]{{0,{len(most) - 2}}}"
    # As many digits, and the first of them that differs is smaller.
    lower = [
        rf"{most[:place]}[{int(place == 0)}-{int(digit) - 1}][0-9]{{{len(most) - place - 1}}}"
        for place, digit in enumerate(most)
        if int(digit) > int(place == 0)
    ]
    return rf"(?:0|{shorter}|{'|'.join(lower)}|{most})"
