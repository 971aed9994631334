"""vLLM's errors in our words."""

from __future__ import annotations

import structlog

from tokka.core import Constraint
from tokka.errors import (
    ConfigurationError,
    EngineDied,
    EngineError,
    InvalidRequest,
    ServerOverloaded,
    StartupError,
    TokkaError,
)

log = structlog.get_logger("tokka.engine")

_RETRY_AFTER_S = 5


class EndedByEngine(Exception):
    """The engine ended a request for a reason that is neither its end nor its length."""


def in_our_words(error: Exception, constraint: Constraint | None = None) -> Exception:
    """Return what the client gets to read. `constraint`: what the answer was held to."""
    if isinstance(error, EndedByEngine):
        return _ended(error, constraint)
    from vllm.exceptions import GracefulHTTPError, VLLMClientError
    from vllm.v1.engine.exceptions import EngineDeadError

    match error:
        case TokkaError():
            return error
        case EngineDeadError():
            return EngineDied()
        case GracefulHTTPError():
            return ServerOverloaded("The engine takes no more requests now.", retry_after_s=_RETRY_AFTER_S)
        case VLLMClientError():
            return InvalidRequest(
                str(error.args[0] if error.args else error)[:500], param=getattr(error, "parameter", None)
            )
    log.error("engine_failed_on_request", exc_info=error)
    return EngineError("The engine failed on this request.")


def _ended(error: EndedByEngine, constraint: Constraint | None) -> EngineError:
    if constraint is None:
        return EngineError(f"The engine ended this request: {error}.")
    # guidance.py ends it at a limit of the library, and where nothing fits what the schema leads to.
    return EngineError(
        f"The answer could not be continued: '{constraint.param}' became too complex while it ran, or allows nothing"
        " here. Make it simpler.",
        param=constraint.param,
        should_retry=False,
    )


def one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # pydantic puts a count first and the reason after it.
    if len(lines) > 1 and "validation error" in lines[0]:
        lines = lines[1:]
    return lines[0] if lines else type(error).__name__


def load_failure(model: str, cause: str, reasoning_parser: str | None) -> StartupError:
    """Return why a model could not be loaded, as the operator gets to read it."""
    if reasoning_parser is not None and "reasoning parser" in cause:
        return ConfigurationError(f"--reasoning-parser {reasoning_parser} does not fit this model: {cause}")
    return StartupError(f"the engine could not load {model}: {cause}")
