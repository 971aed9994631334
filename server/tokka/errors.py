"""Every error the server can answer with: status, OpenAI type, code, and what the client may do about it."""

from __future__ import annotations

import errno
import math
from collections.abc import Mapping
from typing import Any, Literal

# The OpenAI clients ignore a longer Retry-After and give up instead of waiting.
MAX_RETRY_AFTER_S = 120
# Numbers of the system errors that stay until somebody acts: wrong permissions, wrong kinds of files, wrong names.
_LASTING = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL}
# Numbers of the errors with which a file system says that it has no locks.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class TokkaError(Exception):
    """An expected refusal. Raised anywhere, rendered in `api/errors.py`; the message is shown to the client."""

    status = 500
    type = "server_error"
    code: str | None = "engine_error"
    # What programs may read of the cause.
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
        headers = {}
        if self.retry_after_s is not None:
            after_s = max(1.0, min(MAX_RETRY_AFTER_S, self.retry_after_s))
            headers["retry-after"] = str(math.ceil(after_s))
            # To the millisecond: the OpenAI clients prefer it, and do not come back as one crowd.
            headers["retry-after-ms"] = str(math.ceil(after_s * 1000))
        if self.should_retry is not None:
            headers["x-should-retry"] = "true" if self.should_retry else "false"
        return headers

    def body(self) -> dict[str, Any]:
        fields = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": fields | self._details()}

    def oauth_body(self) -> dict[str, Any]:
        return {"error": self.code or self.type, "error_description": self.message, **self._details()}

    def _details(self) -> dict[str, Any]:
        return {} if self.details is None else {"details": dict(self.details)}


class InvalidRequest(TokkaError):
    status, type, code = 400, "invalid_request_error", "invalid_value"


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class NoChatTemplate(InvalidRequest):
    """A base model was sent a conversation. A code of its own: clients offer completion instead."""

    code = "no_chat_template"

    def __init__(self) -> None:
        super().__init__(
            "This is a base model: it has no chat template, so it cannot answer a conversation. "
            "Use /v1/completions, or have the server started with --chat-template FILE.",
            param="messages",
        )


class InvalidApiKey(TokkaError):
    status, type, code = 401, "invalid_request_error", "invalid_api_key"

    def headers(self) -> dict[str, str]:
        return {**super().headers(), "www-authenticate": "Bearer"}


class PermissionDenied(TokkaError):
    status, type, code = 403, "invalid_request_error", "permission_denied"


class ModelNotFound(TokkaError):
    status, type, code = 404, "invalid_request_error", "model_not_found"


class WorkerNotFound(TokkaError):
    status, type, code = 404, "invalid_request_error", "worker_not_found"


class KeyNotFound(TokkaError):
    status, type, code = 404, "invalid_request_error", "key_not_found"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"There is no key `{key_id[:64]}`, or it was revoked. GET /admin/keys lists them.")


class UnknownUrl(TokkaError):
    status, type, code = 404, "invalid_request_error", "unknown_url"


class MethodNotAllowed(TokkaError):
    status, type, code = 405, "invalid_request_error", "method_not_allowed"

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow

    def headers(self) -> dict[str, str]:
        return {**super().headers(), **({"allow": self.allow} if self.allow else {})}


class BodyTooLarge(TokkaError):
    status, type, code = 413, "invalid_request_error", "request_too_large"


class SlowRequest(TokkaError):
    """The client takes too long to send its request."""

    status, type, code = 408, "invalid_request_error", "request_timeout"

    def headers(self) -> dict[str, str]:
        # The rest of the request may never come.
        return {**super().headers(), "connection": "close"}


class UnsupportedMediaType(TokkaError):
    status, type, code = 415, "invalid_request_error", "unsupported_media_type"


class InternalError(TokkaError):
    """A fault of ours. The cause goes to the log, never into the answer."""

    code = "internal_error"


