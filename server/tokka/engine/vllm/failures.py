"""vLLM's errors in our words."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Mapping
from typing import Any

import structlog

from tokka.core import Constraint
from tokka.engine.exits import exit_words
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
    if not lines:
        return type(error).__name__
    # The text of these is a name or a number, and says nothing by itself.
    bare = isinstance(error, LookupError | AttributeError | TypeError | AssertionError | ArithmeticError)
    return f"{type(error).__name__}: {lines[0]}" if bare else lines[0]


def is_wrapper(text: str) -> bool:
    """Tell whether an error's text is what vLLM raises on top of the real cause, which another process has printed."""
    return text.startswith(_WRAPPERS)


def cause_of(error: BaseException, *, exits: Mapping[str, int], last_error: str | None, out_of_memory: bool) -> str:
    """Return why the engine failed, in one line: the error in hand first, then what its processes printed last.

    `last_error` is the cause only if the error in hand says that another process has failed by an error.
    """
    if not is_wrapper(str(error)):
        text = one_line(error)
        return text if last_error is None or last_error in text else f"{text}; {_last_words(last_error)}"
    for name, code in _killed(exits).items():
        return f"its process {name} {exit_words(code, out_of_memory=out_of_memory)}"
    if last_error is not None:
        return last_error
    codes = ", ".join(f"{name} {exit_words(code)}" for name, code in exits.items())
    return f"its process {codes or 'ended'} and said nothing; --log-level debug shows its own log"


def core_exits(error: BaseException) -> dict[str, int]:
    """Return the exit codes of the engine's processes that failed while vLLM waited for them, by their names.

    The error lists them, but often too early: a process is seen to end before its exit code is there.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        manager: Any = getattr(frame.f_locals.get("launch"), "engine_manager", None)
        if hasattr(manager, "finished_procs"):
            return dict(manager.finished_procs())
    return {}


def death_of(ended: str | None, exits: Mapping[str, int], last_error: str | None, *, out_of_memory: bool) -> str:
    """Return why an engine that was ready died. `ended`: the process that was seen to be gone, if one was."""
    for name, code in _killed(exits).items():
        return f"the process {name} {exit_words(code, out_of_memory=out_of_memory)}"
    what = f"the process {ended} ended" if ended else "the engine stopped"
    return f"{what}; {_last_words(last_error)}" if last_error else what


def load_failure(model: str, cause: str, reasoning_parser: str | None) -> StartupError:
    """Return why a model could not be loaded, as the operator gets to read it."""
    if reasoning_parser is not None and "reasoning parser" in cause:
        return ConfigurationError(f"--reasoning-parser {reasoning_parser} does not fit this model: {cause}")
    if "trust_remote_code" in cause or "custom code" in cause:
        return ConfigurationError(
            f"{model} brings code of its own, which runs with the rights of the server; read it, and if you trust it "
            "serve the model with --engine-arg trust_remote_code=true"
        )
    return StartupError(f"the engine could not load {model}: {cause}")


def _last_words(last_error: str) -> str:
    return f"the last error in the engine's own log: {last_error}"


def _killed(exits: Mapping[str, int]) -> dict[str, int]:
    """Return those that a signal has ended. SIGTERM is left out: vLLM sends it to the processes that are left."""
    return {name: code for name, code in exits.items() if code < 0 and code != -signal.SIGTERM}
