"""Translates vLLM's errors into Tokka's errors for clients and operators."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Mapping
from typing import Any

import structlog

from tokka.core import Constraint
from tokka.engine.supervision.exits import exit_words
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
_WRAPPERS = (
    "Engine core initialization failed",
    "Frontend process failed during engine core initialization",
    "WorkerProc initialization failed",
    "Executor failed",
)


class EndedByEngine(Exception):
    """The engine ended a request, and the reason is neither `stop` nor `length`."""


def translate(error: Exception, constraint: Constraint | None = None) -> Exception:
    """Return the error for the client. `constraint`: the constraint on the request's choices."""
    if isinstance(error, EndedByEngine):
        return _ended(error, constraint)
    from vllm.exceptions import GracefulHTTPError, VLLMClientError
    from vllm.v1.engine.exceptions import EngineDeadError

    # design 4.8
    match error:
        case TokkaError():
            return error
        case EngineDeadError():
            return EngineDied()
        case GracefulHTTPError():
            return ServerOverloaded("The engine accepts no more requests. Retry later.", retry_after_s=_RETRY_AFTER_S)
        case VLLMClientError():
            return InvalidRequest(
                str(error.args[0] if error.args else error)[:500], param=getattr(error, "parameter", None)
            )
    log.error("engine_failed_on_request", exc_info=error)
    return EngineError("The engine failed on this request.")


def _ended(error: EndedByEngine, constraint: Constraint | None) -> EngineError:
    # design 4.6
    if constraint is None:
        return EngineError(f"The engine ended this request: {error}.")
    # guidance.py ends a request at a limit of the library, or if no token satisfies the schema.
    return EngineError(
        f"The completion could not be continued: '{constraint.param}' became too complex during generation, or allows"
        " no token here. Make it simpler.",
        param=constraint.param,
        should_retry=False,
    )


def one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # pydantic puts a count first and the reason after it.
    if len(lines) > 1 and "validation error" in lines[0]:
        lines = lines[1:]
    if not lines:
        return type(error).__name__
    # The text of these errors is only a name or a number, so add the type.
    bare = isinstance(error, LookupError | AttributeError | TypeError | AssertionError | ArithmeticError)
    return f"{type(error).__name__}: {lines[0]}" if bare else lines[0]


def is_wrapper(text: str) -> bool:
    """Return whether vLLM's error only wraps the real cause, which another process has printed."""
    return text.startswith(_WRAPPERS)


def cause_of(error: BaseException, *, exits: Mapping[str, int], last_error: str | None, out_of_memory: bool) -> str:
    """Return why the engine failed, in one line: first `error`, then the last error that its processes printed.

    `last_error` is the cause only if `error` says that another process failed with an error.
    """
    if not is_wrapper(str(error)):
        text = one_line(error)
        return text if last_error is None or last_error in text else f"{text}; {_last_words(last_error)}"
    for name, code in _killed(exits).items():
        return f"its process {name} {exit_words(code, out_of_memory=out_of_memory)}"
    if last_error is not None:
        return last_error
    codes = ", ".join(f"{name} {exit_words(code)}" for name, code in exits.items())
    return f"its process {codes or 'ended'} and printed no error; --log-level debug shows its own log"


def core_exits(error: BaseException) -> dict[str, int]:
    """Return the exit codes of the engine's processes that failed while vLLM waited for them, by name.

    The error's own list is often incomplete: vLLM sees a process end before its exit code is available.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        manager: Any = getattr(frame.f_locals.get("launch"), "engine_manager", None)
        if hasattr(manager, "finished_procs"):
            return dict(manager.finished_procs())
    return {}


def death_of(ended: str | None, exits: Mapping[str, int], last_error: str | None, *, out_of_memory: bool) -> str:
    """Return why a ready engine died. `ended`: the process that was found to have ended, if any."""
    # design 5.2
    for name, code in _killed(exits).items():
        return f"the process {name} {exit_words(code, out_of_memory=out_of_memory)}"
    what = f"the process {ended} ended" if ended else "the engine stopped"
    return f"{what}; {_last_words(last_error)}" if last_error else what


def load_failure(model: str, cause: str, reasoning_parser: str | None) -> StartupError:
    """Return the operator's error for a model that could not be loaded."""
    if reasoning_parser is not None and "reasoning parser" in cause:
        return ConfigurationError(f"--reasoning-parser {reasoning_parser} does not fit this model: {cause}")
    if "trust_remote_code" in cause or "custom code" in cause:
        return ConfigurationError(
            f"{model} contains custom code, which runs with the server's rights; review it, and if you trust it, "
            "start the server with --engine-arg trust_remote_code=true"
        )
    return StartupError(f"the engine could not load {model}: {cause}")


def _last_words(last_error: str) -> str:
    return f"the last error in the engine's own log: {last_error}"


def _killed(exits: Mapping[str, int]) -> dict[str, int]:
    """Return the processes that a signal ended. SIGTERM does not count: vLLM sends it to the remaining processes."""
    return {name: code for name, code in exits.items() if code < 0 and code != -signal.SIGTERM}
