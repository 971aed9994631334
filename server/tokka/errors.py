"""Every error of the server: HTTP errors with status, OpenAI type, code and retry advice; and start-up errors."""

from __future__ import annotations

import errno
import math
from collections.abc import Mapping
from typing import Any, Literal

# Maximum seconds of Retry-After. The OpenAI clients ignore a longer one and give up instead of waiting.
MAX_RETRY_AFTER_S = 120
# Numbers of system errors that stay until the operator acts: wrong permissions, wrong kinds of files, wrong names.
_LASTING = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL}
# Error numbers of a file system without locks.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class TokkaError(Exception):
    """An expected HTTP error. Any layer raises it, `api/errors.py` renders it, and the client sees its message."""

    status = 500
    type = "server_error"
    code: str | None = "engine_error"
    # The cause, for programs.
    details: Mapping[str, str] | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.should_retry = should_retry

    def headers(self) -> dict[str, str]:
        """Return the response headers of this error."""
        headers = {}
        if self.retry_after_s is not None:
            after_s = max(1.0, min(MAX_RETRY_AFTER_S, self.retry_after_s))
            headers["retry-after"] = str(math.ceil(after_s))
            # The OpenAI clients prefer milliseconds, which spread their retries.
            headers["retry-after-ms"] = str(math.ceil(after_s * 1000))
        if self.should_retry is not None:
            headers["x-should-retry"] = "true" if self.should_retry else "false"
        return headers

    def body(self) -> dict[str, Any]:
        """Return the JSON body in OpenAI's format."""
        fields = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": fields | self._details()}

    def oauth_body(self) -> dict[str, Any]:
        """Return the JSON body in the format of OAuth."""
        return {"error": self.code or self.type, "error_description": self.message, **self._details()}

    def _details(self) -> dict[str, Any]:
        return {} if self.details is None else {"details": dict(self.details)}


class InvalidRequest(TokkaError):
    """A field of the request has an invalid value."""

    status, type, code = 400, "invalid_request_error", "invalid_value"


class UnsupportedParameter(InvalidRequest):
    """The request has a field that this server does not support."""

    code = "unsupported_parameter"


class ThreadsUnsupported(UnsupportedParameter):
    """The request of Anthropic's API wants the server to keep the conversation. Its clients read `error_code`."""

    details = {"error_code": "thread_unsupported_request"}


class ContextLengthExceeded(InvalidRequest):
    """Prompt and requested tokens do not fit the model's context."""

    code = "context_length_exceeded"

    def __init__(self, message: str, *, param: str, prompt_tokens: int | None = None, maximum: int = 0) -> None:
        """`prompt_tokens`: the least number of tokens of the prompt, if it alone does not fit into `maximum`."""
        super().__init__(message, param=param)
        self.prompt_tokens = prompt_tokens
        self.maximum = maximum


class NoChatTemplate(InvalidRequest):
    """A base model got a chat request. The error has its own code so that clients can offer completion instead."""

    code = "no_chat_template"

    def __init__(self) -> None:
        super().__init__(
            "This is a base model. It has no chat template, so it cannot answer chat requests. "
            "Use /v1/completions, or ask the operator to start the server with --chat-template FILE.",
            param="messages",
        )


class InvalidApiKey(TokkaError):
    """The request has no valid key."""

    status, type, code = 401, "invalid_request_error", "invalid_api_key"

    def headers(self) -> dict[str, str]:
        return {**super().headers(), "www-authenticate": "Bearer"}


class PermissionDenied(TokkaError):
    """The key's scopes, or the access rule of a server without keys, do not allow this request."""

    status, type, code = 403, "invalid_request_error", "permission_denied"


class ModelNotFound(TokkaError):
    """The server does not serve this model, or not to this key."""

    status, type, code = 404, "invalid_request_error", "model_not_found"


