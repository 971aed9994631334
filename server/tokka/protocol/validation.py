"""Validation of bodies: pydantic's errors become OpenAI's, with the field's path, the reason and the remedy."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tokka.errors import InvalidRequest, UnsupportedParameter
from tokka.protocol.common import BodyModel
from tokka.protocol.hints import meant_by

Body = TypeVar("Body", bound=BaseModel)
WholeBody = TypeVar("WholeBody", bound=BodyModel)

# Maximum characters of an error message, so that it does not send the request back.
_MAX_MESSAGE_CHARS = 1000


def validated(model: type[Body], raw: bytes) -> Body:
    """Return the JSON as this model. Raises InvalidRequest with the first error."""
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise invalid_request(error, raw, model) from None


def without_unknown(model: type[WholeBody], raw: bytes) -> WholeBody:
    """Return the JSON as this model, without unknown top-level fields. Raises InvalidRequest with the first error."""
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        names = _unknown(error)
        if not names:
            raise invalid_request(error, raw, model) from None
    body = {name: value for name, value in json.loads(raw).items() if name not in names}
    return validated(model, json.dumps(body).encode()).without(names)


def _unknown(error: ValidationError) -> tuple[str, ...]:
    """Return the names of unknown top-level fields of a body."""
    details = error.errors(include_url=False, include_input=False, include_context=False)
    return tuple(str(item["loc"][0]) for item in details if item["type"] == "extra_forbidden" and len(item["loc"]) == 1)


def invalid_request(error: ValidationError, raw: bytes, model: type[BaseModel]) -> InvalidRequest:
    """Return the first error of a body as OpenAI writes it: the field's path, the reason, the remedy."""
    details = error.errors(include_url=False, include_input=False)
    if details[0]["type"] == "json_invalid":
        reason = str(details[0].get("ctx", {}).get("error", "not JSON"))
        return InvalidRequest(f"We could not parse the JSON body of your request: {reason}.")
    body = json.loads(raw)
    if not isinstance(body, dict):
        return InvalidRequest("The body must be a JSON object.")
    # A union reports an error of each branch. The branch that got deepest below the first error's place was meant.
    walked = [(_walk(item, body), item) for item in details]
    place = walked[0][0]
    rivals = [(steps, item) for steps, item in walked if steps[: len(place)] == place]
    steps, meant = max(rivals, key=lambda rival: len(rival[0]))
    param = _path(steps, meant)
    same = [item for steps, item in rivals if _path(steps, item) == param]
    hint = meant_by(param, model.model_fields) if len(steps) == 1 else ""
    return _explain(param, meant, same, hint)


def _path(steps: list[str | int], item: Any) -> str:
    path = ""
    for step in steps:
        path += f"[{step}]" if isinstance(step, int) else f".{step}"
    at: str = item.get("ctx", {}).get("at", "")
    if at and not at.startswith(("[", ".")):
        at = f".{at}"
    return (path + at).lstrip(".")


def _walk(item: Any, body: Any) -> list[str | int]:
    """Return the steps of an error's location that exist in the data. pydantic mixes in names of union branches."""
    here = body
    steps: list[str | int] = []
    for step in item["loc"]:
        if _has(here, step):
            here = here[step]
            steps.append(step)
    if item["type"] == "missing":
        steps.append(item["loc"][-1])
    if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
        steps.append(item["ctx"]["discriminator"].strip("'"))
    return steps


def _has(here: Any, step: str | int) -> bool:
    if isinstance(here, dict):
        return isinstance(step, str) and step in here
    return isinstance(here, list) and isinstance(step, int) and step < len(here)


def _explain(param: str, first: Any, same: list[Any], hint: str) -> InvalidRequest:
    """Return the error as OpenAI writes it. `hint`: the field that was probably meant, or ""."""
    kind = first["type"]
    shown = param[:200]
    match kind:
        case "missing" | "union_tag_not_found":
            return InvalidRequest(f"Missing required parameter: '{shown}'.", param=shown)
        case "extra_forbidden":
            remedy = f"Did you mean '{hint}'? See" if hint else "See"
            return InvalidRequest(
                f"Unrecognized request argument supplied: '{shown}'. {remedy} /docs for the known parameters.",
                param=shown,
            )
        case "none_required":
            remedy = f"Use '{hint}' instead" if hint else "Leave it out"
            return UnsupportedParameter(f"'{shown}' is not supported by this server yet. {remedy}.", param=shown)
        case "tokka_unsupported":
            return UnsupportedParameter(_cut(f"Invalid value for '{shown}': {first['msg']}."), param=shown)
        case "union_tag_invalid":
            return InvalidRequest(
                _cut(f"Invalid value for '{shown}': expected one of {first['ctx']['expected_tags']}."), param=shown
            )
    if not param:
        return InvalidRequest(_cut(f"Invalid body: {first['msg']}."))
    reasons = list(dict.fromkeys(item["msg"] for item in same))
    return InvalidRequest(_cut(f"Invalid value for '{shown}': {' or '.join(reasons)}."), param=shown)


def _cut(message: str) -> str:
    return message if len(message) <= _MAX_MESSAGE_CHARS else message[: _MAX_MESSAGE_CHARS - 1] + "…"