class EngineError(TokkaError):
    """The engine failed this request, or died with it."""


class EngineDied(EngineError):
    """The engine died while it worked on this request; the next one may well serve it."""

    def __init__(self, message: str = "The engine stopped while it worked on this request.") -> None:
        super().__init__(message, should_retry=True)


class SlowReader(TokkaError):
    """A client reads its stream so slowly that the server would have to keep too much for it."""

    status, type, code = 408, "invalid_request_error", "slow_reader"


class Quarantined(InvalidRequest):
    """This request was running each time the engine died: sending it again would end everybody's."""

    def __init__(self, message: str) -> None:
        super().__init__(message, should_retry=False)


class TenantHeld(TokkaError):
    """Requests of this tenant were running each time the engine died."""

    status, code = 503, "tenant_held"

    def __init__(self, message: str, left_s: float) -> None:
        # A client would use up its retries before a time that is longer than it waits.
        super().__init__(message, retry_after_s=left_s, should_retry=None if left_s <= MAX_RETRY_AFTER_S else False)


class RequestTimeout(TokkaError):
    """The request's time was over before its first token."""

    status, code = 504, "request_timeout"


class RateLimited(TokkaError):
    """This key's own limit. `type`: what there was too much of, as OpenAI says it."""

    status, code = 429, "rate_limit_exceeded"

    def __init__(self, message: str, *, of: Literal["requests", "tokens"], retry_after_s: float | None) -> None:
        # What never fits is not worth another try.
        super().__init__(message, retry_after_s=retry_after_s, should_retry=None if retry_after_s else False)
        self.type = of


class QuotaExceeded(TokkaError):
    """The key has used what it may use today or this month; trying again soon does not help."""

    status, type, code = 429, "insufficient_quota", "insufficient_quota"

    def __init__(self, message: str) -> None:
        super().__init__(message, should_retry=False)


class SignerUnknown(InvalidApiKey):
    """No key in memory has signed the token; the issuer may have a newer one."""


class IssuerUnavailable(TokkaError):
    """Whether a token is good cannot be told: its issuer's keys could not be had."""

    status, code = 503, "issuer_unavailable"


class ServerOverloaded(TokkaError):
    status, code = 503, "server_overloaded"


class ModelStarting(TokkaError):
    status, code = 503, "model_starting"


class Maintenance(TokkaError):
    """An operator's downtime is under way. `begin` and `end` as clients read them; `left_s`: seconds to its end."""

    status, code = 503, "maintenance"

    def __init__(self, begin: str, end: str, reason: str, left_s: float) -> None:
        super().__init__(
            f"The server is under maintenance from {begin} to {end}: {reason}. Send the request again after that.",
            retry_after_s=left_s,
            # Else a client waits for the longest time there is, several times, and fails all the same.
            should_retry=None if left_s <= MAX_RETRY_AFTER_S else False,
        )
        self.details = {"begin": begin, "end": end, "reason": reason}


class StateUnavailable(TokkaError):
    """The database of keys and usage cannot be asked. Only /admin needs it: all else goes on from memory."""

    status, code = 503, "state_unavailable"


class Draining(TokkaError):
    status, code = 503, "draining"


class StartupError(Exception):
    """Why the server cannot start, as one line for the operator. Not an HTTP error."""

    exit_code = 3


class ConfigurationError(StartupError):
    """The operator asked for something that no time can make possible, such as a wrong option."""

    exit_code = 2


class TemporaryError(StartupError):
    """Something the server needs is not there yet, such as a database or an address: a later start may succeed."""

    exit_code = 1


def unreadable(message: str, error: OSError) -> StartupError:
    """Return the error of a file that cannot be read: its file system may be mounted late."""
    return (ConfigurationError if is_lasting(error) else TemporaryError)(message)


def is_lasting(error: OSError) -> bool:
    """Tell whether a system error stays until somebody does something about it."""
    return error.errno in _LASTING