class WorkerNotFound(TokkaError):
    """The server has no worker with this id."""

    status, type, code = 404, "invalid_request_error", "worker_not_found"


class NoFleet(TokkaError):
    """The server has no fleet."""

    status, type, code = 404, "invalid_request_error", "no_fleet"

    def __init__(self) -> None:
        super().__init__("This server has no fleet. Start it with `tokka serve --fleet FILE`.")


class KeyNotFound(TokkaError):
    """No active key has this id."""

    status, type, code = 404, "invalid_request_error", "key_not_found"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"Key `{key_id[:64]}` was not found, or it was revoked. GET /admin/keys lists all keys.")


class ResponseNotFound(TokkaError):
    """The tenant has no stored response with this id."""

    status, type, code = 404, "invalid_request_error", "response_not_found"

    def __init__(self, response_id: str) -> None:
        super().__init__(f"Response `{response_id[:64]}` was not found. It was not stored, or it was removed.")


class PreviousResponseNotFound(InvalidRequest):
    """The conversation to continue is not stored."""

    code = "previous_response_not_found"

    def __init__(self, response_id: str) -> None:
        super().__init__(
            f"Previous response `{response_id[:64]}` was not found. It was not stored, or it was removed. Send the"
            " items of the conversation as input.",
            param="previous_response_id",
        )


class ConnectionLimitReached(InvalidRequest):
    """A WebSocket has been open for as long as the specification allows."""

    code = "websocket_connection_limit_reached"

    def __init__(self) -> None:
        super().__init__("This WebSocket has been open for 60 minutes, the limit. Open a new one.")


class ResponseInterrupted(TokkaError):
    """The server that generated a response in the background has stopped."""

    code = "response_interrupted"

    def __init__(self) -> None:
        super().__init__("The server stopped while it generated this response. Send the request again.")


class UnsupportedTask(InvalidRequest):
    """The model cannot do what the request asks for."""

    code = "unsupported_task"


class UnknownUrl(TokkaError):
    """No route has this path."""

    status, type, code = 404, "invalid_request_error", "unknown_url"


class MethodNotAllowed(TokkaError):
    """The path does not allow this method. `allow`: the methods it allows, for the header of this name."""

    status, type, code = 405, "invalid_request_error", "method_not_allowed"

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow

    def headers(self) -> dict[str, str]:
        return {**super().headers(), **({"allow": self.allow} if self.allow else {})}


class BodyTooLarge(TokkaError):
    """The request body exceeds --max-body-size."""

    status, type, code = 413, "invalid_request_error", "request_too_large"


class SlowRequest(TokkaError):
    """The client took too long to send its request."""

    status, type, code = 408, "invalid_request_error", "request_timeout"

    def headers(self) -> dict[str, str]:
        # The rest of the request may never come.
        return {**super().headers(), "connection": "close"}


class UnsupportedMediaType(TokkaError):
    """The request body has the wrong content type."""

    status, type, code = 415, "invalid_request_error", "unsupported_media_type"


class InternalError(TokkaError):
    """A fault of the server. The cause goes to the log, never into the response."""

    code = "internal_error"


class EngineError(TokkaError):
    """The engine failed this request, or died while it worked on it."""


class GenerationFailed(EngineError):
    """The server had a fault while it generated. The cause is in the log."""

    def __init__(self) -> None:
        super().__init__("The server had an error while generating.")


class EngineDied(EngineError):
    """The engine died while it worked on this request. The restarted engine may well serve it."""

    def __init__(self, message: str = "The engine stopped while it worked on this request.") -> None:
        super().__init__(message, should_retry=True)


class WorkerDied(EngineDied):
    """The whole process of a worker ended while it worked on this request."""


class EngineLost(EngineError):
    """The engine can no longer be reached, or its process was told to end. The request is not the cause."""

    def __init__(self, message: str = "The connection to the engine was lost while it worked on this request.") -> None:
        super().__init__(message, should_retry=True)


class SlowReader(TokkaError):
    """The client reads its stream so slowly that the server would have to buffer too much."""

    status, type, code = 408, "invalid_request_error", "slow_reader"


class Quarantined(InvalidRequest):
    """This request was running each time the engine died. Running it again could end the requests of all clients."""

    def __init__(self, message: str) -> None:
        super().__init__(message, should_retry=False)


class TenantHeld(TokkaError):
    """Requests of this tenant were running each time the engine died."""

    status, code = 503, "tenant_held"

    def __init__(self, message: str, left_s: float) -> None:
        # If the time is longer than a client waits, its retries would all fail.
        super().__init__(message, retry_after_s=left_s, should_retry=None if left_s <= MAX_RETRY_AFTER_S else False)


class RequestTimeout(TokkaError):
    """The request timed out before its first token."""

    status, code = 504, "request_timeout"


class RateLimited(TokkaError):
    """The key's rate limit is exceeded. `type` is "requests" or "tokens", as in OpenAI's API."""

    status, code = 429, "rate_limit_exceeded"

    def __init__(self, message: str, *, of: Literal["requests", "tokens"], retry_after_s: float | None) -> None:
        # Without a time, the request exceeds the limit itself, so a retry cannot succeed.
        super().__init__(message, retry_after_s=retry_after_s, should_retry=None if retry_after_s else False)
        self.type = of


class QuotaExceeded(TokkaError):
    """The key has used up its daily or monthly quota. A retry soon does not help."""

    status, type, code = 429, "insufficient_quota", "insufficient_quota"

    def __init__(self, message: str) -> None:
        super().__init__(message, should_retry=False)


class SignerUnknown(InvalidApiKey):
    """No issuer key in memory has signed the token. The issuer may have a newer key."""


class IssuerUnavailable(TokkaError):
    """The server cannot verify a token, because it could not fetch the issuer's keys."""

    status, code = 503, "issuer_unavailable"


class ServerOverloaded(TokkaError):
    """The server cannot take the request now, for example because the queue or a memory budget is full."""

    status, code = 503, "server_overloaded"


class ModelStarting(TokkaError):
    """The engine is starting or restarting."""

    status, code = 503, "model_starting"


class Maintenance(TokkaError):
    """A downtime is under way. `begin` and `end`: its times as text; `left_s`: seconds until its end."""

    status, code = 503, "maintenance"

    def __init__(self, begin: str, end: str, reason: str, left_s: float) -> None:
        super().__init__(
            f"The server is under maintenance from {begin} to {end}: {reason}. Send the request again after that.",
            retry_after_s=left_s,
            # Otherwise a client waits for the maximum Retry-After several times, and fails all the same.
            should_retry=None if left_s <= MAX_RETRY_AFTER_S else False,
        )
        self.details = {"begin": begin, "end": end, "reason": reason}


class StateUnavailable(TokkaError):
    """The database of keys and usage is unavailable. Only /admin needs it; other requests use the copy in memory."""

    status, code = 503, "state_unavailable"


class Draining(TokkaError):
    """The server is draining and accepts no new requests."""

    status, code = 503, "draining"


class StartupError(Exception):
    """The server cannot start. The message is one line for the operator. Not an HTTP error."""

    exit_code = 3


class ConfigurationError(StartupError):
    """The operator must change something, for example a wrong option. A later start cannot succeed by itself."""

    exit_code = 2


class TemporaryError(StartupError):
    """Something that the server needs is not available yet, for example a database. A later start may succeed."""

    exit_code = 1


def unreadable(message: str, error: OSError) -> StartupError:
    """Return the start-up error for an unreadable file. It is temporary if the file system may be mounted late."""
    return (ConfigurationError if is_lasting(error) else TemporaryError)(message)


def is_lasting(error: OSError) -> bool:
    """Tell whether a system error stays until the operator acts."""
    return error.errno in _LASTING
